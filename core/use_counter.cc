// SPDX-License-Identifier: Apache-2.0
#include "core/use_counter.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kek::core {

namespace {
constexpr uint64_t kFirstBlock = 1024;
}

UseCounter::UseCounter(catalog::Catalog& catalog, catalog::ResourceName version,
                       Limits limits)
    : catalog_(catalog),
      version_(std::move(version)),
      limits_(limits),
      lane_({.name = "use counter", .max_waiters = 4096}),
      block_(std::max<uint64_t>(1, std::min(kFirstBlock, limits.max_block))) {}

uint64_t UseCounter::TakeFromBlock() {
  base::MutexLock lock(mu_);
  return next_ <= last_ ? next_++ : 0;
}

absl::Status UseCounter::Exhausted() const {
  return absl::FailedPreconditionError(
      absl::StrCat(version_.ToString(), " has made ", limits_.max_uses,
                   " encryptions, the most one version may make; rotate the "
                   "key. Decryption goes on working."));
}

absl::StatusOr<uint64_t> UseCounter::Take(base::Deadline deadline) {
  if (const uint64_t use = TakeFromBlock(); use != 0) return use;
  ASSIGN_OR_RETURN(const base::Lane::Hold turn, lane_.Enter(deadline));
  if (const uint64_t use = TakeFromBlock(); use != 0) return use;
  if (!known_) {
    ASSIGN_OR_RETURN(reserved_, catalog_.UsesReserved(version_));
    known_ = true;
  }
  if (reserved_ >= limits_.max_uses) return Exhausted();
  const uint64_t count = std::min(block_, limits_.max_uses - reserved_);
  // If this fails, the block may have been reserved all the same: ask again
  // next time.
  known_ = false;
  ASSIGN_OR_RETURN(const uint64_t total,
                   catalog_.ReserveUses(version_, count, deadline));
  reserved_ = total;
  known_ = true;
  block_ = std::max<uint64_t>(1, std::min(block_ * 2, limits_.max_block));
  const uint64_t first = total - count + 1;
  if (first > limits_.max_uses) return Exhausted();
  base::MutexLock lock(mu_);
  next_ = first + 1;
  last_ = std::min(total, limits_.max_uses);
  return first;
}

}  // namespace kek::core
