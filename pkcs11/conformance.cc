// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/conformance.h"

#include <array>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "pkcs11/error_internal.h"
#include "pkcs11/key_objects.h"
#include "pkcs11/mechanism.h"

namespace kek::pkcs11 {
namespace {

// A key of the probe, destroyed with it.
class ThrowAwayKey {
 public:
  ThrowAwayKey(Session& session, CK_OBJECT_HANDLE handle)
      : session_(session), handle_(handle) {}
  ThrowAwayKey(const ThrowAwayKey&) = delete;
  ThrowAwayKey& operator=(const ThrowAwayKey&) = delete;
  ~ThrowAwayKey() { (void)DestroyObject(session_, handle_); }
  CK_OBJECT_HANDLE handle() const { return handle_; }

 private:
  Session& session_;
  const CK_OBJECT_HANDLE handle_;
};

// Attributes of a probe's key that differ from those of a real one.
struct Variant {
  bool extractable = false;
  bool wraps = false;
  std::optional<bool> copyable, modifiable, destroyable, wrap_with_trusted;
  bool only_ctr = false;  // CKA_ALLOWED_MECHANISMS without AES-GCM
  bool unwrap_template = false;
};

class Prober {
 public:
  Prober(Session& session, Cipher& cipher)
      : session_(session), cipher_(cipher) {}

  absl::StatusOr<std::vector<Guarantee>> Run() {
    RETURN_IF_ERROR(CheckGcm());
    RETURN_IF_ERROR(CheckExtraction());
    CheckAttributes();
    RETURN_IF_ERROR(CheckIv());
    return std::move(found_);
  }

 private:
  using Key = std::unique_ptr<ThrowAwayKey>;

  void Note(const char* name, const char* meaning, Guarantee::Observed observed,
            bool required) {
    found_.push_back({name, meaning, observed, required});
  }
  void Note(const char* name, const char* meaning, bool enforced,
            bool required) {
    Note(name, meaning,
         enforced ? Guarantee::Observed::kEnforced
                  : Guarantee::Observed::kNotEnforced,
         required);
  }

  // Null where the module does not take the attributes.
  Key Generate(const Variant& v) {
    KeyTemplate t;
    t.Number(CKA_CLASS, CKO_SECRET_KEY)
        .Number(CKA_KEY_TYPE, CKK_AES)
        .Number(CKA_VALUE_LEN, 32)
        .Bool(CKA_TOKEN, false)
        .Bool(CKA_SENSITIVE, true)
        .Bool(CKA_EXTRACTABLE, v.extractable)
        .Bool(CKA_ENCRYPT, true)
        .Bool(CKA_DECRYPT, true);
    if (v.wraps) t.Bool(CKA_WRAP, true).Bool(CKA_UNWRAP, true);
    if (v.copyable) t.Bool(CKA_COPYABLE, *v.copyable);
    if (v.modifiable) t.Bool(CKA_MODIFIABLE, *v.modifiable);
    if (v.destroyable) t.Bool(CKA_DESTROYABLE, *v.destroyable);
    if (v.wrap_with_trusted) t.Bool(CKA_WRAP_WITH_TRUSTED, true);
    if (v.only_ctr) t.Number(CKA_ALLOWED_MECHANISMS, CKM_AES_CTR);
    CK_BBOOL no = CK_FALSE;
    CK_ATTRIBUTE forced[] = {{CKA_EXTRACTABLE, &no, sizeof no}};
    if (v.unwrap_template) {
      t.Bytes(CKA_UNWRAP_TEMPLATE,
              {reinterpret_cast<const uint8_t*>(forced), sizeof forced});
    }
    absl::StatusOr<CK_OBJECT_HANDLE> handle = GenerateAes(session_, t, nullptr);
    if (!handle.ok()) return nullptr;
    return std::make_unique<ThrowAwayKey>(session_, *handle);
  }

  absl::Status CheckGcm() {
    KeyTemplate safe = KeyTemplate::AesSessionKey();
    absl::StatusOr<CK_OBJECT_HANDLE> handle =
        GenerateAes(session_, safe, nullptr);
    if (!handle.ok()) {
      if (ClassOf(handle.status()) != ErrorClass::kOperator) {
        return handle.status();
      }
      return MakeError(ErrorClass::kOperator,
                       absl::StrCat("the token cannot generate AES keys "
                                    "(CKM_AES_KEY_GEN): ",
                                    handle.status().message()));
    }
    ThrowAwayKey key(session_, *handle);
    const std::array<uint8_t, 32> plaintext{1, 2, 3};
    const std::array<uint8_t, 5> aad{'p', 'r', 'o', 'b', 'e'};
    absl::StatusOr<Sealed> sealed =
        cipher_.Seal(session_, key.handle(), aad, plaintext);
    if (!sealed.ok()) {
      if (ClassOf(sealed.status()) != ErrorClass::kOperator) {
        return sealed.status();
      }
      return MakeError(ErrorClass::kOperator,
                       absl::StrCat("the token cannot encrypt with CKM_AES_GCM "
                                    "as the profile says: ",
                                    sealed.status().message()));
    }
    ASSIGN_OR_RETURN(const base::SecretBytes opened,
                     cipher_.Open(session_, key.handle(), aad, *sealed));
    if (!base::ConstantTimeEqual(opened.span(), plaintext)) {
      return MakeError(ErrorClass::kIntegrity,
                       "the token does not decrypt what it encrypted");
    }
    sealed->ciphertext.back() ^= 1;
    const absl::StatusOr<base::SecretBytes> tampered =
        cipher_.Open(session_, key.handle(), aad, *sealed);
    Note("tag-checked", "C_Decrypt refuses a wrong GCM tag", !tampered.ok(),
         true);
    const ErrorClass answer = ClassOf(tampered.status());
    if (!tampered.ok() && answer != ErrorClass::kCallerData &&
        answer != ErrorClass::kAmbiguous) {
      return MakeError(
          ErrorClass::kOperator,
          absl::StrCat("the token answers ", RvName(*RvOf(tampered.status())),
                       " to a wrong GCM tag; add it to ambiguous_decrypt_rvs"));
    }
    return absl::OkStatus();
  }

  // Whether `wrapping` can wrap `key` by any of the AES wrapping mechanisms.
  bool Wraps(const ThrowAwayKey& wrapping, const ThrowAwayKey& key,
             CK_MECHANISM_TYPE* by = nullptr,
             std::vector<uint8_t>* blob = nullptr) {
    for (const CK_MECHANISM_TYPE type :
         {CKM_AES_KEY_WRAP_KWP, CKM_AES_KEY_WRAP_PAD, CKM_AES_KEY_WRAP}) {
      Mechanism mechanism = Mechanism::Plain(type);
      std::vector<uint8_t> out(128);
      CK_ULONG size = out.size();
      const CK_RV rv = session_.Call(
          Function::kWrapKey, [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
            return f->C_WrapKey(h, mechanism.get(), wrapping.handle(),
                                key.handle(), out.data(), &size);
          });
      if (rv != CKR_OK) continue;
      out.resize(size);
      if (by != nullptr) *by = type;
      if (blob != nullptr) *blob = std::move(out);
      return true;
    }
    return false;
  }

  // What a copy of key says of attribute; absent when no copy is made.
  std::optional<bool> CopyWith(const ThrowAwayKey& key, CK_ATTRIBUTE_TYPE type,
                               bool value) {
    KeyTemplate changes;
    changes.Bool(type, value);
    CK_OBJECT_HANDLE copy = CK_INVALID_HANDLE;
    const CK_RV rv = session_.Call(
        Function::kCopyObject, [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
          return f->C_CopyObject(h, key.handle(), changes.data(),
                                 changes.size(), &copy);
        });
    if (rv != CKR_OK) return std::nullopt;
    ThrowAwayKey made(session_, copy);
    CK_BBOOL is = CK_FALSE;
    CK_ATTRIBUTE attribute{type, &is, sizeof is};
    session_.Call(Function::kGetAttributeValue,
                  [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
                    return f->C_GetAttributeValue(h, copy, &attribute, 1);
                  });
    return is != CK_FALSE;
  }

  bool Sets(const ThrowAwayKey& key, CK_ATTRIBUTE_TYPE type, bool value) {
    KeyTemplate changes;
    changes.Bool(type, value);
    return session_.Call(Function::kSetAttributeValue,
                         [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
                           return f->C_SetAttributeValue(
                               h, key.handle(), changes.data(), changes.size());
                         }) == CKR_OK;
  }

  absl::Status CheckExtraction() {
    const Key key = Generate({});
    const Key wrapping = Generate({.wraps = true});
    const Key extractable = Generate({.extractable = true});
    if (key == nullptr) {
      return MakeError(ErrorClass::kDevice, "the probe's key was not made");
    }
    ASSIGN_OR_RETURN(const KeyAttributes attributes,
                     ReadKeyAttributes(session_, key->handle()));
    Note("attributes-kept", "a key has the attributes it was made with",
         attributes.extractable == false && attributes.sensitive == true, true);
    std::array<uint8_t, 64> value{};
    CK_ATTRIBUTE attribute{CKA_VALUE, value.data(), value.size()};
    const CK_RV rv = session_.Call(
        Function::kGetAttributeValue,
        [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
          return f->C_GetAttributeValue(h, key->handle(), &attribute, 1);
        });
    Note("value-hidden", "the value of a sensitive key cannot be read",
         rv != CKR_OK, true);
    const char* wrap_meaning = "a non-extractable key cannot be wrapped";
    CK_MECHANISM_TYPE by = 0;
    std::vector<uint8_t> blob;
    if (wrapping == nullptr || extractable == nullptr ||
        !Wraps(*wrapping, *extractable, &by, &blob)) {
      Note("no-wrap", wrap_meaning, Guarantee::Observed::kNotTested, true);
    } else {
      Note("no-wrap", wrap_meaning, !Wraps(*wrapping, *key), true);
    }
    Note("no-copy-extractable", "a copy does not become extractable",
         CopyWith(*key, CKA_EXTRACTABLE, true) != true, true);
    Note("no-set-extractable", "CKA_EXTRACTABLE cannot be set later",
         !Sets(*key, CKA_EXTRACTABLE, true), true);
    Note("no-set-insensitive", "CKA_SENSITIVE cannot be taken back",
         !Sets(*key, CKA_SENSITIVE, false), true);
    const Key forcing = Generate({.wraps = true, .unwrap_template = true});
    const char* unwrap_meaning = "CKA_UNWRAP_TEMPLATE binds what is unwrapped";
    std::vector<uint8_t> forced_blob;
    if (forcing == nullptr || extractable == nullptr || blob.empty() ||
        !Wraps(*forcing, *extractable, &by, &forced_blob)) {
      Note("unwrap-template", unwrap_meaning, Guarantee::Observed::kNotTested,
           false);
    } else {
      KeyTemplate t;
      t.Number(CKA_CLASS, CKO_SECRET_KEY)
          .Number(CKA_KEY_TYPE, CKK_AES)
          .Bool(CKA_TOKEN, false)
          .Bool(CKA_EXTRACTABLE, true);
      Mechanism mechanism = Mechanism::Plain(by);
      CK_OBJECT_HANDLE made = CK_INVALID_HANDLE;
      const CK_RV unwrapped = session_.Call(
          Function::kUnwrapKey, [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
            return f->C_UnwrapKey(h, mechanism.get(), forcing->handle(),
                                  forced_blob.data(), forced_blob.size(),
                                  t.data(), t.size(), &made);
          });
      if (unwrapped == CKR_OK) (void)DestroyObject(session_, made);
      Note("unwrap-template", unwrap_meaning, unwrapped != CKR_OK, false);
    }
    const Key trusting =
        Generate({.extractable = true, .wrap_with_trusted = true});
    const char* trusted_meaning =
        "CKA_WRAP_WITH_TRUSTED keeps a key from an untrusted wrapping key";
    if (trusting == nullptr || blob.empty()) {
      Note("wrap-with-trusted", trusted_meaning,
           Guarantee::Observed::kNotTested, false);
    } else {
      Note("wrap-with-trusted", trusted_meaning, !Wraps(*wrapping, *trusting),
           false);
    }
    return absl::OkStatus();
  }

  // Guarantees our keys ask for where the token has them, and do not depend on.
  void CheckAttributes() {
    const auto note = [&](const char* name, const char* meaning, const Key& key,
                          auto attack) {
      if (key == nullptr) {
        Note(name, meaning, Guarantee::Observed::kNotTested, false);
      } else {
        Note(name, meaning, !attack(), false);
      }
    };
    const Key fixed = Generate({.copyable = false});
    note("copyable", "CKA_COPYABLE=false prevents copies", fixed,
         [&] { return CopyWith(*fixed, CKA_EXTRACTABLE, false).has_value(); });
    const Key constant = Generate({.modifiable = false});
    note("modifiable", "CKA_MODIFIABLE=false prevents changes", constant,
         [&] { return Sets(*constant, CKA_DECRYPT, false); });
    const Key lasting = Generate({.destroyable = false});
    note("destroyable", "CKA_DESTROYABLE=false prevents destruction", lasting,
         [&] { return DestroyObject(session_, lasting->handle()).ok(); });
    const Key counter = Generate({.only_ctr = true});
    note("allowed-mechanisms", "CKA_ALLOWED_MECHANISMS binds", counter, [&] {
      const std::array<uint8_t, 12> iv{1};
      Mechanism gcm = Mechanism::AesGcm(iv, iv);
      const CK_RV rv = session_.Call(
          Function::kEncryptInit,
          [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
            return f->C_EncryptInit(h, gcm.get(), counter->handle());
          });
      if (rv != CKR_OK) return false;
      // Finish what was begun; there is no portable way to cancel it.
      std::array<uint8_t, 64> out{};
      std::array<uint8_t, 16> in{};
      CK_ULONG size = out.size();
      session_.Call(
          Function::kEncrypt, [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
            return f->C_Encrypt(h, in.data(), in.size(), out.data(), &size);
          });
      return true;
    });
  }

  // Modes in which the token makes the IV: it must really make one, and another
  // one the next time. (SoftHSM 2.6.1 takes pIv=NULL and uses zeros.)
  absl::Status CheckIv() {
    const IvMode mode = cipher_.profile().iv_mode;
    if (mode == IvMode::kHostXorToken) return absl::OkStatus();
    const Key key = Generate({});
    const std::array<uint8_t, 16> data{7};
    bool fresh = key != nullptr;
    if (fresh) {
      const absl::StatusOr<Sealed> first =
          cipher_.Seal(session_, key->handle(), data, data);
      const absl::StatusOr<Sealed> second =
          cipher_.Seal(session_, key->handle(), data, data);
      fresh = first.ok() && second.ok() && first->iv != second->iv &&
              first->ciphertext != second->ciphertext &&
              cipher_.Open(session_, key->handle(), data, *second).ok();
    }
    Note("fresh-iv", "the token makes a new IV for every encryption", fresh,
         true);
    return absl::OkStatus();
  }

  Session& session_;
  Cipher& cipher_;
  std::vector<Guarantee> found_;
};

}  // namespace

absl::StatusOr<std::vector<Guarantee>> ProbeModule(Session& session,
                                                   Cipher& cipher) {
  return Prober(session, cipher).Run();
}

absl::Status JudgeGuarantees(const std::vector<Guarantee>& guarantees) {
  std::vector<std::string> broken;
  for (const Guarantee& g : guarantees) {
    if (g.required && g.observed == Guarantee::Observed::kNotEnforced) {
      broken.push_back(absl::StrCat(g.name, " (", g.meaning, ")"));
    }
  }
  if (broken.empty()) return absl::OkStatus();
  return MakeError(
      ErrorClass::kOperator,
      absl::StrCat("the PKCS#11 module does not keep keys safe; it breaks: ",
                   absl::StrJoin(broken, "; ")));
}

}  // namespace kek::pkcs11
