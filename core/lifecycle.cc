// SPDX-License-Identifier: Apache-2.0
#include "core/lifecycle.h"

#include <thread>
#include <utility>

#include "base/log.h"

namespace kek::core {

class Lifecycle::Loop {
 public:
  Loop(KeyService& service, Options options)
      : service_(service), options_(options), thread_([this] { Run(); }) {}

  ~Loop() {
    {
      base::MutexLock lock(mu_);
      stop_ = true;
    }
    changed_.NotifyAll();
    thread_.join();
  }

  void Wake() {
    {
      base::MutexLock lock(mu_);
      wake_ = true;
    }
    changed_.NotifyAll();
  }

  absl::Status RunNow(base::Deadline deadline) {
    base::MutexLock lock(mu_);
    // A round in progress began before this call.
    const uint64_t wanted = begun_ + 1;
    wake_ = true;
    changed_.NotifyAll();
    while (ended_ < wanted) {
      if (!changed_.WaitUntil(mu_, deadline) &&
          std::chrono::steady_clock::now() >= deadline && ended_ < wanted) {
        return absl::DeadlineExceededError(
            "the round of scheduled work did not end in time");
      }
    }
    return absl::OkStatus();
  }

  std::optional<ReconcileReport> last_reconcile() const {
    base::MutexLock lock(mu_);
    return last_reconcile_;
  }

 private:
  base::Deadline StepDeadline() const {
    return base::DeadlineAfter(
        absl::ToChronoNanoseconds(options_.step_deadline));
  }

  void Run() {
    base::MutexLock lock(mu_);
    while (!stop_) {
      ++begun_;
      wake_ = false;
      const bool reconcile = !last_reconcile_.has_value();
      mu_.Unlock();
      std::optional<ReconcileReport> report = Round(reconcile);
      mu_.Lock();
      if (report.has_value()) last_reconcile_ = std::move(report);
      ended_ = begun_;
      changed_.NotifyAll();
      const base::Deadline next =
          base::DeadlineAfter(absl::ToChronoNanoseconds(options_.period));
      while (!stop_ && !wake_ && std::chrono::steady_clock::now() < next) {
        changed_.WaitUntil(mu_, next);
      }
    }
  }

  std::optional<ReconcileReport> Round(bool reconcile) {
    // First what a crash interrupted, so that it is neither reported as a
    // difference nor made a second time because it is due. (Its errors are
    // logged where they happen.)
    service_.ResumePending(StepDeadline()).IgnoreError();
    std::optional<ReconcileReport> report;
    if (reconcile) {
      absl::StatusOr<ReconcileReport> compared =
          service_.Reconcile(StepDeadline());
      if (compared.ok()) {
        report = *std::move(compared);
      } else {
        base::LogWarning("catalog and token could not be compared yet",
                         {{"error", compared.status()}});
      }
    }
    service_.RunDue(StepDeadline());
    return report;
  }

  KeyService& service_;
  const Options options_;
  mutable base::Mutex mu_;
  base::CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  bool wake_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t begun_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t ended_ ABSL_GUARDED_BY(mu_) = 0;
  std::optional<ReconcileReport> last_reconcile_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;  // last: begins when all else is there
};

Lifecycle::Lifecycle(KeyService& service, Options options)
    : loop_(std::make_unique<Loop>(service, options)) {}
Lifecycle::~Lifecycle() = default;
void Lifecycle::Wake() { loop_->Wake(); }
absl::Status Lifecycle::RunNow(base::Deadline deadline) {
  return loop_->RunNow(deadline);
}
std::optional<ReconcileReport> Lifecycle::last_reconcile() const {
  return loop_->last_reconcile();
}

}  // namespace kek::core
