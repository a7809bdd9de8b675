// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/session_pool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pkcs11/error_internal.h"

namespace kek::pkcs11 {
namespace {

// How long the pool stays at the size the token last allowed.
constexpr std::chrono::seconds kCapped{10};

}  // namespace

SessionPool::Lease& SessionPool::Lease::operator=(Lease&& other) noexcept {
  if (this != &other) {
    End();
    pool_ = other.pool_;
    session_ = std::move(other.session_);
    keep_ = other.keep_;
  }
  return *this;
}

void SessionPool::Lease::End() noexcept {
  if (session_ != nullptr) pool_->Return(std::move(session_), keep_);
}

SessionPool::SessionPool(Options options)
    : options_(std::move(options)), cap_(options_.max_sessions) {}

absl::StatusOr<SessionPool::Lease> SessionPool::Acquire(
    uint64_t generation, base::Deadline deadline) {
  mu_.Lock();
  while (true) {
    if (generation != generation_) {
      mu_.Unlock();
      return MakeError(absl::StatusCode::kUnavailable, ErrorClass::kSession,
                       "the token was logged in anew meanwhile");
    }
    if (!idle_.empty()) {
      std::unique_ptr<Session> session = std::move(idle_.back());
      idle_.pop_back();
      mu_.Unlock();
      return Lease(this, std::move(session));
    }
    const base::Deadline now = std::chrono::steady_clock::now();
    if (cap_ < options_.max_sessions && now >= capped_until_) {
      cap_ = options_.max_sessions;
    }
    if (open_ < cap_) {
      ++open_;
      mu_.Unlock();
      absl::StatusOr<CK_SESSION_HANDLE> handle = options_.open();
      if (handle.ok()) {
        auto session = std::make_unique<Session>();
        session->handle = *handle;
        session->generation = generation;
        return Lease(this, std::move(session));
      }
      mu_.Lock();
      if (generation != generation_) continue;
      --open_;
      const bool capacity = ClassOf(handle.status()) == ErrorClass::kCapacity;
      if (!capacity || open_ == 0) {
        changed_.NotifyOne();
        mu_.Unlock();
        return handle.status();
      }
      cap_ = open_;
      capped_until_ = std::chrono::steady_clock::now() + kCapped;
      continue;
    }
    if (now >= deadline) {
      mu_.Unlock();
      return absl::DeadlineExceededError("no session of the token became free");
    }
    if (waiters_ >= options_.max_waiters) {
      mu_.Unlock();
      return absl::ResourceExhaustedError(absl::StrCat(
          "all ", open_, " sessions of the token are busy and ", waiters_,
          " callers wait"));
    }
    ++waiters_;
    changed_.WaitUntil(mu_, deadline);
    --waiters_;
  }
}

void SessionPool::Return(std::unique_ptr<Session> session, bool keep) {
  {
    base::MutexLock lock(mu_);
    if (session->generation != generation_) return;  // forgotten long ago
    if (keep) {
      idle_.push_back(std::move(session));
    }
  }
  if (session != nullptr) {
    options_.close(session->handle);
    base::MutexLock lock(mu_);
    if (session->generation == generation_) --open_;
  }
  changed_.NotifyOne();
}

void SessionPool::BeginGeneration(uint64_t generation) {
  std::vector<std::unique_ptr<Session>> forgotten;
  {
    base::MutexLock lock(mu_);
    generation_ = generation;
    forgotten.swap(idle_);
    open_ = 0;
    cap_ = options_.max_sessions;
  }
  changed_.NotifyAll();
}

void SessionPool::CloseIdle() {
  std::vector<std::unique_ptr<Session>> closing;
  {
    base::MutexLock lock(mu_);
    closing.swap(idle_);
    open_ -= static_cast<int>(closing.size());
  }
  for (const auto& session : closing) options_.close(session->handle);
  changed_.NotifyAll();
}

SessionPool::Stats SessionPool::stats() const {
  base::MutexLock lock(mu_);
  const int idle = static_cast<int>(idle_.size());
  return {open_, open_ - idle, static_cast<int>(waiters_)};
}

}  // namespace kek::pkcs11
