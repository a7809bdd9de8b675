// SPDX-License-Identifier: Apache-2.0
#include "service/process_hardening.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace kek::service {

absl::Status HardenProcess() {
  if (getuid() == 0 || geteuid() == 0) {
    return absl::PermissionDeniedError(
        "kekd does not run as root; run it as a user of its own (the package "
        "makes the user kekd: \"systemctl start kekd\", or \"runuser -u kekd "
        "-- kekd\")");
  }
  umask(077);
  const rlimit no_core{0, 0};
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 ||
      setrlimit(RLIMIT_CORE, &no_core) != 0 ||
      prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      signal(SIGPIPE, SIG_IGN) == SIG_ERR) {
    return absl::InternalError(
        absl::StrCat("cannot harden the process: ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

}  // namespace kek::service
