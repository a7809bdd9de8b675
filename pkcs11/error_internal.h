// SPDX-License-Identifier: Apache-2.0
#pragma once

// Private to pkcs11/: where a CK_RV becomes a Status.

#include <span>
#include <string>

#include "absl/status/status.h"
#include "pkcs11/cryptoki.h"
#include "pkcs11/error.h"

namespace kek::pkcs11 {

// What was being done when the CK_RV came.
enum class Operation {
  kLibrary,  // C_Initialize, slot and token information
  kOpenSession,
  kLogin,
  kGenerate,
  kObject,  // find, read, destroy
  kEncrypt,
  kDecrypt,
  kRandom,
};

// what names the function and, if it helps, the object. ambiguous: further
// CK_RVs that mean "bytes or device" from C_Decrypt on this token.
absl::Status FromRv(Operation operation, CK_RV rv, absl::string_view what,
                    std::span<const uint64_t> ambiguous = {});

// A Status of this folder that no CK_RV caused.
absl::Status MakeError(absl::StatusCode code, ErrorClass error_class,
                       absl::string_view message);
// The same trouble, classified anew once more is known.
absl::Status Reclassify(const absl::Status& status, absl::StatusCode code,
                        ErrorClass error_class);

// The one text of every Decrypt that fails for the caller's bytes.
absl::Status CallerDataError();

// The library must be finalised and initialised before anything can work.
bool NeedsReinitialize(const absl::Status& status);

}  // namespace kek::pkcs11
