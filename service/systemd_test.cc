// SPDX-License-Identifier: Apache-2.0
#include "service/systemd.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "gtest/gtest.h"

namespace kek::service {
namespace {

using ::testing::ElementsAre;
using ::testing::MatchesRegex;
using ::testing::Pair;

// The other end of sd_notify.
class NotifySocket {
 public:
  NotifySocket() {
    const std::string path = dir_.File("notify");
    fd_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)),
              0);
    setenv("NOTIFY_SOCKET", path.c_str(), 1);
  }
  ~NotifySocket() {
    unsetenv("NOTIFY_SOCKET");
    close(fd_);
  }
  std::string Next() {
    char buffer[512];
    const ssize_t size = recv(fd_, buffer, sizeof(buffer), MSG_DONTWAIT);
    return size < 0 ? "" : std::string(buffer, size);
  }

 private:
  base::testing::TempDir dir_;
  int fd_ = -1;
};

TEST(SystemdTest, TellsWhatSystemdWaitsFor) {
  NotifySocket systemd;
  NotifyReady("serving");
  EXPECT_EQ(systemd.Next(), "READY=1\nSTATUS=serving");
  NotifyReloading();
  EXPECT_THAT(systemd.Next(),
              MatchesRegex("RELOADING=1\nMONOTONIC_USEC=[0-9]+"));
  NotifyReloaded("reloaded");
  EXPECT_EQ(systemd.Next(), "READY=1\nSTATUS=reloaded");
  NotifyWatchdog();
  EXPECT_EQ(systemd.Next(), "WATCHDOG=1");
  NotifyStopping();
  EXPECT_EQ(systemd.Next(), "STOPPING=1\nSTATUS=stopping");
}

TEST(SystemdTest, WithoutSystemdNothingHappens) {
  unsetenv("NOTIFY_SOCKET");
  NotifyReady("serving");
  EXPECT_EQ(WatchdogTimeout(), std::nullopt);
  EXPECT_THAT(*TakePassedSockets(), ::testing::IsEmpty());
}

TEST(SystemdTest, WatchdogTimeoutIsThisProcessesOwn) {
  setenv("WATCHDOG_USEC", "15000000", 1);
  setenv("WATCHDOG_PID", absl::StrCat(getpid()).c_str(), 1);
  EXPECT_EQ(WatchdogTimeout(), absl::Seconds(15));
  setenv("WATCHDOG_PID", "1", 1);
  EXPECT_EQ(WatchdogTimeout(), std::nullopt);
  unsetenv("WATCHDOG_USEC");
  unsetenv("WATCHDOG_PID");
}

TEST(SystemdTest, PassedSocketsAreTakenByName) {
  // In a child: descriptors 3 and 4 belong to the test program here.
  const auto run = [](const char* names) {
    const pid_t child = fork();
    if (child == 0) {
      const int null = open("/dev/null", O_RDONLY);
      dup2(null, 3);
      dup2(null, 4);
      setenv("LISTEN_PID", absl::StrCat(getpid()).c_str(), 1);
      setenv("LISTEN_FDS", "2", 1);
      setenv("LISTEN_FDNAMES", names, 1);
      const auto sockets = TakePassedSockets();
      if (!sockets.ok()) _exit(1);
      const std::map<std::string, int> expected = {{"admin", 3},
                                                   {"secrets", 4}};
      _exit(*sockets == expected && std::getenv("LISTEN_FDS") == nullptr ? 0
                                                                         : 2);
    }
    int status = -1;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  };
  EXPECT_EQ(run("admin:secrets"), 0);
  EXPECT_EQ(run("admin:admin"), 1);
}

}  // namespace
}  // namespace kek::service
