// SPDX-License-Identifier: Apache-2.0
#include <sys/prctl.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "cli/kekctl.h"

int main(int argc, char** argv) {
  // A plaintext that passes through must not end in a core image.
  const rlimit none = {0, 0};
  setrlimit(RLIMIT_CORE, &none);
  prctl(PR_SET_DUMPABLE, 0);
  signal(SIGPIPE, SIG_IGN);
  // gRPC's own messages would repeat, in its words, what kekctl says.
  setenv("GRPC_VERBOSITY", "NONE", 0);
  return kek::cli::RunKekctl(
      std::vector<std::string>(argv + 1, argv + argc), kek::cli::Io(),
      [](const std::string& name) -> std::optional<std::string> {
        const char* value = std::getenv(name.c_str());
        if (value == nullptr) return std::nullopt;
        return std::string(value);
      });
}
