// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkcs11/key_template.h"
#include "pkcs11/session.h"
#include "pkcs11/token.h"

namespace kek::pkcs11 {

// What is done to key objects through one session. The caller holds the admin
// lane: SoftHSM 2.6.1 fails key generations that run beside a search. An error
// of class kOperator leaves the session clean; after any other it must be
// closed.

struct FoundObject {
  CK_OBJECT_HANDLE handle = CK_INVALID_HANDLE;
  ObjectInfo info;
};

// All handles that match; C_FindObjectsFinal is called on errors, too. A module
// that reports an object twice has it twice in the answer.
absl::StatusOr<std::vector<CK_OBJECT_HANDLE>> FindObjects(Session& session,
                                                          KeyTemplate what);
// Every secret key of the token, with CKA_ID and label: one sweep.
absl::StatusOr<std::vector<FoundObject>> SweepKeys(Session& session);

// C_GenerateKey with the attribute ladder; dropped gets what the token refused,
// and key loses it.
absl::StatusOr<CK_OBJECT_HANDLE> GenerateAes(Session& session, KeyTemplate& key,
                                             std::vector<std::string>* dropped);
absl::StatusOr<KeyAttributes> ReadKeyAttributes(Session& session,
                                                CK_OBJECT_HANDLE handle);
absl::Status DestroyObject(Session& session, CK_OBJECT_HANDLE handle);

// OK when these are the attributes of a key that never leaves the token and
// does nothing but encrypt and decrypt; kIntegrity names those that are wrong.
absl::Status JudgeAttributes(const KeyAttributes& attributes,
                             AttributePolicy policy);

}  // namespace kek::pkcs11
