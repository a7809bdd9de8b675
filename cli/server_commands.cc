// SPDX-License-Identifier: Apache-2.0
// kekctl status, token ..., log-level.
#include <CLI/CLI.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/output.h"

namespace kek::cli {
namespace {

namespace admin = kek::admin::v1;

std::string Joined(
    const google::protobuf::RepeatedPtrField<std::string>& texts) {
  return absl::StrJoin(texts, "\n");
}

void AddTokenFields(const admin::TokenStatus& token,
                    std::vector<std::pair<std::string, std::string>>& fields) {
  fields.emplace_back(
      "Token", absl::StrCat(token.state(), token.reason().empty() ? "" : ": ",
                            token.reason()));
  fields.emplace_back("  URI", token.uri());
  fields.emplace_back("  Label", token.label());
  fields.emplace_back(
      "  Device",
      absl::StrJoin(std::vector<std::string>{token.manufacturer(),
                                             token.model(), token.serial()},
                    " "));
  fields.emplace_back("  Firmware", token.firmware());
  fields.emplace_back("  Module", token.module());
  fields.emplace_back("  IV mode", token.iv_mode());
  fields.emplace_back("  Sessions",
                      absl::StrCat(token.sessions_in_use(), " in use of ",
                                   token.sessions_open(), " open, ",
                                   token.waiters(), " waiting"));
  fields.emplace_back("  Generation", absl::StrCat(token.generation()));
  if (token.has_since_last_success()) {
    const std::string ago = DurationText(token.since_last_success());
    fields.emplace_back("  Last success",
                        absl::StrCat(ago.empty() ? "0s" : ago, " ago"));
  }
}

absl::Status ServerStatus(const Invocation& run) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  admin::GetStatusResponse status;
  RETURN_IF_ERROR(server.Call(&AdminApi::Stub::GetStatus,
                              admin::GetStatusRequest(), status));
  if (settings.output == OutputFormat::kJson) {
    ASSIGN_OR_RETURN(const std::string json, MessageJson(status));
    RETURN_IF_ERROR(run.Print(json));
  } else {
    std::vector<std::pair<std::string, std::string>> fields = {
        {"kekd", status.version()},
        {"Ready", status.not_ready().empty() ? "yes" : "no"},
        {"Started", TimeText(status.start_time())},
        {"Config", status.config_digest().substr(0, 16)},
        {"Log level", status.log_level()},
        {"Audit log", absl::StrCat(status.audit().health(), "  ",
                                   status.audit().directory())},
    };
    AddTokenFields(status.token(), fields);
    std::string text = FieldsText(fields);
    for (const std::string& reason : status.not_ready()) {
      absl::StrAppend(&text, "Not ready: ", reason, "\n");
    }
    if (status.kubernetes_size() > 0) {
      Table table({"BINDING", "HEALTH", "PRIMARY", "KEY", "SOCKET"});
      for (const auto& binding : status.kubernetes()) {
        const std::string& primary = binding.primary_version();
        table.Add(
            {binding.name(), binding.health(),
             primary.empty() ? "-" : primary.substr(primary.rfind('/') + 1),
             binding.key(), binding.socket()});
      }
      absl::StrAppend(&text, "\n", table.ToString());
    }
    const std::pair<const char*,
                    const google::protobuf::RepeatedPtrField<std::string>*>
        findings[] = {
            {"Key not on the token", &status.reconcile().missing()},
            {"On the token, in no key", &status.reconcile().orphans()},
            {"Half-made on the token", &status.reconcile().half_objects()},
            {"Still being generated", &status.reconcile().pending()},
        };
    Table table({"CATALOG AND TOKEN DIFFER", "WHAT"});
    for (const auto& [what, names] : findings) {
      for (const std::string& name : *names) table.Add({what, name});
    }
    if (!table.empty()) absl::StrAppend(&text, "\n", table.ToString());
    RETURN_IF_ERROR(run.Print(text));
  }
  if (status.not_ready().empty()) return absl::OkStatus();
  absl::Status not_ready = absl::UnavailableError(
      absl::StrCat("kekd is not ready: ", Joined(status.not_ready())));
  if (status.token().state() == "PIN_REFUSED") {
    return WithHint(
        WithExit(std::move(not_ready), ExitCode::kPinRefused),
        "correct the PIN source; kekd never repeats a refused PIN by itself, "
        "`kekctl token login --retry` spends one try on it");
  }
  return not_ready;
}

absl::Status PrintToken(const Invocation& run, const Settings& settings,
                        const admin::TokenLoginResponse& response) {
  if (settings.output == OutputFormat::kJson) {
    ASSIGN_OR_RETURN(const std::string json, MessageJson(response));
    return run.Print(json);
  }
  std::vector<std::pair<std::string, std::string>> fields;
  AddTokenFields(response.token(), fields);
  return run.Print(FieldsText(fields));
}

absl::Status LoginFailed(absl::Status status) {
  if (status.code() != absl::StatusCode::kPermissionDenied) return status;
  // The admin socket answers both: not allowed, and not the PIN.
  if (status.message().find("PIN") == std::string::npos) return status;
  return WithHint(
      WithExit(std::move(status), ExitCode::kPinRefused),
      "correct the PIN source first; each try counts, and the token locks "
      "itself after a few");
}

absl::Status TokenLogin(const Invocation& run, bool retry) {
  if (!retry) {
    return WithHint(
        absl::InvalidArgumentError(
            "token login needs --retry: it spends one of the token's few PIN "
            "tries"),
        "kekd logs in by itself; only after a refused PIN, and when the PIN "
        "source is right, run `kekctl token login --retry`");
  }
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  admin::TokenLoginResponse response;
  RETURN_IF_ERROR(
      LoginFailed(server.Call(&AdminApi::Stub::RetryTokenLogin,
                              admin::RetryTokenLoginRequest(), response)));
  return PrintToken(run, settings, response);
}

absl::Status TokenRelogin(const Invocation& run) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  admin::TokenLoginResponse response;
  RETURN_IF_ERROR(LoginFailed(server.Call(
      &AdminApi::Stub::ReloginToken, admin::ReloginTokenRequest(), response)));
  return PrintToken(run, settings, response);
}

absl::Status LogLevel(const Invocation& run, const std::string& level) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  std::string now = level, before;
  if (level.empty()) {
    admin::GetStatusResponse status;
    RETURN_IF_ERROR(server.Call(&AdminApi::Stub::GetStatus,
                                admin::GetStatusRequest(), status));
    now = status.log_level();
  } else {
    admin::SetLogLevelRequest request;
    request.set_level(level);
    admin::SetLogLevelResponse response;
    RETURN_IF_ERROR(
        server.Call(&AdminApi::Stub::SetLogLevel, request, response));
    before = response.previous();
  }
  if (settings.output == OutputFormat::kJson) {
    return run.Print(absl::StrCat(
        "{\"level\": ", JsonString(now),
        before.empty() ? ""
                       : absl::StrCat(", \"previous\": ", JsonString(before)),
        "}\n"));
  }
  return run.Print(before.empty()
                       ? absl::StrCat(now, "\n")
                       : absl::StrCat("Log level ", now, " (was ", before,
                                      "), until kekd restarts.\n"));
}

}  // namespace

void AddServerCommands(CLI::App& app, Invocation& run) {
  app.add_subcommand("status", "How kekd, its token and its bindings are doing")
      ->fallthrough()
      ->callback([&run] { run.action = [&run] { return ServerStatus(run); }; });

  CLI::App* token = app.add_subcommand("token", "kekd's login to its token");
  token->require_subcommand(1)->fallthrough();
  auto retry = std::make_shared<bool>(false);
  CLI::App* login =
      token->add_subcommand("login", "Try a PIN again that was refused");
  login->fallthrough();
  login->add_flag("--retry", *retry,
                  "Yes: spend one of the token's few PIN tries");
  login->callback([&run, retry] {
    run.action = [&run, retry] { return TokenLogin(run, *retry); };
  });
  token
      ->add_subcommand("relogin",
                       "Close all sessions, read the PIN again and log in")
      ->fallthrough()
      ->callback([&run] { run.action = [&run] { return TokenRelogin(run); }; });

  auto level = std::make_shared<std::string>();
  CLI::App* log_level = app.add_subcommand(
      "log-level", "Show or set the level of kekd's log while it runs");
  log_level->fallthrough();
  log_level->add_option("LEVEL", *level, "debug, info, warning or error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}));
  log_level->callback([&run, level] {
    run.action = [&run, level] { return LogLevel(run, *level); };
  });
}

}  // namespace kek::cli
