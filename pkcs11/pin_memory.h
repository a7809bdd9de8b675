// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kek::pkcs11 {

// PinMemory remembers, across processes, which PIN a token refused, so that a
// restart loop does not use up its tries. What is kept is a scrypt hash (random
// salt, the token's identity mixed in) in a file of mode 0600. Not
// thread-safe.
class PinMemory {
 public:
  // directory empty: remembers in this process only.
  PinMemory(std::string directory, std::string token_identity);

  // True when exactly this PIN was refused. FAILED_PRECONDITION: the file is
  // there and cannot be read or is damaged; nothing may be tried then.
  absl::StatusOr<bool> WasRefused(std::span<const uint8_t> pin) const;
  // Durable when it returns OK.
  absl::Status Remember(std::span<const uint8_t> pin);
  void Clear();

 private:
  std::string HashOf(std::span<const uint8_t> pin,
                     absl::string_view salt) const;

  std::string path_;  // empty: none
  std::string identity_;
  std::string record_;  // of this process
};

}  // namespace kek::pkcs11
