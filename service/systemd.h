// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace kek::service {

// What kekd and systemd say to each other (sd_notify(3), sd_listen_fds(3),
// sd_watchdog_enabled(3)). Without systemd nothing happens and nothing fails.
// Thread-safe.

void NotifyReady(absl::string_view status);
// Between these two a reload runs (Type=notify-reload of systemd 253 and later
// waits for it).
void NotifyReloading();
void NotifyReloaded(absl::string_view status);
void NotifyStopping();
void NotifyWatchdog();
// One line for "systemctl status".
void NotifyStatus(absl::string_view status);

// Within which time systemd wants to hear NotifyWatchdog (WatchdogSec=).
std::optional<absl::Duration> WatchdogTimeout();

// The listening sockets of a socket unit, by FileDescriptorName=; the caller
// owns the descriptors. INVALID_ARGUMENT: a name came twice. To be asked once,
// before there are threads.
absl::StatusOr<std::map<std::string, int>> TakePassedSockets();

}  // namespace kek::service
