// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace CLI {
class App;
}

namespace kek::cli {

// A completion script for bash, zsh or fish, made from the commands themselves
// so that it knows what they know. INVALID_ARGUMENT: another shell.
absl::StatusOr<std::string> CompletionScript(const CLI::App& root,
                                             absl::string_view shell);

}  // namespace kek::cli
