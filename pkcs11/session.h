// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/secret_bytes.h"
#include "pkcs11/call_watch.h"
#include "pkcs11/cryptoki.h"
#include "pkcs11/module.h"

namespace kek::pkcs11 {

// What a session needs to know of the token it is on.
struct SessionContext {
  std::shared_ptr<Module> module;
  std::shared_ptr<CallWatch> watch;
  CK_SLOT_ID slot = 0;
  // A new session that is not in the user's state is an error (kLogin).
  bool must_be_logged_in = false;
};

// Session models one C_OpenSession. Exclusive: one thread at a time, because
// two on one session crash SoftHSM. Closed on destruction, unless the library
// has been re-initialised since (the number may be somebody else's now).
class Session {
 public:
  static absl::StatusOr<std::unique_ptr<Session>> Open(
      const SessionContext& context, bool read_write);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // One PKCS#11 call on this session: call(functions, session handle).
  template <typename F>
  CK_RV Call(Function function, F call) {
    CK_FUNCTION_LIST* functions = context_.module->functions();
    return context_.watch->Run(function, *slot_,
                               [&] { return call(functions, handle_); });
  }

  // OK when C_GetSessionInfo says that the user is logged in; otherwise kLogin.
  absl::Status CheckLoggedIn();

  // The token's random bytes, from a supply of 4 KiB fetched ahead so that they
  // cost no round trip. fetched: the new supply when one was fetched, for who
  // watches the generator.
  absl::Status Random(std::span<uint8_t> out,
                      std::span<const uint8_t>* fetched);

  // A real round trip: random bytes, not from the supply. A token without a
  // random generator says so, and lives.
  absl::Status CheckAlive();

  // The handle may be another session's by now: do not close it.
  void Abandon() { abandoned_ = true; }

 private:
  Session(SessionContext context, CK_SESSION_HANDLE handle, uint64_t epoch,
          std::shared_ptr<CallSlot> slot)
      : context_(std::move(context)),
        handle_(handle),
        epoch_(epoch),
        slot_(std::move(slot)) {}

  const SessionContext context_;
  const CK_SESSION_HANDLE handle_;
  const uint64_t epoch_;
  const std::shared_ptr<CallSlot> slot_;
  base::SecretBytes random_;
  size_t random_used_ = 0;
  bool abandoned_ = false;
};

}  // namespace kek::pkcs11
