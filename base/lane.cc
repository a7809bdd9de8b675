// SPDX-License-Identifier: Apache-2.0
#include "base/lane.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kek::base {

// Invariant: holders.size() <= capacity. A waiter is granted only at the head
// of the queue, so that the order is that of arrival; leaving the queue
// (deadline) or the lane wakes everyone, because the new head may be any of
// them.
struct Lane::Hold::State {
  explicit State(Lane::Options o) : options(std::move(o)) {}

  const Lane::Options options;
  Mutex mu;
  CondVar changed;
  uint64_t next_ticket ABSL_GUARDED_BY(mu) = 1;
  std::deque<uint64_t> waiting ABSL_GUARDED_BY(mu);
  std::map<uint64_t, Deadline> holders
      ABSL_GUARDED_BY(mu);  // ticket -> when it entered
};

Lane::Hold::Hold(Hold&& other) noexcept
    : state_(std::move(other.state_)),
      ticket_(std::exchange(other.ticket_, 0)) {}

Lane::Hold& Lane::Hold::operator=(Hold&& other) noexcept {
  if (this != &other) {
    Release();
    state_ = std::move(other.state_);
    ticket_ = std::exchange(other.ticket_, 0);
  }
  return *this;
}

void Lane::Hold::Release() noexcept {
  if (state_ == nullptr) return;
  {
    MutexLock lock(state_->mu);
    state_->holders.erase(ticket_);
  }
  state_->changed.NotifyAll();
  state_.reset();
}

bool Lane::Hold::valid() const {
  if (state_ == nullptr) return false;
  MutexLock lock(state_->mu);
  return state_->holders.contains(ticket_);
}

Lane::Lane(Options options)
    : state_(std::make_shared<Hold::State>(std::move(options))) {}

absl::StatusOr<Lane::Hold> Lane::Enter(Deadline deadline) {
  Hold::State& s = *state_;
  MutexLock lock(s.mu);
  if (s.waiting.size() >= s.options.max_waiters) {
    return absl::ResourceExhaustedError(
        absl::StrCat(s.options.name, ": too many callers wait"));
  }
  const uint64_t ticket = s.next_ticket++;
  s.waiting.push_back(ticket);
  while (s.waiting.front() != ticket ||
         s.holders.size() >= static_cast<size_t>(s.options.capacity)) {
    if (!s.changed.WaitUntil(s.mu, deadline) &&
        std::chrono::steady_clock::now() >= deadline &&
        (s.waiting.front() != ticket ||
         s.holders.size() >= static_cast<size_t>(s.options.capacity))) {
      s.waiting.erase(std::find(s.waiting.begin(), s.waiting.end(), ticket));
      s.changed.NotifyAll();
      return absl::DeadlineExceededError(
          absl::StrCat(s.options.name, ": the turn did not come in time"));
    }
  }
  s.waiting.pop_front();
  s.holders.emplace(ticket, std::chrono::steady_clock::now());
  if (!s.waiting.empty()) s.changed.NotifyAll();
  return Hold(state_, ticket);
}

int Lane::AbandonHolders(Deadline entered_before) {
  int abandoned = 0;
  {
    MutexLock lock(state_->mu);
    for (auto it = state_->holders.begin(); it != state_->holders.end();) {
      if (it->second < entered_before) {
        it = state_->holders.erase(it);
        ++abandoned;
      } else {
        ++it;
      }
    }
  }
  state_->changed.NotifyAll();
  return abandoned;
}

}  // namespace kek::base
