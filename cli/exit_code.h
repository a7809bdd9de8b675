// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kek::cli {

// What kekctl's exit code says to a script. The numbers are an interface
// (docs/kekctl.md); they follow sysexits.h where that has a fitting one.
enum class ExitCode : int {
  kOk = 0,
  // Only `kekctl` itself or kekd can be at fault: INTERNAL, UNIMPLEMENTED, ...
  kFailed = 1,
  // The command line, a name or a value is not valid.
  kUsage = 64,
  // What was decrypted, or what came over the wire, is provably not what it
  // should be: a checksum, a ciphertext, a plugin that breaks its contract.
  kIntegrity = 65,
  kNotFound = 66,
  // Nobody answers, or not now, or not in time; trying again may help.
  kUnavailable = 69,
  kAlreadyExists = 73,
  // A local file could not be read or written.
  kIo = 74,
  kPermissionDenied = 77,
  // kekctl.yaml or KEKCTL_* is wrong.
  kConfig = 78,
  // The token refused the PIN; kekd exits with the same number for it.
  kPinRefused = 79,
  // The key, version, token or file is not in the state this needs.
  kPrecondition = 80,
};

// A Status carries, besides code and message, what the user can do next and, if
// the code does not say it, the exit code.
absl::Status WithHint(absl::Status status, absl::string_view hint);
absl::Status WithExit(absl::Status status, ExitCode code);
// Puts the hint unless there is one.
absl::Status WithDefaultHint(absl::Status status, absl::string_view hint);

ExitCode ExitCodeOf(const absl::Status& status);
// Empty if there is none.
std::string HintOf(const absl::Status& status);

}  // namespace kek::cli
