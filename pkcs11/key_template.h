// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "pkcs11/cryptoki.h"

namespace kek::pkcs11 {

// KeyTemplate owns the memory of a CK_ATTRIBUTE array. Not copyable: the array
// points into the object.
class KeyTemplate {
 public:
  KeyTemplate() = default;
  KeyTemplate(const KeyTemplate&) = delete;
  KeyTemplate& operator=(const KeyTemplate&) = delete;

  KeyTemplate& Add(CK_ATTRIBUTE_TYPE type, bool value);
  KeyTemplate& AddNumber(CK_ATTRIBUTE_TYPE type, CK_ULONG value);
  KeyTemplate& AddBytes(CK_ATTRIBUTE_TYPE type, std::span<const uint8_t> value);
  KeyTemplate& AddText(CK_ATTRIBUTE_TYPE type, absl::string_view value);

  CK_ATTRIBUTE* data() { return attributes_.data(); }
  CK_ULONG size() const { return attributes_.size(); }

  // A non-extractable, sensitive AES-256 key that can encrypt and decrypt and
  // nothing else.
  void AesKey();

 private:
  std::vector<CK_ATTRIBUTE> attributes_;
  std::list<std::vector<uint8_t>> values_;  // a list: addresses stay
};

// "CKA_SENSITIVE"; unknown ones in hexadecimal.
std::string AttributeName(CK_ATTRIBUTE_TYPE type);

}  // namespace kek::pkcs11
