// SPDX-License-Identifier: Apache-2.0
#include "service/connections.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace kek::service {
namespace {

constexpr int kFirstNumber = 1024;
constexpr int kMaxNumber = 1 << 18;
constexpr std::chrono::seconds kSweepPeriod{1};

// Raises the soft limit of open files to the hard one and returns it.
int RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return kFirstNumber;
  if (limit.rlim_cur != limit.rlim_max) {
    rlimit raised = limit;
    raised.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  }
  return static_cast<int>(std::min<rlim_t>(limit.rlim_cur, kMaxNumber));
}

// The socket's inode; nullopt when fd is closed.
std::optional<ino_t> InodeOf(int fd) {
  struct stat status;
  if (fstat(fd, &status) != 0) return std::nullopt;
  return status.st_ino;
}

}  // namespace

struct Connections::Call::State {
  core::Caller caller;
  Origin origin;
  PeerCredentials peer;
};

Connections::Call::Call(Call&&) noexcept = default;
Connections::Call& Connections::Call::operator=(Call&&) noexcept = default;
Connections::Call::~Call() = default;
const core::Caller& Connections::Call::caller() const { return state_->caller; }
const Connections::Origin& Connections::Call::origin() const {
  return state_->origin;
}

class Connections::Table {
 public:
  explicit Table(Options options) : options_(std::move(options)) {
    if (options_.now == nullptr) {
      options_.now = [] { return std::chrono::steady_clock::now(); };
    }
    if (options_.last == 0) options_.last = RaiseDescriptorLimit();
    if (options_.first == 0) {
      options_.first =
          options_.last >= 4 * kFirstNumber ? kFirstNumber : options_.last / 2;
    }
    next_ = options_.first;
    swept_ = options_.now();
  }

  absl::StatusOr<int> Add(int fd, std::shared_ptr<const Call::State> state) {
    const std::optional<ino_t> inode = InodeOf(fd);
    if (!inode.has_value()) {
      return absl::InternalError("connection's descriptor is not open");
    }
    base::MutexLock lock(mu_);
    const base::Deadline now = options_.now();
    if (open_ >= options_.max_connections || now - swept_ >= kSweepPeriod) {
      Sweep(now);
    }
    if (open_ >= options_.max_connections) {
      return absl::ResourceExhaustedError(
          absl::StrCat(open_, " connections are open"));
    }
    absl::StatusOr<int> number = TakeNumber(fd);
    if (!number.ok() && now != swept_) {
      Sweep(now);
      number = TakeNumber(fd);
    }
    if (!number.ok()) return number.status();
    entries_[*number] = {*inode, std::move(state), std::nullopt, false};
    ++open_;
    return number;
  }

  absl::StatusOr<std::shared_ptr<const Call::State>> Find(int number) {
    base::MutexLock lock(mu_);
    const auto it = entries_.find(number);
    if (it == entries_.end()) {
      return absl::UnauthenticatedError("the connection is not known");
    }
    if (it->second.revoked) {
      return absl::PermissionDeniedError(
          "this user is not allowed on this socket any more");
    }
    return it->second.state;
  }

  void Revoke(absl::string_view socket,
              const std::function<bool(const PeerCredentials&)>& keep) {
    base::MutexLock lock(mu_);
    for (auto& [number, entry] : entries_) {
      if (entry.state->origin.socket == socket) {
        entry.revoked = !keep(entry.state->peer);
      }
    }
  }

  size_t open() {
    base::MutexLock lock(mu_);
    Sweep(options_.now());
    return open_;
  }

 private:
  struct Entry {
    ino_t inode = 0;
    std::shared_ptr<const Call::State> state;
    std::optional<base::Deadline> closed;  // when it was seen to be
    bool revoked = false;
  };

  // Duplicates fd to the next number that is not in the table and that the
  // kernel has free.
  absl::StatusOr<int> TakeNumber(int fd) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    int candidate = next_;
    bool wrapped = false;
    while (true) {
      auto it = entries_.lower_bound(candidate);
      while (it != entries_.end() && it->first == candidate) {
        ++candidate;
        ++it;
      }
      int number = -1;
      if (candidate < options_.last) {
        number = fcntl(fd, F_DUPFD_CLOEXEC, candidate);
        // Past the limit; EMFILE when every number up to it is open.
        if (number < 0 && errno != EINVAL && errno != EMFILE) {
          return absl::InternalError(absl::StrCat(
              "cannot duplicate a descriptor: ", std::strerror(errno)));
        }
      }
      if (number < 0 || number >= options_.last) {
        if (number >= 0) close(number);
        if (wrapped) {
          return absl::ResourceExhaustedError(
              "no descriptor number is free for a connection");
        }
        wrapped = true;
        candidate = options_.first;
        continue;
      }
      if (!entries_.contains(number)) {
        next_ = number + 1;
        return number;
      }
      // The kernel skipped numbers in use elsewhere, onto one of ours that is
      // closed and in quarantine.
      close(number);
      candidate = number + 1;
    }
  }

  void Sweep(base::Deadline now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    swept_ = now;
    for (auto it = entries_.begin(); it != entries_.end();) {
      Entry& entry = it->second;
      if (!entry.closed.has_value() && InodeOf(it->first) != entry.inode) {
        entry.closed = now;
        --open_;
      }
      // New references are only made under mu_, so a count of one stays one.
      if (entry.closed.has_value() &&
          now - *entry.closed >= options_.quarantine &&
          entry.state.use_count() == 1) {
        it = entries_.erase(it);
      } else {
        ++it;
      }
    }
  }

  Options options_;  // constant after construction

  base::Mutex mu_;
  std::map<int, Entry> entries_ ABSL_GUARDED_BY(mu_);
  size_t open_ ABSL_GUARDED_BY(mu_) = 0;  // entries without closed
  int next_ ABSL_GUARDED_BY(mu_) = 0;
  base::Deadline swept_ ABSL_GUARDED_BY(mu_);
};

Connections::Connections() : Connections(Options()) {}
Connections::Connections(Options options)
    : table_(std::make_shared<Table>(std::move(options))) {}
Connections::~Connections() = default;

absl::StatusOr<int> Connections::Add(int fd, const PeerCredentials& peer,
                                     const Origin& origin) {
  auto state = std::make_shared<Call::State>();
  core::Caller& caller = state->caller;
  caller.principals.push_back(absl::StrCat("unix:uid:", peer.uid));
  std::vector<uint32_t> groups = peer.groups;
  groups.insert(groups.begin(), peer.gid);
  for (size_t i = 0; i < groups.size(); ++i) {
    if (i > 0 && groups[i] == peer.gid) continue;
    caller.principals.push_back(absl::StrCat("unix:gid:", groups[i]));
  }
  if (!origin.binding.empty()) {
    caller.principals.push_back(absl::StrCat("kubernetes:", origin.binding));
  }
  caller.authenticator = core::Authenticator::kPeerCredentials;
  caller.front_end = origin.front_end;
  caller.peer = absl::StrCat("unix:", origin.socket, " pid ", peer.pid);
  caller.binding = origin.binding;
  state->origin = origin;
  state->peer = peer;

  absl::StatusOr<int> number = table_->Add(fd, std::move(state));
  close(fd);
  return number;
}

absl::StatusOr<Connections::Call> Connections::Find(
    absl::string_view peer) const {
  constexpr absl::string_view kPrefix = "fd:";
  int number = 0;
  if (peer.substr(0, kPrefix.size()) != kPrefix ||
      !absl::SimpleAtoi(peer.substr(kPrefix.size()), &number)) {
    return absl::UnauthenticatedError(
        "the connection was not accepted by kekd's own listener");
  }
  absl::StatusOr<std::shared_ptr<const Call::State>> state =
      table_->Find(number);
  if (!state.ok()) return state.status();
  Call call;
  call.state_ = *std::move(state);
  return call;
}

void Connections::Revoke(
    absl::string_view socket,
    const std::function<bool(const PeerCredentials&)>& keep) {
  table_->Revoke(socket, keep);
}

size_t Connections::open() const { return table_->open(); }

}  // namespace kek::service
