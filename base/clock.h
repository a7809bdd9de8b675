// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/time/time.h"
#include "base/sync.h"

namespace kek::base {

// Clock models wall time as kekd's schedules see it: creation times, rotations,
// destructions, expiry. Waits and deadlines do not use it; they are monotonic
// (base/sync.h). Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;

  // The system's clock; lives for ever.
  static const Clock& Real();
};

// A clock that stands still until told. For tests. Thread-safe.
class ManualClock : public Clock {
 public:
  explicit ManualClock(absl::Time now) : now_(now) {}
  absl::Time Now() const override {
    MutexLock lock(mu_);
    return now_;
  }
  void Set(absl::Time now) {
    MutexLock lock(mu_);
    now_ = now;
  }
  void Advance(absl::Duration by) {
    MutexLock lock(mu_);
    now_ += by;
  }

 private:
  mutable Mutex mu_;
  absl::Time now_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kek::base
