// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/key_objects.h"

#include <array>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "pkcs11/error_internal.h"
#include "pkcs11/mechanism.h"

namespace kek::pkcs11 {
namespace {

constexpr CK_ULONG kBatch = 512;
constexpr size_t kMaxObjects = 1'000'000;

bool Absent(const CK_ATTRIBUTE& attribute) {
  return attribute.ulValueLen == static_cast<CK_ULONG>(-1);
}

// What C_GetAttributeValue answers when some attributes are missing, while the
// others have been filled in.
bool AnswersPartly(CK_RV rv) {
  return rv == CKR_OK || rv == CKR_ATTRIBUTE_TYPE_INVALID ||
         rv == CKR_ATTRIBUTE_SENSITIVE || rv == CKR_BUFFER_TOO_SMALL;
}

CK_RV GetAttributes(Session& session, CK_OBJECT_HANDLE handle,
                    std::span<CK_ATTRIBUTE> attributes) {
  return session.Call(Function::kGetAttributeValue,
                      [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
                        return f->C_GetAttributeValue(
                            h, handle, attributes.data(), attributes.size());
                      });
}

bool IsLadderRv(uint64_t rv) {
  return rv == CKR_ATTRIBUTE_TYPE_INVALID ||
         rv == CKR_ATTRIBUTE_VALUE_INVALID || rv == CKR_TEMPLATE_INCONSISTENT ||
         rv == CKR_ATTRIBUTE_READ_ONLY;
}

}  // namespace

absl::StatusOr<std::vector<CK_OBJECT_HANDLE>> FindObjects(Session& session,
                                                          KeyTemplate what) {
  CK_RV rv = session.Call(Function::kFindObjectsInit, [&](CK_FUNCTION_LIST* f,
                                                          CK_SESSION_HANDLE h) {
    return f->C_FindObjectsInit(h, what.data(), what.size());
  });
  if (rv != CKR_OK) return FromRv(rv, Operation::kOther, "C_FindObjectsInit");
  std::vector<CK_OBJECT_HANDLE> found;
  std::set<CK_OBJECT_HANDLE> seen;
  std::vector<CK_OBJECT_HANDLE> batch(kBatch);
  // A module may answer fewer than asked and still have more; it is done when
  // it answers none. One that begins again is done, too.
  bool news = true;
  while (news && found.size() < kMaxObjects) {
    CK_ULONG count = 0;
    rv = session.Call(
        Function::kFindObjects, [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
          return f->C_FindObjects(h, batch.data(), batch.size(), &count);
        });
    if (rv != CKR_OK || count == 0) break;
    news = false;
    for (CK_ULONG i = 0; i < std::min<CK_ULONG>(count, kBatch); ++i) {
      news |= seen.insert(batch[i]).second;
      found.push_back(batch[i]);
    }
  }
  const CK_RV final_rv =
      session.Call(Function::kFindObjectsFinal,
                   [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
                     return f->C_FindObjectsFinal(h);
                   });
  if (rv != CKR_OK) return FromRv(rv, Operation::kOther, "C_FindObjects");
  if (final_rv != CKR_OK) {
    return FromRv(final_rv, Operation::kOther, "C_FindObjectsFinal");
  }
  return found;
}

absl::StatusOr<std::vector<FoundObject>> SweepKeys(Session& session) {
  ASSIGN_OR_RETURN(const std::vector<CK_OBJECT_HANDLE> handles,
                   FindObjects(session, KeyTemplate::FindTokenKeys()));
  std::vector<FoundObject> objects;
  objects.reserve(handles.size());
  std::array<uint8_t, 256> id{};
  std::array<char, 256> label{};
  for (const CK_OBJECT_HANDLE handle : handles) {
    CK_KEY_TYPE type = 0;
    CK_ATTRIBUTE attributes[] = {{CKA_ID, id.data(), id.size()},
                                 {CKA_LABEL, label.data(), label.size()},
                                 {CKA_KEY_TYPE, &type, sizeof type}};
    const CK_RV rv = GetAttributes(session, handle, attributes);
    if (rv == CKR_OBJECT_HANDLE_INVALID) continue;  // gone meanwhile
    if (!AnswersPartly(rv)) {
      return FromRv(rv, Operation::kOther, "C_GetAttributeValue");
    }
    FoundObject object{.handle = handle};
    if (!Absent(attributes[0])) {
      object.info.id.assign(id.data(), id.data() + attributes[0].ulValueLen);
    }
    if (!Absent(attributes[1])) {
      object.info.label.assign(label.data(), attributes[1].ulValueLen);
    }
    object.info.usable = !Absent(attributes[2]) && type == CKK_AES &&
                         !object.info.id.empty() && !object.info.label.empty();
    objects.push_back(std::move(object));
  }
  return objects;
}

absl::StatusOr<CK_OBJECT_HANDLE> GenerateAes(
    Session& session, KeyTemplate& key, std::vector<std::string>* dropped) {
  Mechanism mechanism = Mechanism::Plain(CKM_AES_KEY_GEN);
  while (true) {
    CK_OBJECT_HANDLE handle = CK_INVALID_HANDLE;
    const CK_RV rv = session.Call(
        Function::kGenerateKey, [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
          return f->C_GenerateKey(h, mechanism.get(), key.data(), key.size(),
                                  &handle);
        });
    if (rv == CKR_OK) return handle;
    std::string refused = IsLadderRv(rv) ? key.DropOptional() : "";
    if (refused.empty()) {
      return FromRv(rv, Operation::kCreate, "C_GenerateKey");
    }
    if (dropped != nullptr) dropped->push_back(std::move(refused));
  }
}

absl::StatusOr<KeyAttributes> ReadKeyAttributes(Session& session,
                                                CK_OBJECT_HANDLE handle) {
  KeyAttributes result;
  const auto read = [&](CK_ATTRIBUTE_TYPE type, void* buffer,
                        CK_ULONG size) -> absl::StatusOr<CK_ULONG> {
    // One at a time: openCryptoki and others leave the rest of a list untouched
    // after the first attribute they do not know.
    CK_ATTRIBUTE attribute{type, buffer, size};
    const CK_RV rv = GetAttributes(session, handle, {&attribute, 1});
    if (!AnswersPartly(rv)) {
      return FromRv(rv, Operation::kOther, "C_GetAttributeValue");
    }
    if (rv != CKR_OK || Absent(attribute)) return CK_ULONG{0};
    return attribute.ulValueLen;
  };
  const std::pair<CK_ATTRIBUTE_TYPE, std::optional<bool>*> bools[] = {
      {CKA_SENSITIVE, &result.sensitive},
      {CKA_EXTRACTABLE, &result.extractable},
      {CKA_ALWAYS_SENSITIVE, &result.always_sensitive},
      {CKA_NEVER_EXTRACTABLE, &result.never_extractable},
      {CKA_LOCAL, &result.local},
      {CKA_TOKEN, &result.token},
      {CKA_PRIVATE, &result.is_private},
      {CKA_MODIFIABLE, &result.modifiable},
      {CKA_COPYABLE, &result.copyable},
      {CKA_DESTROYABLE, &result.destroyable},
      {CKA_ENCRYPT, &result.encrypt},
      {CKA_DECRYPT, &result.decrypt},
      {CKA_WRAP, &result.wrap},
      {CKA_UNWRAP, &result.unwrap},
      {CKA_SIGN, &result.sign},
      {CKA_DERIVE, &result.derive}};
  for (const auto& [type, into] : bools) {
    CK_BBOOL value = 0;
    ASSIGN_OR_RETURN(const CK_ULONG size, read(type, &value, sizeof value));
    if (size == sizeof value) *into = value != CK_FALSE;
  }
  const std::pair<CK_ATTRIBUTE_TYPE, std::optional<uint64_t>*> numbers[] = {
      {CKA_KEY_TYPE, &result.key_type},
      {CKA_VALUE_LEN, &result.value_len},
      {CKA_KEY_GEN_MECHANISM, &result.key_gen_mechanism}};
  for (const auto& [type, into] : numbers) {
    CK_ULONG value = 0;
    ASSIGN_OR_RETURN(const CK_ULONG size, read(type, &value, sizeof value));
    if (size == sizeof value) *into = value;
  }
  std::array<uint8_t, 16> check{};
  ASSIGN_OR_RETURN(const CK_ULONG size,
                   read(CKA_CHECK_VALUE, check.data(), check.size()));
  result.check_value.assign(check.begin(), check.begin() + size);
  return result;
}

absl::Status DestroyObject(Session& session, CK_OBJECT_HANDLE handle) {
  const CK_RV rv = session.Call(Function::kDestroyObject,
                                [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
                                  return f->C_DestroyObject(h, handle);
                                });
  if (rv == CKR_OK) return absl::OkStatus();
  return FromRv(rv, Operation::kOther, "C_DestroyObject");
}

absl::Status JudgeAttributes(const KeyAttributes& a, AttributePolicy policy) {
  std::vector<std::string> wrong;
  const auto must = [&](const char* name, std::optional<bool> value,
                        bool wanted) {
    if (value != wanted) {
      wrong.push_back(absl::StrCat(name, !value.has_value() ? " unknown"
                                         : *value           ? "=true"
                                                            : "=false"));
    }
  };
  const auto must_if_known = [&](const char* name, std::optional<bool> value,
                                 bool wanted) {
    if (value.has_value()) must(name, value, wanted);
  };
  must("CKA_SENSITIVE", a.sensitive, true);
  must("CKA_EXTRACTABLE", a.extractable, false);
  must("CKA_TOKEN", a.token, true);
  must("CKA_PRIVATE", a.is_private, true);
  must("CKA_ENCRYPT", a.encrypt, true);
  must("CKA_DECRYPT", a.decrypt, true);
  must_if_known("CKA_WRAP", a.wrap, false);
  must_if_known("CKA_UNWRAP", a.unwrap, false);
  must_if_known("CKA_DERIVE", a.derive, false);
  if (a.key_type != CKK_AES) wrong.push_back("CKA_KEY_TYPE");
  if (a.value_len != 32) wrong.push_back("CKA_VALUE_LEN");
  if (policy == AttributePolicy::kStrict) {
    must_if_known("CKA_ALWAYS_SENSITIVE", a.always_sensitive, true);
    must_if_known("CKA_NEVER_EXTRACTABLE", a.never_extractable, true);
    must_if_known("CKA_LOCAL", a.local, true);
    if (a.key_gen_mechanism.has_value() &&
        a.key_gen_mechanism != CKM_AES_KEY_GEN) {
      wrong.push_back("CKA_KEY_GEN_MECHANISM");
    }
  }
  if (wrong.empty()) return absl::OkStatus();
  return MakeError(
      ErrorClass::kIntegrity,
      absl::StrCat("the token's key has other attributes than were asked for: ",
                   absl::StrJoin(wrong, ", ")));
}

std::string KeyAttributes::ToString() const {
  std::string out;
  const auto add = [&](const char* name, const auto& value) {
    if (!value.has_value()) return;
    absl::StrAppend(&out, out.empty() ? "" : " ", name, "=");
    if constexpr (std::is_same_v<std::decay_t<decltype(*value)>, bool>) {
      absl::StrAppend(&out, *value ? "true" : "false");
    } else {
      absl::StrAppend(&out, *value);
    }
  };
  add("CKA_TOKEN", token);
  add("CKA_PRIVATE", is_private);
  add("CKA_SENSITIVE", sensitive);
  add("CKA_EXTRACTABLE", extractable);
  add("CKA_ALWAYS_SENSITIVE", always_sensitive);
  add("CKA_NEVER_EXTRACTABLE", never_extractable);
  add("CKA_LOCAL", local);
  add("CKA_ENCRYPT", encrypt);
  add("CKA_DECRYPT", decrypt);
  add("CKA_WRAP", wrap);
  add("CKA_UNWRAP", unwrap);
  add("CKA_SIGN", sign);
  add("CKA_DERIVE", derive);
  add("CKA_MODIFIABLE", modifiable);
  add("CKA_COPYABLE", copyable);
  add("CKA_DESTROYABLE", destroyable);
  add("CKA_KEY_TYPE", key_type);
  add("CKA_VALUE_LEN", value_len);
  add("CKA_KEY_GEN_MECHANISM", key_gen_mechanism);
  if (!check_value.empty()) {
    absl::StrAppend(&out, " CKA_CHECK_VALUE=",
                    absl::BytesToHexString(absl::string_view(
                        reinterpret_cast<const char*>(check_value.data()),
                        check_value.size())));
  }
  if (!dropped.empty()) {
    absl::StrAppend(&out, " dropped=", absl::StrJoin(dropped, ","));
  }
  return out;
}

}  // namespace kek::pkcs11
