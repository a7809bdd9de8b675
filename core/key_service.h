// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/metrics.h"
#include "base/secret_bytes.h"
#include "base/sync.h"
#include "catalog/catalog.h"
#include "catalog/records.h"
#include "catalog/resource_name.h"
#include "core/audit_log.h"
#include "core/authorizer.h"
#include "core/caller.h"
#include "core/envelope.h"
#include "pkcs11/token.h"

namespace kek::core {

// What every call carries.
struct CallInfo {
  Caller caller;
  std::string request_id;  // Kubernetes' uid, x-request-id, or made by the
                           // front end; at most 256 bytes, for audit
  base::Deadline deadline;
};

struct EncryptRequest {
  catalog::ResourceName
      name;  // a CryptoKey (its primary is used) or a CryptoKeyVersion
  EnvelopeContext context;
  std::span<const uint8_t> plaintext;
  std::span<const uint8_t> aad;
  bool allow_empty_plaintext = true;
  // CRC32C the caller computed, as it sent them; checked with the payload.
  // INVALID_ARGUMENT "The checksum in field plaintext_crc32c did not match the
  // data in field plaintext.", likewise the other fields.
  std::optional<int64_t> plaintext_crc32c;
  std::optional<int64_t> additional_authenticated_data_crc32c;
};
struct EncryptResult {
  catalog::ResourceName version;
  std::vector<uint8_t> ciphertext;
  catalog::ProtectionLevel protection_level;
};

struct DecryptRequest {
  catalog::ResourceName key;  // a CryptoKey; the version is in the ciphertext
  EnvelopeContext context;
  std::span<const uint8_t> ciphertext;
  std::span<const uint8_t> aad;
  // As in EncryptRequest.
  std::optional<int64_t> ciphertext_crc32c;
  std::optional<int64_t> additional_authenticated_data_crc32c;
};
struct DecryptResult {
  base::SecretBytes plaintext;
  catalog::ResourceName version;
  bool used_primary;
  catalog::ProtectionLevel protection_level;
};

// The primary of a key as front ends need it to name it. (uuid, version,
// activation) is never reused.
struct PrimaryInfo {
  catalog::ResourceName version;
  catalog::Uuid key_uuid;
  uint64_t activation;
  catalog::VersionState state;
};

struct CryptoKeyView {
  catalog::CryptoKey key;
  std::optional<catalog::CryptoKeyVersion> primary;  // live
};

struct CreateCryptoKeyRequest {
  catalog::ResourceName ring;
  std::string id;
  std::optional<catalog::Purpose> purpose;
  catalog::AlgorithmId algorithm = 0;  // 0: the purpose's default
  std::optional<catalog::ProtectionLevel> protection_level;
  std::map<std::string, std::string> labels;
  std::optional<absl::Duration> destroy_scheduled_duration;
  std::optional<absl::Duration> rotation_period;
  std::optional<absl::Time> next_rotation_time;
  bool import_only = false;
  bool skip_initial_version_creation = false;
  uint64_t rotate_after_uses = 0;
};

// Fields to change; outer optional: is it in the update mask.
struct UpdateCryptoKeyRequest {
  catalog::ResourceName name;
  std::optional<std::map<std::string, std::string>> labels;
  std::optional<std::optional<absl::Duration>> rotation_period;
  std::optional<std::optional<absl::Time>> next_rotation_time;
  std::optional<catalog::AlgorithmId> algorithm;
  // Cannot change; INVALID_ARGUMENT unless it is what the key has.
  std::optional<catalog::ProtectionLevel> protection_level;
};

struct ListPage {
  size_t page_size = 0;  // 0: the default, 100; at most 1000
  std::string
      page_token;  // as the page before gave it; INVALID_ARGUMENT otherwise
};
template <typename T>
struct ListResult {
  std::vector<T> items;
  std::string next_page_token;
  uint64_t total_size = 0;
};

// What reconcile found: differences between catalog and token. Reported, never
// mended by deleting.
struct ReconcileReport {
  absl::Time time;
  std::vector<std::string>
      missing;  // versions whose object is not on the token
  std::vector<std::string>
      orphans;  // objects with our label prefix that no version names
  std::vector<std::string> half_objects;  // objects without id or label (what
                                          // kill -9 in C_GenerateKey leaves)
  std::vector<std::string> pending;       // versions still PENDING_GENERATION
};

// KeyService is kekd: everything a caller can do with keys, behind one
// interface that all front ends share.
//
// A call goes: name syntax, permission (in memory, before the key is looked
// up), NOT_FOUND, state and purpose, payload last; then the token; then the
// audit record, durable before the result is returned; then once more the
// version's state, so that a Disable or ScheduleDestroy that returned while the
// call was on its way holds for it. Resolved keys are cached: on a hit no SQL
// and no token search.
//
// Thread-safe. Methods block (token, catalog, audit log) until the call's
// deadline at most; never call from a thread that must not block. Mutations of
// one key take turns; past its commit point a mutation is finished even if the
// deadline passes, before it it leaves nothing that is ENABLED.
//
// Status codes (texts follow Cloud KMS where it has one;
// reference/cloud-kms 1.13):
//   INVALID_ARGUMENT      a malformed name, size, mask, combination; Decrypt:
//   "Decryption failed: the ciphertext is invalid." or
//                         "Decryption failed: verify that 'name' refers to the
//                         correct CryptoKey."
//   PERMISSION_DENIED     policy
//   NOT_FOUND             "CryptoKey projects/... not found."
//   ALREADY_EXISTS        "CryptoKey projects/... already exists."
//   FAILED_PRECONDITION   "projects/.../cryptoKeyVersions/1 is not enabled,
//   current state is: DISABLED."; wrong purpose; no primary ABORTED two
//   mutations met; retry UNAVAILABLE, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED,
//   DATA_LOSS   as pkcs11::Token, catalog::Catalog and AuditLog
// When the audit log does not take a call's record, its error is what the
// caller gets: a result is withheld, but a change that was committed stays
// made. Changes other than Disable are not begun while the log is known to be
// in trouble.
class KeyService {
 public:
  struct Options {
    // Default and bounds of CryptoKey.destroy_scheduled_duration.
    absl::Duration default_destroy_scheduled_duration = absl::Hours(24 * 30);
    absl::Duration min_destroy_scheduled_duration = absl::Hours(24);
    absl::Duration max_destroy_scheduled_duration = absl::Hours(24 * 120);
    // A version is rotated after this many encryptions, and refuses to encrypt
    // at the limit (SP 800-38D: 2^32 random IVs).
    uint64_t default_rotate_after_uses = uint64_t{1} << 31;
    uint64_t max_uses = (uint64_t{1} << 32) - (uint64_t{1} << 24);
    uint64_t max_use_block =
        uint64_t{1} << 20;  // uses reserved at a time; grows from 1024 to this
    size_t cached_keys = 65536;
    bool verify_after_encrypt = true;
    // Locations that exist; empty: all.
    std::vector<std::string> locations;
    base::Metrics* metrics = nullptr;
    const base::Clock* clock = nullptr;  // null: the real one
  };

  // All references must outlive the service. Does no I/O.
  KeyService(catalog::Catalog& catalog, pkcs11::Token& token,
             Authorizer& authorizer, AuditLog& audit, Options options);
  ~KeyService();

  // ---- data
  // ---------------------------------------------------------------------------------------------------------------
  absl::StatusOr<EncryptResult> Encrypt(const CallInfo& call,
                                        const EncryptRequest& request);
  // Identical concurrent calls share one decryption by the token; each is
  // authorised and audited on its own.
  absl::StatusOr<DecryptResult> Decrypt(const CallInfo& call,
                                        const DecryptRequest& request);
  // From the cache; FAILED_PRECONDITION when there is no primary. Needs the
  // permission to encrypt. Not audited.
  absl::StatusOr<PrimaryInfo> Primary(const CallInfo& call,
                                      const catalog::ResourceName& key);

  // ---- key rings, keys, versions
  // ------------------------------------------------------------------------------------------
  absl::StatusOr<catalog::KeyRing> CreateKeyRing(
      const CallInfo& call, const catalog::ResourceName& location,
      absl::string_view id);
  absl::StatusOr<catalog::KeyRing> GetKeyRing(
      const CallInfo& call, const catalog::ResourceName& name);
  absl::StatusOr<ListResult<catalog::KeyRing>> ListKeyRings(
      const CallInfo& call, const catalog::ResourceName& location,
      const ListPage& page);

  // With its first version, unless the request says otherwise: the key and the
  // intent to make version 1 are one transaction, and what is returned is
  // ENABLED and primary. If making the version fails, the error is returned and
  // the key stays, without a primary and with a version GENERATION_FAILED; it
  // encrypts nothing, and asking again for a key of that name, with a first
  // version, completes it with a new version (ids are never reused) and the
  // fields of the new request. While the token does not answer nothing is
  // written at all. ALREADY_EXISTS for every other key that exists.
  absl::StatusOr<CryptoKeyView> CreateCryptoKey(
      const CallInfo& call, const CreateCryptoKeyRequest& request);
  absl::StatusOr<CryptoKeyView> GetCryptoKey(const CallInfo& call,
                                             const catalog::ResourceName& name);
  absl::StatusOr<ListResult<CryptoKeyView>> ListCryptoKeys(
      const CallInfo& call, const catalog::ResourceName& ring,
      const ListPage& page);
  absl::StatusOr<CryptoKeyView> UpdateCryptoKey(
      const CallInfo& call, const UpdateCryptoKeyRequest& request);
  absl::StatusOr<CryptoKeyView> SetPrimaryVersion(
      const CallInfo& call, const catalog::ResourceName& key, uint32_t version);

  // A new ENABLED version; the primary stays.
  absl::StatusOr<catalog::CryptoKeyVersion> CreateVersion(
      const CallInfo& call, const catalog::ResourceName& key);
  // A new version that becomes primary in the transaction that makes it
  // ENABLED.
  absl::StatusOr<CryptoKeyView> Rotate(const CallInfo& call,
                                       const catalog::ResourceName& key);
  absl::StatusOr<catalog::CryptoKeyVersion> GetVersion(
      const CallInfo& call, const catalog::ResourceName& name);
  absl::StatusOr<ListResult<catalog::CryptoKeyVersion>> ListVersions(
      const CallInfo& call, const catalog::ResourceName& key,
      const ListPage& page);
  // ENABLED <-> DISABLED. Holds for every call that has not been answered when
  // this returns.
  absl::StatusOr<catalog::CryptoKeyVersion> Enable(
      const CallInfo& call, const catalog::ResourceName& version);
  absl::StatusOr<catalog::CryptoKeyVersion> Disable(
      const CallInfo& call, const catalog::ResourceName& version);
  // From ENABLED or DISABLED; due after the key's destroy_scheduled_duration.
  absl::StatusOr<catalog::CryptoKeyVersion> ScheduleDestroy(
      const CallInfo& call, const catalog::ResourceName& version);
  // To DISABLED. FAILED_PRECONDITION from destroy_time on, whether the key
  // material is gone already or not.
  absl::StatusOr<catalog::CryptoKeyVersion> Restore(
      const CallInfo& call, const catalog::ResourceName& version);

  // ---- kekd's own work
  // ----------------------------------------------------------------------------------------------------
  // Wraps and unwraps 32 random bytes under the primary, compares. For health;
  // counted as a use, not audited.
  absl::Status SelfTest(const catalog::ResourceName& key,
                        base::Deadline deadline);
  // When real work under this key's primary last succeeded, if it did since the
  // start.
  std::optional<base::Deadline> LastSuccess(
      const catalog::ResourceName& key) const;

  // Finishes or gives up creations a crash interrupted: PENDING_GENERATION
  // versions become ENABLED only with a proven canary, otherwise
  // GENERATION_FAILED and their object, if any, is destroyed.
  absl::Status ResumePending(base::Deadline deadline);
  absl::StatusOr<ReconcileReport> Reconcile(base::Deadline deadline);
  // Rotates what is due by schedule or by use, destroys what is due. Returns
  // how many things were done; errors of single keys are logged and do not stop
  // the others. Called by Lifecycle.
  int RunDue(base::Deadline deadline);

  // From the next RunDue on, the metrics carry the age and the uses of this
  // key's versions (kekd_key_version_*). For the keys that the operator's
  // config names, so that the series stay few.
  void ShowInMetrics(const catalog::ResourceName& key);

  // The server's own permissions, for the admin API.
  absl::Status CheckServer(const CallInfo& call,
                           absl::string_view permission) const;
  // Writes an audit record for an operation of the admin API (token login,
  // ...).
  absl::Status Audit(const CallInfo& call, absl::string_view method,
                     absl::string_view resource, const absl::Status& status,
                     absl::string_view detail);

 private:
  class Engine;
  std::unique_ptr<Engine> engine_;
};

}  // namespace kek::core
