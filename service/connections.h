// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/sync.h"
#include "core/caller.h"

namespace kek::service {

// A peer of a Unix socket as the kernel vouches for it at accept():
// SO_PEERCRED, SO_PEERGROUPS.
struct PeerCredentials {
  uint32_t uid = 0;
  uint32_t gid = 0;
  int32_t pid = 0;
  std::vector<uint32_t> groups;
};

// Connections models the accepted connections of all sockets: it gives each a
// descriptor number that gRPC reports as the call's peer() ("fd:N"), and finds
// the Caller of a call by it.
//
// A number must never name one connection to gRPC and another one to us. gRPC
// closes a descriptor when it likes, and calls that it has read may reach Find
// later. So numbers come from a range of their own above what the rest of the
// process opens, taken in a circle, and one is used again only when its
// connection has been seen closed for quarantine, and no Call of it lives.
// Whether a descriptor is still that connection is told by the socket's inode,
// not by the number alone.
//
// Thread-safe. Calls may outlive Connections.
class Connections {
 public:
  // What a listener knows of a connection beyond its credentials.
  struct Origin {
    core::FrontEnd front_end;  // kAdmin or kKubernetesV2; the adapter's Method
                               // narrows it
    std::string binding;       // of Kubernetes
    std::string socket;        // path, for audit
  };
  struct Options {
    size_t max_connections = 1024;
    std::chrono::nanoseconds quarantine = std::chrono::seconds(10);
    // The range [first, last) of numbers; 0: from 1024, or half the limit where
    // that is low, to RLIMIT_NOFILE, whose soft value is raised to the hard
    // one.
    int first = 0;
    int last = 0;
    // Null: the steady clock. For tests.
    std::function<base::Deadline()> now;
  };
  Connections();
  explicit Connections(Options options);
  ~Connections();

  // Takes fd over (closes it in any case) and returns the descriptor to hand to
  // gRPC, which will close it. RESOURCE_EXHAUSTED: too many connections, or all
  // numbers are in quarantine.
  absl::StatusOr<int> Add(int fd, const PeerCredentials& peer,
                          const Origin& origin);

  // Marks a call as alive for its lifetime.
  class Call {
   public:
    Call() = default;
    Call(Call&&) noexcept;
    Call& operator=(Call&&) noexcept;
    ~Call();
    const core::Caller& caller() const;
    const Origin& origin() const;

   private:
    friend class Connections;
    struct State;
    std::shared_ptr<const State> state_;
  };
  // peer as grpc::ServerContext::peer() gives it. UNAUTHENTICATED: not one of
  // ours. PERMISSION_DENIED: revoked.
  absl::StatusOr<Call> Find(absl::string_view peer) const;

  // Refuses all further calls of the open connections to a socket (Origin) for
  // which keep answers false: their peers are not welcome any more.
  void Revoke(absl::string_view socket,
              const std::function<bool(const PeerCredentials&)>& keep);

  // Connections that gRPC has not closed yet.
  size_t open() const;

 private:
  class Table;
  std::shared_ptr<Table> table_;
};

}  // namespace kek::service
