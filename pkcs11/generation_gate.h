// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "absl/time/time.h"
#include "base/sync.h"

namespace kek::pkcs11 {

// GenerationGate models the rule that the library is never reset with a call in
// it (C_Finalize with calls in flight crashes real modules): operations pass
// shared, a reset closes the gate and waits until the last one is out. It also
// knows since when each one is inside, which is how hung calls are seen.
// Thread-safe.
class GenerationGate {
 public:
  // One passage. Ends on destruction.
  class Passage {
   public:
    Passage() = default;
    Passage(Passage&& other) noexcept
        : gate_(std::exchange(other.gate_, nullptr)), id_(other.id_) {}
    Passage& operator=(Passage&& other) noexcept {
      if (this != &other) {
        End();
        gate_ = std::exchange(other.gate_, nullptr);
        id_ = other.id_;
      }
      return *this;
    }
    ~Passage() { End(); }
    void End() {
      if (gate_ == nullptr) return;
      {
        base::MutexLock lock(gate_->mu_);
        gate_->inside_.erase(id_);
      }
      gate_->changed_.NotifyAll();
      gate_ = nullptr;
    }
    bool inside() const { return gate_ != nullptr; }

   private:
    friend class GenerationGate;
    Passage(GenerationGate* gate, uint64_t id) : gate_(gate), id_(id) {}
    GenerationGate* gate_ = nullptr;
    uint64_t id_ = 0;
  };

  // Waits while the gate is closed; no passage if the deadline comes first.
  Passage Enter(base::Deadline deadline) {
    base::MutexLock lock(mu_);
    while (closed_) {
      if (!changed_.WaitUntil(mu_, deadline) && closed_) return {};
    }
    const uint64_t id = next_++;
    inside_.emplace(id, std::chrono::steady_clock::now());
    return {this, id};
  }

  // Closes the gate and waits until nobody is inside. False at the deadline:
  // somebody hangs; the gate stays closed until Open.
  bool Close(base::Deadline deadline) {
    base::MutexLock lock(mu_);
    closed_ = true;
    while (!inside_.empty()) {
      if (!changed_.WaitUntil(mu_, deadline) && !inside_.empty()) return false;
    }
    return true;
  }
  void Open() {
    {
      base::MutexLock lock(mu_);
      closed_ = false;
    }
    changed_.NotifyAll();
  }

  // How many have been inside since before then.
  int InsideSince(base::Deadline then) const {
    base::MutexLock lock(mu_);
    int count = 0;
    for (const auto& [id, since] : inside_) count += since < then ? 1 : 0;
    return count;
  }

 private:
  mutable base::Mutex mu_;
  base::CondVar changed_;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t next_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<uint64_t, base::Deadline> inside_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kek::pkcs11
