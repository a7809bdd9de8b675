// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kek::cli {

// How kekd gets the PIN of a new install.
enum class PinDelivery {
  // systemd's LoadCredential= reads the file as root; the unit of the package
  // does. The file belongs to root.
  kCredential,
  // kekd reads the file itself. The file belongs to kekd's user.
  kFile,
};

// What `kekctl init` makes. All paths absolute.
struct InstallOptions {
  std::string config = "/etc/kekd/kekd.yaml";
  // What kekctl itself reads for its defaults; empty: none is written.
  std::string client_config = "/etc/kekd/kekctl.yaml";
  std::string state_dir = "/var/lib/kekd";
  std::string runtime_dir = "/run/kekd";
  std::string user;   // who runs kekd; empty: kekd if we are root, else us
  std::string group;  // empty: the user's

  // Empty: SoftHSM's module, where Debian installs it.
  std::string module;
  // An existing token (RFC 7512). Empty: a SoftHSM token is made.
  std::string token_uri;
  std::string token_label = "kekd";
  std::string softhsm_conf = "/etc/kekd/softhsm2.conf";
  std::string token_dir;  // empty: <state_dir>/tokens

  std::string pin_file = "/etc/kekd/hsm-pin";
  std::string so_pin_file = "/etc/kekd/hsm-so-pin";
  PinDelivery pin_delivery = PinDelivery::kCredential;

  // Metrics and probes, on loopback; empty: none.
  std::string http_listen = "127.0.0.1:9464";

  std::string binding = "kubernetes";
  std::string project = "kekd";
  std::string location = "local";
  std::string key_ring = "kubernetes";
  std::string key = "secrets";
};

struct InstallReport {
  std::vector<std::string> done;  // one sentence each
  std::vector<std::string> next;  // commands to run now
};

// Makes the token (SoftHSM only), the PIN files, the directories and the two
// configs. Never overwrites: what is there already is ALREADY_EXISTS, found
// before anything is made; what was made is taken away again when a later step
// fails. Asks nothing and needs no kekd. NOT_FOUND: no module, no
// softhsm2-util, no such user, no PIN file of an existing token.
// FAILED_PRECONDITION: softhsm2-util failed. INVALID_ARGUMENT.
// PERMISSION_DENIED: a directory cannot be written.
absl::StatusOr<InstallReport> Install(InstallOptions options);

}  // namespace kek::cli
