// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/sync.h"
#include "cli/connection.h"
#include "cli/files.h"
#include "cli/settings.h"
#include "google/cloud/kms/v1/service.grpc.pb.h"
#include "kek/admin.grpc.pb.h"

namespace CLI {
class App;
}

namespace kek::cli {

using Kms = google::cloud::kms::v1::KeyManagementService;
using AdminApi = kek::admin::v1::Admin;

// Server models kekd as one command talks to it, over its admin socket, until
// one deadline for all the calls of the command.
struct Server {
  std::unique_ptr<Connection> connection;
  std::unique_ptr<Kms::Stub> kms;
  std::unique_ptr<AdminApi::Stub> admin;
  base::Deadline deadline;

  template <typename Request, typename Response>
  absl::Status Call(grpc::Status (Kms::Stub::*method)(grpc::ClientContext*,
                                                      const Request&,
                                                      Response*),
                    const Request& request, Response& response) const {
    return connection->Call(kms, method, request, response, deadline);
  }
  template <typename Request, typename Response>
  absl::Status Call(grpc::Status (AdminApi::Stub::*method)(grpc::ClientContext*,
                                                           const Request&,
                                                           Response*),
                    const Request& request, Response& response) const {
    return connection->Call(admin, method, request, response, deadline);
  }
};

// Invocation models one run: its streams, its environment, its global flags,
// and the command that the parser found. Commands read their settings when they
// run, not before: `kekctl --help` works with a broken config.
struct Invocation {
  Io io;
  Getenv env;
  std::string system_config;

  SettingsSource flags;
  std::optional<std::string> client_config;

  // Set by the parser to what the command does.
  std::function<absl::Status()> action;

  absl::StatusOr<Settings> LoadSettings() const;
  absl::StatusOr<Server> Dial(const Settings& settings) const;
  absl::Status Print(absl::string_view text) const;
};

// Each adds its commands to the tree; what they need lives as long as the tree.
void AddKeyCommands(CLI::App& app, Invocation& run);
void AddCryptCommands(CLI::App& app, Invocation& run);
void AddKubernetesCommands(CLI::App& app, Invocation& run);
void AddServerCommands(CLI::App& app, Invocation& run);
void AddInstallCommands(CLI::App& app, Invocation& run);

}  // namespace kek::cli
