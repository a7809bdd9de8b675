// SPDX-License-Identifier: Apache-2.0
#include "service/connections.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <optional>

#include "base/testing/matchers.h"
#include "gtest/gtest.h"

namespace kek::service {
namespace {

using ::kek::base::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kFirst = 900;

class ConnectionsTest : public ::testing::Test {
 protected:
  Connections::Options Options(int numbers, size_t max = 1024) {
    return {.max_connections = max,
            .first = kFirst,
            .last = kFirst + numbers,
            .now = [this] { return now_; }};
  }

  // One end of a new pair; the other is dropped.
  static int NewSocket() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    close(ends[1]);
    return ends[0];
  }

  absl::StatusOr<int> Add(Connections& connections, uint32_t uid = 1000) {
    return connections.Add(NewSocket(), {.uid = uid, .gid = 5, .pid = 42},
                           {core::FrontEnd::kAdmin, "", "/run/admin.sock"});
  }

  base::Deadline now_ = std::chrono::steady_clock::now();
};

TEST_F(ConnectionsTest, CallerCarriesUidGroupsAndBinding) {
  Connections connections(Options(4));

  ASSERT_OK_AND_ASSIGN(
      const int number,
      connections.Add(
          NewSocket(),
          {.uid = 1000, .gid = 100, .pid = 42, .groups = {4, 100, 27}},
          {core::FrontEnd::kKubernetesV2, "secrets", "/run/k.sock"}));

  EXPECT_EQ(number, kFirst);
  ASSERT_OK_AND_ASSIGN(const Connections::Call call,
                       connections.Find("fd:900"));
  const core::Caller& caller = call.caller();
  EXPECT_THAT(caller.principals,
              ElementsAre("unix:uid:1000", "unix:gid:100", "unix:gid:4",
                          "unix:gid:27", "kubernetes:secrets"));
  EXPECT_EQ(caller.authenticator, core::Authenticator::kPeerCredentials);
  EXPECT_EQ(caller.front_end, core::FrontEnd::kKubernetesV2);
  EXPECT_EQ(caller.peer, "unix:/run/k.sock pid 42");
  EXPECT_EQ(caller.binding, "secrets");
  EXPECT_EQ(call.origin().socket, "/run/k.sock");
  close(number);
}

TEST_F(ConnectionsTest, UnknownPeersAreUnauthenticated) {
  Connections connections(Options(4));
  for (const char* peer :
       {"", "fd:", "fd:900", "fd:x", "fd:900x", "ipv4:127.0.0.1:1", "unix:"}) {
    EXPECT_THAT(connections.Find(peer),
                StatusIs(absl::StatusCode::kUnauthenticated))
        << peer;
  }
}

TEST_F(ConnectionsTest, NumbersGoRoundAndRestInQuarantine) {
  Connections connections(Options(3));
  ASSERT_OK_AND_ASSIGN(const int first, Add(connections));
  close(first);
  EXPECT_EQ(connections.open(), 0u);
  // Free for the kernel, but not for us: the circle goes on.
  ASSERT_OK_AND_ASSIGN(const int second, Add(connections));
  EXPECT_EQ(second, kFirst + 1);
  ASSERT_OK_AND_ASSIGN(const int third, Add(connections));
  EXPECT_EQ(third, kFirst + 2);
  EXPECT_THAT(Add(connections), StatusIs(absl::StatusCode::kResourceExhausted));
  // Still the caller of a call that arrives late.
  EXPECT_OK(connections.Find("fd:900"));

  now_ += std::chrono::seconds(9);
  EXPECT_THAT(Add(connections), StatusIs(absl::StatusCode::kResourceExhausted));
  now_ += std::chrono::seconds(2);
  ASSERT_OK_AND_ASSIGN(const int again, Add(connections, 2000));
  EXPECT_EQ(again, first);
  EXPECT_EQ(connections.Find("fd:900")->caller().name(), "unix:uid:2000");
  close(second);
  close(third);
  close(again);
}

TEST_F(ConnectionsTest, NumberIsNotReusedWhileACallLives) {
  Connections connections(Options(1));
  ASSERT_OK_AND_ASSIGN(const int number, Add(connections));
  std::optional<Connections::Call> call(*connections.Find("fd:900"));
  close(number);
  EXPECT_EQ(connections.open(), 0u);

  now_ += std::chrono::hours(1);
  EXPECT_THAT(Add(connections), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(call->caller().name(), "unix:uid:1000");

  call.reset();
  now_ += std::chrono::seconds(2);
  ASSERT_OK_AND_ASSIGN(const int again, Add(connections));
  EXPECT_EQ(again, number);
  close(again);
}

TEST_F(ConnectionsTest, OpenConnectionOfAnotherOwnerIsNotMistakenForOurs) {
  Connections connections(Options(2));
  ASSERT_OK_AND_ASSIGN(const int number, Add(connections));
  close(number);
  // Somebody else in the process gets the number.
  const int foreign = NewSocket();
  ASSERT_EQ(dup2(foreign, number), number);
  EXPECT_EQ(connections.open(), 0u);

  now_ += std::chrono::seconds(11);
  EXPECT_EQ(connections.open(), 0u);
  ASSERT_OK_AND_ASSIGN(const int second, Add(connections));
  EXPECT_EQ(second, kFirst + 1);
  // The only other number is open elsewhere.
  EXPECT_THAT(Add(connections), StatusIs(absl::StatusCode::kResourceExhausted));
  close(foreign);
  close(number);
  close(second);
}

TEST_F(ConnectionsTest, CapCountsOpenConnectionsOnly) {
  Connections connections(Options(8, 2));
  ASSERT_OK_AND_ASSIGN(const int first, Add(connections));
  ASSERT_OK_AND_ASSIGN(const int second, Add(connections));
  EXPECT_THAT(Add(connections), StatusIs(absl::StatusCode::kResourceExhausted,
                                         HasSubstr("2 connections are open")));
  close(first);
  ASSERT_OK_AND_ASSIGN(const int third, Add(connections));
  EXPECT_EQ(third, kFirst + 2);
  close(second);
  close(third);
}

TEST_F(ConnectionsTest, AddTakesTheDescriptorOverAlsoWhenItRefuses) {
  Connections connections(Options(1, 1));
  const int kept = NewSocket();
  ASSERT_OK_AND_ASSIGN(
      const int number,
      connections.Add(kept, {}, {core::FrontEnd::kAdmin, "", "/s"}));
  EXPECT_LT(fcntl(kept, F_GETFD), 0);
  const int refused = NewSocket();
  EXPECT_THAT(connections.Add(refused, {}, {core::FrontEnd::kAdmin, "", "/s"}),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_LT(fcntl(refused, F_GETFD), 0);
  EXPECT_EQ(fcntl(number, F_GETFD), FD_CLOEXEC);
  close(number);
}

TEST_F(ConnectionsTest, RevokedConnectionsMakeNoMoreCalls) {
  Connections connections(Options(4));
  ASSERT_OK_AND_ASSIGN(const int gone, Add(connections, 1000));
  ASSERT_OK_AND_ASSIGN(const int kept, Add(connections, 2000));

  connections.Revoke("/run/other.sock", [](const auto&) { return false; });
  EXPECT_OK(connections.Find("fd:900"));
  connections.Revoke("/run/admin.sock",
                     [](const auto& peer) { return peer.uid == 2000; });

  EXPECT_THAT(connections.Find("fd:900"),
              StatusIs(absl::StatusCode::kPermissionDenied));
  EXPECT_OK(connections.Find("fd:901"));
  close(gone);
  close(kept);
}

TEST(ConnectionsLimitTest, DefaultRangeLiesAboveWhatTheProcessOpens) {
  Connections connections;
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  ASSERT_OK_AND_ASSIGN(
      const int number,
      connections.Add(ends[0], {}, {core::FrontEnd::kAdmin, "", "/s"}));
  EXPECT_GE(number, 512);
  close(number);
  close(ends[1]);
}

}  // namespace
}  // namespace kek::service
