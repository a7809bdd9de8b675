// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "pkcs11/cryptoki.h"

namespace kek::pkcs11 {

// Module models one loaded PKCS#11 library. It is loaded through p11-kit by
// absolute path and unmanaged: the system's p11-kit configuration loads every
// module of the host, and kekd needs its own C_Initialize arguments.
// Thread-safe as far as the library is; Initialize and Finalize are for one
// owner.
class Module {
 public:
  // NOT_FOUND: no such file. INVALID_ARGUMENT: the path is not absolute.
  // FAILED_PRECONDITION: not a PKCS#11 2.x library, or a function is missing.
  static absl::StatusOr<std::unique_ptr<Module>> Load(
      absl::string_view path, absl::string_view init_args);
  ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  // CKR_CRYPTOKI_ALREADY_INITIALIZED is a FAILED_PRECONDITION: another
  // component of this process uses the library, and its C_Finalize or C_Logout
  // would pull the floor away.
  absl::Status Initialize();
  void Finalize();
  bool initialized() const { return initialized_; }

  CK_FUNCTION_LIST& functions() const { return *functions_; }
  const std::string& path() const { return path_; }

 private:
  Module(std::string path, std::string init_args, CK_FUNCTION_LIST* functions);
  const std::string path_;
  std::string init_args_;
  CK_FUNCTION_LIST* const functions_;
  bool initialized_ = false;
};

}  // namespace kek::pkcs11
