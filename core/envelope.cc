// SPDX-License-Identifier: Apache-2.0
#include "core/envelope.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>

#include <openssl/evp.h>

#include "absl/status/status.h"
#include "base/status_macros.h"

namespace kek::core {
namespace {

constexpr std::array<uint8_t, 4> kMagic = {'k', 'e', 'k', 0x01};
constexpr size_t kTagSize = 16;
// Magic, algorithm, context, derivation, key UUID, version, IV length.
constexpr size_t kHeaderSize = 4 + 1 + 1 + 1 + 16 + 4 + 1;

bool IsIvSize(size_t size) { return size == 12 || size == 16; }

void AppendBigEndian(uint64_t value, int bytes, std::vector<uint8_t>& out) {
  for (int i = bytes - 1; i >= 0; --i) {
    out.push_back(static_cast<uint8_t>(value >> (8 * i)));
  }
}

void AppendHeader(const Envelope& envelope, std::vector<uint8_t>& out) {
  out.insert(out.end(), kMagic.begin(), kMagic.end());
  out.push_back(static_cast<uint8_t>(envelope.algorithm));
  out.push_back(static_cast<uint8_t>(envelope.context));
  out.push_back(0);  // derivation: none
  out.insert(out.end(), envelope.key_uuid.begin(), envelope.key_uuid.end());
  AppendBigEndian(envelope.version, 4, out);
  out.push_back(static_cast<uint8_t>(envelope.iv.size()));
}

absl::Status Malformed() {
  return absl::InvalidArgumentError(kDecryptionFailed);
}

// The first bytes of SHA-256(plaintext).
absl::Status Checksum(std::span<const uint8_t> plaintext,
                      std::span<uint8_t, kPayloadChecksumSize> out) {
  std::array<uint8_t, EVP_MAX_MD_SIZE> digest;
  unsigned int size = 0;
  const bool done =
      EVP_Digest(plaintext.data(), plaintext.size(), digest.data(), &size,
                 EVP_sha256(), nullptr) == 1;
  if (done) std::copy_n(digest.begin(), out.size(), out.begin());
  base::Wipe(digest.data(), digest.size());
  if (!done) return absl::InternalError("libcrypto: SHA-256 failed");
  return absl::OkStatus();
}

}  // namespace

std::vector<uint8_t> Envelope::Serialize() const {
  std::vector<uint8_t> out;
  out.reserve(kHeaderSize + iv.size() + ciphertext.size());
  AppendHeader(*this, out);
  out.insert(out.end(), iv.begin(), iv.end());
  out.insert(out.end(), ciphertext.begin(), ciphertext.end());
  return out;
}

absl::StatusOr<Envelope> Envelope::Parse(std::span<const uint8_t> bytes) {
  if (bytes.size() < kHeaderSize) return Malformed();
  const uint8_t* at = bytes.data();
  if (!std::equal(kMagic.begin(), kMagic.end(), at)) return Malformed();
  at += kMagic.size();
  const uint8_t algorithm = *at++;
  const uint8_t context = *at++;
  const uint8_t derivation = *at++;
  if (algorithm != static_cast<uint8_t>(EnvelopeAlgorithm::kAes256Gcm) ||
      context < static_cast<uint8_t>(EnvelopeContext::kKubernetesV1Beta1) ||
      context > static_cast<uint8_t>(EnvelopeContext::kKekV1) ||
      derivation != 0) {
    return Malformed();
  }
  Envelope envelope;
  envelope.algorithm = static_cast<EnvelopeAlgorithm>(algorithm);
  envelope.context = static_cast<EnvelopeContext>(context);
  std::copy_n(at, envelope.key_uuid.size(), envelope.key_uuid.begin());
  at += envelope.key_uuid.size();
  for (int i = 0; i < 4; ++i) envelope.version = envelope.version << 8 | *at++;
  if (envelope.version == 0) return Malformed();
  const size_t iv_size = *at++;
  if (!IsIvSize(iv_size) ||
      bytes.size() < kHeaderSize + iv_size + kPayloadChecksumSize + kTagSize) {
    return Malformed();
  }
  envelope.iv.assign(at, at + iv_size);
  envelope.ciphertext.assign(at + iv_size, bytes.data() + bytes.size());
  return envelope;
}

std::vector<uint8_t> Envelope::BuildAad(std::span<const uint8_t> aad) const {
  std::vector<uint8_t> out;
  out.reserve(8 + kHeaderSize + 8 + aad.size());
  AppendBigEndian(kHeaderSize, 8, out);
  AppendHeader(*this, out);
  AppendBigEndian(aad.size(), 8, out);
  out.insert(out.end(), aad.begin(), aad.end());
  return out;
}

absl::StatusOr<base::SecretBytes> SealPayload(
    std::span<const uint8_t> plaintext) {
  base::SecretBytes payload(kPayloadChecksumSize + plaintext.size());
  const std::span<uint8_t> out = payload.mutable_span();
  RETURN_IF_ERROR(Checksum(plaintext, out.first<kPayloadChecksumSize>()));
  std::copy(plaintext.begin(), plaintext.end(),
            out.begin() + kPayloadChecksumSize);
  return payload;
}

absl::StatusOr<base::SecretBytes> OpenPayload(
    std::span<const uint8_t> payload) {
  if (payload.size() < kPayloadChecksumSize) {
    return absl::DataLossError(
        "the token returned a payload that is shorter than its checksum");
  }
  const std::span<const uint8_t> plaintext =
      payload.subspan(kPayloadChecksumSize);
  std::array<uint8_t, kPayloadChecksumSize> checksum;
  RETURN_IF_ERROR(Checksum(plaintext, checksum));
  const bool equal =
      base::ConstantTimeEqual(checksum, payload.first(kPayloadChecksumSize));
  base::Wipe(checksum.data(), checksum.size());
  if (!equal) {
    return absl::DataLossError(
        "the checksum of the plaintext is wrong although the token accepted "
        "the authentication tag");
  }
  return base::SecretBytes(plaintext);
}

}  // namespace kek::core
