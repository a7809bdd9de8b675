// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/metrics.h"
#include "service/connections.h"

namespace kek::service {

// Who may use a Unix socket.
struct SocketAccess {
  std::optional<uint32_t> owner;  // of the file; default: ours
  std::optional<uint32_t> group;  // of the file; default: ours
  mode_t mode = 0600;             // of the file
  // A peer is admitted whose uid is in uids, or one of whose groups is in gids.
  std::vector<uint32_t> uids;
  std::vector<uint32_t> gids;

  bool Admits(const PeerCredentials& peer) const;
};

// UnixListener models one listening Unix socket of kekd and the peers it lets
// in.
//
// The file is made in a directory that nobody else can write to, has its final
// owner, group and mode before anybody can connect, and appears at its path in
// one step. A lock beside it (<path>.lock, never removed) keeps a second kekd
// from taking a live socket over; a socket that nobody listens on is replaced;
// anything else at the path is left alone and refused. An abstract socket
// ("@name") has neither file nor lock. A socket that systemd passed in is used
// as it is.
//
// A peer is judged by SO_PEERCRED and SO_PEERGROUPS before a byte of it is
// read. Thread-safe.
class UnixListener {
 public:
  struct Options {
    std::string path;  // absolute, or "@name" for an abstract socket
    SocketAccess access;
    int backlog = 512;
    // A listening socket that systemd passed in, which must be bound to path;
    // taken over.
    int inherited_fd = -1;
    base::Metrics* metrics = nullptr;  // may be null
  };

  // Binds and listens; connections wait in the backlog until Start.
  //   FAILED_PRECONDITION  the directory is missing or open to others, the path
  //                        is something else than a socket, another process
  //                        serves it
  //   PERMISSION_DENIED    the directory is not ours to write to, or owner or
  //                        group may not be set
  //   INVALID_ARGUMENT     a path too long; an inherited socket that is not
  //                        this one
  // Each with path and remedy.
  static absl::StatusOr<std::unique_ptr<UnixListener>> Open(Options options);
  ~UnixListener();

  // Begins to accept on a thread of its own. Both callbacks run on it and must
  // not block: accepted takes over the descriptor (non-blocking,
  // close-on-exec); refused hears of peers that were turned away, at most once
  // in 10 seconds for one uid, with how many times it was since.
  using Accepted = std::function<void(int fd, const PeerCredentials& peer)>;
  using Refused = std::function<void(const PeerCredentials& peer, int times)>;
  void Start(Accepted accepted, Refused refused);

  // Replaces who is admitted; the file's owner, group and mode stay.
  void SetAccess(const SocketAccess& access);

  // Accepts no more; returns when no callback runs. The file is removed, unless
  // systemd owns it.
  void Stop();

  const std::string& path() const;

 private:
  class Socket;
  explicit UnixListener(std::unique_ptr<Socket> socket);
  std::unique_ptr<Socket> socket_;
};

// Of a connected Unix socket. UNAVAILABLE: the peer is gone.
absl::StatusOr<PeerCredentials> ReadPeerCredentials(int fd);

}  // namespace kek::service
