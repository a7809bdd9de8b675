// SPDX-License-Identifier: Apache-2.0
#include "service/http_endpoint.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "base/testing/matchers.h"
#include "gtest/gtest.h"

namespace kek::service {
namespace {

using ::kek::base::testing::StatusIs;
using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

std::string Ask(int port, const std::string& request) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) ==
      0) {
    timeval limit{.tv_sec = 20, .tv_usec = 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    EXPECT_EQ(write(fd, request.data(), request.size()),
              static_cast<ssize_t>(request.size()));
    char buffer[4096];
    ssize_t size = 0;
    while ((size = read(fd, buffer, sizeof(buffer))) > 0) {
      answer.append(buffer, size);
    }
  }
  close(fd);
  return answer;
}
std::string Get(int port, const std::string& path) {
  return Ask(
      port, absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: localhost\r\n\r\n"));
}

class HttpEndpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto started = HttpEndpoint::Start(
        {.listen = "127.0.0.1:0",
         .metrics = [] { return std::string("kekd_up 1\n"); },
         .not_live = [this] { return not_live_; },
         .not_ready = [this] { return not_ready_; }});
    ASSERT_OK(started);
    endpoint_ = *std::move(started);
    ASSERT_GT(endpoint_->port(), 0);
  }
  std::vector<std::string> not_live_, not_ready_;
  std::unique_ptr<HttpEndpoint> endpoint_;
};

TEST_F(HttpEndpointTest, MetricsAreServedInPrometheusFormat) {
  EXPECT_THAT(Get(endpoint_->port(), "/metrics"),
              AllOf(StartsWith("HTTP/1.1 200 OK\r\n"),
                    HasSubstr("text/plain; version=0.0.4"),
                    EndsWith("\r\n\r\nkekd_up 1\n")));
}

TEST_F(HttpEndpointTest, ProbesAnswerOkOrTheReasons) {
  EXPECT_THAT(Get(endpoint_->port(), "/livez"),
              AllOf(StartsWith("HTTP/1.1 200 "), EndsWith("\r\n\r\nok\n")));
  not_ready_ = {"token: ABSENT", "binding a: no self-test yet"};
  EXPECT_THAT(
      Get(endpoint_->port(), "/readyz"),
      AllOf(StartsWith("HTTP/1.1 503 Service Unavailable\r\n"),
            EndsWith("\r\n\r\ntoken: ABSENT\nbinding a: no self-test yet\n")));
  EXPECT_THAT(Get(endpoint_->port(), "/livez"), StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpEndpointTest, NothingElseIsServed) {
  for (const char* path :
       {"/", "/etc/passwd", "/../../etc/passwd", "/metrics/../../etc/passwd",
        "/livezz", "/%2e%2e/etc/passwd"}) {
    EXPECT_THAT(Get(endpoint_->port(), path),
                AllOf(Not(HasSubstr("root:")), Not(StartsWith("HTTP/1.1 200"))))
        << path;
  }
  for (const char* method : {"POST", "PUT", "DELETE", "OPTIONS"}) {
    EXPECT_THAT(Ask(endpoint_->port(),
                    absl::StrCat(method,
                                 " /metrics HTTP/1.1\r\nHost: localhost\r\n"
                                 "Content-Length: 0\r\n\r\n")),
                StartsWith("HTTP/1.1 405 "))
        << method;
  }
}

TEST_F(HttpEndpointTest, HeadHasNoBody) {
  EXPECT_THAT(
      Ask(endpoint_->port(), "HEAD /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"),
      AllOf(StartsWith("HTTP/1.1 200 "), HasSubstr("Content-Length: 3\r\n"),
            EndsWith("\r\n\r\n")));
}

TEST_F(HttpEndpointTest, TakenPortIsNamed) {
  EXPECT_THAT(
      HttpEndpoint::Start(
          {.listen = absl::StrCat("127.0.0.1:", endpoint_->port())}),
      StatusIs(absl::StatusCode::kFailedPrecondition,
               HasSubstr(absl::StrCat("127.0.0.1:", endpoint_->port()))));
}

TEST_F(HttpEndpointTest, OversizedRequestIsRefused) {
  EXPECT_THAT(Ask(endpoint_->port(),
                  absl::StrCat("GET /livez HTTP/1.1\r\nX: ",
                               std::string(64 << 10, 'x'), "\r\n\r\n")),
              Not(StartsWith("HTTP/1.1 200")));
  EXPECT_THAT(Get(endpoint_->port(), "/livez"), StartsWith("HTTP/1.1 200 "));
}

}  // namespace
}  // namespace kek::service
