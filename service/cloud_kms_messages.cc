// SPDX-License-Identifier: Apache-2.0
#include "service/cloud_kms_messages.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/crc32c.h"
#include "base/status_macros.h"
#include "core/envelope.h"
#include "service/bytes.h"

namespace kek::service {

namespace kms = google::cloud::kms::v1;
using catalog::ResourceName;
using Kind = catalog::ResourceName::Kind;

namespace {

google::protobuf::Timestamp ToProto(absl::Time time) {
  const int64_t micros = absl::ToUnixMicros(time);
  int64_t seconds = micros / 1000000, rest = micros % 1000000;
  if (rest < 0) --seconds, rest += 1000000;
  google::protobuf::Timestamp result;
  result.set_seconds(seconds);
  result.set_nanos(static_cast<int32_t>(rest * 1000));
  return result;
}

google::protobuf::Duration ToProto(absl::Duration duration) {
  google::protobuf::Duration result;
  result.set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  result.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
  return result;
}

absl::StatusOr<absl::Time> TimeOf(absl::string_view field,
                                  const google::protobuf::Timestamp& value) {
  // Years 1 to 9999, as google.protobuf.Timestamp has it.
  if (value.seconds() < -62135596800 || value.seconds() > 253402300799 ||
      value.nanos() < 0 || value.nanos() > 999999999) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is not a valid Timestamp"));
  }
  return absl::FromUnixSeconds(value.seconds()) +
         absl::Nanoseconds(value.nanos());
}

absl::StatusOr<absl::Duration> DurationOf(
    absl::string_view field, const google::protobuf::Duration& value) {
  // 10,000 years, as google.protobuf.Duration has it.
  constexpr int64_t kMost = 315576000000;
  if (value.seconds() < -kMost || value.seconds() > kMost ||
      value.nanos() < -999999999 || value.nanos() > 999999999 ||
      (value.seconds() > 0 && value.nanos() < 0) ||
      (value.seconds() < 0 && value.nanos() > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is not a valid Duration"));
  }
  return absl::Seconds(value.seconds()) + absl::Nanoseconds(value.nanos());
}

std::optional<int64_t> Checksum(bool present,
                                const google::protobuf::Int64Value& value) {
  if (!present) return std::nullopt;
  return value.value();
}

kms::ProtectionLevel ToProto(catalog::ProtectionLevel level) {
  return static_cast<kms::ProtectionLevel>(level);
}

template <typename From, typename Items, typename Response>
void FillList(const From& from, Items& items, Response& response) {
  for (const auto& item : from.items) Fill(item, *items.Add());
  response.set_next_page_token(from.next_page_token);
  response.set_total_size(static_cast<int32_t>(std::min<uint64_t>(
      from.total_size, std::numeric_limits<int32_t>::max())));
}

template <typename Request>
absl::StatusOr<core::ListPage> AnyPageOf(const Request& request) {
  if (request.page_size() < 0) {
    return absl::InvalidArgumentError("page_size is negative");
  }
  if (!request.filter().empty()) {
    return absl::InvalidArgumentError("filter is not supported");
  }
  if (!request.order_by().empty() && request.order_by() != "name") {
    return absl::InvalidArgumentError(
        "order_by is not supported, other than \"name\"");
  }
  return core::ListPage{.page_size = static_cast<size_t>(request.page_size()),
                        .page_token = request.page_token()};
}

absl::Status CannotUpdate(absl::string_view path) {
  return absl::InvalidArgumentError(absl::StrCat(
      "update_mask: '", path.substr(0, 128), "' cannot be updated"));
}

absl::Status Unimplemented(absl::string_view field) {
  return absl::UnimplementedError(absl::StrCat(field, " is not supported"));
}

absl::StatusOr<std::optional<catalog::ProtectionLevel>> LevelOf(
    kms::ProtectionLevel level) {
  switch (level) {
    case kms::PROTECTION_LEVEL_UNSPECIFIED:
      return std::nullopt;
    case kms::SOFTWARE:
      return catalog::ProtectionLevel::kSoftware;
    case kms::HSM:
      return catalog::ProtectionLevel::kHsm;
    default:
      return Unimplemented("version_template.protection_level");
  }
}

}  // namespace

// ---- answers

void Fill(const catalog::KeyRing& from, kms::KeyRing& to) {
  to.set_name(from.name.ToString());
  *to.mutable_create_time() = ToProto(from.create_time);
}

void Fill(const catalog::CryptoKeyVersion& from, kms::CryptoKeyVersion& to) {
  to.set_name(from.name.ToString());
  to.set_state(
      static_cast<kms::CryptoKeyVersion::CryptoKeyVersionState>(from.state));
  to.set_protection_level(ToProto(from.protection_level));
  to.set_algorithm(
      static_cast<kms::CryptoKeyVersion::CryptoKeyVersionAlgorithm>(
          from.algorithm));
  *to.mutable_create_time() = ToProto(from.create_time);
  if (from.generate_time) {
    *to.mutable_generate_time() = ToProto(*from.generate_time);
  }
  if (from.destroy_time) {
    *to.mutable_destroy_time() = ToProto(*from.destroy_time);
  }
  if (from.destroy_event_time) {
    *to.mutable_destroy_event_time() = ToProto(*from.destroy_event_time);
  }
  switch (from.state) {
    case catalog::VersionState::kGenerationFailed:
      to.set_generation_failure_reason(from.failure_reason);
      break;
    case catalog::VersionState::kImportFailed:
      to.set_import_failure_reason(from.failure_reason);
      break;
    default:
      break;
  }
}

void Fill(const core::CryptoKeyView& from, kms::CryptoKey& to) {
  const catalog::CryptoKey& key = from.key;
  to.set_name(key.name.ToString());
  if (from.primary) Fill(*from.primary, *to.mutable_primary());
  to.set_purpose(static_cast<kms::CryptoKey::CryptoKeyPurpose>(key.purpose));
  *to.mutable_create_time() = ToProto(key.create_time);
  if (key.next_rotation_time) {
    *to.mutable_next_rotation_time() = ToProto(*key.next_rotation_time);
  }
  if (key.rotation_period) {
    *to.mutable_rotation_period() = ToProto(*key.rotation_period);
  }
  kms::CryptoKeyVersionTemplate& version_template =
      *to.mutable_version_template();
  version_template.set_protection_level(ToProto(key.protection_level));
  version_template.set_algorithm(
      static_cast<kms::CryptoKeyVersion::CryptoKeyVersionAlgorithm>(
          key.algorithm));
  to.mutable_labels()->insert(key.labels.begin(), key.labels.end());
  to.set_import_only(key.import_only);
  *to.mutable_destroy_scheduled_duration() =
      ToProto(key.destroy_scheduled_duration);
}

void Fill(const core::ListResult<catalog::KeyRing>& from,
          kms::ListKeyRingsResponse& to) {
  FillList(from, *to.mutable_key_rings(), to);
}

void Fill(const core::ListResult<core::CryptoKeyView>& from,
          kms::ListCryptoKeysResponse& to) {
  FillList(from, *to.mutable_crypto_keys(), to);
}

void Fill(const core::ListResult<catalog::CryptoKeyVersion>& from,
          kms::ListCryptoKeyVersionsResponse& to) {
  FillList(from, *to.mutable_crypto_key_versions(), to);
}

void Fill(const core::EncryptResult& from, kms::EncryptResponse& to) {
  to.set_name(from.version.ToString());
  to.set_ciphertext(from.ciphertext.data(), from.ciphertext.size());
  to.mutable_ciphertext_crc32c()->set_value(base::Crc32c(from.ciphertext));
  to.set_protection_level(ToProto(from.protection_level));
}

void Fill(const core::DecryptResult& from, kms::DecryptResponse& to) {
  to.set_plaintext(from.plaintext.data(), from.plaintext.size());
  to.mutable_plaintext_crc32c()->set_value(base::Crc32c(from.plaintext.span()));
  to.set_used_primary(from.used_primary);
  to.set_protection_level(ToProto(from.protection_level));
}

// ---- requests

absl::StatusOr<core::ListPage> PageOf(const kms::ListKeyRingsRequest& request) {
  return AnyPageOf(request);
}
absl::StatusOr<core::ListPage> PageOf(
    const kms::ListCryptoKeysRequest& request) {
  return AnyPageOf(request);
}
absl::StatusOr<core::ListPage> PageOf(
    const kms::ListCryptoKeyVersionsRequest& request) {
  return AnyPageOf(request);
}

absl::StatusOr<core::CreateCryptoKeyRequest> RequestOf(
    const kms::CreateCryptoKeyRequest& request) {
  ASSIGN_OR_RETURN(ResourceName ring,
                   ResourceName::Parse(request.parent(), Kind::kKeyRing));
  const kms::CryptoKey& key = request.crypto_key();
  core::CreateCryptoKeyRequest result{.ring = std::move(ring),
                                      .id = request.crypto_key_id()};
  switch (key.purpose()) {
    case kms::CryptoKey::CRYPTO_KEY_PURPOSE_UNSPECIFIED:
      break;
    case kms::CryptoKey::ENCRYPT_DECRYPT:
    case kms::CryptoKey::ASYMMETRIC_SIGN:
    case kms::CryptoKey::ASYMMETRIC_DECRYPT:
    case kms::CryptoKey::RAW_ENCRYPT_DECRYPT:
    case kms::CryptoKey::MAC:
      result.purpose = static_cast<catalog::Purpose>(key.purpose());
      break;
    case kms::CryptoKey::KEY_ENCAPSULATION:
    case kms::CryptoKey::AES_WRAPPING:
      return Unimplemented("purpose");
    default:
      return absl::InvalidArgumentError("purpose is not a CryptoKeyPurpose");
  }
  ASSIGN_OR_RETURN(result.protection_level,
                   LevelOf(key.version_template().protection_level()));
  result.algorithm = key.version_template().algorithm();
  result.labels = {key.labels().begin(), key.labels().end()};
  if (key.has_destroy_scheduled_duration()) {
    ASSIGN_OR_RETURN(result.destroy_scheduled_duration,
                     DurationOf("destroy_scheduled_duration",
                                key.destroy_scheduled_duration()));
  }
  if (key.has_rotation_period()) {
    ASSIGN_OR_RETURN(result.rotation_period,
                     DurationOf("rotation_period", key.rotation_period()));
  }
  if (key.has_next_rotation_time()) {
    ASSIGN_OR_RETURN(result.next_rotation_time,
                     TimeOf("next_rotation_time", key.next_rotation_time()));
  }
  if (!key.crypto_key_backend().empty()) {
    return Unimplemented("crypto_key_backend");
  }
  if (key.has_key_access_justifications_policy()) {
    return Unimplemented("key_access_justifications_policy");
  }
  if (request.trusted_wrapping_enabled()) {
    return Unimplemented("trusted_wrapping_enabled");
  }
  result.import_only = key.import_only();
  result.skip_initial_version_creation =
      request.skip_initial_version_creation();
  return result;
}

absl::StatusOr<core::UpdateCryptoKeyRequest> RequestOf(
    const kms::UpdateCryptoKeyRequest& request) {
  const kms::CryptoKey& key = request.crypto_key();
  ASSIGN_OR_RETURN(ResourceName name,
                   ResourceName::Parse(key.name(), Kind::kCryptoKey));
  core::UpdateCryptoKeyRequest result{.name = std::move(name)};
  if (request.update_mask().paths().empty()) {
    return absl::InvalidArgumentError("update_mask is empty");
  }
  for (const std::string& path : request.update_mask().paths()) {
    if (path == "labels") {
      result.labels.emplace(key.labels().begin(), key.labels().end());
    } else if (path == "rotation_period") {
      result.rotation_period.emplace();
      if (key.has_rotation_period()) {
        ASSIGN_OR_RETURN(*result.rotation_period,
                         DurationOf(path, key.rotation_period()));
      }
    } else if (path == "next_rotation_time") {
      result.next_rotation_time.emplace();
      if (key.has_next_rotation_time()) {
        ASSIGN_OR_RETURN(*result.next_rotation_time,
                         TimeOf(path, key.next_rotation_time()));
      }
    } else if (path == "version_template.algorithm") {
      result.algorithm = key.version_template().algorithm();
    } else if (path == "version_template") {
      // Its other field cannot change; a client that repeats it means this one.
      result.algorithm = key.version_template().algorithm();
      ASSIGN_OR_RETURN(result.protection_level,
                       LevelOf(key.version_template().protection_level()));
    } else if (path == "key_access_justifications_policy") {
      return Unimplemented(path);
    } else {
      return CannotUpdate(path);
    }
  }
  return result;
}

absl::StatusOr<core::EncryptRequest> RequestOf(
    const kms::EncryptRequest& request) {
  ASSIGN_OR_RETURN(ResourceName name, ResourceName::Parse(request.name()));
  return core::EncryptRequest{
      .name = std::move(name),
      .context = core::EnvelopeContext::kCloudKms,
      .plaintext = BytesOf(request.plaintext()),
      .aad = BytesOf(request.additional_authenticated_data()),
      .plaintext_crc32c =
          Checksum(request.has_plaintext_crc32c(), request.plaintext_crc32c()),
      .additional_authenticated_data_crc32c =
          Checksum(request.has_additional_authenticated_data_crc32c(),
                   request.additional_authenticated_data_crc32c())};
}

absl::StatusOr<core::DecryptRequest> RequestOf(
    const kms::DecryptRequest& request) {
  ASSIGN_OR_RETURN(ResourceName key,
                   ResourceName::Parse(request.name(), Kind::kCryptoKey));
  return core::DecryptRequest{
      .key = std::move(key),
      .context = core::EnvelopeContext::kCloudKms,
      .ciphertext = BytesOf(request.ciphertext()),
      .aad = BytesOf(request.additional_authenticated_data()),
      .ciphertext_crc32c = Checksum(request.has_ciphertext_crc32c(),
                                    request.ciphertext_crc32c()),
      .additional_authenticated_data_crc32c =
          Checksum(request.has_additional_authenticated_data_crc32c(),
                   request.additional_authenticated_data_crc32c())};
}

absl::StatusOr<catalog::VersionState> NewStateOf(
    const kms::UpdateCryptoKeyVersionRequest& request) {
  if (request.update_mask().paths().empty()) {
    return absl::InvalidArgumentError("update_mask is empty");
  }
  for (const std::string& path : request.update_mask().paths()) {
    if (path == "external_protection_level_options") return Unimplemented(path);
    if (path != "state") return CannotUpdate(path);
  }
  switch (request.crypto_key_version().state()) {
    case kms::CryptoKeyVersion::ENABLED:
      return catalog::VersionState::kEnabled;
    case kms::CryptoKeyVersion::DISABLED:
      return catalog::VersionState::kDisabled;
    default:
      return absl::InvalidArgumentError(
          "state can be updated to ENABLED and DISABLED only");
  }
}

absl::Status CheckNewVersion(const kms::CryptoKeyVersion& version) {
  if (version.has_external_protection_level_options()) {
    return Unimplemented("external_protection_level_options");
  }
  if (version.trusted_wrapping_enabled()) {
    return Unimplemented("trusted_wrapping_enabled");
  }
  return absl::OkStatus();
}

}  // namespace kek::service
