// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "base/metrics.h"
#include "base/sync.h"

namespace kek::service {

// Executor models the one hop between gRPC's threads and blocking work: a fixed
// number of workers and a bounded first-come first-served queue. Work whose
// deadline passed while it waited is not run. Thread-safe.
class Executor {
 public:
  struct Options {
    std::string name = "ordinary";  // the label of its metrics
    int workers = 48;
    size_t queue = 1024;
    base::Metrics* metrics = nullptr;  // may be null
    // Work that runs so long after its deadline is stuck.
    std::chrono::nanoseconds stuck_after = std::chrono::seconds(5);
  };
  explicit Executor(Options options);
  // Runs what is queued, then joins the workers: waits for ever for work that
  // hangs. Who cannot afford that asks Drain first.
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Calls run on a worker; or, if deadline passes first, expired (on a worker
  // in place of run). RESOURCE_EXHAUSTED, and neither is called, when the
  // queue is full or the executor is stopping. Never blocks.
  absl::Status Submit(base::Deadline deadline, absl::AnyInvocable<void()> run,
                      absl::AnyInvocable<void()> expired);

  // Proves that a worker can be had, for the watchdog. Goes before everything
  // that is queued, so that overload is not mistaken for a standstill; and
  // workers that are all busy, but within their deadlines, as when many calls
  // wait for a token that hangs, are none either. DEADLINE_EXCEEDED: every
  // worker is stuck; or, with workers to be had, none came before the deadline.
  absl::Status Check(base::Deadline deadline);

  // Refuses new work from now on and waits until nothing is queued and nothing
  // runs. DEADLINE_EXCEEDED says how much still does.
  absl::Status Drain(base::Deadline deadline);

 private:
  class Pool;
  std::unique_ptr<Pool> pool_;
};

}  // namespace kek::service
