// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkcs11/cipher.h"
#include "pkcs11/session.h"
#include "pkcs11/token.h"

namespace kek::pkcs11 {

// What a module really enforces, found out by attacking it with throw-away
// session keys; nothing is left behind, no PIN try is spent. The session must
// be read-write or at least allow session objects. An error means that the
// probe could not be made, or that AES-GCM does not work at all.
absl::StatusOr<std::vector<Guarantee>> ProbeModule(Session& session,
                                                   Cipher& cipher);

// OK when every required guarantee holds; otherwise kOperator, naming those
// that do not.
absl::Status JudgeGuarantees(const std::vector<Guarantee>& guarantees);

}  // namespace kek::pkcs11
