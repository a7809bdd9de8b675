// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sync.h"

namespace kek::cache {

// SingleFlight models work that is worth doing once for all who ask for it at
// the same time: the first caller of a key does the work (the flight), callers
// that come meanwhile wait and share its result. Nothing is kept afterwards.
//
// K needs absl::Hash and ==. Values are shared and constant; a value is freed,
// and wiped if its destructor wipes, when the last caller lets go of it.
// Thread-safe. The work runs on the first caller's thread with no lock held.
template <typename K, typename V>
class SingleFlight {
 public:
  using Result = absl::StatusOr<std::shared_ptr<const V>>;

  SingleFlight() = default;
  SingleFlight(const SingleFlight&) = delete;
  SingleFlight& operator=(const SingleFlight&) = delete;

  // The result of load() for key: run here, or by the flight under way. An
  // error of load goes to everyone in the flight. deadline bounds the wait for
  // somebody else's flight (DEADLINE_EXCEEDED; the flight goes on), not load
  // itself, which brings its own. load must not throw and must not ask for the
  // same key.
  Result Do(const K& key, absl::FunctionRef<Result()> load,
            base::Deadline deadline) {
    return Do(
        key, load, [](const std::shared_ptr<const V>&) {}, deadline);
  }

  // The same, and the thread that ran load calls commit(value) if load
  // succeeded and its flight was not forgotten meanwhile. commit runs under
  // this object's lock, so that Forget comes wholly before or after it: keep it
  // short, and do not call this object from it.
  Result Do(const K& key, absl::FunctionRef<Result()> load,
            absl::FunctionRef<void(const std::shared_ptr<const V>&)> commit,
            base::Deadline deadline) {
    std::shared_ptr<Flight> flight;
    {
      base::MutexLock lock(mu_);
      std::shared_ptr<Flight>& slot = flights_[key];
      if (slot != nullptr) {
        flight = slot;
        return Join(*flight, deadline);
      }
      flight = slot = std::make_shared<Flight>();
    }
    Result result = load();
    {
      base::MutexLock lock(mu_);
      const auto it = flights_.find(key);
      if (it != flights_.end() && it->second == flight) {
        flights_.erase(it);
        if (result.ok()) commit(*result);
      }
      // Without waiters the value must not live on in the flight.
      if (flight->waiters > 0) flight->result = result;
    }
    flight->landed.NotifyAll();
    return result;
  }

  // Lets go of flights: who already waits still gets the result, later callers
  // start a flight of their own, and commit is not called. pred and also (once,
  // after the flights are forgotten) run under this object's lock, as commit
  // does.
  void Forget(
      const K& key, absl::FunctionRef<void()> also = [] {}) {
    base::MutexLock lock(mu_);
    flights_.erase(key);
    also();
  }
  void ForgetIf(
      absl::FunctionRef<bool(const K&)> pred,
      absl::FunctionRef<void()> also = [] {}) {
    base::MutexLock lock(mu_);
    for (auto it = flights_.begin(); it != flights_.end();) {
      if (pred(it->first)) {
        flights_.erase(it++);
      } else {
        ++it;
      }
    }
    also();
  }

 private:
  // All guarded by mu_ of the SingleFlight that made it.
  struct Flight {
    base::CondVar landed;
    std::optional<Result> result;
    int waiters = 0;
  };

  Result Join(Flight& flight, base::Deadline deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    ++flight.waiters;
    bool in_time = true;
    while (!flight.result.has_value() && in_time) {
      in_time = flight.landed.WaitUntil(mu_, deadline);
    }
    --flight.waiters;
    if (!flight.result.has_value()) {
      return absl::DeadlineExceededError(
          "a load that another caller began did not end in time");
    }
    if (flight.waiters > 0) return *flight.result;
    return *std::exchange(flight.result, std::nullopt);
  }

  base::Mutex mu_;
  // Invariant: a key is here from the moment its flight begins until load has
  // returned or the flight is forgotten. A forgotten flight lives on in the
  // shared_ptrs of those who are in it; nobody else can find it.
  absl::flat_hash_map<K, std::shared_ptr<Flight>> flights_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kek::cache
