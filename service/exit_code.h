// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/status/status.h"

namespace kek::service {

// How kekd ends, in the numbers of sysexits.h. A systemd unit lists in
// RestartPreventExitStatus= those that a restart does not mend: 64, 65, 73, 77,
// 78 and 79.
enum class ExitCode {
  kOk = 0,
  kUsage = 64,         // the command line
  kData = 65,          // the catalog: not one, or written by a newer kekd
  kUnavailable = 69,   // the token or its module does not work
  kOs = 71,            // the system refuses what every process may do
  kCannotCreate = 73,  // a socket, lock or port is taken by something else
  kIo = 74,            // catalog or audit log cannot be read or written
  kRefused = 77,       // run as root, or not allowed to use a file or directory
  kConfig = 78,      // the configuration, or what it names (module, token, PIN
                     // source)
  kPinRefused = 79,  // the token refused the PIN; it is not tried again
};

// A Status may carry the code with which the process is to end because of it.
absl::Status WithExitCode(absl::Status status, ExitCode code);
// The code carried; kOs for an error that carries none, kOk for OK.
ExitCode ExitCodeOf(const absl::Status& status);

}  // namespace kek::service
