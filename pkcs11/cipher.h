// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/secret_bytes.h"
#include "pkcs11/random_watch.h"
#include "pkcs11/session.h"
#include "pkcs11/token.h"

namespace kek::pkcs11 {

// Cipher runs AES-256-GCM on one token as its profile says: where the IV comes
// from, and what must be true of an answer. Single-part calls with buffers of
// the right size, never a size query (NSS answers a wrong one). Immutable but
// for the random watch; thread-safe.
class Cipher {
 public:
  // alarm(detail): the token's random generator is out of order. No lock held.
  Cipher(TokenProfile profile, std::function<void(const char* detail)> alarm)
      : profile_(std::move(profile)), alarm_(std::move(alarm)) {}

  // kIntegrity: the answer's length, IV or content cannot be right.
  absl::StatusOr<Sealed> Seal(Session& session, CK_OBJECT_HANDLE key,
                              std::span<const uint8_t> aad,
                              std::span<const uint8_t> plaintext);
  // kCallerData and kAmbiguous as the token's CK_RV says; not settled here.
  absl::StatusOr<base::SecretBytes> Open(Session& session, CK_OBJECT_HANDLE key,
                                         std::span<const uint8_t> aad,
                                         const Sealed& sealed);
  // Host random XOR token random.
  absl::Status Random(Session& session, std::span<uint8_t> out);

  const TokenProfile& profile() const { return profile_; }

 private:
  absl::Status TokenRandom(Session& session, std::span<uint8_t> out);

  const TokenProfile profile_;
  const std::function<void(const char*)> alarm_;
  RandomWatch watch_;
};

// The host's random bytes; only a broken kernel makes it fail.
absl::Status HostRandom(std::span<uint8_t> out);

}  // namespace kek::pkcs11
