// SPDX-License-Identifier: Apache-2.0
#include "cli/settings.h"

#include <sys/stat.h>
#include <yaml-cpp/yaml.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cli/exit_code.h"

namespace kek::cli {
namespace {

struct Field {
  const char* key;  // in kekctl.yaml; KEKCTL_ + upper case in the environment
  std::optional<std::string> SettingsSource::*value;
};
constexpr Field kFields[] = {
    {"socket", &SettingsSource::socket},
    {"project", &SettingsSource::project},
    {"location", &SettingsSource::location},
    {"key_ring", &SettingsSource::key_ring},
    {"output", &SettingsSource::output},
    {"deadline", &SettingsSource::deadline},
};

absl::Status ConfigError(absl::string_view file, absl::string_view what) {
  return WithExit(absl::InvalidArgumentError(absl::StrCat(file, ": ", what)),
                  ExitCode::kConfig);
}

// yaml-cpp reports by exception; none leaves this function.
absl::StatusOr<SettingsSource> ReadFile(const std::string& file) {
  SettingsSource source;
  try {
    const YAML::Node root = YAML::LoadFile(file);
    if (root.IsNull()) return source;
    if (!root.IsMap()) {
      return ConfigError(file, "is not a YAML mapping of settings");
    }
    for (const auto& entry : root) {
      const std::string key = entry.first.as<std::string>();
      const Field* found = nullptr;
      for (const Field& field : kFields) {
        if (key == field.key) found = &field;
      }
      if (found == nullptr) {
        return WithHint(
            ConfigError(
                file, absl::StrCat("unknown setting '", key.substr(0, 64),
                                   "' in line ", entry.first.Mark().line + 1)),
            "the settings are socket, project, location, key_ring, output and "
            "deadline");
      }
      if (!entry.second.IsScalar()) {
        return ConfigError(file, absl::StrCat(key, " is not a plain value"));
      }
      source.*(found->value) = entry.second.as<std::string>();
    }
  } catch (const YAML::BadFile&) {
    return ConfigError(file, "cannot be read");
  } catch (const YAML::Exception& e) {
    return ConfigError(file, e.what());
  }
  return source;
}

absl::Status Apply(const SettingsSource& source, Settings& settings) {
  if (source.socket.has_value()) settings.socket = *source.socket;
  if (source.project.has_value()) settings.names.project = *source.project;
  if (source.location.has_value()) settings.names.location = *source.location;
  if (source.key_ring.has_value()) settings.names.key_ring = *source.key_ring;
  if (source.output.has_value()) {
    if (*source.output == "table") {
      settings.output = OutputFormat::kTable;
    } else if (*source.output == "json") {
      settings.output = OutputFormat::kJson;
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("output '", source.output->substr(0, 32),
                       "' is neither table nor json"));
    }
  }
  if (source.deadline.has_value()) {
    absl::StatusOr<absl::Duration> deadline = ParseDuration(*source.deadline);
    if (!deadline.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("deadline: ", deadline.status().message()));
    }
    settings.deadline = *deadline;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<absl::Duration> ParseDuration(absl::string_view text) {
  absl::Duration duration;
  int64_t days = 0;
  const bool in_days = !text.empty() && text.back() == 'd' &&
                       absl::SimpleAtoi(text.substr(0, text.size() - 1), &days);
  if (in_days) {
    // Beyond a million days the product would not fit a proto Duration.
    if (days > 1000000) days = 0;
    duration = absl::Hours(24) * days;
  } else if (!absl::ParseDuration(text, &duration)) {
    duration = absl::ZeroDuration();
  }
  if (duration <= absl::ZeroDuration() ||
      duration > absl::Hours(24) * 1000000) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text.substr(0, 32),
                     "' is not a duration such as 30s, 5m, 24h or 90d"));
  }
  return duration;
}

absl::StatusOr<Settings> LoadSettings(
    const SettingsSource& flags,
    const std::optional<std::string>& client_config, const Getenv& env,
    const std::string& system_file) {
  std::vector<std::string> files;  // the later wins
  std::optional<std::string> named = client_config;
  if (!named.has_value()) named = env("KEKCTL_CONFIG");
  if (named.has_value() && !named->empty()) {
    files.push_back(*named);
  } else {
    files.push_back(system_file);
    std::optional<std::string> directory = env("XDG_CONFIG_HOME");
    if (!directory.has_value() || directory->empty()) {
      if (const auto home = env("HOME"); home.has_value() && !home->empty()) {
        directory = absl::StrCat(*home, "/.config");
      }
    }
    if (directory.has_value() && !directory->empty()) {
      files.push_back(absl::StrCat(*directory, "/kekctl.yaml"));
    }
  }

  Settings settings;
  for (const std::string& file : files) {
    struct stat info;
    const bool optional = !named.has_value() || named->empty();
    if (optional && stat(file.c_str(), &info) != 0 &&
        (errno == ENOENT || errno == ENOTDIR || errno == EACCES)) {
      continue;
    }
    ASSIGN_OR_RETURN(const SettingsSource source, ReadFile(file));
    if (absl::Status status = Apply(source, settings); !status.ok()) {
      return ConfigError(file, status.message());
    }
  }
  SettingsSource environment;
  for (const Field& field : kFields) {
    const std::string name =
        absl::StrCat("KEKCTL_", absl::AsciiStrToUpper(field.key));
    if (auto value = env(name); value.has_value() && !value->empty()) {
      environment.*(field.value) = *value;
    }
  }
  if (absl::Status status = Apply(environment, settings); !status.ok()) {
    return ConfigError("environment (KEKCTL_*)", status.message());
  }
  RETURN_IF_ERROR(Apply(flags, settings));
  return settings;
}

}  // namespace kek::cli
