// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kek::pkcs11 {

// What a CK_RV means for kekd. The same code can mean different things for
// different operations (SoftHSM 2.6.1 answers CKR_GENERAL_ERROR both for a
// wrong GCM tag and for a lost token directory); FromRv knows the operation,
// nobody else looks at a CK_RV again.
enum class ErrorClass {
  kNone,        // OK, or a Status that did not come from a token
  kCallerData,  // the caller's bytes are wrong: bad tag, bad length. The device
                // is fine.
  kAmbiguous,  // bytes or device; settled with the key's canary (Token::Decrypt
               // does so before it returns)
  kSession,    // this session is broken or in an unexpected state
  kHandle,     // the object handle is stale or the object is gone
  kLogin,      // nobody is logged in
  kDevice,     // library or device trouble
  kCapacity,   // sessions, memory
  kOperator,   // only a person can mend it: PIN, mechanism, template, write
               // protection
  kIntegrity,  // the token answered, and the answer is provably wrong; latched
               // until an operator clears it
};

// The class a Status of this folder carries as a payload; kNone where it has
// none.
ErrorClass ClassOf(const absl::Status& status);
// The raw CK_RV a Status carries, if any.
std::optional<uint64_t> RvOf(const absl::Status& status);
// "CKR_DEVICE_ERROR"; unknown and vendor codes in hexadecimal
// ("CKR_0x80000123").
absl::string_view RvName(uint64_t rv);

}  // namespace kek::pkcs11
