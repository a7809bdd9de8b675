// SPDX-License-Identifier: Apache-2.0
#include "core/wrapper.h"

#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "base/status_macros.h"
#include "core/proof_groups.h"
#include "pkcs11/error.h"

namespace kek::core {
namespace {

// The IV's length is authenticated, so it must be known before the token makes
// the IV.
size_t IvSize(const pkcs11::TokenProfile& profile) {
  return profile.iv_mode == pkcs11::IvMode::kTokenAppend ? 16 : 12;
}

absl::Status NoKey() {
  return absl::FailedPreconditionError(
      "the key version has no canary: it was never ready for use");
}

absl::Status Invalid() { return absl::InvalidArgumentError(kDecryptionFailed); }

void Count(base::Metrics::Counter* counter) {
  if (counter != nullptr) counter->Increment();
}

}  // namespace

Wrapper::Wrapper(pkcs11::Token& token, base::Metrics* metrics)
    : token_(token), proofs_(std::make_unique<ProofGroups>()) {
  if (metrics == nullptr) return;
  wraps_ = metrics->GetCounter("kekd_wraps_total",
                               "Encryptions made by the token for callers.");
  unwraps_ = metrics->GetCounter(
      "kekd_unwraps_total",
      "Decryptions of callers' ciphertexts that the token was asked for.");
  proof_runs_ = metrics->GetCounter(
      "kekd_wrap_proofs_total",
      "Canary proofs run before wraps were released; each covers a group.");
}

Wrapper::~Wrapper() = default;

absl::StatusOr<std::vector<uint8_t>> Wrapper::Wrap(
    const ResolvedVersion& version, std::span<const uint8_t> plaintext,
    std::span<const uint8_t> aad, const WrapOptions& options,
    base::Deadline deadline) {
  if (version.key == nullptr) return NoKey();
  Envelope envelope;
  envelope.context = options.context;
  envelope.key_uuid = version.key_uuid;
  envelope.version = version.version;
  envelope.iv.resize(IvSize(token_.profile()));
  const std::vector<uint8_t> full_aad = envelope.BuildAad(aad);
  ASSIGN_OR_RETURN(const base::SecretBytes payload, SealPayload(plaintext));

  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    const uint64_t generation = token_.health().generation;
    ASSIGN_OR_RETURN(pkcs11::Sealed sealed,
                     token_.Encrypt(version.key, full_aad, payload.span(),
                                    {.verify = options.verify}, deadline));
    Count(wraps_);
    if (sealed.iv.size() != envelope.iv.size() ||
        sealed.ciphertext.size() != payload.size() + 16) {
      return absl::DataLossError(
          "the token returned an IV or a ciphertext of the wrong size");
    }
    const absl::Status proven = proofs_->Join(
        version.key.get(),
        [&](base::Deadline proof_deadline) {
          Count(proof_runs_);
          return token_.Prove(version.key, proof_deadline);
        },
        deadline);
    // The handle is another one by now: what it says covers nothing made
    // before.
    if (pkcs11::ClassOf(proven) == pkcs11::ErrorClass::kHandle) continue;
    RETURN_IF_ERROR(proven);
    if (token_.health().generation != generation) continue;
    envelope.iv = std::move(sealed.iv);
    envelope.ciphertext = std::move(sealed.ciphertext);
    return envelope.Serialize();
  }
  return absl::UnavailableError(
      "the key's handle changed during every attempt to wrap");
}

absl::StatusOr<base::SecretBytes> Wrapper::Unwrap(
    const ResolvedVersion& version, const Envelope& envelope,
    std::span<const uint8_t> aad, base::Deadline deadline) {
  if (version.key == nullptr) return NoKey();
  if (envelope.key_uuid != version.key_uuid ||
      envelope.version != version.version) {
    return Invalid();
  }
  Count(unwraps_);
  const pkcs11::Sealed sealed{.iv = envelope.iv,
                              .ciphertext = envelope.ciphertext};
  const auto payload =
      token_.Decrypt(version.key, envelope.BuildAad(aad), sealed, deadline);
  if (absl::IsInvalidArgument(payload.status())) return Invalid();
  RETURN_IF_ERROR(payload.status());
  return OpenPayload(payload->span());
}

absl::StatusOr<catalog::StoredCanary> Wrapper::MakeCanary(
    const pkcs11::KeyIdentity& identity, const catalog::Uuid& key_uuid,
    uint32_t version, base::Deadline deadline) {
  constexpr absl::string_view kPurpose = "kek-canary";
  std::vector<uint8_t> aad(kPurpose.begin(), kPurpose.end());
  aad.insert(aad.end(), key_uuid.begin(), key_uuid.end());
  for (int shift = 24; shift >= 0; shift -= 8) {
    aad.push_back(static_cast<uint8_t>(version >> shift));
  }
  ASSIGN_OR_RETURN(pkcs11::Canary canary,
                   token_.MakeCanary(identity, aad, deadline));
  return catalog::StoredCanary{
      .iv = std::move(canary.sealed.iv),
      .ciphertext = std::move(canary.sealed.ciphertext),
      .aad = std::move(canary.aad),
      .plaintext_sha256 = canary.plaintext_sha256};
}

ResolvedVersion Wrapper::Resolve(const catalog::CryptoKeyVersion& record) {
  ResolvedVersion resolved{.key_uuid = record.key_uuid,
                           .version = record.name.version()};
  if (record.canary.has_value()) {
    resolved.key =
        token_.AddKey({.id = record.object_id, .label = record.object_label},
                      {.sealed = {.iv = record.canary->iv,
                                  .ciphertext = record.canary->ciphertext},
                       .aad = record.canary->aad,
                       .plaintext_sha256 = record.canary->plaintext_sha256});
  }
  return resolved;
}

}  // namespace kek::core
