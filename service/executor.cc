// SPDX-License-Identifier: Apache-2.0
#include "service/executor.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace kek::service {
namespace {
// How long Check waits for a worker before it looks what they all do.
constexpr std::chrono::seconds kCheckPatience{1};
}  // namespace

class Executor::Pool {
 public:
  explicit Pool(Options options)
      : options_(std::move(options)),
        queued_(Gauge("kekd_executor_queued", "Calls that wait for a worker.")),
        running_gauge_(
            Gauge("kekd_executor_running", "Calls that a worker has.")),
        refused_(Counter("kekd_executor_refused_total",
                         "Calls refused because the queue was full.")),
        expired_(Counter("kekd_executor_expired_total",
                         "Calls whose deadline passed in the queue.")) {
    jobs_.resize(options_.workers);
    workers_.reserve(options_.workers);
    for (int i = 0; i < options_.workers; ++i) {
      workers_.emplace_back([this, i] { Work(i); });
    }
  }

  ~Pool() {
    {
      base::MutexLock lock(mu_);
      stopping_ = true;
    }
    work_.NotifyAll();
    for (std::thread& worker : workers_) worker.join();
  }

  absl::Status Submit(base::Deadline deadline, absl::AnyInvocable<void()> run,
                      absl::AnyInvocable<void()> expired) {
    {
      base::MutexLock lock(mu_);
      if (!stopping_ && queue_.size() < options_.queue) {
        queue_.push_back({deadline, std::move(run), std::move(expired)});
        if (queued_ != nullptr) queued_->Set(queue_.size());
        work_.NotifyOne();
        return absl::OkStatus();
      }
      if (stopping_) {
        return absl::ResourceExhaustedError("the server is stopping");
      }
    }
    if (refused_ != nullptr) refused_->Increment();
    return absl::ResourceExhaustedError(absl::StrCat(
        "too many calls: ", options_.queue, " already wait for a worker"));
  }

  absl::Status Check(base::Deadline deadline) {
    struct Proof {
      base::Mutex mu;
      base::CondVar done_changed;
      bool done ABSL_GUARDED_BY(mu) = false;
    };
    auto proof = std::make_shared<Proof>();
    {
      base::MutexLock lock(mu_);
      const auto answer = [proof] {
        base::MutexLock proof_lock(proof->mu);
        proof->done = true;
        proof->done_changed.NotifyAll();
      };
      queue_.push_front({deadline, answer, answer});
      work_.NotifyOne();
    }
    const base::Deadline patience =
        std::min(deadline, base::DeadlineAfter(kCheckPatience));
    {
      base::MutexLock lock(proof->mu);
      while (!proof->done) {
        if (!proof->done_changed.WaitUntil(proof->mu, patience)) break;
      }
      if (proof->done) return absl::OkStatus();
    }
    // No worker came. Are they busy, or stuck?
    base::MutexLock lock(mu_);
    const base::Deadline now = std::chrono::steady_clock::now();
    for (const std::optional<base::Deadline>& job : jobs_) {
      if (!job.has_value()) {
        return absl::DeadlineExceededError(absl::StrCat(
            "an idle worker of the ", options_.name, " executor took no work"));
      }
      if (now < *job || now - *job <= options_.stuck_after) {
        return absl::OkStatus();
      }
    }
    return absl::DeadlineExceededError(
        absl::StrCat("all ", options_.workers, " workers of the ",
                     options_.name, " executor are stuck"));
  }

  absl::Status Drain(base::Deadline deadline) {
    base::MutexLock lock(mu_);
    stopping_ = true;
    work_.NotifyAll();
    while (running_ != 0 || !queue_.empty()) {
      if (!idle_.WaitUntil(mu_, deadline)) {
        return absl::DeadlineExceededError(
            absl::StrCat(running_, " calls still run and ", queue_.size(),
                         " wait in the ", options_.name, " executor"));
      }
    }
    return absl::OkStatus();
  }

 private:
  struct Item {
    base::Deadline deadline;
    absl::AnyInvocable<void()> run;
    absl::AnyInvocable<void()> expired;
  };

  base::Metrics::Gauge* Gauge(const char* name, const char* help) {
    if (options_.metrics == nullptr) return nullptr;
    return options_.metrics->GetGauge(name, help,
                                      {{"executor", options_.name}});
  }
  base::Metrics::Counter* Counter(const char* name, const char* help) {
    if (options_.metrics == nullptr) return nullptr;
    return options_.metrics->GetCounter(name, help,
                                        {{"executor", options_.name}});
  }

  void Work(int self) {
    while (true) {
      Item item;
      {
        base::MutexLock lock(mu_);
        while (queue_.empty() && !stopping_) work_.Wait(mu_);
        if (queue_.empty()) return;
        item = std::move(queue_.front());
        queue_.pop_front();
        jobs_[self] = item.deadline;
        ++running_;
        if (queued_ != nullptr) queued_->Set(queue_.size());
        if (running_gauge_ != nullptr) running_gauge_->Set(running_);
      }
      if (std::chrono::steady_clock::now() >= item.deadline) {
        if (expired_ != nullptr) expired_->Increment();
        item.expired();
      } else {
        item.run();
      }
      // What the work captured goes before the worker counts as free.
      item = Item();
      base::MutexLock lock(mu_);
      jobs_[self].reset();
      --running_;
      if (running_gauge_ != nullptr) running_gauge_->Set(running_);
      if (running_ == 0 && queue_.empty()) idle_.NotifyAll();
    }
  }

  const Options options_;
  base::Metrics::Gauge* const queued_;
  base::Metrics::Gauge* const running_gauge_;
  base::Metrics::Counter* const refused_;
  base::Metrics::Counter* const expired_;

  base::Mutex mu_;
  base::CondVar work_;  // queue_ grew, or stopping_
  base::CondVar idle_;  // nothing queued, nothing running
  std::deque<Item> queue_ ABSL_GUARDED_BY(mu_);
  // The deadline of what each worker runs; none: it is idle.
  std::vector<std::optional<base::Deadline>> jobs_ ABSL_GUARDED_BY(mu_);
  int running_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::vector<std::thread> workers_;  // constant after construction
};

Executor::Executor(Options options)
    : pool_(std::make_unique<Pool>(std::move(options))) {}
Executor::~Executor() = default;

absl::Status Executor::Submit(base::Deadline deadline,
                              absl::AnyInvocable<void()> run,
                              absl::AnyInvocable<void()> expired) {
  return pool_->Submit(deadline, std::move(run), std::move(expired));
}
absl::Status Executor::Check(base::Deadline deadline) {
  return pool_->Check(deadline);
}
absl::Status Executor::Drain(base::Deadline deadline) {
  return pool_->Drain(deadline);
}

}  // namespace kek::service
