// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/module.h"

#include <p11-kit/p11-kit.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pkcs11/error_internal.h"

namespace kek::pkcs11 {

absl::StatusOr<std::unique_ptr<Module>> Module::Load(
    absl::string_view path, absl::string_view init_args) {
  const std::string file(path);
  if (file.empty() || file[0] != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("PKCS#11 module \"", file, "\": the path must be absolute"));
  }
  struct stat info;
  if (stat(file.c_str(), &info) != 0) {
    return absl::NotFoundError(
        absl::StrCat("PKCS#11 module ", file, ": ", strerror(errno),
                     "; install it or correct token.module"));
  }
  CK_FUNCTION_LIST* functions =
      p11_kit_module_load(file.c_str(), P11_KIT_MODULE_UNMANAGED);
  if (functions == nullptr) {
    const char* message = p11_kit_message();
    return absl::FailedPreconditionError(absl::StrCat(
        file, " cannot be loaded as a PKCS#11 module: ",
        message != nullptr ? message : "no C_GetFunctionList in it"));
  }
  const CK_FUNCTION_LIST& f = *functions;
  const bool complete =
      f.C_Initialize && f.C_Finalize && f.C_GetInfo && f.C_GetSlotList &&
      f.C_GetTokenInfo && f.C_OpenSession && f.C_CloseSession &&
      f.C_CloseAllSessions && f.C_GetSessionInfo && f.C_Login &&
      f.C_CopyObject && f.C_DestroyObject && f.C_GetAttributeValue &&
      f.C_FindObjectsInit && f.C_FindObjects && f.C_FindObjectsFinal &&
      f.C_EncryptInit && f.C_Encrypt && f.C_DecryptInit && f.C_Decrypt &&
      f.C_GenerateKey && f.C_WrapKey && f.C_UnwrapKey && f.C_GenerateRandom;
  if (f.version.major < 2 || !complete) {
    p11_kit_module_release(functions);
    return absl::FailedPreconditionError(absl::StrCat(
        file, " offers PKCS#11 ", static_cast<int>(f.version.major), ".",
        static_cast<int>(f.version.minor),
        complete ? "" : " with functions missing", "; kekd needs 2.x or 3.x"));
  }
  return std::unique_ptr<Module>(
      new Module(file, std::string(init_args), functions));
}

Module::Module(std::string path, std::string init_args,
               CK_FUNCTION_LIST* functions)
    : path_(std::move(path)),
      init_args_(std::move(init_args)),
      functions_(functions) {}

Module::~Module() {
  Finalize();
  p11_kit_module_release(functions_);
}

absl::Status Module::Initialize() {
  CK_C_INITIALIZE_ARGS args;
  std::memset(&args, 0, sizeof args);
  args.flags = CKF_OS_LOCKING_OK;
  // NSS softokn reads its configuration string here.
  args.pReserved = init_args_.empty() ? nullptr : init_args_.data();
  const CK_RV rv = functions_->C_Initialize(&args);
  if (rv == CKR_CRYPTOKI_ALREADY_INITIALIZED) {
    return MakeError(absl::StatusCode::kFailedPrecondition,
                     ErrorClass::kOperator,
                     absl::StrCat(path_,
                                  " is already in use by another component of "
                                  "this process"));
  }
  if (rv != CKR_OK) {
    return FromRv(Operation::kLibrary, rv,
                  absl::StrCat("C_Initialize of ", path_));
  }
  initialized_ = true;
  return absl::OkStatus();
}

void Module::Finalize() {
  if (!initialized_) return;
  // Some libraries fail here when their device is gone; there is nothing else
  // to do about it.
  static_cast<void>(functions_->C_Finalize(nullptr));
  initialized_ = false;
}

}  // namespace kek::pkcs11
