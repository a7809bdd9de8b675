// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/metrics.h"
#include "base/secret_bytes.h"
#include "base/sync.h"
#include "catalog/records.h"
#include "core/envelope.h"
#include "pkcs11/token.h"

namespace kek::core {

class ProofGroups;

// A version ready for use: its record's identity and the token's key.
struct ResolvedVersion {
  catalog::Uuid key_uuid{};
  uint32_t version = 0;
  std::shared_ptr<pkcs11::Key> key;
};

// Wrapper wraps and unwraps bytes under one resolved version: plaintext to
// Envelope and back. It is the only caller of the token's encrypt and decrypt.
// It also runs the group proof: wraps of one version that finish about the same
// time are released together, after one canary decrypt through the same handle
// that was begun after all of them had been made; if that fails none is
// released. Thread-safe.
class Wrapper {
 public:
  // token and metrics (may be null) must outlive the Wrapper.
  explicit Wrapper(pkcs11::Token& token, base::Metrics* metrics = nullptr);
  ~Wrapper();
  Wrapper(const Wrapper&) = delete;
  Wrapper& operator=(const Wrapper&) = delete;

  struct WrapOptions {
    EnvelopeContext context = EnvelopeContext::kCloudKms;
    bool verify = true;
  };
  // The serialised Envelope, proven. Status as pkcs11::Token::Encrypt;
  // DATA_LOSS when the proof fails. When the token's generation or the key's
  // handle changes between the encryption and its proof, the proof says nothing
  // about the handle that was used, and the wrap is made anew with a new IV: at
  // most kMaxAttempts encryptions in all, then UNAVAILABLE.
  static constexpr int kMaxAttempts = 3;
  absl::StatusOr<std::vector<uint8_t>> Wrap(const ResolvedVersion& version,
                                            std::span<const uint8_t> plaintext,
                                            std::span<const uint8_t> aad,
                                            const WrapOptions& options,
                                            base::Deadline deadline);

  // The plaintext of an Envelope whose header has been matched to version by
  // the caller, and whose context is the caller's. INVALID_ARGUMENT with one
  // fixed text (kDecryptionFailed) for everything that depends on header, tag,
  // AAD or ciphertext; DATA_LOSS when the payload's checksum is wrong although
  // the tag was right.
  absl::StatusOr<base::SecretBytes> Unwrap(const ResolvedVersion& version,
                                           const Envelope& envelope,
                                           std::span<const uint8_t> aad,
                                           base::Deadline deadline);

  // The canary of a new version: AAD "kek-canary", key UUID, version.
  absl::StatusOr<catalog::StoredCanary> MakeCanary(
      const pkcs11::KeyIdentity& identity, const catalog::Uuid& key_uuid,
      uint32_t version, base::Deadline deadline);
  // No HSM work. A record without a canary gives a version without key, under
  // which nothing works (FAILED_PRECONDITION).
  ResolvedVersion Resolve(const catalog::CryptoKeyVersion& record);

 private:
  pkcs11::Token& token_;
  const std::unique_ptr<ProofGroups> proofs_;
  base::Metrics::Counter* wraps_ = nullptr;  // null without metrics
  base::Metrics::Counter* unwraps_ = nullptr;
  base::Metrics::Counter* proof_runs_ = nullptr;
};

}  // namespace kek::core
