// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/key_template.h"

#include <cstring>

#include "absl/strings/str_cat.h"

namespace kek::pkcs11 {

KeyTemplate& KeyTemplate::AddBytes(CK_ATTRIBUTE_TYPE type,
                                   std::span<const uint8_t> value) {
  values_.emplace_back(value.begin(), value.end());
  attributes_.push_back(
      {type, values_.back().data(), static_cast<CK_ULONG>(value.size())});
  return *this;
}

KeyTemplate& KeyTemplate::Add(CK_ATTRIBUTE_TYPE type, bool value) {
  const CK_BBOOL byte = value ? CK_TRUE : CK_FALSE;
  return AddBytes(type, {&byte, 1});
}

KeyTemplate& KeyTemplate::AddNumber(CK_ATTRIBUTE_TYPE type, CK_ULONG value) {
  return AddBytes(
      type, {reinterpret_cast<const uint8_t*>(&value), sizeof value});
}

KeyTemplate& KeyTemplate::AddText(CK_ATTRIBUTE_TYPE type,
                                  absl::string_view value) {
  return AddBytes(
      type, {reinterpret_cast<const uint8_t*>(value.data()), value.size()});
}

void KeyTemplate::AesKey() {
  AddNumber(CKA_CLASS, CKO_SECRET_KEY);
  AddNumber(CKA_KEY_TYPE, CKK_AES);
  AddNumber(CKA_VALUE_LEN, 32);
  Add(CKA_PRIVATE, true);
  Add(CKA_SENSITIVE, true);
  Add(CKA_EXTRACTABLE, false);
  Add(CKA_ENCRYPT, true);
  Add(CKA_DECRYPT, true);
  // Modules default some of these to true.
  for (CK_ATTRIBUTE_TYPE type :
       {CKA_WRAP, CKA_UNWRAP, CKA_SIGN, CKA_VERIFY, CKA_DERIVE}) {
    Add(type, false);
  }
}

std::string AttributeName(CK_ATTRIBUTE_TYPE type) {
  switch (type) {
    case CKA_ALLOWED_MECHANISMS:
      return "CKA_ALLOWED_MECHANISMS";
    case CKA_COPYABLE:
      return "CKA_COPYABLE";
    case CKA_MODIFIABLE:
      return "CKA_MODIFIABLE";
    default:
      return absl::StrCat("CKA_0x", absl::Hex(type));
  }
}

}  // namespace kek::pkcs11
