// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "catalog/resource_name.h"
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
  // The last reconcile, if there was one.
  std::optional<ReconcileReport> last_reconcile() const;

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

// KeyHealth models how well single keys work, for Kubernetes' Status and
// readiness: always answered from memory, fed by real work
// (KeyService::LastSuccess) and, when there was none for a period, by a
// self-test that all askers share. One key's trouble never shows in another's.
// Thread-safe; stops on destruction.
class KeyHealth {
 public:
  struct Options {
    absl::Duration period = absl::Seconds(
        20);  // between self-tests of a healthy key without traffic
    absl::Duration retry_period = absl::Seconds(1);  // of an unhealthy one
    absl::Duration test_deadline = absl::Seconds(3);
  };
  KeyHealth(KeyService& service, Options options);
  ~KeyHealth();
  // Begins to watch a key; the first self-test starts at once.
  void Watch(const catalog::ResourceName& key);
  // OK: it worked at the last look. Otherwise why not, in words fit for a
  // caller. UNAVAILABLE "no self-test yet" before the first result, which is
  // awaited until the deadline.
  absl::Status Check(const catalog::ResourceName& key,
                     base::Deadline deadline) const;
  // Work under this key just failed for a reason that is not the caller's: look
  // again now.
  void Suspect(const catalog::ResourceName& key);

 private:
  class Monitor;
  std::unique_ptr<Monitor> monitor_;
};

}  // namespace kek::core
