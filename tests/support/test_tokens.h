// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "pkcs11/token.h"

namespace kek::testing {

// TestToken models a token made from nothing for one test, by the scripts of
// softhsm-fixtures/. SoftHSM reads SOFTHSM2_CONF when it is initialised, so in
// one process only one SoftHSM directory is in use at a time: close every Token
// of the previous one before the next Use(). A value.
struct TestToken {
  std::string module_path;
  std::string init_args;
  std::string uri;
  std::string pin_file;
  std::string softhsm_conf;  // empty: not SoftHSM

  // In directory (made if need be). A second label in one directory is a second
  // token beside the first.
  static absl::StatusOr<TestToken> SoftHsm(const std::string& directory,
                                           const std::string& label = "kek-a",
                                           const std::string& pin = "1234");
  static absl::StatusOr<TestToken> Nss(const std::string& directory,
                                       const std::string& label = "kek-nss");
  // Whether this machine has NSS softokn and certutil.
  static bool HaveNss();

  // Points the process at this token: SOFTHSM2_CONF.
  void Use() const;
  // Options to open it with; state_dir is directory (existing, 0700).
  pkcs11::TokenOptions Options(const std::string& state_dir) const;
};

}  // namespace kek::testing
