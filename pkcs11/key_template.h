// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <list>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "pkcs11/cryptoki.h"

namespace kek::pkcs11 {

// KeyTemplate owns the attributes given to C_GenerateKey, C_FindObjectsInit and
// C_CopyObject, and their memory. Attributes added as optional may be dropped,
// the last first, when a token does not take them (the ladder). Move-only: a
// copy's attributes would point into the original.
class KeyTemplate {
 public:
  KeyTemplate() = default;
  KeyTemplate(KeyTemplate&&) = default;
  KeyTemplate& operator=(KeyTemplate&&) = default;
  KeyTemplate(const KeyTemplate&) = delete;
  KeyTemplate& operator=(const KeyTemplate&) = delete;

  // An AES-256 token key that encrypts and decrypts and leaves the token never.
  static KeyTemplate AesTokenKey(std::span<const uint8_t> id,
                                 absl::string_view label);
  // An AES-256 key of this session, for probes; safe like the above.
  static KeyTemplate AesSessionKey();
  // Finds secret keys of the token; with an id only those.
  static KeyTemplate FindTokenKeys();
  static KeyTemplate FindTokenKey(std::span<const uint8_t> id);

  KeyTemplate& Bool(CK_ATTRIBUTE_TYPE type, bool value);
  KeyTemplate& Number(CK_ATTRIBUTE_TYPE type, CK_ULONG value);
  KeyTemplate& Bytes(CK_ATTRIBUTE_TYPE type, std::span<const uint8_t> value);
  // What was added since is optional.
  KeyTemplate& OptionalFromHere();
  // Drops the last optional attribute and names it; empty when none is left.
  std::string DropOptional();

  CK_ATTRIBUTE* data() { return attributes_.data(); }
  CK_ULONG size() const { return attributes_.size(); }

 private:
  std::list<std::vector<uint8_t>> values_;  // addresses are stable
  std::vector<CK_ATTRIBUTE> attributes_;
  size_t required_ = SIZE_MAX;
};

// "CKA_SENSITIVE"; numbers in hexadecimal where the name is not known.
std::string AttributeName(CK_ATTRIBUTE_TYPE type);

}  // namespace kek::pkcs11
