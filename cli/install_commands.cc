// SPDX-License-Identifier: Apache-2.0
// kekctl init and kekctl completion.
#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/completion.h"
#include "cli/install.h"
#include "cli/output.h"

namespace kek::cli {
namespace {

absl::Status Init(const Invocation& run, const InstallOptions& options) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const InstallReport report, Install(options));
  std::string text;
  if (settings.output == OutputFormat::kJson) {
    const auto list = [](const std::vector<std::string>& lines) {
      std::string out;
      for (const std::string& line : lines) {
        absl::StrAppend(&out, out.empty() ? "" : ", ", JsonString(line));
      }
      return out;
    };
    text = absl::StrCat("{\"done\": [", list(report.done), "],\n \"next\": [",
                        list(report.next), "]}\n");
  } else {
    for (const std::string& line : report.done) {
      absl::StrAppend(&text, "- ", line, "\n");
    }
    absl::StrAppend(&text, "\nNext:\n");
    for (const std::string& line : report.next) {
      absl::StrAppend(&text, "  ", line, "\n");
    }
  }
  return run.Print(text);
}

}  // namespace

void AddInstallCommands(CLI::App& app, Invocation& run) {
  auto options = std::make_shared<InstallOptions>();
  auto delivery = std::make_shared<std::string>("credential");
  CLI::App* sub = app.add_subcommand(
      "init", "Make the config, and a SoftHSM token, of a new install");
  sub->fallthrough();
  const auto text = [&](const char* flag, std::string& value,
                        const char* help) {
    return sub->add_option(flag, value,
                           value.empty()
                               ? std::string(help)
                               : absl::StrCat(help, "; default ", value));
  };
  text("--config", options->config, "kekd's config")->type_name("FILE");
  text("--kekctl-config", options->client_config,
       "kekctl's defaults, \"\" for none")
      ->type_name("FILE");
  text("--state-dir", options->state_dir, "Catalog and audit log")
      ->type_name("FILE");
  text("--runtime-dir", options->runtime_dir, "Sockets")->type_name("FILE");
  text("--user", options->user,
       "Who runs kekd; default kekd, or you if you are not root");
  text("--group", options->group, "Its group; default: the user's");
  text("--module", options->module,
       "PKCS#11 library; default: SoftHSM's, where it is installed")
      ->type_name("FILE");
  text("--token-uri", options->token_uri,
       "Use this existing token (pkcs11:token=...;serial=...)");
  text("--token-label", options->token_label, "Label of the new SoftHSM token");
  text("--token-dir", options->token_dir,
       "Where SoftHSM keeps it; default <state-dir>/tokens")
      ->type_name("FILE");
  text("--softhsm-conf", options->softhsm_conf, "SoftHSM's configuration")
      ->type_name("FILE");
  text("--pin-file", options->pin_file,
       "Where the PIN is put (existing token: where it is)")
      ->type_name("FILE");
  text("--so-pin-file", options->so_pin_file,
       "Where the security officer's PIN is put")
      ->type_name("FILE");
  text("--pin-delivery", *delivery,
       "credential: systemd hands the file over; file: kekd reads it itself")
      ->check(CLI::IsMember({"credential", "file"}));
  text("--http-listen", options->http_listen,
       "Metrics and probes on loopback, \"\" for none");
  text("--binding", options->binding, "Name of the Kubernetes binding");
  text("--key-name", options->key, "Key of the binding");
  sub->callback([&run, options, delivery] {
    run.action = [&run, options, delivery]() -> absl::Status {
      options->pin_delivery =
          *delivery == "file" ? PinDelivery::kFile : PinDelivery::kCredential;
      // The defaults of names are those of the new install, not of a
      // kekctl.yaml from elsewhere.
      if (run.flags.project) options->project = *run.flags.project;
      if (run.flags.location) options->location = *run.flags.location;
      if (run.flags.key_ring) options->key_ring = *run.flags.key_ring;
      return Init(run, *options);
    };
  });

  auto shell = std::make_shared<std::string>();
  CLI::App* completion = app.add_subcommand(
      "completion", "Print a completion script for bash, zsh or fish");
  completion->fallthrough();
  completion->add_option("SHELL", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  completion->callback([&run, shell, &app] {
    run.action = [&run, shell, &app]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::string script, CompletionScript(app, *shell));
      return run.Print(script);
    };
  });
}

}  // namespace kek::cli
