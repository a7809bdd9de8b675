// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/cipher.h"

#include <algorithm>
#include <array>

#include <openssl/rand.h>

#include "base/status_macros.h"
#include "pkcs11/error_internal.h"
#include "pkcs11/mechanism.h"

namespace kek::pkcs11 {
namespace {

constexpr size_t kTagSize = 16;
constexpr size_t kIvSize = 12;
constexpr size_t kAppendedIvSize = 16;

uint8_t kNoBytes;  // an address where there are no bytes

bool AllZero(std::span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [](uint8_t byte) { return byte == 0; });
}

CK_BYTE_PTR Input(std::span<const uint8_t> bytes) {
  // PKCS#11 has no const; no module writes to its input.
  return bytes.empty() ? &kNoBytes : const_cast<CK_BYTE_PTR>(bytes.data());
}

}  // namespace

absl::Status HostRandom(std::span<uint8_t> out) {
  if (RAND_bytes(out.data(), static_cast<int>(out.size())) != 1) {
    return absl::InternalError("the host's random generator fails");
  }
  return absl::OkStatus();
}

absl::Status Cipher::TokenRandom(Session& session, std::span<uint8_t> out) {
  std::span<const uint8_t> fetched;
  RETURN_IF_ERROR(session.Random(out, &fetched));
  if (!watch_.Accept(fetched)) {
    alarm_("C_GenerateRandom answers zeros or repeats itself");
    if (profile_.iv_mode == IvMode::kTokenRandom) {
      return MakeError(ErrorClass::kIntegrity,
                       "the token's random numbers repeat or are zero");
    }
  }
  return absl::OkStatus();
}

absl::Status Cipher::Random(Session& session, std::span<uint8_t> out) {
  std::vector<uint8_t> token(out.size());
  const absl::Status status = TokenRandom(session, token);
  if (!status.ok()) {
    if (!profile_.allow_host_only_iv) return status;
    alarm_("C_GenerateRandom fails; the host's random numbers are used alone");
    std::fill(token.begin(), token.end(), 0);
  }
  RETURN_IF_ERROR(HostRandom(out));
  for (size_t i = 0; i < out.size(); ++i) out[i] ^= token[i];
  base::Wipe(token.data(), token.size());
  return absl::OkStatus();
}

absl::StatusOr<Sealed> Cipher::Seal(Session& session, CK_OBJECT_HANDLE key,
                                    std::span<const uint8_t> aad,
                                    std::span<const uint8_t> plaintext) {
  std::array<uint8_t, kIvSize> iv{};
  std::span<const uint8_t> given = iv;
  switch (profile_.iv_mode) {
    case IvMode::kHostXorToken:
      RETURN_IF_ERROR(Random(session, iv));
      break;
    case IvMode::kTokenRandom:
      RETURN_IF_ERROR(TokenRandom(session, iv));
      break;
    case IvMode::kTokenWriteback:
      break;  // zeros, which the token must replace
    case IvMode::kTokenAppend:
      given = {};
      break;
  }
  Mechanism mechanism = Mechanism::AesGcm(given, aad);
  CK_RV rv = session.Call(Function::kEncryptInit,
                          [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
                            return f->C_EncryptInit(h, mechanism.get(), key);
                          });
  if (rv != CKR_OK) return FromRv(rv, Operation::kCipherInit, "C_EncryptInit");
  const bool appends = profile_.iv_mode == IvMode::kTokenAppend;
  const size_t expected =
      plaintext.size() + kTagSize + (appends ? kAppendedIvSize : 0);
  // Room for what a token may append although it was not asked to: a longer
  // answer is to be seen, not to be CKR_BUFFER_TOO_SMALL.
  std::vector<uint8_t> out(plaintext.size() + kTagSize + kAppendedIvSize + 16);
  CK_ULONG size = out.size();
  rv = session.Call(Function::kEncrypt,
                    [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
                      return f->C_Encrypt(h, Input(plaintext), plaintext.size(),
                                          out.data(), &size);
                    });
  if (rv != CKR_OK) return FromRv(rv, Operation::kEncrypt, "C_Encrypt");
  if (size != expected) {
    return MakeError(ErrorClass::kIntegrity,
                     "C_Encrypt answered a ciphertext of impossible length");
  }
  Sealed sealed;
  if (appends) {
    sealed.iv.assign(
        out.begin() + static_cast<ptrdiff_t>(size - kAppendedIvSize),
        out.begin() + static_cast<ptrdiff_t>(size));
    size -= kAppendedIvSize;
  } else {
    sealed.iv.assign(mechanism.iv().begin(), mechanism.iv().end());
  }
  out.resize(size);
  sealed.ciphertext = std::move(out);
  if (AllZero(sealed.iv)) {
    return MakeError(ErrorClass::kIntegrity, "the token made an IV of zeros");
  }
  if (AllZero(std::span(sealed.ciphertext).last(kTagSize))) {
    return MakeError(ErrorClass::kIntegrity, "C_Encrypt answered zeros");
  }
  return sealed;
}

absl::StatusOr<base::SecretBytes> Cipher::Open(Session& session,
                                               CK_OBJECT_HANDLE key,
                                               std::span<const uint8_t> aad,
                                               const Sealed& sealed) {
  if (sealed.ciphertext.size() < kTagSize ||
      (sealed.iv.size() != kIvSize && sealed.iv.size() != kAppendedIvSize)) {
    return CiphertextError();
  }
  Mechanism mechanism = Mechanism::AesGcm(sealed.iv, aad);
  CK_RV rv = session.Call(Function::kDecryptInit,
                          [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
                            return f->C_DecryptInit(h, mechanism.get(), key);
                          });
  if (rv != CKR_OK) return FromRv(rv, Operation::kCipherInit, "C_DecryptInit");
  // SoftHSM wants room for the whole ciphertext, tag included.
  base::SecretBytes out(sealed.ciphertext.size());
  CK_ULONG size = out.size();
  rv = session.Call(Function::kDecrypt, [&](CK_FUNCTION_LIST* f,
                                            CK_SESSION_HANDLE h) {
    return f->C_Decrypt(h, Input(sealed.ciphertext), sealed.ciphertext.size(),
                        out.mutable_data(), &size);
  });
  if (rv != CKR_OK) {
    return FromRv(rv, Operation::kDecrypt, "C_Decrypt",
                  profile_.ambiguous_decrypt_rvs);
  }
  if (size != sealed.ciphertext.size() - kTagSize) {
    return MakeError(ErrorClass::kIntegrity,
                     "C_Decrypt answered a plaintext of impossible length");
  }
  out.Truncate(size);
  return out;
}

}  // namespace kek::pkcs11
