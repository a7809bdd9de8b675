// SPDX-License-Identifier: Apache-2.0
#pragma once

// Private to core/key_service*.cc: what the methods of KeyService share.

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/lane.h"
#include "base/sync.h"
#include "cache/single_flight.h"
#include "core/key_service.h"
#include "core/resolved_keys.h"
#include "core/wrapper.h"

namespace kek::core {

// What a caller can ask for, as audit records and metrics name it.
enum class Method {
  kEncrypt,
  kDecrypt,
  kPrimary,
  kCreateKeyRing,
  kGetKeyRing,
  kListKeyRings,
  kCreateCryptoKey,
  kGetCryptoKey,
  kListCryptoKeys,
  kUpdateCryptoKey,
  kSetPrimary,
  kCreateVersion,
  kRotate,
  kGetVersion,
  kListVersions,
  kEnable,
  kDisable,
  kScheduleDestroy,
  kRestore,
  kDestroyMaterial,  // kekd's own: a due destruction
  kResumeCreation,   // kekd's own: the end of an interrupted creation
  kCount
};
absl::string_view MethodName(Method method);

// Counters and latencies of operations; a look-up is one atomic load.
// Thread-safe.
class OperationMetrics {
 public:
  explicit OperationMetrics(base::Metrics* metrics) : metrics_(metrics) {}
  void Record(Method method, FrontEnd front_end, absl::StatusCode code,
              absl::Duration latency);

 private:
  static constexpr size_t kFrontEnds = 5;
  static constexpr size_t kCodes = 17;
  static constexpr size_t kMethods = static_cast<size_t>(Method::kCount);
  base::Metrics* const metrics_;
  std::array<std::atomic<base::Metrics::Counter*>,
             kMethods * kFrontEnds * kCodes>
      counters_{};
  std::array<std::atomic<base::Metrics::Histogram*>, kMethods * kFrontEnds>
      latencies_{};
};

// One lane per key that somebody changes just now, for the changes that need
// the token. Thread-safe.
class KeyLanes {
 public:
  // A turn keeps the lane alive as long as it is held.
  struct Turn {
    std::shared_ptr<base::Lane> lane;
    base::Lane::Hold hold;
  };
  absl::StatusOr<Turn> Enter(const catalog::ResourceName& key,
                             base::Deadline deadline);

 private:
  base::Mutex mu_;
  std::map<std::string, std::weak_ptr<base::Lane>> lanes_ ABSL_GUARDED_BY(mu_);
};

class KeyService::Engine {
 public:
  Engine(catalog::Catalog& catalog, pkcs11::Token& token,
         Authorizer& authorizer, AuditLog& audit, Options options);

  // ---- one call, from permission to answer
  // Which version a data operation used, so that it can be looked at again.
  struct Watch {
    uint64_t epoch;
    std::optional<catalog::ResourceName> version;
  };
  // Runs body if every permission is granted on resource, writes the audit
  // record, and, where watch is given and the world moved meanwhile, looks at
  // the used version once more: a result under a version that is no longer
  // ENABLED is withheld, and a second record says so.
  template <typename T>
  absl::StatusOr<T> Run(const CallInfo& call, Method method,
                        std::initializer_list<absl::string_view> permissions,
                        const catalog::ResourceName& resource,
                        absl::FunctionRef<absl::StatusOr<T>(AuditRecord&)> body,
                        const Watch* watch = nullptr) {
    Started started = Begin(call, method, resource);
    absl::StatusOr<T> result = absl::UnknownError("not run");
    absl::Status allowed = Permit(call, permissions, resource);
    if (allowed.ok()) {
      result = body(started.record);
      started.record.status = result.status();
    } else {
      started.record.permitted = false;
      started.record.status = std::move(allowed);
    }
    absl::Status end = End(call, method, started, watch);
    if (!end.ok()) return end;
    return result;
  }

  // ---- changes
  // Runs change in one transaction and makes it hold: when this returns, no
  // result under the key leaves that does not agree with it.
  absl::Status Change(
      const catalog::ResourceName& key,
      absl::FunctionRef<absl::Status(catalog::Transaction&)> change,
      base::Deadline deadline);
  // One step of a version's state machine (Cloud KMS, "Key states"): step sets
  // the new state, leaves the old one when there is nothing to do, or refuses.
  absl::StatusOr<catalog::CryptoKeyVersion> ChangeState(
      const CallInfo& call, const catalog::ResourceName& name,
      AuditRecord& record,
      absl::FunctionRef<absl::Status(const catalog::CryptoKey&,
                                     catalog::CryptoKeyVersion&)>
          step);
  // A change that cannot be recorded afterwards must not begin.
  absl::Status AuditReady(base::Deadline deadline);
  // Ends, with error, if the token does no work just now; else leaves it logged
  // in. Asked before an intent is written, so that a token that is away does
  // not leave a failed version per attempt.
  absl::Status TokenReady(base::Deadline deadline);

  // Makes the intent record of the key's next version inside a transaction.
  absl::StatusOr<catalog::CryptoKeyVersion> PutIntent(
      catalog::Transaction& transaction, catalog::CryptoKey& key,
      bool primary_on_enable);
  // From a committed intent to ENABLED: generate, canary, publish. On failure
  // the object is destroyed and the version is GENERATION_FAILED, or, when the
  // token or the catalog does not answer any more, left PENDING_GENERATION for
  // ResumePending. The caller is in the key's lane.
  absl::StatusOr<catalog::CryptoKeyVersion> Generate(
      const catalog::CryptoKeyVersion& intent, bool rotation,
      base::Deadline deadline);
  // Canary and publication of a key that is on the token.
  absl::StatusOr<catalog::CryptoKeyVersion> Publish(
      const catalog::CryptoKeyVersion& intent, std::string attributes,
      bool rotation, base::Deadline deadline);
  // Destroys what a failed creation left and says why it failed.
  absl::Status GiveUp(const catalog::CryptoKeyVersion& intent,
                      const absl::Status& why);
  // The key's lane, intent and Generate, for a key that exists; ABORTED when
  // the key is not wanted (any more).
  enum class Kind { kPlain, kRotation };
  absl::StatusOr<catalog::CryptoKeyVersion> MakeVersion(
      AuditRecord& record, const catalog::ResourceName& key, Kind kind,
      absl::FunctionRef<bool(const catalog::CryptoKey&)> wanted,
      base::Deadline deadline);
  // A rotation because the schedule or the use count says so; ABORTED when it
  // no longer does. used_up_version: 0, or the primary that has made as many
  // encryptions as it should.
  absl::Status RotateDue(const catalog::ResourceName& key,
                         uint32_t used_up_version, base::Deadline deadline);
  absl::Status DestroyDue(const catalog::ResourceName& version,
                          base::Deadline deadline);
  absl::Status ResumeOne(const catalog::ResourceName& version,
                         base::Deadline deadline);

  // Scheduled work on name that failed is not tried again at every round, but
  // after 1, 2, 4, ... minutes, at most an hour.
  bool MayTry(const std::string& name);
  void Tried(const std::string& name, const absl::Status& status);

  void UpdateMetrics();

  // ---- data
  // FAILED_PRECONDITION in Cloud KMS' words unless ENABLED.
  static absl::Status CheckEnabled(const catalog::CryptoKeyVersion& version);
  // Takes one use and notes when it is time to rotate.
  absl::Status TakeUse(const ResolvedKey& key, const LoadedVersion& version,
                       base::Deadline deadline);
  absl::StatusOr<CryptoKeyView> View(catalog::CryptoKey key);
  // NOT_FOUND unless the location is one that exists here.
  absl::Status CheckLocation(const catalog::ResourceName& location) const;

  absl::Time Now() const;
  CallInfo Internal(base::Deadline deadline) const;

  catalog::Catalog& catalog;
  pkcs11::Token& token;
  Authorizer& authorizer;
  AuditLog& audit;
  const Options options;
  const base::Clock& clock;
  OperationMetrics metrics;
  Wrapper wrapper;
  ResolvedKeys keys;
  KeyLanes lanes;
  cache::SingleFlight<std::string, base::SecretBytes> decrypts;

  base::Mutex mu;
  class InProgress;
  // Keys a version of which somebody of this process is making: not for
  // ResumePending.
  std::set<std::string> in_progress ABSL_GUARDED_BY(mu);
  // Keys whose primary, this version, has made as many encryptions as it
  // should.
  std::map<std::string, uint32_t> used_up ABSL_GUARDED_BY(mu);
  // Scheduled work of single keys and versions that failed: how often, and when
  // to try again.
  struct Retry {
    int failures = 0;
    base::Deadline not_before;
  };
  std::map<std::string, Retry> retries ABSL_GUARDED_BY(mu);
  std::set<std::string> in_metrics ABSL_GUARDED_BY(mu);

 private:
  struct Started {
    AuditRecord record;
    base::Deadline at;
  };
  Started Begin(const CallInfo& call, Method method,
                const catalog::ResourceName& resource) const;
  absl::Status Permit(const CallInfo& call,
                      std::initializer_list<absl::string_view> permissions,
                      const catalog::ResourceName& resource) const;
  absl::Status End(const CallInfo& call, Method method, Started& started,
                   const Watch* watch);
  // Counts a use of a version of a key that ShowInMetrics named.
  void CountVersionUse(Method method, const std::string& version,
                       absl::StatusCode code);
};

// The error of a name of the wrong kind.
absl::Status ExpectKind(const catalog::ResourceName& name,
                        catalog::ResourceName::Kind kind);
// A record as callers see it.
catalog::CryptoKeyVersion Present(catalog::CryptoKeyVersion version);
// Times as the catalog keeps them.
absl::Time Micros(absl::Time time);

}  // namespace kek::core
