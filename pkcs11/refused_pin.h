// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kek::pkcs11 {

// RefusedPin models the memory, across restarts, of a PIN that the token has
// refused: real tokens lock after a few wrong tries, and a service manager's
// restarts would spend them. It keeps a salted scrypt hash over token and PIN
// in a file of mode 0600, nothing from which the PIN could be read. Not
// thread-safe.
class RefusedPin {
 public:
  // identity: what names the token in the config (its URI).
  RefusedPin(std::string state_dir, std::string identity);

  // True if this very PIN was refused before and nothing changed since. About
  // 50 ms of CPU if there is a memory, nothing if there is none.
  bool Matches(std::span<const uint8_t> pin) const;
  // UNAVAILABLE when it cannot be written; the caller must then not log in
  // again by itself either.
  absl::Status Remember(std::span<const uint8_t> pin) const;
  void Forget() const;

 private:
  const std::string path_;
  const std::string identity_;
};

}  // namespace kek::pkcs11
