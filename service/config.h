// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kek/config.pb.h"
#include "service/unix_listener.h"

namespace kek::service {

// Config models a valid kekd.yaml: read, checked against its schema
// (proto/kek/config.proto), all defaults filled in, users and groups looked up.
// What exists is fit to be run. A value.
struct Config {
  config::v1::Config settings;
  std::string file;    // where it was read from, for messages
  std::string digest;  // SHA-256 of the file's bytes, hex

  SocketAccess admin;                    // of settings.admin()
  std::vector<SocketAccess> kubernetes;  // of settings.kubernetes(i)
};

// Reads and checks a file. INVALID_ARGUMENT in one line that says where and
// what: "/etc/kekd/kekd.yaml:12: token has no field \"foo\"";
// NOT_FOUND, PERMISSION_DENIED, UNAVAILABLE: the file cannot be read.
absl::StatusOr<Config> LoadConfig(const std::string& file);
// The same for text that is already in memory; file is its name in messages.
absl::StatusOr<Config> ParseConfig(absl::string_view yaml,
                                   const std::string& file);

// The settings in which wanted differs from running and that a running kekd
// does not change, as paths: "token.module", "kubernetes". Of everything else
// (log.format, log.level, executor.stop_grace, admin.allowed_users,
// admin.allowed_groups, and allowed_users and allowed_groups of a binding that
// exists) a reload applies the new value.
std::vector<std::string> NeedRestart(const Config& running,
                                     const Config& wanted);

}  // namespace kek::service
