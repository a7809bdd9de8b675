// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/status/statusor.h"
#include "catalog/records.h"
#include "core/key_service.h"
#include "google/cloud/kms/v1/resources.pb.h"
#include "google/cloud/kms/v1/service.pb.h"

namespace kek::service {

// google.cloud.kms.v1 messages and what core means by them, both ways.
//
// What Cloud KMS has and kekd has not is refused, never ignored: a filter, an
// order_by other than by name, protection levels beside SOFTWARE and HSM, other
// back ends, external keys, Key Access Justifications. INVALID_ARGUMENT or
// UNIMPLEMENTED, with the field's name. Output-only fields of a request are
// ignored, as there. All functions are pure.

// ---- answers; each fills an empty message

void Fill(const catalog::KeyRing& from, google::cloud::kms::v1::KeyRing& to);
void Fill(const core::CryptoKeyView& from,
          google::cloud::kms::v1::CryptoKey& to);
void Fill(const catalog::CryptoKeyVersion& from,
          google::cloud::kms::v1::CryptoKeyVersion& to);
void Fill(const core::ListResult<catalog::KeyRing>& from,
          google::cloud::kms::v1::ListKeyRingsResponse& to);
void Fill(const core::ListResult<core::CryptoKeyView>& from,
          google::cloud::kms::v1::ListCryptoKeysResponse& to);
void Fill(const core::ListResult<catalog::CryptoKeyVersion>& from,
          google::cloud::kms::v1::ListCryptoKeyVersionsResponse& to);
// All but the verified_* fields, which follow from the request.
void Fill(const core::EncryptResult& from,
          google::cloud::kms::v1::EncryptResponse& to);
void Fill(const core::DecryptResult& from,
          google::cloud::kms::v1::DecryptResponse& to);

// ---- requests

absl::StatusOr<core::ListPage> PageOf(
    const google::cloud::kms::v1::ListKeyRingsRequest& request);
absl::StatusOr<core::ListPage> PageOf(
    const google::cloud::kms::v1::ListCryptoKeysRequest& request);
absl::StatusOr<core::ListPage> PageOf(
    const google::cloud::kms::v1::ListCryptoKeyVersionsRequest& request);
absl::StatusOr<core::CreateCryptoKeyRequest> RequestOf(
    const google::cloud::kms::v1::CreateCryptoKeyRequest& request);
absl::StatusOr<core::UpdateCryptoKeyRequest> RequestOf(
    const google::cloud::kms::v1::UpdateCryptoKeyRequest& request);
// What a request borrows from its message lives as long as that.
absl::StatusOr<core::EncryptRequest> RequestOf(
    const google::cloud::kms::v1::EncryptRequest& request);
absl::StatusOr<core::DecryptRequest> RequestOf(
    const google::cloud::kms::v1::DecryptRequest& request);
// The state an update asks for: kEnabled or kDisabled.
absl::StatusOr<catalog::VersionState> NewStateOf(
    const google::cloud::kms::v1::UpdateCryptoKeyVersionRequest& request);
// OK if the new version asks for nothing kekd has not.
absl::Status CheckNewVersion(
    const google::cloud::kms::v1::CryptoKeyVersion& version);

}  // namespace kek::service
