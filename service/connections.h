// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
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
// the Caller of a call by it. A number is not used again while a call of its
// connection lives or could still arrive: numbers come from a range of their
// own, oldest first. Thread-safe.
class Connections {
 public:
  // What a listener knows of a connection beyond its credentials.
  struct Origin {
    core::FrontEnd front_end;  // kAdmin or kKubernetesV2 (the adapter narrows
                               // it to v1beta1)
    std::string binding;       // of Kubernetes
    std::string socket;        // path, for audit
  };
  Connections();
  ~Connections();

  // Takes fd over and returns the descriptor to hand to gRPC, which will close
  // it. RESOURCE_EXHAUSTED: too many connections.
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
    std::shared_ptr<State> state_;
  };
  // peer as grpc::ServerContext::peer() gives it. UNAUTHENTICATED: not one of
  // ours.
  absl::StatusOr<Call> Find(absl::string_view peer) const;

 private:
  class Table;
  std::shared_ptr<Table> table_;
};

}  // namespace kek::service
