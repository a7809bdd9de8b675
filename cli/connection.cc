// SPDX-License-Identifier: Apache-2.0
#include "cli/connection.h"

#include <fcntl.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/support/channel_arguments.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "cli/exit_code.h"

namespace kek::cli {
namespace {

absl::Status ConnectError(const std::string& socket, int error) {
  const std::string message =
      absl::StrCat("cannot connect to ", socket, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return WithExit(absl::UnavailableError(absl::StrCat(
                          "nobody listens at ", socket, ": no such socket")),
                      ExitCode::kUnavailable);
    case EACCES:
    case EPERM:
      return WithHint(absl::PermissionDeniedError(message),
                      "run this as root or as a user the socket's owner, group "
                      "and mode let in");
    case ECONNREFUSED:
      return absl::UnavailableError(
          absl::StrCat("nobody listens at ", socket,
                       ": the socket is there, its process is not"));
    case EAGAIN:
    case EINPROGRESS:
      return absl::DeadlineExceededError(
          absl::StrCat("the process at ", socket, " accepts no connection"));
    default:
      return absl::UnavailableError(message);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Connection>> Connection::Open(
    const std::string& socket_path, base::Deadline deadline) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (socket_path.empty() || socket_path.size() >= sizeof(address.sun_path) ||
      (socket_path[0] != '/' && socket_path[0] != '@' &&
       socket_path[0] != '.')) {
    return WithHint(
        absl::InvalidArgumentError(absl::StrCat(
            "'", socket_path.substr(0, 128), "' is not the path of a socket")),
        "give an absolute path of at most 107 bytes, or @name for an abstract "
        "socket");
  }
  std::memcpy(address.sun_path, socket_path.data(), socket_path.size());
  socklen_t length = sizeof(address);
  if (socket_path[0] == '@') {
    address.sun_path[0] = '\0';
    length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) +
                                    socket_path.size());
  }
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return ConnectError(socket_path, errno);
  bool owned = true;
  const absl::Cleanup close_it = [&] {
    if (owned) close(fd);
  };
  // A full backlog makes connect() wait, for SO_SNDTIMEO at most.
  const auto left = std::chrono::duration_cast<std::chrono::microseconds>(
      deadline - std::chrono::steady_clock::now());
  if (left.count() <= 0) return ConnectError(socket_path, EAGAIN);
  timeval timeout = {};
  timeout.tv_sec = left.count() / 1000000;
  timeout.tv_usec = left.count() % 1000000;
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
  int result;
  do {
    result = connect(fd, reinterpret_cast<sockaddr*>(&address), length);
  } while (result != 0 && errno == EINTR);
  if (result != 0) return ConnectError(socket_path, errno);
  timeout = {};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);

  grpc::ChannelArguments arguments;
  arguments.SetString(GRPC_ARG_DEFAULT_AUTHORITY, "localhost");
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  auto channel =
      grpc::CreateCustomInsecureChannelFromFd("localhost", fd, arguments);
  owned = false;  // the channel owns it
  return std::unique_ptr<Connection>(
      new Connection(socket_path, std::move(channel)));
}

void Connection::SetDeadline(grpc::ClientContext& context,
                             base::Deadline deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      deadline - std::chrono::steady_clock::now());
  context.set_deadline(gpr_time_add(
      gpr_now(GPR_CLOCK_MONOTONIC),
      gpr_time_from_millis(left.count() > 0 ? left.count() : 0, GPR_TIMESPAN)));
}

absl::Status Connection::ToStatus(const grpc::Status& status) const {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  if (code == absl::StatusCode::kUnavailable &&
      (status.error_message().empty() ||
       status.error_message() == "Socket closed" ||
       status.error_message().find("onnection reset") != std::string::npos ||
       status.error_message().find("failed to connect to all addresses") !=
           std::string::npos)) {
    // The server closed it: it stopped, or it does not serve this user.
    return WithHint(
        absl::UnavailableError(
            absl::StrCat("the process at ", socket_,
                         " closed the connection without an answer")),
        "it has stopped, or it does not serve this user (kekd: allowed_users "
        "and allowed_groups of the socket; its log says which)");
  }
  if (code == absl::StatusCode::kDeadlineExceeded &&
      status.error_message() == "Deadline Exceeded") {
    return absl::DeadlineExceededError(
        absl::StrCat("no answer from ", socket_, " in time"));
  }
  return absl::Status(code, status.error_message());
}

}  // namespace kek::cli
