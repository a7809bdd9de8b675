// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "base/metrics.h"
#include "base/sync.h"
#include "pkcs11/cryptoki.h"

namespace kek::pkcs11 {

// The PKCS#11 functions kekd calls.
enum class Function : uint8_t {
  kInitialize,
  kFinalize,
  kGetInfo,
  kGetSlotList,
  kGetTokenInfo,
  kOpenSession,
  kCloseSession,
  kGetSessionInfo,
  kLogin,
  kFindObjectsInit,
  kFindObjects,
  kFindObjectsFinal,
  kGetAttributeValue,
  kSetAttributeValue,
  kCopyObject,
  kGenerateKey,
  kDestroyObject,
  kWrapKey,
  kUnwrapKey,
  kEncryptInit,
  kEncrypt,
  kDecryptInit,
  kDecrypt,
  kGenerateRandom,
  kCount
};
const char* FunctionName(Function function);

// Where one thread says which call it is in. Owned by what makes calls one at a
// time: a session, or the supervisor.
struct CallSlot {
  std::atomic<int64_t> since{0};  // steady nanoseconds; 0: in no call
  std::atomic<Function> function{Function::kCount};
};

// CallWatch models the calls a token is executing: each is registered before
// the module is entered, because a PKCS#11 call cannot be cancelled and
// somebody must be able to say that it hangs. It also counts and times them.
// Thread-safe.
class CallWatch {
 public:
  // metrics may be null. A call longer than limit hangs (six times that for
  // what may legitimately be slow: C_Initialize, C_Login, C_GenerateKey).
  CallWatch(base::Metrics* metrics, absl::Duration limit);

  std::shared_ptr<CallSlot> NewSlot();
  int HungCalls() const;
  absl::Duration limit() const { return limit_; }

  // Runs call() as function, in slot.
  template <typename Call>
  CK_RV Run(Function function, CallSlot& slot, Call call) {
    const auto start = std::chrono::steady_clock::now();
    slot.function.store(function, std::memory_order_relaxed);
    slot.since.store(start.time_since_epoch().count(),
                     std::memory_order_release);
    const CK_RV rv = call();
    slot.since.store(0, std::memory_order_release);
    Record(function, rv, std::chrono::steady_clock::now() - start);
    return rv;
  }

 private:
  struct Series {
    std::atomic<base::Metrics::Counter*> ok{nullptr};
    base::Metrics::Histogram* latency = nullptr;
  };
  void Record(Function function, CK_RV rv, std::chrono::nanoseconds took);

  base::Metrics* const metrics_;
  const absl::Duration limit_;
  std::array<Series, static_cast<size_t>(Function::kCount)> series_;
  mutable base::Mutex mu_;
  mutable std::vector<std::weak_ptr<CallSlot>> slots_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kek::pkcs11
