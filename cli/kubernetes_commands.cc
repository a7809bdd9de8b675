// SPDX-License-Identifier: Apache-2.0
// kekctl kubernetes config and kekctl kubernetes check.
#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/encryption_config.h"
#include "cli/exit_code.h"
#include "cli/output.h"
#include "cli/plugin_check.h"

namespace kek::cli {
namespace {

struct Binding {
  std::string name, socket;
};

// The bindings of a kekd that runs.
absl::StatusOr<std::vector<Binding>> BindingsOfServer(
    const Invocation& run, const Settings& settings) {
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  kek::admin::v1::GetStatusResponse status;
  RETURN_IF_ERROR(server.Call(&AdminApi::Stub::GetStatus,
                              kek::admin::v1::GetStatusRequest(), status));
  std::vector<Binding> bindings;
  for (const auto& binding : status.kubernetes()) {
    bindings.push_back({binding.name(), binding.socket()});
  }
  return bindings;
}

// The bindings of a config file; kekd itself checks the rest of it.
absl::StatusOr<std::vector<Binding>> BindingsOfFile(const std::string& file) {
  std::vector<Binding> bindings;
  try {
    const YAML::Node list = YAML::LoadFile(file)["kubernetes"];
    for (const auto& entry : list) {
      bindings.push_back(
          {entry["name"].as<std::string>(), entry["socket"].as<std::string>()});
    }
  } catch (const YAML::BadFile&) {
    return WithExit(absl::NotFoundError(absl::StrCat("cannot read ", file)),
                    ExitCode::kIo);
  } catch (const YAML::Exception& e) {
    return WithHint(
        absl::InvalidArgumentError(absl::StrCat(file, ": ", e.what())),
        absl::StrCat("`kekd --check-config --config ", file,
                     "` says what is wrong"));
  }
  return bindings;
}

struct ConfigOptions {
  std::string binding, kekd_config, plugin_socket, name, timeout = "3s",
                                                         part = "all";
  std::vector<std::string> resources = {"secrets"};
  bool v1beta1 = false;
};

absl::Status Config(const Invocation& run, const ConfigOptions& options) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ProviderOptions provider;
  ASSIGN_OR_RETURN(provider.timeout, ParseDuration(options.timeout));
  provider.v1beta1 = options.v1beta1;
  provider.admin_socket = settings.socket;
  provider.resources = options.resources;
  if (!options.plugin_socket.empty()) {
    provider.socket = options.plugin_socket;
    provider.name =
        options.binding.empty() ? std::string("kekd") : options.binding;
  } else {
    std::vector<Binding> bindings;
    if (!options.kekd_config.empty()) {
      ASSIGN_OR_RETURN(bindings, BindingsOfFile(options.kekd_config));
    } else {
      absl::StatusOr<std::vector<Binding>> answer =
          BindingsOfServer(run, settings);
      if (!answer.ok()) {
        return WithHint(answer.status(),
                        "without a running kekd give --kekd-config "
                        "/etc/kekd/kekd.yaml, or --plugin-socket PATH");
      }
      bindings = *std::move(answer);
    }
    std::vector<std::string> names;
    for (const Binding& binding : bindings) {
      names.push_back(binding.name);
      if (binding.name == options.binding ||
          (options.binding.empty() && bindings.size() == 1)) {
        provider.name = binding.name;
        provider.socket = binding.socket;
      }
    }
    if (provider.socket.empty()) {
      if (names.empty()) {
        return WithHint(
            absl::NotFoundError("kekd has no Kubernetes binding"),
            "add one under `kubernetes:` in kekd.yaml and restart kekd");
      }
      const std::string list = absl::StrJoin(names, ", ");
      return WithHint(
          options.binding.empty()
              ? absl::InvalidArgumentError("kekd has more than one binding")
              : absl::NotFoundError(absl::StrCat("kekd has no binding '",
                                                 options.binding.substr(0, 64),
                                                 "'")),
          absl::StrCat("name one of ", list));
    }
  }
  if (!options.name.empty()) provider.name = options.name;
  ASSIGN_OR_RETURN(const ProviderConfig config,
                   KubernetesProviderConfig(provider));
  if (settings.output == OutputFormat::kJson) {
    return run.Print(absl::StrCat(
        "{\n  \"name\": ", JsonString(provider.name), ",\n  \"socket\": ",
        JsonString(provider.socket), ",\n  \"encryptionConfiguration\": ",
        JsonString(config.encryption_configuration),
        ",\n  \"staticPod\": ", JsonString(config.static_pod),
        ",\n  \"systemd\": ", JsonString(config.systemd), "\n}\n"));
  }
  if (options.part == "encryption-configuration") {
    return run.Print(config.encryption_configuration);
  }
  if (options.part == "static-pod") return run.Print(config.static_pod);
  if (options.part == "systemd") return run.Print(config.systemd);
  return run.Print(absl::StrCat(
      "# ---- /etc/kubernetes/kekd/encryption-config.yaml (mode 0600)\n",
      config.encryption_configuration,
      "\n# ---- kube-apiserver as a static pod\n", config.static_pod,
      "\n# ---- kube-apiserver as a systemd unit\n", config.systemd));
}

struct CheckOptions {
  std::string socket;
  bool v1beta1 = false;
};

absl::Status Check(const Invocation& run, const CheckOptions& options) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  const base::Deadline deadline =
      base::DeadlineAfter(absl::ToChronoNanoseconds(settings.deadline));
  const CheckReport report = options.v1beta1
                                 ? CheckKmsV1Beta1(options.socket, deadline)
                                 : CheckKmsV2(options.socket, deadline);
  if (settings.output == OutputFormat::kJson) {
    std::string steps;
    for (const CheckStep& step : report.steps) {
      absl::StrAppend(
          &steps, steps.empty() ? "" : ",",
          "\n    {\"name\": ", JsonString(step.name),
          ", \"passed\": ", step.passed ? "true" : "false",
          ", \"milliseconds\": ", absl::ToDoubleMilliseconds(step.time),
          ", \"detail\": ", JsonString(step.detail), "}");
    }
    RETURN_IF_ERROR(run.Print(absl::StrCat(
        "{\n  \"socket\": ", JsonString(options.socket),
        ",\n  \"api\": ", options.v1beta1 ? "\"v1beta1\"" : "\"v2\"",
        ",\n  \"passed\": ", report.result.ok() ? "true" : "false",
        ",\n  \"version\": ", JsonString(report.version), ",\n  \"keyId\": ",
        JsonString(report.key_id), ",\n  \"steps\": [", steps, "\n  ]\n}\n")));
  } else {
    Table table({"STEP", "RESULT", "TIME", "SEEN"});
    for (const CheckStep& step : report.steps) {
      table.Add(
          {step.name, step.passed ? "ok" : "FAILED",
           absl::FormatDuration(absl::Trunc(step.time, absl::Microseconds(10))),
           step.detail});
    }
    RETURN_IF_ERROR(run.Print(table.ToString()));
  }
  if (report.result.ok()) return absl::OkStatus();
  absl::Status failed(report.result.code(),
                      absl::StrCat("the plugin at ", options.socket,
                                   " did not pass: ", report.result.message()));
  const ExitCode exit = ExitCodeOf(report.result);
  const std::string hint = HintOf(report.result);
  if (!hint.empty()) {
    failed = WithHint(std::move(failed), hint);
  } else if (exit == ExitCode::kUnavailable) {
    failed = WithHint(std::move(failed),
                      "look at the plugin's log; for kekd `kekctl status` says "
                      "what is wrong; --deadline waits longer");
  }
  return WithExit(std::move(failed), exit);
}

}  // namespace

void AddKubernetesCommands(CLI::App& app, Invocation& run) {
  CLI::App* kubernetes =
      app.add_subcommand("kubernetes", "kube-apiserver's encryption at rest");
  kubernetes->require_subcommand(1)->fallthrough();

  auto config = std::make_shared<ConfigOptions>();
  CLI::App* sub = kubernetes->add_subcommand(
      "config", "Print what kube-apiserver needs to use a binding of kekd");
  sub->fallthrough();
  sub->add_option("BINDING", config->binding,
                  "Name of the binding; default: the only one");
  sub->add_option("--kekd-config", config->kekd_config,
                  "Read the bindings from this kekd.yaml instead of kekd")
      ->type_name("FILE");
  sub->add_option("--plugin-socket", config->plugin_socket,
                  "Ask nobody: the socket of the plugin");
  sub->add_option("--name", config->name,
                  "Name of the provider, for ever; default: the binding's");
  sub->add_option("--resources", config->resources,
                  "Resources to encrypt; default: secrets")
      ->delimiter(',')
      ->allow_extra_args(false);
  sub->add_option("--timeout", config->timeout,
                  "Of one call by kube-apiserver; default 3s");
  sub->add_flag("--v1beta1", config->v1beta1,
                "Add a v1 provider that reads data from before a migration");
  sub->add_option("--part", config->part,
                  "all (default), encryption-configuration, static-pod or "
                  "systemd")
      ->check(CLI::IsMember(
          {"all", "encryption-configuration", "static-pod", "systemd"}));
  sub->callback([&run, config] {
    run.action = [&run, config] { return Config(run, *config); };
  });

  auto check = std::make_shared<CheckOptions>();
  sub = kubernetes->add_subcommand(
      "check", "Check a KMS plugin of any make as a control plane would");
  sub->fallthrough();
  sub->add_option("--socket", check->socket, "Socket of the plugin")
      ->required();
  sub->add_flag("--v1beta1", check->v1beta1, "Check the old API, v1beta1");
  sub->callback([&run, check] {
    run.action = [&run, check] { return Check(run, *check); };
  });
}

}  // namespace kek::cli
