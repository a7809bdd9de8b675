// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "catalog/resource_name.h"

namespace kek::catalog {

// The records of the catalog: plain values. Times have microseconds, as in
// Cloud KMS. A revision of 0 means "not stored yet"; the catalog sets it at
// every write, and refuses a write whose revision is not the stored one.

using Uuid = std::array<uint8_t, 16>;
std::string UuidToString(const Uuid& uuid);  // 8-4-4-4-12 lower-case hex

enum class Purpose {
  kEncryptDecrypt = 1,
  kAsymmetricSign = 5,
  kAsymmetricDecrypt = 6,
  kRawEncryptDecrypt = 7,
  kMac = 9
};

// Numbers as in google.cloud.kms.v1; core/algorithm.h has the table of what
// each one means.
using AlgorithmId = int;

enum class ProtectionLevel { kSoftware = 1, kHsm = 2 };

// google.cloud.kms.v1.CryptoKeyVersion.CryptoKeyVersionState, same numbers.
enum class VersionState {
  kEnabled = 1,
  kDisabled = 2,
  kDestroyed = 3,
  kDestroyScheduled = 4,
  kPendingGeneration = 5,
  kPendingImport = 6,
  kImportFailed = 7,
  kGenerationFailed = 8,
};
absl::string_view VersionStateName(VersionState state);  // "ENABLED"

// Where key material lives (ARCHITECTURE, decision 2).
enum class Residency { kToken = 1, kWrapped = 2 };

struct KeyRing {
  ResourceName name;
  absl::Time create_time;
  uint64_t revision = 0;
};

struct CryptoKey {
  ResourceName name;
  Uuid uuid{};
  Purpose purpose = Purpose::kEncryptDecrypt;
  AlgorithmId algorithm = 0;  // of new versions
  ProtectionLevel protection_level = ProtectionLevel::kSoftware;
  Residency residency = Residency::kToken;
  absl::Time create_time;
  std::map<std::string, std::string> labels;
  absl::Duration destroy_scheduled_duration;
  bool import_only = false;
  std::optional<absl::Duration> rotation_period;
  std::optional<absl::Time> next_rotation_time;
  // Version new ciphertexts are made under; 0: none.
  uint32_t primary_version = 0;
  // Grows each time primary_version is set, also back to an older version, so
  // that (version, activation) never repeats. Front ends build identifiers on
  // it that must never be reused (Kubernetes' key_id).
  uint64_t primary_activation = 0;
  uint32_t next_version = 1;  // ids are never reused
  // Rotate when a version has made this many encryptions; 0: the server's
  // default.
  uint64_t rotate_after_uses = 0;
  uint64_t revision = 0;
};

// A ciphertext that proves which key a handle is (pkcs11::Canary, in stored
// form).
struct StoredCanary {
  std::vector<uint8_t> iv, ciphertext, aad;
  std::array<uint8_t, 32> plaintext_sha256{};
};

struct CryptoKeyVersion {
  ResourceName name;
  Uuid key_uuid{};
  VersionState state = VersionState::kPendingGeneration;
  AlgorithmId algorithm = 0;
  ProtectionLevel protection_level = ProtectionLevel::kSoftware;
  Residency residency = Residency::kToken;
  absl::Time create_time;
  std::optional<absl::Time> generate_time;
  std::optional<absl::Time> destroy_time;  // due, while DESTROY_SCHEDULED
  // When it was done; while DESTROY_SCHEDULED: when the destruction began, from
  // which point there is no way back.
  std::optional<absl::Time> destroy_event_time;
  std::string failure_reason;  // of kGenerationFailed, kImportFailed
  // Where the object is: the token's identity
  // ("manufacturer/model/serial/label") and its CKA_ID and label.
  std::string token;
  std::vector<uint8_t> object_id;
  std::string object_label;
  std::optional<StoredCanary>
      canary;  // present in every version that was ever ENABLED
  std::string
      attributes;  // what the token said of the key at creation, for evidence
  // The version becomes primary in the transaction that makes it ENABLED (it
  // was made by rotation or is the first).
  bool primary_on_enable = false;
  uint64_t revision = 0;
};

}  // namespace kek::catalog
