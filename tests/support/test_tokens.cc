// SPDX-License-Identifier: Apache-2.0
#include "tests/support/test_tokens.h"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kek::testing {
namespace {

constexpr char kNssModule[] = "/usr/lib/x86_64-linux-gnu/libsoftokn3.so";
constexpr char kSoftHsmModule[] = "/usr/lib/softhsm/libsofthsm2.so";

absl::Status RunFixture(std::vector<std::string> arguments) {
  arguments[0] = absl::StrCat(KEK_FIXTURES, "/", arguments[0]);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    // What the script prints is for people.
    if (freopen("/dev/null", "w", stdout) == nullptr) _exit(126);
    execv(argv[0], argv.data());
    _exit(127);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
    return absl::InternalError(
        absl::StrCat(arguments[0], " failed with status ", status));
  }
  return absl::OkStatus();
}

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace

absl::StatusOr<TestToken> TestToken::SoftHsm(const std::string& directory,
                                             const std::string& label,
                                             const std::string& pin) {
  RETURN_IF_ERROR(RunFixture({"make-token.sh", directory, label, pin}));
  return TestToken{.module_path = kSoftHsmModule,
                   .init_args = "",
                   .uri = absl::StrCat("pkcs11:token=", label),
                   .pin_file = absl::StrCat(directory, "/pin"),
                   .softhsm_conf = absl::StrCat(directory, "/softhsm2.conf")};
}

absl::StatusOr<TestToken> TestToken::Nss(const std::string& directory,
                                         const std::string& label) {
  RETURN_IF_ERROR(RunFixture({"make-nss-token.sh", directory, label}));
  return TestToken{.module_path = kNssModule,
                   .init_args = ReadAll(absl::StrCat(directory, "/init-args")),
                   .uri = absl::StrCat("pkcs11:token=", label),
                   .pin_file = absl::StrCat(directory, "/pin"),
                   .softhsm_conf = ""};
}

bool TestToken::HaveNss() {
  return access(kNssModule, R_OK) == 0 &&
         access("/usr/bin/certutil", X_OK) == 0;
}

void TestToken::Use() const {
  if (!softhsm_conf.empty()) {
    setenv("SOFTHSM2_CONF", softhsm_conf.c_str(), 1);
  }
}

pkcs11::TokenOptions TestToken::Options(const std::string& state_dir) const {
  pkcs11::TokenOptions options;
  options.module_path = module_path;
  options.init_args = init_args;
  options.uri = uri;
  options.pin = pkcs11::PinSource::File(pin_file);
  options.state_dir = state_dir;
  return options;
}

}  // namespace kek::testing
