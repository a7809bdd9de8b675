// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/key_template.h"

#include "absl/strings/str_format.h"

namespace kek::pkcs11 {

std::string AttributeName(CK_ATTRIBUTE_TYPE type) {
  switch (type) {
    case CKA_ALLOWED_MECHANISMS:
      return "CKA_ALLOWED_MECHANISMS";
    case CKA_COPYABLE:
      return "CKA_COPYABLE";
    case CKA_MODIFIABLE:
      return "CKA_MODIFIABLE";
    case CKA_DESTROYABLE:
      return "CKA_DESTROYABLE";
    default:
      return absl::StrFormat("CKA_0x%x", type);
  }
}

KeyTemplate& KeyTemplate::Bytes(CK_ATTRIBUTE_TYPE type,
                                std::span<const uint8_t> value) {
  values_.emplace_back(value.begin(), value.end());
  attributes_.push_back({type, values_.back().data(), value.size()});
  return *this;
}

KeyTemplate& KeyTemplate::Bool(CK_ATTRIBUTE_TYPE type, bool value) {
  const CK_BBOOL byte = value ? CK_TRUE : CK_FALSE;
  return Bytes(type, {&byte, 1});
}

KeyTemplate& KeyTemplate::Number(CK_ATTRIBUTE_TYPE type, CK_ULONG value) {
  return Bytes(type, {reinterpret_cast<const uint8_t*>(&value), sizeof value});
}

KeyTemplate& KeyTemplate::OptionalFromHere() {
  required_ = attributes_.size();
  return *this;
}

std::string KeyTemplate::DropOptional() {
  if (attributes_.size() <= required_) return "";
  const std::string name = AttributeName(attributes_.back().type);
  attributes_.pop_back();
  values_.pop_back();
  return name;
}

KeyTemplate KeyTemplate::AesTokenKey(std::span<const uint8_t> id,
                                     absl::string_view label) {
  KeyTemplate t;
  t.Number(CKA_CLASS, CKO_SECRET_KEY)
      .Number(CKA_KEY_TYPE, CKK_AES)
      .Number(CKA_VALUE_LEN, 32)
      .Bool(CKA_TOKEN, true)
      .Bool(CKA_PRIVATE, true)
      .Bool(CKA_SENSITIVE, true)
      .Bool(CKA_EXTRACTABLE, false)
      .Bool(CKA_ENCRYPT, true)
      .Bool(CKA_DECRYPT, true)
      .Bool(CKA_WRAP, false)
      .Bool(CKA_UNWRAP, false)
      .Bool(CKA_SIGN, false)
      .Bool(CKA_VERIFY, false)
      .Bool(CKA_DERIVE, false)
      .Bytes(CKA_LABEL,
             {reinterpret_cast<const uint8_t*>(label.data()), label.size()})
      .Bytes(CKA_ID, id)
      .OptionalFromHere()
      .Number(CKA_ALLOWED_MECHANISMS, CKM_AES_GCM)
      .Bool(CKA_COPYABLE, false)
      .Bool(CKA_MODIFIABLE, false)
      .Bool(CKA_DESTROYABLE, true);
  return t;
}

KeyTemplate KeyTemplate::AesSessionKey() {
  KeyTemplate t;
  t.Number(CKA_CLASS, CKO_SECRET_KEY)
      .Number(CKA_KEY_TYPE, CKK_AES)
      .Number(CKA_VALUE_LEN, 32)
      .Bool(CKA_TOKEN, false)
      .Bool(CKA_SENSITIVE, true)
      .Bool(CKA_EXTRACTABLE, false)
      .Bool(CKA_ENCRYPT, true)
      .Bool(CKA_DECRYPT, true);
  return t;
}

KeyTemplate KeyTemplate::FindTokenKeys() {
  KeyTemplate t;
  t.Number(CKA_CLASS, CKO_SECRET_KEY).Bool(CKA_TOKEN, true);
  return t;
}

KeyTemplate KeyTemplate::FindTokenKey(std::span<const uint8_t> id) {
  KeyTemplate t = FindTokenKeys();
  t.Bytes(CKA_ID, id);
  return t;
}

}  // namespace kek::pkcs11
