// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kek::catalog {

// ResourceName models a Cloud KMS resource name (reference:
// google/cloud/kms/v1/resources.proto, "Resource names"):
//   projects/{p}/locations/{l}
//   projects/{p}/locations/{l}/keyRings/{r}
//   projects/{p}/locations/{l}/keyRings/{r}/cryptoKeys/{k}
//   projects/{p}/locations/{l}/keyRings/{r}/cryptoKeys/{k}/cryptoKeyVersions/{v}
// Project and location segments are [a-zA-Z0-9._:-]{1,63}, ring and key ids
// [a-zA-Z0-9_-]{1,63}, a version a decimal number from 1 without leading zeros
// that fits 32 bits. It is the only parser of names in the program. A value;
// "name order" is by the parent's text, then by id, versions by number (2
// before 10).
class ResourceName {
 public:
  enum class Kind { kLocation, kKeyRing, kCryptoKey, kCryptoKeyVersion };

  // INVALID_ARGUMENT names the part that is wrong (never echoes more than 128
  // bytes of the input).
  static absl::StatusOr<ResourceName> Parse(absl::string_view name);
  // The same, and INVALID_ARGUMENT unless it is of this kind.
  static absl::StatusOr<ResourceName> Parse(absl::string_view name, Kind kind);

  // Children and parents. The id is checked as in Parse; INVALID_ARGUMENT.
  absl::StatusOr<ResourceName> Child(absl::string_view id) const;
  ResourceName Version(uint32_t version) const;  // this must be a CryptoKey
  ResourceName CryptoKey() const;                // of a version or a CryptoKey
  ResourceName Parent() const;                   // not for kLocation

  Kind kind() const { return kind_; }
  const std::string& ToString() const { return text_; }
  // The last segment: ring, key or location id, or the version's digits.
  absl::string_view id() const;
  uint32_t version() const { return version_; }  // 0 unless kCryptoKeyVersion

  friend bool operator==(const ResourceName& a, const ResourceName& b) {
    return a.text_ == b.text_;
  }
  friend bool operator<(const ResourceName& a, const ResourceName& b);
  template <typename H>
  friend H AbslHashValue(H h, const ResourceName& n) {
    return H::combine(std::move(h), n.text_);
  }

 private:
  ResourceName(Kind kind, std::string text, uint32_t version)
      : kind_(kind), text_(std::move(text)), version_(version) {}
  Kind kind_;
  std::string text_;
  uint32_t version_;
};

// "KeyRing", "CryptoKey", ... as errors say it.
absl::string_view KindName(ResourceName::Kind kind);

}  // namespace kek::catalog
