// SPDX-License-Identifier: Apache-2.0

// kekd: the daemon. kekd --help says how it is called; exit codes are in
// service/exit_code.h, settings in deploy/kekd.yaml.

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "service/config.h"
#include "service/exit_code.h"
#include "service/process_hardening.h"
#include "service/server.h"
#include "service/systemd.h"

namespace kek::service {
namespace {

// Ends at once, without destructors: those of a PKCS#11 module, run by exit(),
// are not ours to trust, and everything of ours is closed by now.
[[noreturn]] void End(ExitCode code) {
  std::fflush(nullptr);
  _exit(static_cast<int>(code));
}

[[noreturn]] void EndWith(const absl::Status& status, ExitCode code) {
  base::LogError("kekd cannot start", {{"reason", status.message()},
                                       {"exit_code", static_cast<int>(code)}});
  NotifyStatus(status.message());
  End(code);
}

void ApplyLog(const Config& config) {
  base::SetLogFormat(config.settings.log().format() == "json"
                         ? base::LogFormat::kJson
                         : base::LogFormat::kText);
  if (const auto level = base::ParseLogLevel(config.settings.log().level());
      level.ok()) {
    base::SetLogLevel(*level);
  }
}

void Reload(Server& server, const std::string& file) {
  NotifyReloading();
  absl::StatusOr<Config> config = LoadConfig(file);
  absl::StatusOr<std::vector<std::string>> restart =
      config.ok() ? server.Reload(*std::move(config)) : config.status();
  if (!restart.ok()) {
    base::LogError("configuration not reloaded, the old one stays in force",
                   {{"reason", restart.status().message()}});
    NotifyReloaded(absl::StrCat("reload failed: ", restart.status().message()));
    return;
  }
  if (!restart->empty()) {
    base::LogWarning("settings that changed need a restart",
                     {{"settings", absl::StrJoin(*restart, ", ")}});
  }
  base::LogInfo("configuration reloaded", {{"file", file}});
  NotifyReloaded(restart->empty()
                     ? "reloaded"
                     : absl::StrCat("reloaded; a restart is needed for ",
                                    absl::StrJoin(*restart, ", ")));
}

[[noreturn]] void Run(const std::string& file) {
  if (const absl::Status hardened = HardenProcess(); !hardened.ok()) {
    EndWith(hardened, absl::IsPermissionDenied(hardened) ? ExitCode::kRefused
                                                         : ExitCode::kOs);
  }
  // Before there are threads, which inherit the mask.
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
  const int started_fd = eventfd(0, EFD_CLOEXEC);
  if (signal_fd < 0 || started_fd < 0) {
    EndWith(absl::InternalError("cannot set up signals"), ExitCode::kOs);
  }

  absl::StatusOr<Config> config = LoadConfig(file);
  if (!config.ok()) {
    EndWith(config.status(), absl::IsPermissionDenied(config.status())
                                 ? ExitCode::kRefused
                                 : ExitCode::kConfig);
  }
  ApplyLog(*config);
  absl::StatusOr<std::map<std::string, int>> passed = TakePassedSockets();
  if (!passed.ok()) EndWith(passed.status(), ExitCode::kConfig);
  const std::string digest = config->digest;
  const int bindings = config->settings.kubernetes_size();

  // A module may take long to load; signals are heard meanwhile.
  absl::StatusOr<std::unique_ptr<Server>> server =
      absl::UnavailableError("not started");
  std::thread starter([&] {
    server = Server::Start(*std::move(config), *std::move(passed));
    const uint64_t one = 1;
    if (write(started_fd, &one, sizeof(one)) < 0) End(ExitCode::kOs);
  });

  bool started = false, reload_asked = false;
  while (true) {
    pollfd events[2] = {{signal_fd, POLLIN, 0}, {started_fd, POLLIN, 0}};
    if (poll(events, started ? 1 : 2, -1) < 0) continue;
    if (!started && events[1].revents != 0) {
      starter.join();
      started = true;
      if (!server.ok()) EndWith(server.status(), ExitCodeOf(server.status()));
      base::LogInfo("kekd serves", {{"version", KEKD_VERSION},
                                    {"config", file},
                                    {"config_sha256", digest},
                                    {"bindings", bindings},
                                    {"http_port", (*server)->http_port()}});
      NotifyReady("serving");
      if (reload_asked) Reload(**server, file);
    }
    if (events[0].revents == 0) continue;
    signalfd_siginfo info{};
    if (read(signal_fd, &info, sizeof(info)) != sizeof(info)) continue;
    if (info.ssi_signo == SIGHUP) {
      if (started) {
        Reload(**server, file);
      } else {
        reload_asked = true;
      }
      continue;
    }
    NotifyStopping();
    base::LogInfo("kekd stops", {{"signal", info.ssi_signo}});
    // Nobody was promised anything before the start was complete.
    const bool clean = !started || (*server)->Stop();
    base::LogInfo("kekd has stopped", {{"clean", clean}});
    End(ExitCode::kOk);
  }
}

int Main(int argc, char** argv) {
  CLI::App app{
      "kekd keeps key encryption keys in an HSM and wraps data keys under "
      "them, for Kubernetes and others."};
  app.footer(
      "Exit codes: 0 ok, 64 usage, 65 catalog unusable, 69 token unavailable,\n"
      "71 system, 73 socket, lock or port taken, 74 catalog or audit log I/O,\n"
      "77 refused (root, permissions), 78 configuration, 79 PIN refused.\n"
      "Signals: SIGTERM stops, SIGHUP reloads the configuration.");
  std::string file = "/etc/kekd/kekd.yaml", check;
  app.add_option("--config", file, "the configuration")->capture_default_str();
  app.add_option("--check-config", check,
                 "check this configuration, say what is wrong, and end")
      ->type_name("FILE");
  app.set_version_flag("--version", std::string("kekd ") + KEKD_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : static_cast<int>(ExitCode::kUsage);
  }
  if (!check.empty()) {
    const absl::StatusOr<Config> config = LoadConfig(check);
    if (!config.ok()) {
      std::fprintf(stderr, "%s\n",
                   std::string(config.status().message()).c_str());
      return static_cast<int>(ExitCode::kConfig);
    }
    std::puts("config ok");
    return 0;
  }
  Run(file);
}

}  // namespace
}  // namespace kek::service

int main(int argc, char** argv) { return kek::service::Main(argc, argv); }
