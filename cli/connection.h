// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/secret_bytes.h"
#include "base/sync.h"

namespace kek::cli {

// Connection models one connection to a gRPC server on a local Unix socket
// ("@name": an abstract one). It connects itself, once, and does not reconnect:
// what is wrong with the socket is told by its own error instead of a generic
// one. Not thread-safe.
class Connection {
 public:
  // NOT_FOUND: no socket there. PERMISSION_DENIED: the socket may not be
  // opened. UNAVAILABLE: nobody listens. DEADLINE_EXCEEDED.
  // INVALID_ARGUMENT: not a socket's path.
  static absl::StatusOr<std::unique_ptr<Connection>> Open(
      const std::string& socket, base::Deadline deadline);

  std::shared_ptr<grpc::Channel> channel() const { return channel_; }

  // One unary call: connection.Call(stub, &Stub::Method, request, response,
  // deadline). The Status has gRPC's code and the server's text.
  template <typename Stub, typename Interface, typename Request,
            typename Response>
  absl::Status Call(const std::unique_ptr<Stub>& stub,
                    grpc::Status (Interface::*method)(grpc::ClientContext*,
                                                      const Request&,
                                                      Response*),
                    const Request& request, Response& response,
                    base::Deadline deadline) const {
    grpc::ClientContext context;
    SetDeadline(context, deadline);
    return ToStatus(((*stub).*method)(&context, request, &response));
  }

 private:
  Connection(std::string socket, std::shared_ptr<grpc::Channel> channel)
      : socket_(std::move(socket)), channel_(std::move(channel)) {}
  static void SetDeadline(grpc::ClientContext& context,
                          base::Deadline deadline);
  absl::Status ToStatus(const grpc::Status& status) const;

  std::string socket_;
  std::shared_ptr<grpc::Channel> channel_;
};

// Wipes a bytes field of a message when the scope ends: responses and requests
// with a plaintext in them.
class WipeAtEnd {
 public:
  explicit WipeAtEnd(std::string& field) : field_(field) {}
  ~WipeAtEnd() { base::Wipe(field_); }
  WipeAtEnd(const WipeAtEnd&) = delete;
  WipeAtEnd& operator=(const WipeAtEnd&) = delete;

 private:
  std::string& field_;
};

}  // namespace kek::cli
