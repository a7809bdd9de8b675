// SPDX-License-Identifier: Apache-2.0
#include "core/key_health.h"

#include <algorithm>
#include <map>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pkcs11/error.h"

namespace kek::core {

namespace {

using Clock = std::chrono::steady_clock;

std::chrono::nanoseconds Nanos(absl::Duration duration) {
  return absl::ToChronoNanoseconds(duration);
}

// What a caller may read of a failed self-test.
absl::Status ForCallers(const absl::Status& status) {
  const bool from_token = pkcs11::ClassOf(status) != pkcs11::ErrorClass::kNone;
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
      // The catalog's words: they name the key and its state.
      if (!from_token) return status;
      return absl::FailedPreconditionError(
          "the token needs its operator's attention");
    case absl::StatusCode::kDeadlineExceeded:
      return absl::UnavailableError("the self-test did not end in time");
    case absl::StatusCode::kResourceExhausted:
      return absl::UnavailableError("the token is busy");
    case absl::StatusCode::kDataLoss:
      return absl::DataLossError("the key's proof on the token failed");
    default:
      return absl::UnavailableError("the token does not answer as it should");
  }
}

}  // namespace

// One thread per key. mu guards everything of all keys; it is held for moments
// only, never during a self-test.
class KeyHealth::Monitor {
 public:
  Monitor(KeyService& service, Options options)
      : service_(service), options_(options) {}

  ~Monitor() {
    {
      base::MutexLock lock(mu_);
      stop_ = true;
    }
    changed_.NotifyAll();
    for (auto& [name, key] : keys_) key->thread.join();
  }

  void Watch(const catalog::ResourceName& name) {
    service_.ShowInMetrics(name);
    base::MutexLock lock(mu_);
    std::unique_ptr<Key>& slot = keys_[name.ToString()];
    if (slot != nullptr) return;
    slot = std::make_unique<Key>(name);
    Key* const key = slot.get();
    key->thread = std::thread([this, key] { Run(*key); });
  }

  absl::Status Check(const catalog::ResourceName& name,
                     base::Deadline deadline) {
    base::MutexLock lock(mu_);
    const auto it = keys_.find(name.ToString());
    if (it == keys_.end()) {
      return absl::NotFoundError(
          absl::StrCat(name.ToString(), " is not watched"));
    }
    const Key& key = *it->second;
    while (!key.looked) {
      if (!changed_.WaitUntil(mu_, deadline) && Clock::now() >= deadline &&
          !key.looked) {
        return absl::UnavailableError("no self-test yet");
      }
    }
    if (key.test_overdue != base::Deadline::max() &&
        Clock::now() > key.test_overdue) {
      // Unless real work says otherwise.
      if (WorkedSince(key, key.test_begun)) return absl::OkStatus();
      return absl::UnavailableError("the self-test does not end");
    }
    if (!key.status.ok() && WorkedSince(key, key.last_look)) {
      return absl::OkStatus();
    }
    return key.status;
  }

  void Suspect(const catalog::ResourceName& name) {
    {
      base::MutexLock lock(mu_);
      const auto it = keys_.find(name.ToString());
      if (it == keys_.end()) return;
      it->second->suspect = true;
    }
    changed_.NotifyAll();
  }

 private:
  struct Key {
    explicit Key(catalog::ResourceName n) : name(std::move(n)) {}
    const catalog::ResourceName name;
    // All below but thread is guarded by mu_.
    bool looked = false;
    bool suspect = false;
    absl::Status status;
    base::Deadline last_look{};
    base::Deadline test_begun{};
    // When the self-test in progress counts as hung; max: none in progress.
    base::Deadline test_overdue = base::Deadline::max();
    std::thread thread;
  };

  bool WorkedSince(const Key& key, base::Deadline since) const {
    const std::optional<base::Deadline> success =
        service_.LastSuccess(key.name);
    return success.has_value() && *success > since;
  }

  void Run(Key& key) {
    base::MutexLock lock(mu_);
    while (!stop_) {
      const base::Deadline now = Clock::now();
      // Real work proves more than a test. A suspicion asks for a test all the
      // same.
      const std::optional<base::Deadline> success =
          service_.LastSuccess(key.name);
      const auto period =
          std::chrono::duration_cast<Clock::duration>(Nanos(options_.period));
      if (success.has_value() && *success > key.last_look &&
          *success + period > now) {
        key.last_look = *success;
        key.status = absl::OkStatus();
        if (!key.looked) {
          key.looked = true;
          changed_.NotifyAll();
        }
      }
      const base::Deadline due =
          key.looked ? key.last_look +
                           (key.status.ok()
                                ? period
                                : std::chrono::duration_cast<Clock::duration>(
                                      Nanos(options_.retry_period)))
                     : now;
      if (due > now && !key.suspect) {
        changed_.WaitUntil(mu_, due);
        continue;
      }
      key.suspect = false;
      key.test_begun = now;
      const base::Deadline deadline =
          base::DeadlineAfter(Nanos(options_.test_deadline));
      key.test_overdue = deadline;
      absl::Status result;
      {
        mu_.Unlock();
        result = service_.SelfTest(key.name, deadline);
        mu_.Lock();
      }
      key.test_overdue = base::Deadline::max();
      key.status = result.ok() ? absl::OkStatus() : ForCallers(result);
      key.last_look = Clock::now();
      key.looked = true;
      changed_.NotifyAll();
    }
  }

  KeyService& service_;
  const Options options_;
  base::Mutex mu_;
  base::CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  // Grows only.
  std::map<std::string, std::unique_ptr<Key>> keys_;
};

KeyHealth::KeyHealth(KeyService& service, Options options)
    : monitor_(std::make_unique<Monitor>(service, options)) {}
KeyHealth::~KeyHealth() = default;
void KeyHealth::Watch(const catalog::ResourceName& key) {
  monitor_->Watch(key);
}
absl::Status KeyHealth::Check(const catalog::ResourceName& key,
                              base::Deadline deadline) const {
  return monitor_->Check(key, deadline);
}
void KeyHealth::Suspect(const catalog::ResourceName& key) {
  monitor_->Suspect(key);
}

}  // namespace kek::core
