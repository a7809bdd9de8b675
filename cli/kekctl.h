// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "cli/files.h"
#include "cli/settings.h"

namespace kek::cli {

// kekctl: parses the arguments (without the program's name), runs one command
// and returns its exit code (cli/exit_code.h). Results go to io.out, errors to
// io.err. Throws nothing.
int RunKekctl(std::vector<std::string> arguments, const Io& io,
              const Getenv& env,
              const std::string& system_config = "/etc/kekd/kekctl.yaml");

}  // namespace kek::cli
