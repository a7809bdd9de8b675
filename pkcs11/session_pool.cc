// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/session_pool.h"

#include <algorithm>

#include "base/status_macros.h"
#include "pkcs11/error_internal.h"

namespace kek::pkcs11 {
namespace {

absl::Status RetiredError() {
  return MakeError(ErrorClass::kSession, "the token's generation has ended");
}

}  // namespace

// Invariant: taken_ counts places, never more than max_sessions; idle sessions
// occupy theirs. While anyone queues no place is idle: Hand serves the head of
// the queue first.

SessionPool::Lease::~Lease() {
  if (session_ != nullptr) pool_->GiveBack(std::move(session_), false);
}

void SessionPool::Lease::Return() && {
  pool_->GiveBack(std::move(session_), true);
}

SessionPool::SessionPool(Options options) : options_(std::move(options)) {}

SessionPool::~SessionPool() = default;

int SessionPool::Cap() const {
  if (clamp_ > 0 && std::chrono::steady_clock::now() < clamped_until_) {
    return clamp_;
  }
  return options_.max_sessions;
}

absl::StatusOr<SessionPool::Lease> SessionPool::Acquire(base::Deadline deadline,
                                                        Freshness freshness) {
  while (true) {
    ASSIGN_OR_RETURN(std::unique_ptr<Session> session,
                     TakePlace(deadline, freshness));
    if (session != nullptr && freshness == Freshness::kAny) {
      return Lease(this, std::move(session));
    }
    session.reset();  // closes it; its place is ours
    absl::StatusOr<std::unique_ptr<Session>> opened = options_.open();
    if (opened.ok()) return Lease(this, *std::move(opened));
    base::MutexLock lock(mu_);
    const bool clamped =
        ClassOf(opened.status()) == ErrorClass::kCapacity && taken_ > 1;
    if (clamped) {
      clamp_ = taken_ - 1;
      clamped_until_ = std::chrono::steady_clock::now() +
                       std::chrono::duration_cast<base::Deadline::duration>(
                           options_.clamp_time);
    }
    Hand(nullptr);
    // With a cap that was learned just now, this caller is one that waits.
    if (!clamped) return opened.status();
  }
}

absl::StatusOr<std::unique_ptr<Session>> SessionPool::TakePlace(
    base::Deadline deadline, Freshness freshness) {
  base::MutexLock lock(mu_);
  if (retired_) return RetiredError();
  // A new session takes a free place before it takes an idle one's.
  const bool room = taken_ < Cap();
  if (!idle_.empty() && !(freshness == Freshness::kNew && room)) {
    std::unique_ptr<Session> session = std::move(idle_.back());
    idle_.pop_back();
    return session;
  }
  if (room) {
    ++taken_;
    return std::unique_ptr<Session>();
  }
  if (queue_.size() >= options_.max_waiters) {
    return absl::ResourceExhaustedError(
        "too many callers wait for a session of the token");
  }
  Waiter self;
  queue_.push_back(&self);
  while (!self.served && !retired_) {
    if (!self.wake.WaitUntil(mu_, deadline) &&
        std::chrono::steady_clock::now() >= deadline) {
      break;
    }
  }
  if (self.served) return std::move(self.session);
  queue_.erase(std::find(queue_.begin(), queue_.end(), &self));
  if (retired_) return RetiredError();
  return absl::DeadlineExceededError(
      "no session of the token became free in time");
}

void SessionPool::Hand(std::unique_ptr<Session> session) {
  const bool place_remains = session != nullptr || taken_ <= Cap();
  if (!queue_.empty() && !retired_ && place_remains) {
    Waiter* next = queue_.front();
    queue_.pop_front();
    next->session = std::move(session);
    next->served = true;
    next->wake.NotifyOne();
    return;
  }
  if (session != nullptr) {
    idle_.push_back(std::move(session));
  } else {
    --taken_;
  }
}

void SessionPool::GiveBack(std::unique_ptr<Session> session, bool clean) {
  if (!clean) {
    {
      base::MutexLock lock(mu_);
      if (closed_) session->Abandon();
    }
    session.reset();
  }
  base::MutexLock lock(mu_);
  if (closed_ && session != nullptr) {
    session->Abandon();
    session.reset();
  }
  Hand(std::move(session));
}

void SessionPool::Retire() {
  base::MutexLock lock(mu_);
  retired_ = true;
  for (Waiter* waiter : queue_) waiter->wake.NotifyOne();
}

void SessionPool::CloseIdle() {
  std::vector<std::unique_ptr<Session>> idle;
  {
    base::MutexLock lock(mu_);
    closed_ = true;
    idle.swap(idle_);
    taken_ -= static_cast<int>(idle.size());
  }
}

int SessionPool::open() const {
  base::MutexLock lock(mu_);
  return taken_;
}
int SessionPool::in_use() const {
  base::MutexLock lock(mu_);
  return taken_ - static_cast<int>(idle_.size());
}
int SessionPool::waiters() const {
  base::MutexLock lock(mu_);
  return static_cast<int>(queue_.size());
}

}  // namespace kek::pkcs11
