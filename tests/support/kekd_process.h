// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/sync.h"
#include "base/testing/temp_dir.h"

namespace kek::integration {

// kekd refuses to run as root. When this process is root, lends it, and all it
// starts from now on, the identity of nobody; root stays within reach of
// AsRoot. Call before temporary directories are made. Does nothing when called
// again or by another user.
void DropPrivileges();

// Runs run on the calling thread with root's identity and returns true; false,
// and runs nothing, if the process was not started by root.
bool AsRoot(const std::function<void()>& run);

// A path of this program that the process can execute without privileges: its
// own, or, where that lies in somebody's home, a copy's. Any user may run it.
std::string Reachable(const std::string& binary);

// Polls condition until it holds; false if it does not before the deadline.
bool Eventually(const std::function<bool()>& condition,
                base::Deadline deadline);
inline base::Deadline Within(std::chrono::nanoseconds delay) {
  return base::DeadlineAfter(delay);
}

// A plain gRPC channel to a Unix socket ("@name": an abstract one), never
// shared with another one. authority: ":authority", empty for gRPC's own.
std::shared_ptr<grpc::Channel> ConnectTo(const std::string& socket,
                                         const std::string& authority = "");

// A ClientContext that ends after delay and, as kube-apiserver's, waits for the
// connection meanwhile.
std::unique_ptr<grpc::ClientContext> Context(
    std::chrono::nanoseconds delay = std::chrono::seconds(10));

// An installation of kekd of its own, and the real kekd running on it: a fresh
// SoftHSM token, PIN file, config, state and sockets in a temporary directory.
// The process dies with this object. Not thread-safe.
class KekdProcess {
 public:
  static constexpr char kLocation[] = "projects/test/locations/local";
  static constexpr char kRing[] = "projects/test/locations/local/keyRings/ring";

  struct Binding {
    std::string name = "main";
    std::string key = "main";       // id; several bindings may share one
    std::vector<std::string> yaml;  // further lines: "on_hsm_loss: keep_writes"
    std::string socket;             // default: <name>.sock in run()
  };
  struct Options {
    std::vector<Binding> bindings = {Binding{}};
    std::string module;              // default: SoftHSM
    std::vector<std::string> token;  // further lines of token:
    std::vector<std::string> admin;  // further lines of admin:
    std::string yaml;                // further sections
  };

  // Makes the token and writes the config; starts nothing.
  explicit KekdProcess(Options options);
  KekdProcess() : KekdProcess(Options()) {}
  ~KekdProcess();
  KekdProcess(const KekdProcess&) = delete;
  KekdProcess& operator=(const KekdProcess&) = delete;

  // Starts kekd and returns when its admin socket answers. UNAVAILABLE with its
  // log if it does not within 20 s, or ends.
  absl::Status Start();
  // Start, then the key ring and the bindings' keys where they are missing, and
  // then every binding's Status without error.
  absl::Status StartWithKeys();
  // Every binding's Status is without error and "ok".
  absl::Status WaitHealthy(base::Deadline deadline);
  void Kill();  // kill -9, and reaps
  // SIGTERM; the exit code, negative for a signal. DEADLINE_EXCEEDED after 20
  // s.
  absl::StatusOr<int> Terminate();
  void Signal(int signal);
  // Waits until the process has ended by itself; as Terminate.
  absl::StatusOr<int> WaitForEnd(base::Deadline deadline);
  pid_t pid() const { return pid_; }

  // Runs kekd with these arguments to its end on this installation; its exit
  // code and all it said.
  std::pair<int, std::string> Run(const std::vector<std::string>& arguments);

  void WriteConfig(const Options& options);
  // SoftHSM's directory of tokens is not there; what a pulled HSM is. kekd's
  // open sessions fail as well.
  void TakeTokenAway();
  void BringTokenBack();

  std::string KeyName(absl::string_view id) const;
  const std::string& dir() const { return dir_.path(); }
  std::string run() const { return dir_.File("run"); }
  std::string config() const { return dir_.File("kekd.yaml"); }
  std::string audit() const { return dir_.File("state/audit"); }
  std::string Socket(absl::string_view binding = "main") const;
  std::string AdminSocket() const { return dir_.File("run/admin.sock"); }
  std::string Log() const;
  // Of the last start, with "http: {listen: 127.0.0.1:0}"; 0 if there is none.
  int HttpPort() const;
  // All lines of the audit log.
  std::vector<std::string> AuditLines() const;
  const std::string& pin() const { return pin_; }

 private:
  pid_t Spawn(const std::vector<std::string>& argv, const std::string& log);

  Options options_;  // first: whose initialiser drops privileges
  base::testing::TempDir dir_;
  std::string pin_;
  pid_t pid_ = -1;
};

}  // namespace kek::integration
