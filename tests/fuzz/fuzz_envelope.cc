// SPDX-License-Identifier: Apache-2.0
// Any bytes: the parser refuses them with its one text, or gives an Envelope
// that serialises to the very same bytes. A payload opens only to what seals to
// it again.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "core/envelope.h"

namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

template <typename A, typename B>
bool Equal(const A& a, const B& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using kek::core::Envelope;
  const std::span<const uint8_t> bytes(data, size);
  const auto envelope = Envelope::Parse(bytes);
  if (envelope.ok()) {
    Require(Equal(envelope->Serialize(), bytes));
    Require(envelope->iv.size() == 12 || envelope->iv.size() == 16);
    Require(envelope->ciphertext.size() >= 24);
    const auto aad = envelope->BuildAad(bytes);
    Require(aad.size() == 8 + 28 + 8 + size);
    Require(Equal(std::span(aad).subspan(8, 28), bytes.first(28)));
  } else {
    Require(absl::IsInvalidArgument(envelope.status()) &&
            envelope.status().message() == kek::core::kDecryptionFailed);
  }
  const auto plaintext = kek::core::OpenPayload(bytes);
  if (plaintext.ok()) {
    const auto sealed = kek::core::SealPayload(plaintext->span());
    Require(sealed.ok() && Equal(sealed->span(), bytes));
  }
  return 0;
}
