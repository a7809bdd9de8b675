// SPDX-License-Identifier: Apache-2.0
// KeyService: making and destroying key material.
//
// A version is made in steps, each durable before the next:
//   1 intent     a row PENDING_GENERATION with the id and label its object will
//                have
//   2 generate   the token makes the object; its attributes are judged
//   3 canary     a ciphertext that proves the key is made and opened
//   4 publish    one transaction: ENABLED with canary and attributes, and for a
//                rotation primary
// so that two invariants hold after a crash at any point: what is ENABLED has a
// proven canary, and a key that has had a primary has exactly one. Before step
// 4 nobody can use the version; after it, it is finished although the caller
// may not have heard. Destruction mirrors it: the intent to destroy is durable
// before the object is touched, and DESTROYED is written when a search of the
// token found none.
#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "core/key_service_engine.h"
#include "core/key_service_rules.h"
#include "openssl/rand.h"

namespace kek::core {

using catalog::CryptoKeyVersion;
using catalog::ResourceName;
using catalog::VersionState;

namespace {

// Past the point of no return work goes on for this long although the caller's
// time is up.
constexpr std::chrono::seconds kFinish(10);
// The label, "kek:<26>:v<n>", has at most 40 bytes.
constexpr uint32_t kLastVersion = 99'999'999;

absl::Status RandomBytes(std::span<uint8_t> bytes) {
  if (RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) != 1) {
    return absl::UnavailableError("the host's random generator fails");
  }
  return absl::OkStatus();
}

// RFC 4648 alphabet in lower case, without padding: 26 characters for a UUID.
std::string Base32(std::span<const uint8_t> bytes) {
  constexpr char kAlphabet[] = "abcdefghijklmnopqrstuvwxyz234567";
  std::string text;
  uint32_t bits = 0;
  int count = 0;
  for (const uint8_t byte : bytes) {
    bits = (bits << 8) | byte;
    count += 8;
    while (count >= 5) {
      count -= 5;
      text.push_back(kAlphabet[(bits >> count) & 31]);
    }
  }
  if (count > 0) text.push_back(kAlphabet[(bits << (5 - count)) & 31]);
  return text;
}

pkcs11::KeyIdentity IdentityOf(const CryptoKeyVersion& version) {
  return {.id = version.object_id, .label = version.object_label};
}

pkcs11::Canary CanaryOf(const catalog::StoredCanary& stored) {
  return {.sealed = {.iv = stored.iv, .ciphertext = stored.ciphertext},
          .aad = stored.aad,
          .plaintext_sha256 = stored.plaintext_sha256};
}

// What failed below, in a code that a caller cannot take for an answer about
// the resources it named.
absl::Status Below(const absl::Status& status, const ResourceName& version,
                   absl::string_view doing) {
  absl::StatusCode code = status.code();
  if (code == absl::StatusCode::kNotFound ||
      code == absl::StatusCode::kAlreadyExists ||
      code == absl::StatusCode::kInvalidArgument ||
      code == absl::StatusCode::kPermissionDenied) {
    code = absl::StatusCode::kUnavailable;
  }
  absl::Status result(code, absl::StrCat(doing, " ", version.ToString(), ": ",
                                         status.message()));
  status.ForEachPayload(
      [&result](absl::string_view url, const absl::Cord& payload) {
        result.SetPayload(url, payload);
      });
  return result;
}

// Whether a key that an interrupted creation left is what was asked for, as
// Token::GenerateKey would have judged it.
absl::Status JudgeAdopted(const pkcs11::KeyAttributes& a,
                          pkcs11::AttributePolicy policy) {
  constexpr uint64_t kAes = 0x1f;  // CKK_AES
  const bool strict = policy == pkcs11::AttributePolicy::kStrict;
  const bool good =
      a.sensitive == true && a.extractable == false && a.token == true &&
      a.key_type == kAes && a.value_len == 32 && a.encrypt == true &&
      a.decrypt == true && a.wrap != true && a.unwrap != true &&
      a.sign != true && a.derive != true &&
      (!strict || (a.local == true && a.always_sensitive == true &&
                   a.never_extractable == true));
  if (good) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      "the key an interrupted creation left is not what was asked for: ",
      a.ToString()));
}

// Whether a key is the remains of a CreateCryptoKey that failed: it was to get
// a first version and no attempt at one succeeded.
absl::StatusOr<bool> NeverCompleted(catalog::Transaction& transaction,
                                    const catalog::CryptoKey& key) {
  if (key.primary_version != 0 || key.next_version == 1) return false;
  for (uint32_t n = 1; n < key.next_version; ++n) {
    ASSIGN_OR_RETURN(const CryptoKeyVersion version,
                     transaction.GetVersion(key.name.Version(n)));
    if (version.state != VersionState::kGenerationFailed ||
        !version.primary_on_enable) {
      return false;
    }
  }
  return true;
}

}  // namespace

// Marks a version as being made by this process, from before its intent is
// visible until it is settled or left to ResumePending.
class KeyService::Engine::InProgress {
 public:
  InProgress(Engine& engine, const ResourceName& key)
      : engine_(engine), key_(key.ToString()) {
    base::MutexLock lock(engine_.mu);
    engine_.in_progress.insert(key_);
  }
  ~InProgress() {
    base::MutexLock lock(engine_.mu);
    engine_.in_progress.erase(key_);
  }
  InProgress(const InProgress&) = delete;
  InProgress& operator=(const InProgress&) = delete;

 private:
  Engine& engine_;
  const std::string key_;
};

absl::Status KeyService::Engine::TokenReady(base::Deadline deadline) {
  return token.Probe(deadline);
}

absl::StatusOr<CryptoKeyVersion> KeyService::Engine::PutIntent(
    catalog::Transaction& transaction, catalog::CryptoKey& key,
    bool primary_on_enable) {
  if (key.next_version > kLastVersion) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "CryptoKey ", key.name.ToString(), " can have no more versions"));
  }
  const uint32_t number = key.next_version++;
  RETURN_IF_ERROR(transaction.Put(key));
  const pkcs11::TokenInfo on = token.info();
  CryptoKeyVersion version{
      .name = key.name.Version(number),
      .key_uuid = key.uuid,
      .state = VersionState::kPendingGeneration,
      .algorithm = key.algorithm,
      .protection_level = key.protection_level,
      .residency = key.residency,
      .create_time = Now(),
      .token = absl::StrCat(on.manufacturer, "/", on.model, "/", on.serial, "/",
                            on.label),
      .object_label = absl::StrCat("kek:", Base32(key.uuid), ":v", number),
      .primary_on_enable = primary_on_enable,
  };
  version.object_id.resize(16);
  RETURN_IF_ERROR(RandomBytes(version.object_id));
  RETURN_IF_ERROR(transaction.Put(version));
  return version;
}

absl::StatusOr<CryptoKeyVersion> KeyService::Engine::Generate(
    const CryptoKeyVersion& intent, bool rotation, base::Deadline deadline) {
  KEK_FAILPOINT(rotation ? "rotate.intent" : "create.intent");
  const absl::StatusOr<pkcs11::KeyAttributes> attributes =
      token.GenerateKey(IdentityOf(intent), deadline);
  absl::Status failure = attributes.status();
  if (failure.ok()) {
    KEK_FAILPOINT(rotation ? "rotate.generated" : "create.generated");
    absl::StatusOr<CryptoKeyVersion> published =
        Publish(intent, attributes->ToString(), rotation, deadline);
    if (published.ok()) return published;
    failure = published.status();
  }
  if (absl::Status given_up = GiveUp(intent, failure); !given_up.ok()) {
    base::LogWarning("what a failed creation left is not cleared yet",
                     {{"version", intent.name.ToString()},
                      {"failure", failure},
                      {"error", given_up}});
  }
  return Below(failure, intent.name, "making the key of");
}

absl::StatusOr<CryptoKeyVersion> KeyService::Engine::Publish(
    const CryptoKeyVersion& intent, std::string attributes,
    [[maybe_unused]] bool rotation, base::Deadline deadline) {
  ASSIGN_OR_RETURN(const catalog::StoredCanary canary,
                   wrapper.MakeCanary(IdentityOf(intent), intent.key_uuid,
                                      intent.name.version(), deadline));
  KEK_FAILPOINT(rotation ? "rotate.canary" : "create.canary");

  const ResourceName key_name = intent.name.CryptoKey();
  const absl::Time now = Now();
  std::optional<CryptoKeyVersion> published;
  const absl::Status committed = Change(
      key_name,
      [&](catalog::Transaction& transaction) -> absl::Status {
        ASSIGN_OR_RETURN(CryptoKeyVersion version,
                         transaction.GetVersion(intent.name));
        if (version.state != VersionState::kPendingGeneration) {
          return absl::AbortedError(absl::StrCat(
              intent.name.ToString(), " is no longer being made, its state is ",
              catalog::VersionStateName(version.state)));
        }
        version.state = VersionState::kEnabled;
        version.canary = canary;
        version.attributes = attributes;
        version.generate_time = now;
        version.failure_reason.clear();
        RETURN_IF_ERROR(transaction.Put(version));
        if (version.primary_on_enable) {
          ASSIGN_OR_RETURN(catalog::CryptoKey key,
                           transaction.GetCryptoKey(key_name));
          key.primary_version = version.name.version();
          ++key.primary_activation;
          // A rotation that was due is done, by whoever made it. One made
          // earlier by hand does not move the schedule.
          if (key.next_rotation_time.has_value() &&
              *key.next_rotation_time <= now) {
            key.next_rotation_time =
                NextRotation(key.rotation_period, *key.next_rotation_time, now);
          }
          RETURN_IF_ERROR(transaction.Put(key));
        }
        published = std::move(version);
        return absl::OkStatus();
      },
      std::max(deadline, base::DeadlineAfter(kFinish)));
  if (!committed.ok()) {
    // The commit may have reached the disk although it reported an error; what
    // the catalog says now is the truth.
    absl::StatusOr<CryptoKeyVersion> version = catalog.GetVersion(intent.name);
    if (!version.ok() || version->state != VersionState::kEnabled) {
      return committed;
    }
    published = *std::move(version);
  }
  KEK_FAILPOINT(rotation ? "rotate.committed" : "create.committed");
  return *std::move(published);
}

absl::Status KeyService::Engine::GiveUp(const CryptoKeyVersion& intent,
                                        const absl::Status& why) {
  const base::Deadline deadline = base::DeadlineAfter(kFinish);
  // Nothing may be destroyed that the catalog might publish.
  ASSIGN_OR_RETURN(const CryptoKeyVersion now, catalog.GetVersion(intent.name));
  if (now.state != VersionState::kPendingGeneration) {
    return absl::AbortedError(
        absl::StrCat(intent.name.ToString(), " is no longer being made"));
  }
  // An object that was there before us is somebody else's.
  absl::Status destroyed =
      absl::IsAlreadyExists(why)
          ? absl::OkStatus()
          : token.DestroyUnprovenKey(IdentityOf(intent), deadline);
  RETURN_IF_ERROR(Change(
      intent.name.CryptoKey(),
      [&](catalog::Transaction& transaction) -> absl::Status {
        ASSIGN_OR_RETURN(CryptoKeyVersion version,
                         transaction.GetVersion(intent.name));
        if (version.state != VersionState::kPendingGeneration) {
          return absl::AbortedError(
              absl::StrCat(intent.name.ToString(), " is no longer being made"));
        }
        // A reason on a version that is still pending tells ResumePending that
        // its maker was told of the failure: it must not come to life any more.
        if (version.failure_reason.empty()) {
          version.failure_reason =
              why.ToString(absl::StatusToStringMode::kWithNoExtraData);
        }
        if (destroyed.ok()) version.state = VersionState::kGenerationFailed;
        return transaction.Put(version);
      },
      deadline));
  return destroyed;
}

// ---- creation

absl::StatusOr<CryptoKeyView> KeyService::CreateCryptoKey(
    const CallInfo& call, const CreateCryptoKeyRequest& request) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(request.ring, ResourceName::Kind::kKeyRing));
  ASSIGN_OR_RETURN(const ResourceName name, request.ring.Child(request.id));
  return e.Run<CryptoKeyView>(
      call, Method::kCreateCryptoKey, {permission::kCryptoKeysCreate},
      request.ring, [&](AuditRecord& record) -> absl::StatusOr<CryptoKeyView> {
        record.resource = name.ToString();
        RETURN_IF_ERROR(e.catalog.GetKeyRing(request.ring).status());

        catalog::CryptoKey wanted{.name = name, .create_time = e.Now()};
        if (!request.purpose.has_value()) {
          return absl::InvalidArgumentError("purpose is required");
        }
        wanted.purpose = *request.purpose;
        ASSIGN_OR_RETURN(wanted.algorithm,
                         ChooseAlgorithm(wanted.purpose, request.algorithm));
        wanted.protection_level = request.protection_level.value_or(
            catalog::ProtectionLevel::kSoftware);
        RETURN_IF_ERROR(CheckLabels(request.labels));
        wanted.labels = request.labels;
        wanted.destroy_scheduled_duration =
            request.destroy_scheduled_duration.value_or(
                e.options.default_destroy_scheduled_duration);
        if (wanted.destroy_scheduled_duration <
                e.options.min_destroy_scheduled_duration ||
            wanted.destroy_scheduled_duration >
                e.options.max_destroy_scheduled_duration) {
          return absl::InvalidArgumentError(absl::StrCat(
              "destroy_scheduled_duration is ",
              absl::FormatDuration(wanted.destroy_scheduled_duration),
              "; it must be between ",
              absl::FormatDuration(e.options.min_destroy_scheduled_duration),
              " and ",
              absl::FormatDuration(e.options.max_destroy_scheduled_duration)));
        }
        RETURN_IF_ERROR(CheckSchedule(wanted.purpose, request.rotation_period,
                                      request.next_rotation_time));
        wanted.rotation_period = request.rotation_period;
        if (request.next_rotation_time.has_value()) {
          wanted.next_rotation_time = Micros(*request.next_rotation_time);
        }
        wanted.import_only = request.import_only;
        if (request.import_only && !request.skip_initial_version_creation) {
          return absl::InvalidArgumentError(
              "import_only needs skip_initial_version_creation");
        }
        if (request.rotate_after_uses > e.options.max_uses) {
          return absl::InvalidArgumentError(
              absl::StrCat("rotate_after_uses is ", request.rotate_after_uses,
                           "; at most ", e.options.max_uses, " is possible"));
        }
        wanted.rotate_after_uses = request.rotate_after_uses;
        RETURN_IF_ERROR(RandomBytes(wanted.uuid));
        wanted.uuid[6] = (wanted.uuid[6] & 0x0f) | 0x40;  // RFC 4122, version 4
        wanted.uuid[8] = (wanted.uuid[8] & 0x3f) | 0x80;

        RETURN_IF_ERROR(e.AuditReady(call.deadline));
        const bool make_version = !request.skip_initial_version_creation;
        ASSIGN_OR_RETURN(const KeyLanes::Turn turn,
                         e.lanes.Enter(name, call.deadline));
        if (make_version) {
          // Who asks for a key that exists hears that, also without a token.
          if (!e.catalog.GetCryptoKey(name).ok()) {
            RETURN_IF_ERROR(e.TokenReady(call.deadline));
          }
        }
        const Engine::InProgress making(e, name);
        std::optional<catalog::CryptoKey> key;
        std::optional<CryptoKeyVersion> intent;
        RETURN_IF_ERROR(e.Change(
            name,
            [&](catalog::Transaction& transaction) -> absl::Status {
              key = wanted;
              intent.reset();
              absl::StatusOr<catalog::CryptoKey> old =
                  transaction.GetCryptoKey(name);
              if (old.ok()) {
                ASSIGN_OR_RETURN(const bool take_over,
                                 NeverCompleted(transaction, *old));
                if (!take_over || !make_version) {
                  return absl::AlreadyExistsError(absl::StrCat(
                      "CryptoKey ", name.ToString(), " already exists."));
                }
                // Nothing was ever wrapped under it, so that only what tells
                // its versions apart has to stay.
                key->uuid = old->uuid;
                key->next_version = old->next_version;
                key->revision = old->revision;
              } else if (!absl::IsNotFound(old.status())) {
                return old.status();
              }
              if (!make_version) return transaction.Put(*key);
              if (key->revision == 0) RETURN_IF_ERROR(transaction.Put(*key));
              const bool primary =
                  key->purpose == catalog::Purpose::kEncryptDecrypt;
              ASSIGN_OR_RETURN(intent, e.PutIntent(transaction, *key, primary));
              return absl::OkStatus();
            },
            call.deadline));
        record.detail = absl::StrCat("key ", catalog::UuidToString(key->uuid));
        if (!intent.has_value()) {
          return CryptoKeyView{.key = *std::move(key)};
        }
        record.version = intent->name.ToString();
        ASSIGN_OR_RETURN(const CryptoKeyVersion version,
                         e.Generate(*intent, false, call.deadline));
        absl::StrAppend(&record.detail, ", ", version.attributes);
        ASSIGN_OR_RETURN(catalog::CryptoKey made, e.catalog.GetCryptoKey(name));
        return e.View(std::move(made));
      });
}

absl::StatusOr<CryptoKeyVersion> KeyService::CreateVersion(
    const CallInfo& call, const ResourceName& name) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(name, ResourceName::Kind::kCryptoKey));
  return e.Run<CryptoKeyVersion>(
      call, Method::kCreateVersion, {permission::kVersionsCreate}, name,
      [&](AuditRecord& record) -> absl::StatusOr<CryptoKeyVersion> {
        return e.MakeVersion(
            record, name, Engine::Kind::kPlain,
            [](const catalog::CryptoKey&) { return true; }, call.deadline);
      });
}

absl::StatusOr<CryptoKeyView> KeyService::Rotate(const CallInfo& call,
                                                 const ResourceName& name) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(name, ResourceName::Kind::kCryptoKey));
  return e.Run<CryptoKeyView>(
      call, Method::kRotate,
      {permission::kVersionsCreate, permission::kCryptoKeysUpdate}, name,
      [&](AuditRecord& record) -> absl::StatusOr<CryptoKeyView> {
        RETURN_IF_ERROR(e.MakeVersion(
                             record, name, Engine::Kind::kRotation,
                             [](const catalog::CryptoKey&) { return true; },
                             call.deadline)
                            .status());
        ASSIGN_OR_RETURN(catalog::CryptoKey key, e.catalog.GetCryptoKey(name));
        return e.View(std::move(key));
      });
}

absl::StatusOr<CryptoKeyVersion> KeyService::Engine::MakeVersion(
    AuditRecord& record, const ResourceName& name, Kind kind,
    absl::FunctionRef<bool(const catalog::CryptoKey&)> wanted,
    base::Deadline deadline) {
  const bool rotation = kind == Kind::kRotation;
  const auto check = [&](const catalog::CryptoKey& key) -> absl::Status {
    if (rotation && key.purpose != catalog::Purpose::kEncryptDecrypt) {
      return absl::FailedPreconditionError(
          absl::StrCat("CryptoKey ", name.ToString(),
                       " has not purpose ENCRYPT_DECRYPT; only such keys have "
                       "a primary version."));
    }
    if (key.import_only) {
      return absl::FailedPreconditionError(absl::StrCat(
          "CryptoKey ", name.ToString(), " takes imported versions only."));
    }
    if (!wanted(key)) {
      return absl::AbortedError(absl::StrCat("CryptoKey ", name.ToString(),
                                             " was changed meanwhile"));
    }
    return absl::OkStatus();
  };
  {
    ASSIGN_OR_RETURN(const catalog::CryptoKey key, catalog.GetCryptoKey(name));
    RETURN_IF_ERROR(check(key));
  }
  RETURN_IF_ERROR(AuditReady(deadline));
  ASSIGN_OR_RETURN(const KeyLanes::Turn turn, lanes.Enter(name, deadline));
  RETURN_IF_ERROR(TokenReady(deadline));
  const InProgress making(*this, name);
  std::optional<CryptoKeyVersion> intent;
  RETURN_IF_ERROR(Change(
      name,
      [&](catalog::Transaction& transaction) -> absl::Status {
        ASSIGN_OR_RETURN(catalog::CryptoKey key,
                         transaction.GetCryptoKey(name));
        RETURN_IF_ERROR(check(key));
        ASSIGN_OR_RETURN(intent, PutIntent(transaction, key, rotation));
        return absl::OkStatus();
      },
      deadline));
  record.version = intent->name.ToString();
  ASSIGN_OR_RETURN(CryptoKeyVersion version,
                   Generate(*intent, rotation, deadline));
  record.detail = version.attributes;
  return Present(std::move(version));
}

absl::Status KeyService::Engine::ResumeOne(const ResourceName& name,
                                           base::Deadline deadline) {
  const ResourceName key_name = name.CryptoKey();
  {
    // Its maker is alive.
    base::MutexLock lock(mu);
    if (in_progress.contains(key_name.ToString())) return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const KeyLanes::Turn turn, lanes.Enter(key_name, deadline));
  ASSIGN_OR_RETURN(const CryptoKeyVersion version, catalog.GetVersion(name));
  if (version.state != VersionState::kPendingGeneration) {
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(TokenReady(deadline));
  const CallInfo call = Internal(deadline);
  return Run<bool>(call, Method::kResumeCreation, {}, name,
                   [&](AuditRecord& record) -> absl::StatusOr<bool> {
                     record.version = name.ToString();
                     absl::Status why =
                         absl::CancelledError(version.failure_reason);
                     if (version.failure_reason.empty()) {
                       const absl::StatusOr<pkcs11::KeyAttributes> attributes =
                           token.ReadAttributes(IdentityOf(version), deadline);
                       why = attributes.ok()
                                 ? JudgeAdopted(*attributes,
                                                token.profile().attributes)
                                 : attributes.status();
                       if (why.ok()) {
                         const absl::StatusOr<CryptoKeyVersion> published =
                             Publish(version, attributes->ToString(),
                                     version.primary_on_enable, deadline);
                         if (published.ok()) {
                           record.detail =
                               absl::StrCat("finished after an interruption, ",
                                            published->attributes);
                           return true;
                         }
                         why = published.status();
                       }
                       // The token or the catalog is in trouble: that says
                       // nothing of the key. Later.
                       if (absl::IsUnavailable(why) ||
                           absl::IsDeadlineExceeded(why) ||
                           absl::IsResourceExhausted(why)) {
                         return why;
                       }
                     }
                     RETURN_IF_ERROR(GiveUp(version, why));
                     record.detail = "given up after an interruption";
                     return true;
                   })
      .status();
}

// ---- destruction

absl::Status KeyService::Engine::DestroyDue(const ResourceName& name,
                                            base::Deadline deadline) {
  const ResourceName key_name = name.CryptoKey();
  RETURN_IF_ERROR(AuditReady(deadline));
  ASSIGN_OR_RETURN(const KeyLanes::Turn turn, lanes.Enter(key_name, deadline));
  RETURN_IF_ERROR(TokenReady(deadline));
  const CallInfo call = Internal(deadline);
  return Run<bool>(
             call, Method::kDestroyMaterial, {}, name,
             [&](AuditRecord& record) -> absl::StatusOr<bool> {
               record.version = name.ToString();
               std::optional<CryptoKeyVersion> doomed;
               // From here on Restore is refused for good, so that "ENABLED but
               // gone" cannot be, whatever the clock does.
               RETURN_IF_ERROR(Change(
                   key_name,
                   [&](catalog::Transaction& transaction) -> absl::Status {
                     ASSIGN_OR_RETURN(CryptoKeyVersion version,
                                      transaction.GetVersion(name));
                     const bool begun = version.destroy_event_time.has_value();
                     if (version.state != VersionState::kDestroyScheduled ||
                         (!begun &&
                          version.destroy_time.value_or(Now()) > Now())) {
                       return absl::AbortedError(absl::StrCat(
                           name.ToString(), " is not due for destruction"));
                     }
                     if (!begun) {
                       version.destroy_event_time = Now();
                       RETURN_IF_ERROR(transaction.Put(version));
                     }
                     doomed = std::move(version);
                     return absl::OkStatus();
                   },
                   deadline));
               KEK_FAILPOINT("destroy.intent");
               const pkcs11::KeyIdentity identity = IdentityOf(*doomed);
               const absl::Status destroyed =
                   doomed->canary.has_value()
                       ? token.DestroyKey(identity, CanaryOf(*doomed->canary),
                                          deadline)
                       : token.DestroyUnprovenKey(identity, deadline);
               if (!destroyed.ok()) {
                 return Below(destroyed, name, "destroying the key of");
               }
               keys.Forget(doomed->key_uuid, name.version());
               KEK_FAILPOINT("destroy.destroyed");
               RETURN_IF_ERROR(Change(
                   key_name,
                   [&](catalog::Transaction& transaction) -> absl::Status {
                     ASSIGN_OR_RETURN(CryptoKeyVersion version,
                                      transaction.GetVersion(name));
                     if (version.state != VersionState::kDestroyScheduled) {
                       return absl::AbortedError(absl::StrCat(
                           name.ToString(), " was changed meanwhile"));
                     }
                     version.state = VersionState::kDestroyed;
                     version.destroy_event_time = Now();
                     version.destroy_time.reset();
                     return transaction.Put(version);
                   },
                   std::max(deadline, base::DeadlineAfter(kFinish))));
               KEK_FAILPOINT("destroy.committed");
               record.detail = "state DESTROY_SCHEDULED -> DESTROYED";
               return true;
             })
      .status();
}

}  // namespace kek::core
