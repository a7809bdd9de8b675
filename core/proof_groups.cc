// SPDX-License-Identifier: Apache-2.0
#include "core/proof_groups.h"

#include <chrono>

namespace kek::core {

absl::Status ProofGroups::Join(
    const void* key, absl::FunctionRef<absl::Status(base::Deadline)> prove,
    base::Deadline deadline) {
  base::MutexLock lock(mu_);
  while (true) {
    Line& line = lines_[key];
    if (line.next == nullptr) line.next = std::make_shared<Group>();
    // Not started, so its proof begins after this moment.
    const std::shared_ptr<Group> group = line.next;
    ++group->members;
    bool in_time = true;
    while (!group->done) {
      // The line stays while its group has members.
      if (!group->started && !lines_.at(key).proving) {
        return Lead(key, group, prove, deadline);
      }
      if (!in_time) {
        --group->members;
        // This thread may have taken the wake-up that was to find a leader.
        group->changed.NotifyOne();
        ForgetIfIdle(key);
        return absl::DeadlineExceededError(
            "the deadline passed while waiting for the proof of the key");
      }
      in_time = group->changed.WaitUntil(mu_, deadline);
    }
    if (!absl::IsDeadlineExceeded(group->status) ||
        std::chrono::steady_clock::now() >= deadline) {
      return group->status;
    }
    // The leader ran out of time, not this caller.
  }
}

absl::Status ProofGroups::Lead(
    const void* key, const std::shared_ptr<Group>& group,
    absl::FunctionRef<absl::Status(base::Deadline)> prove,
    base::Deadline deadline) {
  {
    Line& line = lines_.at(key);
    line.proving = true;
    line.next = nullptr;  // who comes now is not covered
  }
  group->started = true;
  ++proofs_;
  mu_.Unlock();
  absl::Status status = prove(deadline);
  mu_.Lock();
  group->done = true;
  group->status = status;
  group->changed.NotifyAll();
  Line& line = lines_.at(key);
  line.proving = false;
  if (line.next != nullptr) line.next->changed.NotifyOne();
  ForgetIfIdle(key);
  return status;
}

void ProofGroups::ForgetIfIdle(const void* key) {
  const auto it = lines_.find(key);
  if (it == lines_.end() || it->second.proving) return;
  if (it->second.next == nullptr || it->second.next->members == 0) {
    lines_.erase(it);
  }
}

uint64_t ProofGroups::proofs() const {
  base::MutexLock lock(mu_);
  return proofs_;
}

int ProofGroups::waiting(const void* key) const {
  base::MutexLock lock(mu_);
  const auto it = lines_.find(key);
  if (it == lines_.end() || it->second.next == nullptr) return 0;
  return it->second.next->members;
}

}  // namespace kek::core
