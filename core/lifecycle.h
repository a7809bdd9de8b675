// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/sync.h"
#include "core/key_health.h"
#include "core/key_service.h"

namespace kek::core {

// Lifecycle models kekd's own initiative: a thread that finishes interrupted
// creations, reconciles once the token answers, and then runs what is due
// (rotations by schedule and by use, destructions) every period. Thread-safe;
// stops on destruction.
class Lifecycle {
 public:
  struct Options {
    absl::Duration period = absl::Seconds(10);
    absl::Duration step_deadline = absl::Seconds(60);
  };
  Lifecycle(KeyService& service, Options options);
  ~Lifecycle();
  // Runs a round now instead of at the end of the period.
  void Wake();
  // Wakes, and waits until a round that began after this call has ended.
  // DEADLINE_EXCEEDED.
  absl::Status RunNow(base::Deadline deadline);
  // The last reconcile, if there was one.
  std::optional<ReconcileReport> last_reconcile() const;

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

}  // namespace kek::core
