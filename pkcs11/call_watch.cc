// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/call_watch.h"

#include <string>

#include "pkcs11/error.h"

namespace kek::pkcs11 {
namespace {

constexpr char kCallsHelp[] = "PKCS#11 calls by function and result";

bool MayBeSlow(Function function) {
  switch (function) {
    case Function::kInitialize:
    case Function::kFinalize:
    case Function::kLogin:
    case Function::kGenerateKey:
      return true;
    default:
      return false;
  }
}

}  // namespace

const char* FunctionName(Function function) {
  switch (function) {
    case Function::kInitialize:
      return "C_Initialize";
    case Function::kFinalize:
      return "C_Finalize";
    case Function::kGetInfo:
      return "C_GetInfo";
    case Function::kGetSlotList:
      return "C_GetSlotList";
    case Function::kGetTokenInfo:
      return "C_GetTokenInfo";
    case Function::kOpenSession:
      return "C_OpenSession";
    case Function::kCloseSession:
      return "C_CloseSession";
    case Function::kGetSessionInfo:
      return "C_GetSessionInfo";
    case Function::kLogin:
      return "C_Login";
    case Function::kFindObjectsInit:
      return "C_FindObjectsInit";
    case Function::kFindObjects:
      return "C_FindObjects";
    case Function::kFindObjectsFinal:
      return "C_FindObjectsFinal";
    case Function::kGetAttributeValue:
      return "C_GetAttributeValue";
    case Function::kSetAttributeValue:
      return "C_SetAttributeValue";
    case Function::kCopyObject:
      return "C_CopyObject";
    case Function::kGenerateKey:
      return "C_GenerateKey";
    case Function::kDestroyObject:
      return "C_DestroyObject";
    case Function::kWrapKey:
      return "C_WrapKey";
    case Function::kUnwrapKey:
      return "C_UnwrapKey";
    case Function::kEncryptInit:
      return "C_EncryptInit";
    case Function::kEncrypt:
      return "C_Encrypt";
    case Function::kDecryptInit:
      return "C_DecryptInit";
    case Function::kDecrypt:
      return "C_Decrypt";
    case Function::kGenerateRandom:
      return "C_GenerateRandom";
    case Function::kCount:
      break;
  }
  return "?";
}

CallWatch::CallWatch(base::Metrics* metrics, absl::Duration limit)
    : metrics_(metrics), limit_(limit) {
  if (metrics_ == nullptr) return;
  for (size_t i = 0; i < series_.size(); ++i) {
    series_[i].latency = metrics_->GetLatency(
        "kekd_token_call_seconds", "Duration of PKCS#11 calls by function",
        {{"function", FunctionName(static_cast<Function>(i))}});
  }
}

std::shared_ptr<CallSlot> CallWatch::NewSlot() {
  auto slot = std::make_shared<CallSlot>();
  base::MutexLock lock(mu_);
  std::erase_if(slots_, [](const auto& weak) { return weak.expired(); });
  slots_.push_back(slot);
  return slot;
}

int CallWatch::HungCalls() const {
  const int64_t now =
      std::chrono::steady_clock::now().time_since_epoch().count();
  const int64_t limit = absl::ToInt64Nanoseconds(limit_);
  int hung = 0;
  base::MutexLock lock(mu_);
  for (const std::weak_ptr<CallSlot>& weak : slots_) {
    const std::shared_ptr<CallSlot> slot = weak.lock();
    if (slot == nullptr) continue;
    const int64_t since = slot->since.load(std::memory_order_acquire);
    if (since == 0) continue;
    const bool slow = MayBeSlow(slot->function.load(std::memory_order_relaxed));
    if (now - since >= (slow ? 6 * limit : limit)) ++hung;
  }
  return hung;
}

void CallWatch::Record(Function function, CK_RV rv,
                       std::chrono::nanoseconds took) {
  if (metrics_ == nullptr) return;
  Series& series = series_[static_cast<size_t>(function)];
  series.latency->Observe(std::chrono::duration<double>(took).count());
  base::Metrics::Counter* counter =
      rv == CKR_OK ? series.ok.load(std::memory_order_acquire) : nullptr;
  if (counter == nullptr) {
    counter = metrics_->GetCounter("kekd_token_calls_total", kCallsHelp,
                                   {{"function", FunctionName(function)},
                                    {"rv", std::string(RvName(rv))}});
    if (rv == CKR_OK) series.ok.store(counter, std::memory_order_release);
  }
  counter->Increment();
}

}  // namespace kek::pkcs11
