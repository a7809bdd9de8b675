// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/lane.h"
#include "base/sync.h"
#include "pkcs11/cipher.h"
#include "pkcs11/key_table.h"
#include "pkcs11/module.h"
#include "pkcs11/pin_memory.h"
#include "pkcs11/session.h"
#include "pkcs11/session_pool.h"
#include "pkcs11/token.h"
#include "pkcs11/token_uri.h"

namespace kek::pkcs11 {

// Link models one generation of a token: what is true from one login to the
// next. When it ends, its sessions are closed and its handles mean nothing.
struct Link {
  Link(uint64_t generation, SessionContext context, SessionPool::Options pool);

  const uint64_t generation;
  const uint64_t module_epoch;
  const SessionContext context;
  // Opened first, logged in, never used for work: while it lives, login and
  // session objects live.
  std::unique_ptr<Session> login_session;
  // A session key for control experiments: if it works, the device works.
  CK_OBJECT_HANDLE control_key = CK_INVALID_HANDLE;
  SessionPool pool;
  KeyTable keys;

  // The session of the admin lane, kept between operations.
  std::unique_ptr<Session> TakeAdminSession();
  void KeepAdminSession(std::unique_ptr<Session> session);
  // Closes what is left, after everybody has gone.
  void Close();

 private:
  base::Mutex mu_;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  std::unique_ptr<Session> admin_session_ ABSL_GUARDED_BY(mu_);
};

// How far a recovery goes. Each includes a proof that the device works.
enum class Rung {
  kProbe,         // only the proof, in the present generation
  kRelogin,       // all sessions closed, login, new generation
  kReinitialize,  // C_Finalize and C_Initialize before that
};

// Connection owns the way to a token: it finds it, logs in, begins generations
// and mends them. One thread of its own, the supervisor, makes all of these
// attempts; callers ask for one (Recover) and wait, so that a login or a
// re-initialisation that hangs costs nobody but the supervisor. Between a
// failed attempt and the next successful one callers fail at once. A refused
// PIN ends the attempts until the PIN source's content changes. Thread-safe.
class Connection {
 public:
  // The right to work on the token in this generation. Not to be held while
  // waiting for a recovery: recoveries wait for it.
  struct Work {
    std::shared_ptr<Link> link;
    Module::Use use;
  };

  static absl::StatusOr<std::shared_ptr<Connection>> Open(TokenOptions options);
  // Ends the supervisor and closes the sessions; gives up on calls that hang.
  void Close();

  absl::StatusOr<Work> Enter(base::Deadline deadline);
  // Asks for a new state of things because of what happened in `seen`
  // generation, and waits. OK: try again (perhaps someone else had it mended
  // already).
  absl::Status Recover(uint64_t seen, Rung rung, base::Deadline deadline);
  // How work ended. Failures of the device in a row open the breaker.
  void ReportSuccess();
  void ReportFailure(const absl::Status& status);

  // By an operator: at once, whatever the state.
  absl::Status Attempt(Rung rung, bool retry_refused_pin,
                       base::Deadline deadline);
  // Opens what the control key sealed, on another session than the caller's.
  absl::Status ControlExperiment(Link& link, base::Deadline deadline);

  TokenHealth health() const;
  TokenInfo info() const;
  std::vector<Guarantee> guarantees() const;
  const TokenOptions& options() const { return options_; }
  Cipher& cipher() { return cipher_; }
  base::Lane& admin_lane() { return admin_lane_; }
  void Event(const std::string& event, const std::string& detail) const;
  void CountCanary(const char* result);

 private:
  enum class Phase { kRecovering, kUp, kDown };
  // Why an attempt failed.
  struct Failure {
    absl::Status status;
    TokenState state = TokenState::kDegraded;
    bool fatal = false;         // a start must fail for it
    bool login_failed = false;  // wait long
  };

  Connection(TokenOptions options, TokenUri uri,
             std::shared_ptr<Module> module);

  void Supervise();
  void Tick();
  bool IsDue(base::Deadline now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Run(Rung rung, bool retry_refused_pin, Failure& failure);
  absl::Status Connect(bool retry_refused_pin, Failure& failure,
                       std::shared_ptr<Link>& link);
  absl::Status FindSlot(CK_SLOT_ID* slot, CK_TOKEN_INFO* info,
                        Failure& failure);
  absl::Status Login(Session& session, const CK_TOKEN_INFO& info,
                     bool retry_refused_pin, Failure& failure);
  absl::Status Control(Session& session, const Link& link);
  void Succeeded(std::shared_ptr<Link> link);
  void Failed(const Failure& failure);
  absl::Status DownError() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool PinChanged();
  void SetGauges();

  const TokenOptions options_;
  const TokenUri uri_;
  const std::shared_ptr<Module> module_;
  const std::shared_ptr<CallWatch> watch_;
  Cipher cipher_;
  base::Lane admin_lane_;

  std::atomic<int64_t> last_success_{0};  // steady nanoseconds
  std::atomic<int> failures_in_a_row_{0};
  // An attempt succeeded and no work since.
  std::atomic<bool> unproven_generation_{false};

  mutable base::Mutex mu_;
  base::CondVar changed_;
  Phase phase_ ABSL_GUARDED_BY(mu_) = Phase::kRecovering;
  TokenState state_ ABSL_GUARDED_BY(mu_) = TokenState::kStarting;
  absl::Status error_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<Link> link_ ABSL_GUARDED_BY(mu_);
  uint64_t generation_ ABSL_GUARDED_BY(mu_) = 0;
  Rung rung_ ABSL_GUARDED_BY(mu_) = Rung::kReinitialize;
  bool forced_ ABSL_GUARDED_BY(mu_) = false;
  bool retry_refused_pin_ ABSL_GUARDED_BY(mu_) = false;
  base::Deadline next_attempt_ ABSL_GUARDED_BY(mu_);
  std::chrono::nanoseconds back_off_ ABSL_GUARDED_BY(mu_){0};
  uint64_t attempts_begun_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t attempts_done_ ABSL_GUARDED_BY(mu_) = 0;
  Failure start_failure_ ABSL_GUARDED_BY(mu_);
  TokenInfo info_ ABSL_GUARDED_BY(mu_);
  std::vector<Guarantee> guarantees_ ABSL_GUARDED_BY(mu_);
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;

  // The supervisor's own.
  std::thread supervisor_;
  std::unique_ptr<PinMemory> pin_memory_;
  std::string probed_identity_;
  std::string refused_pin_digest_;
  base::Deadline last_pin_look_;
  base::Deadline last_initialize_;
  uint64_t seen_module_epoch_ = 0;
};

}  // namespace kek::pkcs11
