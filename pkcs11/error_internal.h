// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "pkcs11/error.h"

namespace kek::pkcs11 {

// The operation a CK_RV answers; the same code means different things.
enum class Operation {
  kOther,
  kInitialize,
  kOpenSession,
  kLogin,
  kCreate,      // C_GenerateKey, C_CopyObject
  kCipherInit,  // C_EncryptInit and its like: codes about the key
  kEncrypt,
  kDecrypt,  // codes about the caller's bytes
  kRandom,
};

// The one place where a CK_RV gets a meaning. ambiguous: the token's own codes
// for a wrong tag, beyond those every token uses (TokenProfile).
ErrorClass ClassifyRv(uint64_t rv, Operation operation,
                      std::span<const uint64_t> ambiguous = {});

// A Status for a CK_RV other than CKR_OK, with class and CK_RV as payloads.
// what: "C_Encrypt".
absl::Status FromRv(uint64_t rv, Operation operation, absl::string_view what,
                    std::span<const uint64_t> ambiguous = {});

// A Status of a class that no CK_RV caused, with the class's code.
absl::Status MakeError(ErrorClass error_class, absl::string_view message);
// The same trouble, understood better: the CK_RV stays.
absl::Status Reclassify(const absl::Status& status, ErrorClass error_class,
                        absl::string_view message);

// What a caller sees for every ciphertext that does not open.
absl::Status CiphertextError();

}  // namespace kek::pkcs11
