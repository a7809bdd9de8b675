// SPDX-License-Identifier: Apache-2.0
#include "service/unix_listener.h"

#include <fcntl.h>
#include <grp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/sync.h"
#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "gtest/gtest.h"

namespace kek::service {
namespace {

using ::kek::base::testing::StatusIs;
using ::kek::base::testing::TempDir;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

int Connect(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const bool abstract = path[0] == '@';
  std::memcpy(address.sun_path, path.data(), path.size());
  if (abstract) address.sun_path[0] = '\0';
  const socklen_t size =
      offsetof(sockaddr_un, sun_path) + path.size() + (abstract ? 0 : 1);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), size) != 0) {
    close(fd);
    return -1;
  }
  return fd;
}

// True when the other side closed the connection without a byte.
bool ClosedByPeer(int fd) {
  timeval limit{.tv_sec = 20, .tv_usec = 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  char byte;
  return read(fd, &byte, 1) == 0;
}

// What the callbacks were told.
class Ears {
 public:
  ~Ears() {
    for (int fd : fds_) close(fd);
  }
  UnixListener::Accepted accepted() {
    return [this](int fd, const PeerCredentials& peer) {
      base::MutexLock lock(mu_);
      fds_.push_back(fd);
      accepted_.push_back(peer);
      changed_.NotifyAll();
    };
  }
  UnixListener::Refused refused() {
    return [this](const PeerCredentials& peer, int) {
      base::MutexLock lock(mu_);
      refused_.push_back(peer);
      changed_.NotifyAll();
    };
  }
  std::optional<PeerCredentials> WaitAccepted(size_t n) {
    return Wait(accepted_, n);
  }
  std::optional<PeerCredentials> WaitRefused(size_t n) {
    return Wait(refused_, n);
  }

 private:
  std::optional<PeerCredentials> Wait(const std::vector<PeerCredentials>& list,
                                      size_t n) {
    const base::Deadline deadline =
        base::DeadlineAfter(std::chrono::seconds(20));
    base::MutexLock lock(mu_);
    while (list.size() < n) {
      if (!changed_.WaitUntil(mu_, deadline)) return std::nullopt;
    }
    return list[n - 1];
  }
  base::Mutex mu_;
  base::CondVar changed_;
  std::vector<PeerCredentials> accepted_, refused_;
  std::vector<int> fds_;
};

class UnixListenerTest : public ::testing::Test {
 protected:
  UnixListener::Options Options(const std::string& path) {
    UnixListener::Options options;
    options.path = path;
    options.access.uids = {getuid()};
    return options;
  }
  static mode_t ModeOf(const std::string& path) {
    struct stat status {};
    EXPECT_EQ(lstat(path.c_str(), &status), 0) << path;
    return status.st_mode & 07777;
  }
  TempDir dir_;
  const std::string path_ = dir_.File("kekd.sock");
};

TEST_F(UnixListenerTest, AcceptsPeersOnItsListAndNamesThem) {
  Ears ears;  // outlives the listener, which calls it
  ASSERT_OK_AND_ASSIGN(auto listener, UnixListener::Open(Options(path_)));
  listener->Start(ears.accepted(), ears.refused());

  const int client = Connect(path_);
  ASSERT_GE(client, 0);

  const auto peer = ears.WaitAccepted(1);
  ASSERT_TRUE(peer.has_value());
  EXPECT_EQ(peer->uid, getuid());
  EXPECT_EQ(peer->gid, getgid());
  EXPECT_EQ(peer->pid, getpid());
  close(client);
}

TEST_F(UnixListenerTest, K8s40PeerThatIsNotOnTheListIsClosedUnreadAndReported) {
  Ears ears;  // outlives the listener, which calls it
  base::Metrics metrics;
  UnixListener::Options options = Options(path_);
  options.access.uids = {getuid() + 1};
  options.metrics = &metrics;
  ASSERT_OK_AND_ASSIGN(auto listener, UnixListener::Open(options));
  listener->Start(ears.accepted(), ears.refused());

  const int client = Connect(path_);
  ASSERT_GE(client, 0);

  EXPECT_TRUE(ClosedByPeer(client));
  const auto peer = ears.WaitRefused(1);
  ASSERT_TRUE(peer.has_value());
  EXPECT_EQ(peer->uid, getuid());
  EXPECT_EQ(
      metrics
          .GetCounter("kekd_connections_refused_total", "", {{"socket", path_}})
          ->Value(),
      1);
  close(client);
}

TEST_F(UnixListenerTest, GroupsAdmitToo) {
  Ears ears;  // outlives the listener, which calls it
  UnixListener::Options options = Options(path_);
  options.access.uids = {};
  options.access.gids = {getgid()};
  ASSERT_OK_AND_ASSIGN(auto listener, UnixListener::Open(options));
  listener->Start(ears.accepted(), ears.refused());
  const int client = Connect(path_);
  EXPECT_TRUE(ears.WaitAccepted(1).has_value());
  close(client);
}

TEST_F(UnixListenerTest, PeerWithManySupplementaryGroupsIsReadWhole) {
  Ears ears;  // outlives the listener, which calls it
  if (geteuid() != 0) GTEST_SKIP() << "needs root to set groups";
  UnixListener::Options options = Options(path_);
  options.access.uids = {};
  options.access.gids = {5299};
  options.access.mode = 0666;
  chmod(dir_.path().c_str(), 0755);
  ASSERT_OK_AND_ASSIGN(auto listener, UnixListener::Open(options));
  listener->Start(ears.accepted(), ears.refused());

  const pid_t child = fork();
  if (child == 0) {
    std::vector<gid_t> groups;
    for (gid_t g = 5000; g < 5300; ++g) groups.push_back(g);
    if (setgroups(groups.size(), groups.data()) != 0 || setgid(5001) != 0 ||
        setuid(5001) != 0) {
      _exit(2);
    }
    const int fd = Connect(path_);
    _exit(fd >= 0 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  const auto peer = ears.WaitAccepted(1);
  ASSERT_TRUE(peer.has_value());
  EXPECT_EQ(peer->uid, 5001u);
  EXPECT_EQ(peer->gid, 5001u);
  EXPECT_EQ(peer->groups.size(), 300u);
  EXPECT_THAT(peer->groups, Contains(5299u));
}

TEST_F(UnixListenerTest, SetAccessHoldsForTheNextConnection) {
  Ears ears;  // outlives the listener, which calls it
  ASSERT_OK_AND_ASSIGN(auto listener, UnixListener::Open(Options(path_)));
  listener->Start(ears.accepted(), ears.refused());
  SocketAccess nobody;
  listener->SetAccess(nobody);
  const int client = Connect(path_);
  EXPECT_TRUE(ClosedByPeer(client));
  close(client);
}

TEST_F(UnixListenerTest, K8s39FileHasItsModeAndGroupAndLeavesNoTrace) {
  UnixListener::Options options = Options(path_);
  options.access.mode = 0660;
  options.access.group = getgid();
  const mode_t before = umask(0);
  auto listener = UnixListener::Open(options);
  umask(before);
  ASSERT_OK(listener);

  EXPECT_EQ(ModeOf(path_), 0660u);
  EXPECT_EQ(ModeOf(path_ + ".lock"), 0600u);
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir_.path())) {
    names.push_back(entry.path().filename());
  }
  EXPECT_THAT(names,
              ::testing::UnorderedElementsAre("kekd.sock", "kekd.sock.lock"));

  listener->reset();
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_TRUE(std::filesystem::exists(path_ + ".lock"));
}

TEST_F(UnixListenerTest, OwnerIsSetBeforeTheFileAppears) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to give a file away";
  UnixListener::Options options = Options(path_);
  options.access.owner = 5001;
  options.access.group = 5002;
  ASSERT_OK_AND_ASSIGN(auto listener, UnixListener::Open(options));
  struct stat status {};
  ASSERT_EQ(lstat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, 5001u);
  EXPECT_EQ(status.st_gid, 5002u);
}

TEST_F(UnixListenerTest, K8s39ForeignFileAtThePathIsNeverDeleted) {
  dir_.Write("kekd.sock", "precious");
  EXPECT_THAT(UnixListener::Open(Options(path_)),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr(path_), HasSubstr("not a socket"),
                             HasSubstr("move it away"))));
  EXPECT_EQ(TempDir::Read(path_), "precious");

  const std::string link = dir_.File("link.sock");
  ASSERT_EQ(symlink("/etc/passwd", link.c_str()), 0);
  EXPECT_THAT(UnixListener::Open(Options(link)),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("not a socket")));
  EXPECT_TRUE(std::filesystem::is_symlink(link));
}

TEST_F(UnixListenerTest, K8s32SecondInstanceIsRefusedAndTheFirstLivesOn) {
  Ears ears;  // outlives the listener, which calls it
  ASSERT_OK_AND_ASSIGN(auto first, UnixListener::Open(Options(path_)));
  first->Start(ears.accepted(), ears.refused());

  EXPECT_THAT(UnixListener::Open(Options(path_)),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr(path_), HasSubstr("another kekd"),
                             HasSubstr(absl::StrCat("pid ", getpid())))));

  const int client = Connect(path_);
  EXPECT_TRUE(ears.WaitAccepted(1).has_value());
  close(client);
}

TEST_F(UnixListenerTest, LiveSocketOfAnotherProgramIsNotStolen) {
  const int other = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path_.c_str(), sizeof(address.sun_path) - 1);
  ASSERT_EQ(bind(other, reinterpret_cast<sockaddr*>(&address), sizeof(address)),
            0);
  ASSERT_EQ(listen(other, 1), 0);

  EXPECT_THAT(UnixListener::Open(Options(path_)),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("another program")));
  const int client = Connect(path_);
  EXPECT_GE(client, 0);
  close(client);
  close(other);
}

TEST_F(UnixListenerTest, K8s32StaleSocketOfAKilledProcessIsReplaced) {
  Ears ears;  // outlives the listener, which calls it
  const pid_t child = fork();
  if (child == 0) {
    auto listener = UnixListener::Open(Options(path_));
    _exit(listener.ok() ? 0 : 1);  // as if killed: nothing is cleaned up
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  ASSERT_TRUE(std::filesystem::is_socket(path_));
  ASSERT_LT(Connect(path_), 0);

  ASSERT_OK_AND_ASSIGN(auto listener, UnixListener::Open(Options(path_)));
  listener->Start(ears.accepted(), ears.refused());
  const int client = Connect(path_);
  EXPECT_TRUE(ears.WaitAccepted(1).has_value());
  close(client);
}

TEST_F(UnixListenerTest, DirectoryOpenToOthersOrMissingIsRefused) {
  ASSERT_EQ(chmod(dir_.path().c_str(), 0770), 0);
  EXPECT_THAT(UnixListener::Open(Options(path_)),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("written to by others")));
  ASSERT_EQ(chmod(dir_.path().c_str(), 01777), 0);
  EXPECT_OK(UnixListener::Open(Options(path_)));
  EXPECT_THAT(UnixListener::Open(Options(dir_.File("none/kekd.sock"))),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("no directory"), HasSubstr("create"))));
  if (geteuid() != 0) return;
  ASSERT_EQ(chown(dir_.path().c_str(), 5001, 5001), 0);
  EXPECT_THAT(UnixListener::Open(Options(path_)),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("belongs to uid 5001")));
}

TEST_F(UnixListenerTest, PathAsLongAsAnAddressTakesIsServedAndLongerRefused) {
  Ears ears;  // outlives the listener, which calls it
  const size_t room =
      sizeof(sockaddr_un::sun_path) - 1 - dir_.path().size() - 1;
  const std::string longest = dir_.File(std::string(room, 's'));
  ASSERT_OK_AND_ASSIGN(auto listener, UnixListener::Open(Options(longest)));
  listener->Start(ears.accepted(), ears.refused());
  const int client = Connect(longest);
  EXPECT_TRUE(ears.WaitAccepted(1).has_value());
  close(client);
  EXPECT_THAT(UnixListener::Open(Options(longest + "s")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("108")));
}

TEST_F(UnixListenerTest, K8s03AbstractSocketHasNoFileAndJudgesPeersToo) {
  Ears ears;  // outlives the listener, which calls it
  const std::string name = absl::StrCat("@kekd-test-", getpid());
  UnixListener::Options options = Options(name);
  ASSERT_OK_AND_ASSIGN(auto listener, UnixListener::Open(options));
  listener->Start(ears.accepted(), ears.refused());
  const int client = Connect(name);
  ASSERT_GE(client, 0);
  EXPECT_TRUE(ears.WaitAccepted(1).has_value());
  EXPECT_THAT(UnixListener::Open(options),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("another program")));
  listener->SetAccess({});
  const int stranger = Connect(name);
  EXPECT_TRUE(ClosedByPeer(stranger));
  close(client);
  close(stranger);
}

TEST_F(UnixListenerTest, InheritedSocketIsServedAndItsFileStays) {
  const int passed = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path_.c_str(), sizeof(address.sun_path) - 1);
  ASSERT_EQ(
      bind(passed, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(listen(passed, 8), 0);
  // A connection that came while nobody ran is answered too.
  const int early = Connect(path_);

  UnixListener::Options wrong = Options(path_ + "2");
  wrong.inherited_fd = dup(passed);
  EXPECT_THAT(UnixListener::Open(wrong),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr(path_), HasSubstr("ListenStream="))));

  UnixListener::Options options = Options(path_);
  options.inherited_fd = dup(passed);
  {
    Ears ears;  // outlives the listener, which calls it
    ASSERT_OK_AND_ASSIGN(auto listener, UnixListener::Open(options));
    listener->Start(ears.accepted(), ears.refused());
    EXPECT_TRUE(ears.WaitAccepted(1).has_value());
  }
  EXPECT_TRUE(std::filesystem::is_socket(path_));
  const int next = Connect(path_);
  EXPECT_GE(next, 0);  // waits in the backlog for the next kekd
  close(early);
  close(next);
  close(passed);
}

TEST_F(UnixListenerTest, DescriptorThatIsNoListeningSocketIsRefused) {
  UnixListener::Options options = Options(path_);
  options.inherited_fd = open("/dev/null", O_RDWR);
  EXPECT_THAT(UnixListener::Open(options),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("not a listening Unix stream socket")));
}

TEST(SocketAccessTest, AdmitsByUidPrimaryGroupOrSupplementaryGroup) {
  const SocketAccess access{.uids = {1}, .gids = {20}};
  EXPECT_TRUE(access.Admits({.uid = 1, .gid = 9}));
  EXPECT_TRUE(access.Admits({.uid = 2, .gid = 20}));
  EXPECT_TRUE(access.Admits({.uid = 2, .gid = 9, .groups = {8, 20}}));
  EXPECT_FALSE(access.Admits({.uid = 20, .gid = 1, .groups = {1}}));
}

}  // namespace
}  // namespace kek::service
