// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cli/key_name.h"

namespace kek::cli {

enum class OutputFormat { kTable, kJson };

// Settings models how one run of kekctl reaches kekd and reads names. Each
// field comes from the first of: flag, KEKCTL_<FIELD> in the environment, the
// user's kekctl.yaml, the system's kekctl.yaml, built in.
struct Settings {
  std::string socket = "/run/kekd/admin.sock";
  NameDefaults names{.project = "kekd", .location = "local"};
  OutputFormat output = OutputFormat::kTable;
  absl::Duration deadline = absl::Seconds(10);
};

// The same fields where they may be absent, as text.
struct SettingsSource {
  std::optional<std::string> socket, project, location, key_ring, output,
      deadline;
};

using Getenv = std::function<std::optional<std::string>(const std::string&)>;

// flags over environment over files. client_config: the one file to read
// (--client-config, KEKCTL_CONFIG), else ~/.config/kekctl.yaml (under
// $XDG_CONFIG_HOME if set) and system_file are read where they exist.
// INVALID_ARGUMENT names the flag that is wrong; ExitCode::kConfig if it is a
// file or a variable.
absl::StatusOr<Settings> LoadSettings(
    const SettingsSource& flags,
    const std::optional<std::string>& client_config, const Getenv& env,
    const std::string& system_file = "/etc/kekd/kekctl.yaml");

// absl::ParseDuration and days: "90d", "24h", "1m30s". INVALID_ARGUMENT unless
// positive and finite.
absl::StatusOr<absl::Duration> ParseDuration(absl::string_view text);

}  // namespace kek::cli
