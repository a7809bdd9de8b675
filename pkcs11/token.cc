// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/token.h"

#include <algorithm>
#include <functional>
#include <utility>

#include <openssl/sha.h>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "pkcs11/connection.h"
#include "pkcs11/error_internal.h"
#include "pkcs11/key.h"
#include "pkcs11/key_objects.h"

namespace kek::pkcs11 {
namespace {

constexpr int kAttempts = 2;
// Recoveries one operation may go through. Each makes progress or fails; this
// bounds a token that drops its login after every operation.
constexpr int kRepairs = 4;

using Freshness = SessionPool::Freshness;

bool Opens(const Canary& canary, const base::SecretBytes& plaintext) {
  std::array<uint8_t, SHA256_DIGEST_LENGTH> digest{};
  SHA256(plaintext.data(), plaintext.size(), digest.data());
  return base::ConstantTimeEqual(digest, canary.plaintext_sha256);
}

absl::Status MissingError(const KeyIdentity& identity) {
  return MakeError(ErrorClass::kHandle, absl::StrCat("key ", identity.label,
                                                     " is not on the token"));
}

absl::Status DuplicateError(const KeyIdentity& identity) {
  return MakeError(ErrorClass::kIntegrity,
                   absl::StrCat("several objects on the token have the CKA_ID "
                                "of key ",
                                identity.label));
}

absl::Status QuarantinedError(const KeyIdentity& identity) {
  return MakeError(ErrorClass::kIntegrity,
                   absl::StrCat("key ", identity.label,
                                " is quarantined: a proof of it failed"));
}

// The recovery an error calls for, if another session is not enough.
std::optional<Rung> RecoveryFor(const absl::Status& status) {
  switch (RvOf(status).value_or(CKR_OK)) {
    case CKR_CRYPTOKI_NOT_INITIALIZED:
      return Rung::kReinitialize;
    case CKR_TOKEN_NOT_PRESENT:
    case CKR_TOKEN_NOT_RECOGNIZED:
    case CKR_DEVICE_REMOVED:
    case CKR_SLOT_ID_INVALID:
      return Rung::kRelogin;
    default:
      break;
  }
  if (ClassOf(status) == ErrorClass::kLogin) return Rung::kRelogin;
  return std::nullopt;
}

}  // namespace

// Engine runs operations: it resolves the key, leases a session, makes one
// attempt, classifies how it ended, and mends and repeats where that helps.
// What an attempt holds (the generation's Work, the key's handle, the session)
// is let go before anything is mended.
class Token::Engine {
 public:
  explicit Engine(std::shared_ptr<Connection> connection)
      : connection_(std::move(connection)) {}

  Connection& connection() { return *connection_; }

  absl::StatusOr<KeyAttributes> GenerateKey(const KeyIdentity& identity,
                                            base::Deadline deadline);
  absl::StatusOr<Canary> MakeCanary(const KeyIdentity& identity,
                                    std::span<const uint8_t> aad,
                                    base::Deadline deadline);
  absl::StatusOr<KeyAttributes> ReadAttributes(const KeyIdentity& identity,
                                               base::Deadline deadline);
  absl::Status Destroy(const KeyIdentity& identity, const Canary* canary,
                       base::Deadline deadline);
  absl::StatusOr<std::vector<ObjectInfo>> ListKeys(base::Deadline deadline);

  absl::Status Prove(Key& key, base::Deadline deadline);
  absl::StatusOr<Sealed> Encrypt(Key& key, std::span<const uint8_t> aad,
                                 std::span<const uint8_t> plaintext,
                                 const EncryptOptions& options,
                                 base::Deadline deadline);
  absl::StatusOr<base::SecretBytes> Decrypt(Key& key,
                                            std::span<const uint8_t> aad,
                                            const Sealed& sealed,
                                            base::Deadline deadline);
  // Work that needs a session and no key.
  absl::Status RunKeyless(base::Deadline deadline,
                          const std::function<absl::Status(Session&)>& work);

  void Quarantine(Key& key, const absl::Status& why);

 private:
  using Work = Connection::Work;
  // A proven handle in a live generation. Members are let go in reverse order.
  struct Target {
    Work work;
    KeyTable::EntryUse handle;
  };

  absl::StatusOr<Target> Resolve(Key& key, base::Deadline deadline);
  absl::StatusOr<std::optional<Target>> ProvenTarget(Key& key,
                                                     base::Deadline deadline);
  absl::Status Sweep(const KeyIdentity& identity, base::Deadline deadline);
  // One opening of a canary. kIntegrity: the handle is of another key, beyond
  // doubt.
  absl::Status OpenCanary(Link& link, CK_OBJECT_HANDLE handle,
                          const Canary& canary, base::Deadline deadline);
  // After an answer that is either the caller's fault or the device's: OK when
  // the key's canary opens, so that it was the caller's.
  absl::Status Settle(Key& key, Link& link, const KeyTable::EntryUse& handle,
                      base::Deadline deadline);
  // Runs work(target, session) up to kAttempts times.
  absl::Status RunWithKey(
      Key& key, base::Deadline deadline,
      const std::function<absl::Status(Target&, Session&)>& work);
  // Runs work(link, read-write session) in the admin lane. May run twice.
  absl::Status RunAdmin(
      base::Deadline deadline,
      const std::function<absl::Status(Link&, Session&)>& work);
  absl::StatusOr<std::vector<CK_OBJECT_HANDLE>> Find(
      Session& session, const KeyIdentity& identity);
  // What to do after status in `generation`: true to go on, false to return it.
  absl::StatusOr<bool> Mend(const absl::Status& status, uint64_t generation,
                            base::Deadline deadline);

  Cipher& cipher() { return connection_->cipher(); }

  const std::shared_ptr<Connection> connection_;
};

// ---- running ----------------------------------------------------------------

absl::StatusOr<bool> Token::Engine::Mend(const absl::Status& status,
                                         uint64_t generation,
                                         base::Deadline deadline) {
  if (const std::optional<Rung> rung = RecoveryFor(status)) {
    RETURN_IF_ERROR(connection_->Recover(generation, *rung, deadline));
    return true;
  }
  switch (ClassOf(status)) {
    case ErrorClass::kSession:
    case ErrorClass::kHandle:
    case ErrorClass::kDevice:
    case ErrorClass::kLogin:
      return true;
    default:
      return false;
  }
}

absl::Status Token::Engine::RunWithKey(
    Key& key, base::Deadline deadline,
    const std::function<absl::Status(Target&, Session&)>& work) {
  absl::Status last;
  Freshness freshness = Freshness::kAny;
  int attempts = 0;
  for (int repairs = 0; attempts < kAttempts && repairs <= kRepairs;) {
    if (!last.ok() && std::chrono::steady_clock::now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(
          "the deadline passed after a failed attempt: ", last.message()));
    }
    uint64_t generation = 0;
    {
      ASSIGN_OR_RETURN(Target target, Resolve(key, deadline));
      Link& link = *target.work.link;
      generation = link.generation;
      absl::StatusOr<SessionPool::Lease> lease =
          link.pool.Acquire(deadline, freshness);
      if (!lease.ok()) {
        last = lease.status();
        // Failing to open a session is an attempt only if the device is at
        // fault; a generation that ends or a lost login is mended first.
        if (ClassOf(last) == ErrorClass::kDevice && !RecoveryFor(last)) {
          ++attempts;
        } else {
          ++repairs;
        }
      } else {
        ++attempts;
        last = work(target, **lease);
        if (last.ok()) {
          std::move(*lease).Return();
          connection_->ReportSuccess();
          return last;
        }
        const ErrorClass error_class = ClassOf(last);
        if (error_class == ErrorClass::kCallerData ||
            error_class == ErrorClass::kAmbiguous) {
          // The operation is over in the module; the session is clean. While
          // the device is in doubt it is not kept.
          if (key.OpenedLately(target.handle.handle())) {
            std::move(*lease).Return();
            return CiphertextError();
          }
          { const SessionPool::Lease closing = *std::move(lease); }
          const absl::Status settled =
              Settle(key, link, target.handle, deadline);
          if (settled.ok()) {
            connection_->ReportSuccess();
            return CiphertextError();
          }
          last = settled;
        }
        if (ClassOf(last) == ErrorClass::kIntegrity) {
          Quarantine(key, last);
          return last;
        }
        if (ClassOf(last) == ErrorClass::kHandle) {
          key.ForgetProven();
          link.keys.Forget(key.identity.id, target.handle.entry());
        }
      }
      freshness = Freshness::kNew;
    }
    ASSIGN_OR_RETURN(const bool again, Mend(last, generation, deadline));
    if (!again) return last;
  }
  connection_->ReportFailure(last);
  return last;
}

absl::Status Token::Engine::RunKeyless(
    base::Deadline deadline,
    const std::function<absl::Status(Session&)>& work) {
  absl::Status last;
  Freshness freshness = Freshness::kAny;
  int attempts = 0;
  for (int repairs = 0; attempts < kAttempts && repairs <= kRepairs;) {
    uint64_t generation = 0;
    {
      ASSIGN_OR_RETURN(Work in, connection_->Enter(deadline));
      generation = in.link->generation;
      absl::StatusOr<SessionPool::Lease> lease =
          in.link->pool.Acquire(deadline, freshness);
      if (!lease.ok()) {
        last = lease.status();
        const bool counts =
            ClassOf(last) == ErrorClass::kDevice && !RecoveryFor(last);
        ++(counts ? attempts : repairs);
      } else {
        ++attempts;
        last = work(**lease);
        if (last.ok()) {
          std::move(*lease).Return();
          connection_->ReportSuccess();
          return last;
        }
      }
      freshness = Freshness::kNew;
    }
    ASSIGN_OR_RETURN(const bool again, Mend(last, generation, deadline));
    if (!again) return last;
  }
  if (RvOf(last) != CKR_RANDOM_NO_RNG) connection_->ReportFailure(last);
  return last;
}

absl::Status Token::Engine::RunAdmin(
    base::Deadline deadline,
    const std::function<absl::Status(Link&, Session&)>& work) {
  absl::Status last;
  bool fresh = false;
  int attempts = 0;
  for (int repairs = 0; attempts < kAttempts && repairs <= kRepairs;) {
    uint64_t generation = 0;
    {
      // The lane before the generation: who waits here holds up no recovery.
      ASSIGN_OR_RETURN(const base::Lane::Hold hold,
                       connection_->admin_lane().Enter(deadline));
      ASSIGN_OR_RETURN(Work in, connection_->Enter(deadline));
      Link& link = *in.link;
      generation = link.generation;
      std::unique_ptr<Session> session = link.TakeAdminSession();
      if (fresh) session.reset();
      if (session == nullptr) {
        absl::StatusOr<std::unique_ptr<Session>> opened =
            Session::Open(link.context, true);
        if (opened.ok()) session = *std::move(opened);
        last = opened.status();
      } else {
        last = absl::OkStatus();
      }
      if (session == nullptr) {
        const bool counts =
            ClassOf(last) == ErrorClass::kDevice && !RecoveryFor(last);
        ++(counts ? attempts : repairs);
      } else {
        // In a session that lost its login a search finds nothing.
        if (link.context.must_be_logged_in) last = session->CheckLoggedIn();
        if (!last.ok()) {
          ++repairs;
        } else {
          ++attempts;
          last = work(link, *session);
        }
        const ErrorClass error_class = ClassOf(last);
        const bool clean = last.ok() || error_class == ErrorClass::kNone ||
                           error_class == ErrorClass::kOperator ||
                           error_class == ErrorClass::kIntegrity;
        if (!hold.valid()) {
          return absl::DeadlineExceededError(
              "the operation took too long and was given up");
        }
        if (clean) link.KeepAdminSession(std::move(session));
      }
      if (last.ok()) {
        connection_->ReportSuccess();
        return last;
      }
      fresh = true;
    }
    ASSIGN_OR_RETURN(const bool again, Mend(last, generation, deadline));
    if (!again) return last;
  }
  connection_->ReportFailure(last);
  return last;
}

// ---- which handle -----------------------------------------------------------

absl::StatusOr<std::optional<Token::Engine::Target>>
Token::Engine::ProvenTarget(Key& key, base::Deadline deadline) {
  if (key.quarantined.load(std::memory_order_relaxed)) {
    return QuarantinedError(key.identity);
  }
  ASSIGN_OR_RETURN(Work work, connection_->Enter(deadline));
  std::shared_ptr<KeyTable::Entry> entry = key.Proven(work.link->generation);
  if (entry == nullptr) return std::optional<Target>();
  std::optional<KeyTable::EntryUse> use = work.link->keys.Enter(entry);
  if (!use.has_value()) {
    key.ForgetProven();
    return std::optional<Target>();
  }
  return std::optional<Target>(Target{std::move(work), *std::move(use)});
}

absl::StatusOr<Token::Engine::Target> Token::Engine::Resolve(
    Key& key, base::Deadline deadline) {
  absl::Status last;
  for (int round = 0; round <= kRepairs; ++round) {
    {
      ASSIGN_OR_RETURN(std::optional<Target> target,
                       ProvenTarget(key, deadline));
      if (target.has_value()) return *std::move(target);
    }
    key.resolution.AbandonHolders(
        std::chrono::steady_clock::now() -
        absl::ToChronoNanoseconds(connection_->options().call_deadline));
    ASSIGN_OR_RETURN(const base::Lane::Hold hold,
                     key.resolution.Enter(deadline));
    uint64_t generation = 0;
    bool must_sweep = false;
    bool lost_all = false;
    {
      ASSIGN_OR_RETURN(std::optional<Target> target,
                       ProvenTarget(key, deadline));
      if (target.has_value()) return *std::move(target);
      ASSIGN_OR_RETURN(Work work, connection_->Enter(deadline));
      generation = work.link->generation;
      const auto [outcome, entry] = work.link->keys.Lookup(key.identity.id);
      switch (outcome) {
        case KeyTable::Outcome::kMissing:
          if (!work.link->keys.LostAll()) return MissingError(key.identity);
          lost_all = true;
          break;
        case KeyTable::Outcome::kDuplicate:
          Quarantine(key, DuplicateError(key.identity));
          return DuplicateError(key.identity);
        case KeyTable::Outcome::kUnknown:
          must_sweep = true;
          break;
        case KeyTable::Outcome::kFound: {
          std::optional<KeyTable::EntryUse> use = work.link->keys.Enter(entry);
          if (!use.has_value()) continue;
          last = OpenCanary(*work.link, entry->handle.handle, key.canary,
                            deadline);
          if (last.ok()) {
            key.SetProven(entry);
            return Target{std::move(work), *std::move(use)};
          }
          if (ClassOf(last) == ErrorClass::kIntegrity) {
            Quarantine(key, last);
            return last;
          }
          if (ClassOf(last) == ErrorClass::kHandle) {
            work.link->keys.Forget(key.identity.id, entry);
          }
          break;
        }
      }
    }
    if (must_sweep) {
      RETURN_IF_ERROR(Sweep(key.identity, deadline));
      continue;
    }
    if (lost_all) {
      // SoftHSM 2.6.1 loses sight of its objects when the token's directory
      // goes away, reports nothing, and does not see them again when it is
      // back, until the login ends. If the keys were really destroyed, the
      // next generation sees none, and this happens once.
      RETURN_IF_ERROR(
          connection_->Recover(generation, Rung::kRelogin, deadline));
      continue;
    }
    ASSIGN_OR_RETURN(const bool again, Mend(last, generation, deadline));
    if (!again) return last;
    if (round >= 1 && ClassOf(last) == ErrorClass::kDevice) break;
  }
  connection_->ReportFailure(last);
  return last;
}

absl::Status Token::Engine::Sweep(const KeyIdentity& identity,
                                  base::Deadline deadline) {
  return RunAdmin(deadline, [&](Link& link, Session& session) -> absl::Status {
    // Twice: a search that finds nothing may be a moment's confusion.
    for (int look = 0; look < 2; ++look) {
      if (link.keys.Lookup(identity.id).first != KeyTable::Outcome::kUnknown) {
        return absl::OkStatus();  // swept while this caller waited for the lane
      }
      ASSIGN_OR_RETURN(const std::vector<FoundObject> found,
                       SweepKeys(session));
      link.keys.Replace(found);
    }
    if (link.keys.Lookup(identity.id).first == KeyTable::Outcome::kUnknown) {
      link.keys.RememberMissing(identity.id);
    }
    return absl::OkStatus();
  });
}

absl::Status Token::Engine::OpenCanary(Link& link, CK_OBJECT_HANDLE handle,
                                       const Canary& canary,
                                       base::Deadline deadline) {
  const auto open = [&](Freshness freshness) -> absl::Status {
    ASSIGN_OR_RETURN(SessionPool::Lease lease,
                     link.pool.Acquire(deadline, freshness));
    absl::StatusOr<base::SecretBytes> plaintext =
        cipher().Open(*lease, handle, canary.aad, canary.sealed);
    RETURN_IF_ERROR(plaintext.status());
    std::move(lease).Return();
    if (Opens(canary, *plaintext)) return absl::OkStatus();
    return MakeError(ErrorClass::kIntegrity,
                     "the canary opens to something else");
  };
  absl::Status status = open(Freshness::kAny);
  if (ClassOf(status) == ErrorClass::kSession ||
      ClassOf(status) == ErrorClass::kDevice) {
    if (!RecoveryFor(status)) status = open(Freshness::kNew);
  }
  if (ClassOf(status) == ErrorClass::kCallerData ||
      ClassOf(status) == ErrorClass::kAmbiguous) {
    // The handle is another key's, or the device is out of order. If it opens
    // what it seals under a key of our own, the handle it is.
    const absl::Status control = connection_->ControlExperiment(link, deadline);
    status = control.ok() ? open(Freshness::kNew) : control;
    if (control.ok() && (ClassOf(status) == ErrorClass::kCallerData ||
                         ClassOf(status) == ErrorClass::kAmbiguous)) {
      status = MakeError(ErrorClass::kIntegrity,
                         "the canary does not open: the object on the token is "
                         "not this key");
    }
  }
  connection_->CountCanary(status.ok() ? "ok"
                           : ClassOf(status) == ErrorClass::kIntegrity
                               ? "failed"
                               : "error");
  return status;
}

absl::Status Token::Engine::Settle(Key& key, Link& link,
                                   const KeyTable::EntryUse& handle,
                                   base::Deadline deadline) {
  ASSIGN_OR_RETURN(const base::Lane::Hold hold, key.resolution.Enter(deadline));
  if (key.OpenedLately(handle.handle())) return absl::OkStatus();
  RETURN_IF_ERROR(
      OpenCanary(link, handle.handle().handle, key.canary, deadline));
  key.SetProven(handle.entry());
  return absl::OkStatus();
}

void Token::Engine::Quarantine(Key& key, const absl::Status& why) {
  if (key.quarantined.exchange(true)) return;
  if (connection_->options().metrics != nullptr) {
    connection_->options()
        .metrics
        ->GetCounter("kekd_token_quarantines_total",
                     "Keys quarantined because a proof failed")
        ->Increment();
  }
  connection_->Event("key-quarantined",
                     absl::StrCat(key.identity.label, ": ", why.message()));
}

// ---- use --------------------------------------------------------------------

absl::StatusOr<Sealed> Token::Engine::Encrypt(
    Key& key, std::span<const uint8_t> aad, std::span<const uint8_t> plaintext,
    const EncryptOptions& options, base::Deadline deadline) {
  Sealed result;
  RETURN_IF_ERROR(RunWithKey(
      key, deadline, [&](Target& target, Session& session) -> absl::Status {
        const CK_OBJECT_HANDLE handle = target.handle.handle().handle;
        ASSIGN_OR_RETURN(Sealed sealed,
                         cipher().Seal(session, handle, aad, plaintext));
        if (!key.ivs.Accept(sealed.iv)) {
          return MakeError(ErrorClass::kIntegrity, "an IV was used twice");
        }
        if (options.verify) {
          absl::StatusOr<base::SecretBytes> opened =
              cipher().Open(session, handle, aad, sealed);
          if (ClassOf(opened.status()) == ErrorClass::kCallerData ||
              ClassOf(opened.status()) == ErrorClass::kAmbiguous) {
            // Bytes or device: once more on another session, after the key has
            // been seen to open its canary.
            Link& link = *target.work.link;
            RETURN_IF_ERROR(OpenCanary(link, handle, key.canary, deadline));
            ASSIGN_OR_RETURN(SessionPool::Lease other,
                             link.pool.Acquire(deadline, Freshness::kNew));
            opened = cipher().Open(*other, handle, aad, sealed);
            if (ClassOf(opened.status()) == ErrorClass::kCallerData ||
                ClassOf(opened.status()) == ErrorClass::kAmbiguous) {
              return MakeError(ErrorClass::kIntegrity,
                               "a fresh ciphertext does not open");
            }
          }
          RETURN_IF_ERROR(opened.status());
          if (!base::ConstantTimeEqual(opened->span(), plaintext)) {
            return MakeError(ErrorClass::kIntegrity,
                             "a fresh ciphertext opens to something else");
          }
        }
        key.NoteUse(target.handle.handle());
        result = std::move(sealed);
        return absl::OkStatus();
      }));
  return result;
}

absl::StatusOr<base::SecretBytes> Token::Engine::Decrypt(
    Key& key, std::span<const uint8_t> aad, const Sealed& sealed,
    base::Deadline deadline) {
  base::SecretBytes result;
  RETURN_IF_ERROR(RunWithKey(
      key, deadline, [&](Target& target, Session& session) -> absl::Status {
        ASSIGN_OR_RETURN(
            result,
            cipher().Open(session, target.handle.handle().handle, aad, sealed));
        return absl::OkStatus();
      }));
  return result;
}

absl::Status Token::Engine::Prove(Key& key, base::Deadline deadline) {
  const uint64_t covered = key.uses();
  KeyHandle proven;
  RETURN_IF_ERROR(RunWithKey(
      key, deadline, [&](Target& target, Session& session) -> absl::Status {
        proven = target.handle.handle();
        absl::StatusOr<base::SecretBytes> opened = cipher().Open(
            session, proven.handle, key.canary.aad, key.canary.sealed);
        if (ClassOf(opened.status()) == ErrorClass::kCallerData ||
            ClassOf(opened.status()) == ErrorClass::kAmbiguous) {
          return OpenCanary(*target.work.link, proven.handle, key.canary,
                            deadline);
        }
        RETURN_IF_ERROR(opened.status());
        if (!Opens(key.canary, *opened)) {
          return MakeError(ErrorClass::kIntegrity,
                           "the canary opens to something else");
        }
        key.SetProven(target.handle.entry());
        connection_->CountCanary("ok");
        return absl::OkStatus();
      }));
  if (!key.Cover(proven, covered)) {
    return MakeError(ErrorClass::kHandle,
                     "the token's generation ended before what was encrypted "
                     "in it could be proven; encrypt again");
  }
  return absl::OkStatus();
}

// ---- key objects ------------------------------------------------------------

absl::StatusOr<std::vector<CK_OBJECT_HANDLE>> Token::Engine::Find(
    Session& session, const KeyIdentity& identity) {
  return FindObjects(session, KeyTemplate::FindTokenKey(identity.id));
}

absl::StatusOr<KeyAttributes> Token::Engine::GenerateKey(
    const KeyIdentity& identity, base::Deadline deadline) {
  if (identity.id.empty() || identity.id.size() > 255 ||
      identity.label.empty() || identity.label.size() > 255) {
    return absl::InvalidArgumentError(
        "a key needs a CKA_ID and a label of 1 to 255 bytes");
  }
  KeyAttributes result;
  bool asked = false;  // C_GenerateKey was called: what is there may be ours
  RETURN_IF_ERROR(
      RunAdmin(deadline, [&](Link& link, Session& session) -> absl::Status {
        std::vector<std::string> dropped;
        const auto adopt = [&](CK_OBJECT_HANDLE handle) -> absl::Status {
          ASSIGN_OR_RETURN(result, ReadKeyAttributes(session, handle));
          result.dropped = dropped;
          const absl::Status verdict = JudgeAttributes(
              result, connection_->options().profile.attributes);
          if (!verdict.ok()) {
            const absl::Status destroyed = DestroyObject(session, handle);
            connection_->Event(
                "key-attributes",
                absl::StrCat(identity.label, ": ", verdict.message(),
                             destroyed.ok() ? "; destroyed"
                                            : "; it cannot be destroyed"));
            return verdict;
          }
          link.keys.Add(identity.id, handle);
          return absl::OkStatus();
        };
        // What a C_GenerateKey that reported an error left behind.
        const auto look = [&]() -> absl::StatusOr<bool> {
          ASSIGN_OR_RETURN(const std::vector<CK_OBJECT_HANDLE> found,
                           Find(session, identity));
          if (found.size() == 1) {
            RETURN_IF_ERROR(adopt(found[0]));
            return true;
          }
          if (found.empty()) return false;
          for (const CK_OBJECT_HANDLE handle : found) {
            (void)DestroyObject(session, handle);
          }
          return DuplicateError(identity);
        };
        ASSIGN_OR_RETURN(const std::vector<CK_OBJECT_HANDLE> before,
                         Find(session, identity));
        if (!before.empty() && !asked) {
          return absl::AlreadyExistsError(
              absl::StrCat("an object with the CKA_ID of key ", identity.label,
                           " is on the token already"));
        }
        if (!before.empty()) return look().status();
        KeyTemplate key = KeyTemplate::AesTokenKey(identity.id, identity.label);
        for (int attempt = 1;; ++attempt) {
          asked = true;
          const absl::StatusOr<CK_OBJECT_HANDLE> made =
              GenerateAes(session, key, &dropped);
          if (made.ok()) return adopt(*made);
          const absl::Status& failed = made.status();
          if ((ClassOf(failed) != ErrorClass::kDevice &&
               ClassOf(failed) != ErrorClass::kCapacity) ||
              RecoveryFor(failed)) {
            return failed;
          }
          ASSIGN_OR_RETURN(const bool adopted, look());
          if (adopted) return absl::OkStatus();
          // SoftHSM 2.6.1 fails some generations beside a search of another
          // process; nothing is there then, and once more is harmless.
          if (attempt < kAttempts) continue;
          // NSS softokn 3.87 says so of attributes its database does not know.
          if (RvOf(failed) != CKR_GENERAL_ERROR) return failed;
          std::string refused = key.DropOptional();
          if (refused.empty()) return failed;
          dropped.push_back(std::move(refused));
        }
      }));
  return result;
}

absl::StatusOr<Canary> Token::Engine::MakeCanary(const KeyIdentity& identity,
                                                 std::span<const uint8_t> aad,
                                                 base::Deadline deadline) {
  Canary canary;
  RETURN_IF_ERROR(
      RunAdmin(deadline, [&](Link& link, Session& session) -> absl::Status {
        ASSIGN_OR_RETURN(const std::vector<CK_OBJECT_HANDLE> found,
                         Find(session, identity));
        if (found.empty()) return MissingError(identity);
        if (found.size() > 1) return DuplicateError(identity);
        base::SecretBytes plaintext(32);
        RETURN_IF_ERROR(HostRandom(plaintext.mutable_span()));
        canary.aad.assign(aad.begin(), aad.end());
        SHA256(plaintext.data(), plaintext.size(),
               canary.plaintext_sha256.data());
        {
          ASSIGN_OR_RETURN(SessionPool::Lease lease,
                           link.pool.Acquire(deadline));
          ASSIGN_OR_RETURN(canary.sealed, cipher().Seal(*lease, found[0], aad,
                                                        plaintext.span()));
          std::move(lease).Return();
        }
        // Through another session, and a handle found anew.
        ASSIGN_OR_RETURN(const std::vector<CK_OBJECT_HANDLE> again,
                         Find(session, identity));
        if (again.size() != 1) return DuplicateError(identity);
        ASSIGN_OR_RETURN(SessionPool::Lease lease,
                         link.pool.Acquire(deadline, Freshness::kNew));
        absl::StatusOr<base::SecretBytes> opened =
            cipher().Open(*lease, again[0], aad, canary.sealed);
        if (ClassOf(opened.status()) == ErrorClass::kCallerData ||
            ClassOf(opened.status()) == ErrorClass::kAmbiguous) {
          return MakeError(ErrorClass::kIntegrity,
                           "a fresh canary does not open");
        }
        RETURN_IF_ERROR(opened.status());
        if (!Opens(canary, *opened)) {
          return MakeError(ErrorClass::kIntegrity,
                           "a fresh canary opens to something else");
        }
        std::move(lease).Return();
        return absl::OkStatus();
      }));
  return canary;
}

absl::StatusOr<KeyAttributes> Token::Engine::ReadAttributes(
    const KeyIdentity& identity, base::Deadline deadline) {
  KeyAttributes result;
  RETURN_IF_ERROR(
      RunAdmin(deadline, [&](Link&, Session& session) -> absl::Status {
        ASSIGN_OR_RETURN(const std::vector<CK_OBJECT_HANDLE> found,
                         Find(session, identity));
        if (found.empty()) {
          return absl::NotFoundError(
              absl::StrCat("key ", identity.label, " is not on the token"));
        }
        if (found.size() > 1) return DuplicateError(identity);
        ASSIGN_OR_RETURN(result, ReadKeyAttributes(session, found[0]));
        return absl::OkStatus();
      }));
  return result;
}

absl::Status Token::Engine::Destroy(const KeyIdentity& identity,
                                    const Canary* canary,
                                    base::Deadline deadline) {
  return RunAdmin(deadline, [&](Link& link, Session& session) -> absl::Status {
    std::vector<CK_OBJECT_HANDLE> found;
    for (int look = 0; look < 2 && found.empty(); ++look) {
      ASSIGN_OR_RETURN(found, Find(session, identity));
    }
    if (found.size() > 1) return DuplicateError(identity);
    // No use begins any more, and those that have begun end, before the number
    // of the handle can become another object's.
    if (!link.keys.RevokeAndDrain(identity.id, deadline)) {
      return absl::DeadlineExceededError(
          "operations with the key did not end in time");
    }
    if (found.empty()) return absl::OkStatus();
    if (canary != nullptr) {
      RETURN_IF_ERROR(OpenCanary(link, found[0], *canary, deadline));
    }
    const absl::Status destroyed = DestroyObject(session, found[0]);
    ASSIGN_OR_RETURN(found, Find(session, identity));
    if (found.empty()) return absl::OkStatus();
    if (!destroyed.ok()) return destroyed;
    return MakeError(ErrorClass::kIntegrity,
                     absl::StrCat("the token says that key ", identity.label,
                                  " is destroyed, and still has it"));
  });
}

absl::StatusOr<std::vector<ObjectInfo>> Token::Engine::ListKeys(
    base::Deadline deadline) {
  std::vector<ObjectInfo> result;
  RETURN_IF_ERROR(
      RunAdmin(deadline, [&](Link& link, Session& session) -> absl::Status {
        ASSIGN_OR_RETURN(std::vector<FoundObject> found, SweepKeys(session));
        link.keys.Replace(found);
        result.clear();
        for (FoundObject& object : found) {
          result.push_back(std::move(object.info));
        }
        return absl::OkStatus();
      }));
  return result;
}

// ---- Token ------------------------------------------------------------------

// Each method keeps the engine alive for its own duration: a call that hangs
// may outlive the Token.

absl::StatusOr<std::unique_ptr<Token>> Token::Open(TokenOptions options) {
  ASSIGN_OR_RETURN(std::shared_ptr<Connection> connection,
                   Connection::Open(std::move(options)));
  return std::unique_ptr<Token>(
      new Token(std::make_shared<Engine>(std::move(connection))));
}

Token::Token(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}

Token::~Token() { engine_->connection().Close(); }

absl::StatusOr<KeyAttributes> Token::GenerateKey(const KeyIdentity& identity,
                                                 base::Deadline deadline) {
  const std::shared_ptr<Engine> engine = engine_;
  return engine->GenerateKey(identity, deadline);
}

absl::StatusOr<Canary> Token::MakeCanary(const KeyIdentity& identity,
                                         std::span<const uint8_t> aad,
                                         base::Deadline deadline) {
  const std::shared_ptr<Engine> engine = engine_;
  return engine->MakeCanary(identity, aad, deadline);
}

absl::StatusOr<KeyAttributes> Token::ReadAttributes(const KeyIdentity& identity,
                                                    base::Deadline deadline) {
  const std::shared_ptr<Engine> engine = engine_;
  return engine->ReadAttributes(identity, deadline);
}

absl::Status Token::DestroyKey(const KeyIdentity& identity,
                               const Canary& canary, base::Deadline deadline) {
  const std::shared_ptr<Engine> engine = engine_;
  return engine->Destroy(identity, &canary, deadline);
}

absl::Status Token::DestroyUnprovenKey(const KeyIdentity& identity,
                                       base::Deadline deadline) {
  const std::shared_ptr<Engine> engine = engine_;
  return engine->Destroy(identity, nullptr, deadline);
}

absl::StatusOr<std::vector<ObjectInfo>> Token::ListKeys(
    base::Deadline deadline) {
  const std::shared_ptr<Engine> engine = engine_;
  return engine->ListKeys(deadline);
}

std::shared_ptr<Key> Token::AddKey(KeyIdentity identity, Canary canary) {
  return std::make_shared<Key>(std::move(identity), std::move(canary));
}

absl::Status Token::Prove(const std::shared_ptr<Key>& key,
                          base::Deadline deadline) {
  const std::shared_ptr<Engine> engine = engine_;
  return engine->Prove(*key, deadline);
}

absl::StatusOr<Sealed> Token::Encrypt(const std::shared_ptr<Key>& key,
                                      std::span<const uint8_t> aad,
                                      std::span<const uint8_t> plaintext,
                                      const EncryptOptions& options,
                                      base::Deadline deadline) {
  const std::shared_ptr<Engine> engine = engine_;
  return engine->Encrypt(*key, aad, plaintext, options, deadline);
}

absl::StatusOr<base::SecretBytes> Token::Decrypt(
    const std::shared_ptr<Key>& key, std::span<const uint8_t> aad,
    const Sealed& sealed, base::Deadline deadline) {
  const std::shared_ptr<Engine> engine = engine_;
  return engine->Decrypt(*key, aad, sealed, deadline);
}

absl::StatusOr<base::SecretBytes> Token::GenerateRandom(
    size_t size, base::Deadline deadline) {
  const std::shared_ptr<Engine> engine = engine_;
  base::SecretBytes result(size);
  RETURN_IF_ERROR(engine->RunKeyless(deadline, [&](Session& session) {
    return engine->connection().cipher().Random(session, result.mutable_span());
  }));
  return result;
}

bool Token::IsQuarantined(const std::shared_ptr<Key>& key) const {
  return key->quarantined.load();
}

void Token::ClearQuarantine(const std::shared_ptr<Key>& key) {
  key->ForgetProven();
  key->quarantined.store(false);
}

absl::Status Token::RetryLogin(base::Deadline deadline) {
  return engine_->connection().Attempt(Rung::kRelogin, true, deadline);
}

absl::Status Token::Relogin(base::Deadline deadline) {
  return engine_->connection().Attempt(Rung::kRelogin, false, deadline);
}

absl::Status Token::Probe(base::Deadline deadline) {
  const std::shared_ptr<Engine> engine = engine_;
  if (engine->connection().health().state != TokenState::kReady) {
    return engine->connection().Attempt(Rung::kProbe, false, deadline);
  }
  return engine->RunKeyless(
      deadline, [&](Session& session) { return session.CheckAlive(); });
}

TokenHealth Token::health() const { return engine_->connection().health(); }
TokenInfo Token::info() const { return engine_->connection().info(); }
const TokenProfile& Token::profile() const {
  return engine_->connection().options().profile;
}
std::vector<Guarantee> Token::guarantees() const {
  return engine_->connection().guarantees();
}

}  // namespace kek::pkcs11
