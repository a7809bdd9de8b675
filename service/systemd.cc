// SPDX-License-Identifier: Apache-2.0
#include "service/systemd.h"

#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace kek::service {
namespace {
void Notify(const std::string& state) { sd_notify(0, state.c_str()); }
}  // namespace

void NotifyReady(absl::string_view status) {
  Notify(absl::StrCat("READY=1\nSTATUS=", status));
}
void NotifyReloading() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  Notify(absl::StrCat(
      "RELOADING=1\nMONOTONIC_USEC=",
      static_cast<int64_t>(now.tv_sec) * 1'000'000 + now.tv_nsec / 1000));
}
void NotifyReloaded(absl::string_view status) {
  Notify(absl::StrCat("READY=1\nSTATUS=", status));
}
void NotifyStopping() { Notify("STOPPING=1\nSTATUS=stopping"); }
void NotifyWatchdog() { Notify("WATCHDOG=1"); }
void NotifyStatus(absl::string_view status) {
  Notify(absl::StrCat("STATUS=", status));
}

std::optional<absl::Duration> WatchdogTimeout() {
  uint64_t microseconds = 0;
  if (sd_watchdog_enabled(0, &microseconds) <= 0) return std::nullopt;
  return absl::Microseconds(static_cast<int64_t>(microseconds));
}

absl::StatusOr<std::map<std::string, int>> TakePassedSockets() {
  char** names = nullptr;
  const int count = sd_listen_fds_with_names(1, &names);
  std::map<std::string, int> sockets;
  absl::Status status;
  for (int i = 0; i < count; ++i) {
    const std::string name = names[i];
    std::free(names[i]);
    if (!sockets.emplace(name, SD_LISTEN_FDS_START + i).second) {
      status = absl::InvalidArgumentError(absl::StrCat(
          "systemd passed two sockets named \"", name,
          "\"; give each socket unit its own FileDescriptorName="));
    }
  }
  std::free(names);
  if (!status.ok()) return status;
  return sockets;
}

}  // namespace kek::service
