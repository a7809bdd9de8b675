// SPDX-License-Identifier: Apache-2.0
#include "service/unix_listener.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <map>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync.h"

namespace kek::service {
namespace {

constexpr std::chrono::seconds kRefusalPeriod{10};
constexpr size_t kMaxRefusedUids = 1024;

// Closes on destruction.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

std::string Reason() { return std::strerror(errno); }

absl::Status ErrnoStatus(absl::string_view what) {
  const std::string text = absl::StrCat(what, ": ", Reason());
  return errno == EACCES || errno == EPERM ? absl::PermissionDeniedError(text)
                                           : absl::UnavailableError(text);
}

// The address of a path, or of an abstract socket.
struct Address {
  sockaddr_un addr{};
  socklen_t size = 0;
  const sockaddr* get() const {
    return reinterpret_cast<const sockaddr*>(&addr);
  }
};

absl::StatusOr<Address> MakeAddress(absl::string_view path) {
  Address address;
  address.addr.sun_family = AF_UNIX;
  const bool abstract = absl::ConsumePrefix(&path, "@");
  // A path needs its terminating NUL, an abstract name the NUL before it.
  if (path.empty() || path.size() + 1 > sizeof(address.addr.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "socket \"", path, "\": the path must have 1 to ",
        sizeof(address.addr.sun_path) - 1, " bytes, and has ", path.size()));
  }
  std::memcpy(address.addr.sun_path + (abstract ? 1 : 0), path.data(),
              path.size());
  address.size =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
  return address;
}

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == 0 ? "/" : path.substr(0, slash);
}
std::string NameOf(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

// Opens the socket's directory after making sure that nobody else can put
// something into it or take something out.
absl::StatusOr<Descriptor> OpenDirectory(const std::string& path) {
  const std::string directory = DirectoryOf(path);
  Descriptor fd(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) {
    if (errno == ENOENT || errno == ENOTDIR) {
      return absl::FailedPreconditionError(
          absl::StrCat("socket ", path, ": there is no directory ", directory,
                       "; create it, owned by kekd's user, with mode 0750"));
    }
    return ErrnoStatus(
        absl::StrCat("socket ", path, ": cannot open directory ", directory));
  }
  struct stat status;
  if (fstat(fd.get(), &status) != 0) {
    return ErrnoStatus(absl::StrCat("cannot stat ", directory));
  }
  if (status.st_uid != 0 && status.st_uid != geteuid()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "socket ", path, ": directory ", directory, " belongs to uid ",
        status.st_uid, ", who could replace the socket; it must belong to ",
        "kekd's user or root"));
  }
  if ((status.st_mode & (S_IWGRP | S_IWOTH)) != 0 &&
      (status.st_mode & S_ISVTX) == 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "socket ", path, ": directory ", directory,
        " can be written to by others, who could replace the socket; use a "
        "directory of kekd's own with mode 0750 or 0700"));
  }
  return fd;
}

// Takes <path>.lock for the life of the process.
absl::StatusOr<Descriptor> TakeLock(const std::string& path, int directory) {
  const std::string name = NameOf(path) + ".lock";
  Descriptor lock(openat(directory, name.c_str(),
                         O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (lock.get() < 0) {
    return ErrnoStatus(absl::StrCat("cannot create lock file ", path, ".lock"));
  }
  struct stat status;
  if (fstat(lock.get(), &status) != 0 || !S_ISREG(status.st_mode) ||
      (status.st_uid != geteuid() && status.st_uid != 0)) {
    return absl::FailedPreconditionError(
        absl::StrCat("lock file ", path,
                     ".lock is not a regular file of kekd's user; remove it"));
  }
  if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    char holder[32] = {};
    const ssize_t size = pread(lock.get(), holder, sizeof(holder) - 1, 0);
    int pid = 0;
    const bool known =
        size > 0 && absl::SimpleAtoi(absl::string_view(holder, size), &pid);
    return absl::FailedPreconditionError(
        absl::StrCat("socket ", path, " is served by another kekd",
                     known ? absl::StrCat(" (pid ", pid, ")") : std::string(),
                     "; stop that one, or configure another path"));
  }
  const std::string pid = absl::StrCat(getpid(), "\n");
  if (ftruncate(lock.get(), 0) != 0 ||
      pwrite(lock.get(), pid.data(), pid.size(), 0) < 0) {
    return ErrnoStatus(absl::StrCat("cannot write lock file ", path, ".lock"));
  }
  return lock;
}

// OK when path is free or a socket that nobody listens on.
absl::Status CheckReplaceable(const std::string& path, int directory) {
  struct stat status;
  if (fstatat(directory, NameOf(path).c_str(), &status, AT_SYMLINK_NOFOLLOW) !=
      0) {
    if (errno == ENOENT) return absl::OkStatus();
    return ErrnoStatus(absl::StrCat("cannot stat ", path));
  }
  if (!S_ISSOCK(status.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path,
                     " exists and is not a socket; kekd does not delete it: "
                     "move it away, or configure another path"));
  }
  ASSIGN_OR_RETURN(const Address address, MakeAddress(path));
  const Descriptor probe(
      socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (probe.get() < 0) return ErrnoStatus("cannot create a socket");
  // EAGAIN: somebody listens, and the backlog is full.
  if (connect(probe.get(), address.get(), address.size) == 0 ||
      errno == EAGAIN || errno == EINPROGRESS) {
    return absl::FailedPreconditionError(absl::StrCat(
        "socket ", path,
        " is served by another program; stop it, or configure another path"));
  }
  if (errno == ECONNREFUSED || errno == ENOENT) return absl::OkStatus();
  return ErrnoStatus(
      absl::StrCat("cannot tell whether socket ", path, " is in use"));
}

// Binds under a name of our own, so that the file has its final owner, group
// and mode before it takes its place. The mode set on the descriptor before
// bind is the mode the file is born with, less the umask.
absl::Status BindInPlace(int fd, const UnixListener::Options& options,
                         int directory) {
  const std::string& path = options.path;
  const std::string temporary =
      absl::StrCat(".", NameOf(path).substr(0, 64), ".", getpid());
  // Through /proc, because the longer name might not fit into an address.
  ASSIGN_OR_RETURN(
      const Address address,
      MakeAddress(absl::StrCat("/proc/self/fd/", directory, "/", temporary)));
  if (unlinkat(directory, temporary.c_str(), 0) != 0 && errno != ENOENT) {
    return ErrnoStatus(absl::StrCat("cannot create socket ", path));
  }
  if (fchmod(fd, 0600) != 0 || bind(fd, address.get(), address.size) != 0) {
    return ErrnoStatus(absl::StrCat("cannot create socket ", path));
  }
  absl::Status status;
  const SocketAccess& access = options.access;
  if ((access.owner.has_value() || access.group.has_value()) &&
      fchownat(directory, temporary.c_str(),
               access.owner.value_or(static_cast<uid_t>(-1)),
               access.group.value_or(static_cast<gid_t>(-1)),
               AT_SYMLINK_NOFOLLOW) != 0) {
    status = absl::PermissionDeniedError(absl::StrCat(
        "socket ", path, ": cannot set owner or group: ", Reason(),
        "; without privileges only a group that kekd's user is in can be set"));
  } else if (fchmodat(directory, temporary.c_str(), access.mode, 0) != 0) {
    status = ErrnoStatus(absl::StrCat("socket ", path, ": cannot set mode"));
  } else if (listen(fd, options.backlog) != 0) {
    status = ErrnoStatus(absl::StrCat("cannot listen on ", path));
  } else if (renameat(directory, temporary.c_str(), directory,
                      NameOf(path).c_str()) != 0) {
    status = ErrnoStatus(absl::StrCat("cannot create socket ", path));
  }
  if (!status.ok()) unlinkat(directory, temporary.c_str(), 0);
  return status;
}

absl::Status CheckInherited(const UnixListener::Options& options) {
  int listening = 0, type = 0;
  socklen_t size = sizeof(int);
  sockaddr_un bound{};
  socklen_t bound_size = sizeof(bound);
  ASSIGN_OR_RETURN(const Address expected, MakeAddress(options.path));
  if (getsockopt(options.inherited_fd, SOL_SOCKET, SO_ACCEPTCONN, &listening,
                 &size) != 0 ||
      getsockopt(options.inherited_fd, SOL_SOCKET, SO_TYPE, &type, &size) !=
          0 ||
      getsockname(options.inherited_fd, reinterpret_cast<sockaddr*>(&bound),
                  &bound_size) != 0 ||
      listening == 0 || type != SOCK_STREAM || bound.sun_family != AF_UNIX) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the descriptor that was passed in for ", options.path,
        " is not a listening Unix stream socket; use ListenStream= in the "
        "socket unit"));
  }
  if (std::memcmp(bound.sun_path, expected.addr.sun_path,
                  sizeof(bound.sun_path)) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the socket that was passed in is bound to ",
        bound.sun_path[0] == '\0'
            ? absl::StrCat("@", absl::string_view(bound.sun_path + 1))
            : std::string(bound.sun_path),
        ", but the configuration says ", options.path,
        "; make ListenStream= and the configuration agree"));
  }
  const int flags = fcntl(options.inherited_fd, F_GETFL);
  if (flags < 0 ||
      fcntl(options.inherited_fd, F_SETFL, flags | O_NONBLOCK) != 0 ||
      fcntl(options.inherited_fd, F_SETFD, FD_CLOEXEC) != 0) {
    return ErrnoStatus("cannot set up the socket that was passed in");
  }
  return absl::OkStatus();
}

}  // namespace

bool SocketAccess::Admits(const PeerCredentials& peer) const {
  const auto in = [](const std::vector<uint32_t>& list, uint32_t id) {
    return std::find(list.begin(), list.end(), id) != list.end();
  };
  if (in(uids, peer.uid) || in(gids, peer.gid)) return true;
  return std::any_of(peer.groups.begin(), peer.groups.end(),
                     [&](uint32_t group) { return in(gids, group); });
}

absl::StatusOr<PeerCredentials> ReadPeerCredentials(int fd) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot read a peer's credentials: ", Reason()));
  }
  PeerCredentials peer{.uid = credentials.uid,
                       .gid = credentials.gid,
                       .pid = credentials.pid,
                       .groups = {}};
  static_assert(sizeof(gid_t) == sizeof(uint32_t));
  peer.groups.resize(64);
  while (true) {
    size = static_cast<socklen_t>(peer.groups.size() * sizeof(gid_t));
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, peer.groups.data(), &size) ==
        0) {
      peer.groups.resize(size / sizeof(gid_t));
      return peer;
    }
    if (errno != ERANGE) {
      return absl::UnavailableError(
          absl::StrCat("cannot read a peer's groups: ", Reason()));
    }
    peer.groups.resize(size / sizeof(gid_t));
  }
}

class UnixListener::Socket {
 public:
  Socket(Options options, Descriptor fd, Descriptor directory, Descriptor lock)
      : options_(std::move(options)),
        fd_(std::move(fd)),
        directory_(std::move(directory)),
        lock_(std::move(lock)),
        stop_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        access_(options_.access) {
    if (options_.metrics != nullptr) {
      accepted_total_ = options_.metrics->GetCounter(
          "kekd_connections_accepted_total", "Connections let in, by socket.",
          {{"socket", options_.path}});
      refused_total_ = options_.metrics->GetCounter(
          "kekd_connections_refused_total",
          "Connections of users who are not on the socket's list.",
          {{"socket", options_.path}});
    }
  }
  ~Socket() { Stop(); }

  const std::string& path() const { return options_.path; }

  void Start(Accepted accepted, Refused refused) {
    on_accepted_ = std::move(accepted);
    on_refused_ = std::move(refused);
    thread_ = std::thread([this] { Accept(); });
  }

  void SetAccess(const SocketAccess& access) {
    base::MutexLock lock(mu_);
    access_ = access;
  }

  void Stop() {
    if (thread_.joinable()) {
      const uint64_t one = 1;
      // Cannot fail: the counter is far from its end.
      if (write(stop_.get(), &one, sizeof(one)) < 0) return;
      thread_.join();
    }
    if (fd_.get() < 0) return;
    // The lock is still held, so the file is ours.
    if (lock_.get() >= 0) {
      unlinkat(directory_.get(), NameOf(options_.path).c_str(), 0);
    }
    fd_ = Descriptor();
  }

 private:
  struct Refusals {
    base::Deadline told;
    int times = 0;  // since
  };

  void Accept() {
    int wait_ms = -1;
    while (true) {
      // While descriptors are short, only the stop is waited for.
      pollfd events[2] = {{stop_.get(), POLLIN, 0}, {fd_.get(), POLLIN, 0}};
      const int ready = poll(events, wait_ms < 0 ? 2 : 1, wait_ms);
      wait_ms = -1;
      if (ready > 0 && events[0].revents != 0) return;
      const int fd =
          accept4(fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
            errno == ENOBUFS) {
          base::LogError("cannot accept connections",
                         {{"socket", options_.path}, {"reason", Reason()}});
          wait_ms = 1000;
        }
        continue;
      }
      Judge(Descriptor(fd));
    }
  }

  void Judge(Descriptor fd) {
    const absl::StatusOr<PeerCredentials> peer = ReadPeerCredentials(fd.get());
    if (!peer.ok()) return;
    bool admitted = false;
    {
      base::MutexLock lock(mu_);
      admitted = access_.Admits(*peer);
    }
    if (!admitted) {
      fd = Descriptor();
      Refuse(*peer);
      return;
    }
    if (accepted_total_ != nullptr) accepted_total_->Increment();
    on_accepted_(fd.Release(), *peer);
  }

  void Refuse(const PeerCredentials& peer) {
    if (refused_total_ != nullptr) refused_total_->Increment();
    const base::Deadline now = std::chrono::steady_clock::now();
    auto it = refusals_.find(peer.uid);
    if (it == refusals_.end()) {
      if (refusals_.size() >= kMaxRefusedUids) {
        std::erase_if(refusals_, [&](const auto& entry) {
          return now - entry.second.told >= kRefusalPeriod;
        });
        if (refusals_.size() >= kMaxRefusedUids) return;
      }
      it = refusals_.emplace(peer.uid, Refusals{now, 1}).first;
    } else {
      ++it->second.times;
      if (now - it->second.told < kRefusalPeriod) return;
    }
    base::LogWarning("peer refused: not on the socket's list",
                     {{"socket", options_.path},
                      {"uid", peer.uid},
                      {"gid", peer.gid},
                      {"pid", peer.pid},
                      {"times", it->second.times}});
    if (on_refused_ != nullptr) on_refused_(peer, it->second.times);
    it->second = {now, 0};
  }

  const Options options_;
  Descriptor fd_;
  const Descriptor directory_;  // of a path; our own
  const Descriptor lock_;       // of a path; our own
  const Descriptor stop_;       // eventfd
  base::Metrics::Counter* accepted_total_ = nullptr;
  base::Metrics::Counter* refused_total_ = nullptr;

  base::Mutex mu_;
  SocketAccess access_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;
  // Of thread_ alone.
  Accepted on_accepted_;
  Refused on_refused_;
  std::map<uint32_t, Refusals> refusals_;
};

absl::StatusOr<std::unique_ptr<UnixListener>> UnixListener::Open(
    Options options) {
  if (options.inherited_fd >= 0) {
    Descriptor inherited(options.inherited_fd);
    RETURN_IF_ERROR(CheckInherited(options));
    return std::unique_ptr<UnixListener>(new UnixListener(
        std::make_unique<Socket>(std::move(options), std::move(inherited),
                                 Descriptor(), Descriptor())));
  }
  ASSIGN_OR_RETURN(const Address address, MakeAddress(options.path));
  Descriptor fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) return ErrnoStatus("cannot create a socket");
  if (options.path[0] == '@') {
    if (bind(fd.get(), address.get(), address.size) != 0) {
      if (errno == EADDRINUSE) {
        return absl::FailedPreconditionError(absl::StrCat(
            "socket ", options.path,
            " is served by another program; stop it, or configure another "
            "name"));
      }
      return ErrnoStatus(absl::StrCat("cannot bind socket ", options.path));
    }
    if (listen(fd.get(), options.backlog) != 0) {
      return ErrnoStatus(absl::StrCat("cannot listen on ", options.path));
    }
    return std::unique_ptr<UnixListener>(
        new UnixListener(std::make_unique<Socket>(
            std::move(options), std::move(fd), Descriptor(), Descriptor())));
  }
  ASSIGN_OR_RETURN(Descriptor directory, OpenDirectory(options.path));
  ASSIGN_OR_RETURN(Descriptor lock, TakeLock(options.path, directory.get()));
  RETURN_IF_ERROR(CheckReplaceable(options.path, directory.get()));
  RETURN_IF_ERROR(BindInPlace(fd.get(), options, directory.get()));
  return std::unique_ptr<UnixListener>(new UnixListener(
      std::make_unique<Socket>(std::move(options), std::move(fd),
                               std::move(directory), std::move(lock))));
}

UnixListener::UnixListener(std::unique_ptr<Socket> socket)
    : socket_(std::move(socket)) {}
UnixListener::~UnixListener() = default;

void UnixListener::Start(Accepted accepted, Refused refused) {
  socket_->Start(std::move(accepted), std::move(refused));
}
void UnixListener::SetAccess(const SocketAccess& access) {
  socket_->SetAccess(access);
}
void UnixListener::Stop() { socket_->Stop(); }
const std::string& UnixListener::path() const { return socket_->path(); }

}  // namespace kek::service
