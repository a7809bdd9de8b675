// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "absl/strings/string_view.h"
#include "catalog/records.h"

namespace kek::core {

// One row per CryptoKeyVersionAlgorithm kekd knows; adding an algorithm is a
// row, not code.
struct Algorithm {
  catalog::AlgorithmId
      id;  // google.cloud.kms.v1.CryptoKeyVersion.CryptoKeyVersionAlgorithm
  absl::string_view name;  // "GOOGLE_SYMMETRIC_ENCRYPTION"
  catalog::Purpose purpose;
  bool is_default;  // of its purpose, when the caller names none
};

inline constexpr catalog::AlgorithmId kGoogleSymmetricEncryption = 1;

// Null for an algorithm kekd does not offer.
const Algorithm* FindAlgorithm(catalog::AlgorithmId id);
// Null where the purpose has no default.
const Algorithm* DefaultAlgorithm(catalog::Purpose purpose);

// Limits of Encrypt, by protection level (reference:
// google/cloud/kms/v1/service.proto, EncryptRequest): SOFTWARE 64 KiB of
// plaintext and 64 KiB of AAD; HSM 8 KiB together.
struct EncryptLimits {
  size_t plaintext;
  size_t aad;
  size_t together;
};
EncryptLimits LimitsOf(catalog::ProtectionLevel level);

}  // namespace kek::core
