// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/secret_bytes.h"
#include "catalog/records.h"

namespace kek::core {

// What a caller is told whenever a ciphertext does not open, whatever the
// reason: a text that tells tag from AAD from header would be an oracle.
inline constexpr absl::string_view kDecryptionFailed =
    "Decryption failed: the ciphertext is invalid.";

// Which front end made a ciphertext; part of what the token authenticates, so
// that it opens nowhere else. Numbers are for ever.
enum class EnvelopeContext : uint8_t {
  kKubernetesV1Beta1 = 1,
  kKubernetesV2 = 2,
  kCloudKms = 3,
  kKekV1 = 4
};

// Envelope algorithms; numbers are for ever. 2..127 are reserved
// (docs/envelope-format.md).
enum class EnvelopeAlgorithm : uint8_t { kAes256Gcm = 1 };

// Envelope models kekd's ciphertext (docs/envelope-format.md is the
// specification, tests/vectors/envelope the examples):
//   magic "kek" 0x01 | algorithm (1) | context (1) | derivation (1, 0) | key
//   UUID (16) | version (4, big endian) | IV length (1) | IV | ciphertext | tag
//   (16)
// The version byte of the magic is the format. Everything before the IV and the
// caller's AAD, each length-prefixed, are the AAD given to the token
// (BuildAad). The plaintext the token sees is the caller's with a checksum
// before it (SealPayload, OpenPayload).
struct Envelope {
  EnvelopeAlgorithm algorithm = EnvelopeAlgorithm::kAes256Gcm;
  EnvelopeContext context = EnvelopeContext::kCloudKms;
  catalog::Uuid key_uuid{};
  uint32_t version = 0;
  std::vector<uint8_t> iv;  // 12 or 16 bytes; BuildAad uses the size only
  std::vector<uint8_t> ciphertext;  // ciphertext and tag

  std::vector<uint8_t> Serialize() const;
  // Total: any bytes give an Envelope that serialises to the very same bytes,
  // or INVALID_ARGUMENT with one fixed text (kDecryptionFailed).
  static absl::StatusOr<Envelope> Parse(std::span<const uint8_t> bytes);

  // What the token authenticates beside the ciphertext: length-prefixed header
  // (without the IV), length-prefixed aad.
  std::vector<uint8_t> BuildAad(std::span<const uint8_t> aad) const;
};

// What the token encrypts: the first 8 bytes of the plaintext's SHA-256, then
// the plaintext. INTERNAL if libcrypto fails.
inline constexpr size_t kPayloadChecksumSize = 8;
absl::StatusOr<base::SecretBytes> SealPayload(
    std::span<const uint8_t> plaintext);
// The plaintext of a payload. DATA_LOSS when the checksum does not fit: the tag
// was right, so the token or the memory behind it changed the bytes afterwards.
absl::StatusOr<base::SecretBytes> OpenPayload(std::span<const uint8_t> payload);

// Bytes an Envelope adds to a plaintext, at most (16-byte IV).
inline constexpr size_t kMaxEnvelopeOverhead = 4 + 3 + 16 + 4 + 1 + 16 + 8 + 16;

}  // namespace kek::core
