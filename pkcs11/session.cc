// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/session.h"

#include <algorithm>
#include <array>

#include "base/status_macros.h"
#include "pkcs11/error_internal.h"

namespace kek::pkcs11 {
namespace {
constexpr size_t kRandomSupply = 4096;
}  // namespace

absl::StatusOr<std::unique_ptr<Session>> Session::Open(
    const SessionContext& context, bool read_write) {
  const uint64_t epoch = context.module->epoch();
  std::shared_ptr<CallSlot> slot = context.watch->NewSlot();
  CK_SESSION_HANDLE handle = CK_INVALID_HANDLE;
  const CK_FLAGS flags =
      CKF_SERIAL_SESSION | (read_write ? CKF_RW_SESSION : 0UL);
  const CK_RV rv = context.watch->Run(Function::kOpenSession, *slot, [&] {
    return context.module->functions()->C_OpenSession(
        context.slot, flags, nullptr, nullptr, &handle);
  });
  if (rv != CKR_OK) {
    return FromRv(rv, Operation::kOpenSession, "C_OpenSession");
  }
  std::unique_ptr<Session> session(
      new Session(context, handle, epoch, std::move(slot)));
  if (context.must_be_logged_in) RETURN_IF_ERROR(session->CheckLoggedIn());
  return session;
}

Session::~Session() {
  if (abandoned_ || context_.module->epoch() != epoch_) return;
  Call(Function::kCloseSession, [](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
    return f->C_CloseSession(h);
  });
}

absl::Status Session::CheckLoggedIn() {
  CK_SESSION_INFO info{};
  const CK_RV rv = Call(Function::kGetSessionInfo,
                        [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
                          return f->C_GetSessionInfo(h, &info);
                        });
  if (rv != CKR_OK) return FromRv(rv, Operation::kOther, "C_GetSessionInfo");
  if (info.state != CKS_RO_USER_FUNCTIONS &&
      info.state != CKS_RW_USER_FUNCTIONS) {
    return MakeError(ErrorClass::kLogin, "nobody is logged in to the token");
  }
  return absl::OkStatus();
}

absl::Status Session::Random(std::span<uint8_t> out,
                             std::span<const uint8_t>* fetched) {
  *fetched = {};
  if (random_.size() - random_used_ < out.size()) {
    base::SecretBytes supply(std::max(kRandomSupply, out.size()));
    const CK_RV rv = Call(Function::kGenerateRandom, [&](CK_FUNCTION_LIST* f,
                                                         CK_SESSION_HANDLE h) {
      return f->C_GenerateRandom(h, supply.mutable_data(), supply.size());
    });
    if (rv != CKR_OK) {
      return FromRv(rv, Operation::kRandom, "C_GenerateRandom");
    }
    random_ = std::move(supply);
    random_used_ = 0;
    *fetched = random_.span();
  }
  const auto from = random_.span().subspan(random_used_, out.size());
  std::copy(from.begin(), from.end(), out.begin());
  random_used_ += out.size();
  return absl::OkStatus();
}

absl::Status Session::CheckAlive() {
  std::array<uint8_t, 8> bytes{};
  const CK_RV rv = Call(
      Function::kGenerateRandom, [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
        return f->C_GenerateRandom(h, bytes.data(), bytes.size());
      });
  if (rv == CKR_OK || rv == CKR_RANDOM_NO_RNG) return absl::OkStatus();
  return FromRv(rv, Operation::kRandom, "C_GenerateRandom");
}

}  // namespace kek::pkcs11
