// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/secret_bytes.h"
#include "base/sync.h"
#include "pkcs11/cryptoki.h"

namespace kek::pkcs11 {

// One open PKCS#11 session. Used by one thread at a time: two threads in one
// session crash SoftHSM 2.6.1.
struct Session {
  CK_SESSION_HANDLE handle = 0;
  uint64_t generation = 0;
  // Random bytes fetched from the token ahead of need, for IVs.
  base::SecretBytes random;
  size_t random_used = 0;
};

// SessionPool models the sessions kekd uses for cryptography: at most
// max_sessions, opened when needed, lent out exclusively, last in first out (the
// hottest session is used again, and a load's peak does not keep all of them
// warm). A session that ended badly is closed, never lent again.
//
// Sessions belong to a generation. BeginGeneration forgets all older ones
// without closing them: the token dropped them, and their numbers may be
// somebody else's by now. Thread-safe; no lock is held while a session is opened
// or closed.
class SessionPool {
 public:
  struct Options {
    int max_sessions = 16;
    size_t max_waiters = 1024;
    std::function<absl::StatusOr<CK_SESSION_HANDLE>()> open;
    std::function<void(CK_SESSION_HANDLE)> close;
  };

  // The use of one session. Without Keep the session is closed at the end.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept = default;
    Lease& operator=(Lease&& other) noexcept;
    ~Lease() { End(); }

    Session& operator*() const { return *session_; }
    Session* operator->() const { return session_.get(); }
    // The last operation ended as operations end: the session is good for more.
    void Keep() { keep_ = true; }
    void End() noexcept;

   private:
    friend class SessionPool;
    Lease(SessionPool* pool, std::unique_ptr<Session> session)
        : pool_(pool), session_(std::move(session)) {}
    SessionPool* pool_ = nullptr;
    std::unique_ptr<Session> session_;
    bool keep_ = false;
  };

  explicit SessionPool(Options options);
  SessionPool(const SessionPool&) = delete;
  SessionPool& operator=(const SessionPool&) = delete;

  // UNAVAILABLE (ErrorClass::kSession) when generation is not the present one;
  // DEADLINE_EXCEEDED; RESOURCE_EXHAUSTED when max_waiters wait already; else
  // what opening a session said.
  absl::StatusOr<Lease> Acquire(uint64_t generation, base::Deadline deadline);

  void BeginGeneration(uint64_t generation);
  // Closes what is idle, for an orderly end of a generation.
  void CloseIdle();

  struct Stats {
    int open = 0;
    int in_use = 0;
    int waiters = 0;
  };
  Stats stats() const;

 private:
  void Return(std::unique_ptr<Session> session, bool keep);

  const Options options_;
  mutable base::Mutex mu_;
  base::CondVar changed_;
  uint64_t generation_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::unique_ptr<Session>> idle_ ABSL_GUARDED_BY(mu_);
  int open_ ABSL_GUARDED_BY(mu_) = 0;  // idle, lent or being opened
  size_t waiters_ ABSL_GUARDED_BY(mu_) = 0;
  // What the token allows, learned from CKR_SESSION_COUNT, and until when that
  // is believed.
  int cap_ ABSL_GUARDED_BY(mu_);
  base::Deadline capped_until_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kek::pkcs11
