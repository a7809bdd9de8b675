// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sync.h"
#include "service/config.h"

namespace kek::service {

// Server models one running kekd: the one place where the parts are made of a
// Config and given to each other, and taken apart again. Thread-safe after
// Start.
//
// Each Kubernetes binding has a gRPC server of its own, which serves v2 and
// v1beta1 of that one key; the admin socket has another one. None of them
// listens: UnixListener accepts, judges the peer, and Connections gives the
// descriptor its number before gRPC sees it.
class Server {
 public:
  // passed: the listening sockets that systemd handed over, by name: "admin" or
  // a binding's name. They are taken over.
  //
  // Returns when all sockets accept. A token that is absent is no error: Status
  // then says so, and it heals by itself. Every error carries the exit code to
  // end with (service/exit_code.h) and has left nothing behind but what the
  // token module did.
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      Config config, std::map<std::string, int> passed);
  // Stops, if Stop was not called before.
  ~Server();

  // Applies what can be applied to a running server (config.h, NeedRestart) and
  // returns the settings that differ and were not.
  absl::StatusOr<std::vector<std::string>> Reload(Config config);

  // Proves what the process itself is answerable for: workers, catalog, audit
  // log. Never asks the token: a restart would not mend it.
  absl::Status Check(base::Deadline deadline);

  // Why calls would fail now, one reason each; empty when ready.
  std::vector<std::string> NotReady() const;

  // 0 when http is not configured.
  int http_port() const;

  // Stops accepting, lets calls in progress end within executor.stop_grace,
  // cancels the rest, and takes everything apart. What hangs in the token is
  // given up after another 2 seconds: returns false, and the process must end
  // without running destructors.
  bool Stop();

 private:
  class Parts;
  explicit Server(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace kek::service
