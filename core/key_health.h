// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/sync.h"
#include "catalog/resource_name.h"
#include "core/key_service.h"

namespace kek::core {

// KeyHealth models how well single keys work, for Kubernetes' Status and
// readiness: always answered from memory, fed by real work
// (KeyService::LastSuccess) and, when there was none for a period, by a
// self-test that all askers share. Each watched key has a thread of its own, so
// that one key's trouble never shows in another's. Thread-safe; stops on
// destruction, when the self-tests in progress have ended.
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
  // Begins to watch a key; the first self-test starts at once, and the metrics
  // carry the key from now on. Watching it again changes nothing.
  void Watch(const catalog::ResourceName& key);
  // OK: it worked at the last look. Otherwise why not, in words fit for a
  // caller: they name neither token, file nor PIN. UNAVAILABLE also when a
  // self-test has not answered in its time, however well the one before went.
  // UNAVAILABLE "no self-test yet" before the first result, which is awaited
  // until the deadline. NOT_FOUND for a key nobody watches.
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
