// SPDX-License-Identifier: Apache-2.0
#include "cli/kekctl.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/output.h"

namespace kek::cli {
namespace {

constexpr char kFooter[] =
    "\nNames: key, ring/key, ring/key:3 (a version), or projects/*/locations/*/"
    "keyRings/*/cryptoKeys/*\nDefaults: flags, KEKCTL_SOCKET, _PROJECT, "
    "_LOCATION, _KEY_RING, _OUTPUT, _DEADLINE,\n  ~/.config/kekctl.yaml, "
    "/etc/kekd/kekctl.yaml\nExit codes: 0 done, 64 usage, 65 integrity, 66 not "
    "found, 69 unavailable, 73 exists,\n  74 local file, 77 permission, 78 "
    "kekctl's config, 79 PIN refused, 80 wrong state, 1 other";

// What to do when the command itself did not say it.
absl::Status Hinted(absl::Status status) {
  switch (ExitCodeOf(status)) {
    case ExitCode::kUsage:
      return WithDefaultHint(std::move(status), "kekctl --help");
    case ExitCode::kUnavailable:
      return WithDefaultHint(std::move(status),
                             "`kekctl status` and kekd's log (journalctl -u "
                             "kekd) say what is wrong; then try again");
    case ExitCode::kPermissionDenied:
      return WithDefaultHint(
          std::move(status),
          "kekd decides by the user that runs this: see `admin:` in kekd.yaml");
    case ExitCode::kIntegrity:
      return WithDefaultHint(
          std::move(status),
          "do not use the data; look into kekd's log (journalctl -u kekd)");
    case ExitCode::kFailed:
      return WithDefaultHint(std::move(status),
                             "see kekd's log (journalctl -u kekd)");
    default:
      return status;
  }
}

int Report(const Io& io, OutputFormat format, absl::Status status) {
  status = Hinted(std::move(status));
  const int exit = static_cast<int>(ExitCodeOf(status));
  const std::string hint = HintOf(status);
  std::string text;
  if (format == OutputFormat::kJson) {
    text = absl::StrCat("{\"error\": {\"code\": ",
                        JsonString(absl::StatusCodeToString(status.code())),
                        ", \"message\": ", JsonString(status.message()),
                        ", \"hint\": ", JsonString(hint),
                        ", \"exitCode\": ", exit, "}}\n");
  } else {
    std::string message(status.message());
    if (message.empty()) message = absl::StatusCodeToString(status.code());
    for (char& c : message) {
      if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = ' ';
    }
    text = absl::StrCat("kekctl: ", message, "\n");
    if (!hint.empty()) absl::StrAppend(&text, "  next: ", hint, "\n");
  }
  (void)WriteAll(io.err, text, "standard error");
  return exit;
}

}  // namespace

absl::StatusOr<Settings> Invocation::LoadSettings() const {
  return cli::LoadSettings(flags, client_config, env, system_config);
}

absl::StatusOr<Server> Invocation::Dial(const Settings& settings) const {
  Server server;
  server.deadline =
      base::DeadlineAfter(absl::ToChronoNanoseconds(settings.deadline));
  absl::StatusOr<std::unique_ptr<Connection>> connection =
      Connection::Open(settings.socket, server.deadline);
  if (!connection.ok()) {
    return WithDefaultHint(
        connection.status(),
        "is kekd running (systemctl status kekd)? --socket or `socket:` in "
        "kekctl.yaml names its admin socket");
  }
  server.connection = *std::move(connection);
  server.kms = Kms::NewStub(server.connection->channel());
  server.admin = AdminApi::NewStub(server.connection->channel());
  return server;
}

absl::Status Invocation::Print(absl::string_view text) const {
  return WriteAll(io.out, text, "standard output");
}

int RunKekctl(std::vector<std::string> arguments, const Io& io,
              const Getenv& env, const std::string& system_config) {
  Invocation run;
  run.io = io;
  run.env = env;
  run.system_config = system_config;

  CLI::App app("kekctl manages kekd, the key service of this host.", "kekctl");
  app.set_version_flag("--version", "kekctl " KEKD_VERSION);
  app.require_subcommand(1);
  app.add_option("--socket", run.flags.socket, "kekd's admin socket");
  app.add_option("--project", run.flags.project, "Project of short names");
  app.add_option("--location", run.flags.location, "Location of short names");
  app.add_option("--key-ring", run.flags.key_ring,
                 "Key ring of short names without one");
  app.add_option("--output", run.flags.output, "table (default) or json");
  app.add_option("--deadline", run.flags.deadline,
                 "How long the whole command may take; default 10s");
  app.add_option("--client-config", run.client_config,
                 "Read only this kekctl.yaml")
      ->type_name("FILE");
  AddKeyCommands(app, run);
  AddCryptCommands(app, run);
  AddKubernetesCommands(app, run);
  AddServerCommands(app, run);
  AddInstallCommands(app, run);
  app.footer(kFooter);  // last: subcommands would take it over

  const auto format = [&run] {
    const absl::StatusOr<Settings> settings = run.LoadSettings();
    return settings.ok() ? settings->output : OutputFormat::kTable;
  };
  try {
    std::reverse(arguments.begin(), arguments.end());  // CLI11 pops the back
    app.parse(std::move(arguments));
  } catch (const CLI::CallForVersion& e) {
    (void)WriteAll(io.out, absl::StrCat(e.what(), "\n"), "standard output");
    return 0;
  } catch (const CLI::Success&) {
    // --help, of the command it was given to.
    (void)WriteAll(io.out, app.help(), "standard output");
    return 0;
  } catch (const CLI::Error& e) {
    std::string command = "kekctl";
    for (const CLI::App* at = &app; !at->get_subcommands().empty();) {
      at = at->get_subcommands().front();
      absl::StrAppend(&command, " ", at->get_name());
    }
    return Report(io, format(),
                  WithHint(absl::InvalidArgumentError(e.what()),
                           absl::StrCat(command, " --help")));
  }
  const absl::Status status =
      run.action != nullptr
          ? run.action()
          : absl::InvalidArgumentError("no command was given");
  if (!status.ok()) return Report(io, format(), status);
  return 0;
}

}  // namespace kek::cli
