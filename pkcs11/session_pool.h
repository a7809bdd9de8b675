// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sync.h"
#include "pkcs11/session.h"

namespace kek::pkcs11 {

// SessionPool models the sessions of one generation of a token that do
// cryptography. A session is leased to one caller at a time, the one used last
// first. The pool opens sessions when it needs them, up to max_sessions, fewer
// where the token says CKR_SESSION_COUNT; beyond that callers wait, in order,
// until their deadline. Thread-safe. No mutex is held while a session is opened
// or closed.
class SessionPool {
 public:
  struct Options {
    int max_sessions = 16;
    size_t max_waiters = 1024;
    // After CKR_SESSION_COUNT the cap stays at what was reached for this long.
    std::chrono::nanoseconds clamp_time = std::chrono::seconds(30);
    std::function<absl::StatusOr<std::unique_ptr<Session>>()> open;
  };

  // The exclusive use of one session. Closes it on destruction; only Return,
  // after an operation that left it clean, puts it back. Move-only. Must not
  // outlive the pool.
  class Lease {
   public:
    Lease(Lease&& other) noexcept
        : pool_(std::exchange(other.pool_, nullptr)),
          session_(std::move(other.session_)) {}
    Lease& operator=(Lease&&) = delete;
    ~Lease();
    Session& operator*() const { return *session_; }
    Session* operator->() const { return session_.get(); }
    void Return() &&;

   private:
    friend class SessionPool;
    Lease(SessionPool* pool, std::unique_ptr<Session> session)
        : pool_(pool), session_(std::move(session)) {}
    SessionPool* pool_;
    std::unique_ptr<Session> session_;
  };

  enum class Freshness { kAny, kNew };

  explicit SessionPool(Options options);
  ~SessionPool();
  SessionPool(const SessionPool&) = delete;
  SessionPool& operator=(const SessionPool&) = delete;

  // kNew: a session opened now, for the retry after another one failed.
  // DEADLINE_EXCEEDED; RESOURCE_EXHAUSTED: max_waiters wait already, or not one
  // session can be opened; class kSession: the pool is retired; otherwise what
  // opening said.
  absl::StatusOr<Lease> Acquire(base::Deadline deadline,
                                Freshness freshness = Freshness::kAny);

  // The generation ends: waiters and newcomers are turned away.
  void Retire();
  // After Retire, and after everybody has left: closes the idle sessions. Those
  // still leased then (their calls hang) are abandoned when they come back.
  void CloseIdle();

  int open() const;
  int in_use() const;
  int waiters() const;

 private:
  // A caller in the queue. It is handed a session, or the right to open one.
  struct Waiter {
    base::CondVar wake;
    bool served = false;
    std::unique_ptr<Session> session;
  };

  int Cap() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // A place became free, with or without a session in it.
  void Hand(std::unique_ptr<Session> session)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void GiveBack(std::unique_ptr<Session> session, bool clean);
  // An idle session, or none with the right to open one.
  absl::StatusOr<std::unique_ptr<Session>> TakePlace(base::Deadline deadline,
                                                     Freshness freshness);

  const Options options_;
  mutable base::Mutex mu_;
  std::vector<std::unique_ptr<Session>> idle_ ABSL_GUARDED_BY(mu_);
  std::deque<Waiter*> queue_ ABSL_GUARDED_BY(mu_);
  int taken_ ABSL_GUARDED_BY(mu_) = 0;  // places: idle, leased or being opened
  int clamp_ ABSL_GUARDED_BY(mu_) = 0;  // 0: none
  base::Deadline clamped_until_ ABSL_GUARDED_BY(mu_);
  bool retired_ ABSL_GUARDED_BY(mu_) = false;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace kek::pkcs11
