// SPDX-License-Identifier: Apache-2.0
#include "service/dispatch.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_posix.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "gtest/gtest.h"
#include "kek/admin.grpc.pb.h"
#include "service/messages.h"
#include "service/unix_listener.h"

namespace kek::service {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::SizeIs;

constexpr Method kOrdinary = {"test", "SetLogLevel"};
constexpr Method kQuick = {"test", "RotateCryptoKey", core::FrontEnd::kCloudKms,
                           Method::Speed::kQuick};
constexpr Method kBare = {"test", "GetStatus"};

// Three methods over Dispatch: SetLogLevel runs whatever the test says,
// RotateCryptoKey is quick and answers with the caller, GetStatus has no
// message allocator.
class Echo final : public admin::v1::Admin::CallbackService {
 public:
  using Work = std::function<absl::Status(const core::CallInfo&,
                                          const admin::v1::SetLogLevelRequest&,
                                          admin::v1::SetLogLevelResponse&)>;

  explicit Echo(Dispatch& dispatch) : dispatch_(dispatch) {
    SetMessageAllocatorFor_SetLogLevel(&messages_);
    SetMessageAllocatorFor_RotateCryptoKey(&rotate_messages_);
  }
  grpc::ServerUnaryReactor* SetLogLevel(
      grpc::CallbackServerContext* ctx,
      const admin::v1::SetLogLevelRequest* request,
      admin::v1::SetLogLevelResponse* response) override {
    return dispatch_.Run(ctx, kOrdinary, id_,
                         [this, request, response](const auto& call) {
                           return work_(call, *request, *response);
                         });
  }
  grpc::ServerUnaryReactor* RotateCryptoKey(
      grpc::CallbackServerContext* ctx,
      const admin::v1::RotateCryptoKeyRequest*,
      admin::v1::RotateCryptoKeyResponse* response) override {
    return dispatch_.Run(ctx, kQuick, "", [response](const auto& call) {
      response->set_primary_version(call.caller.name());
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* ctx,
                                      const admin::v1::GetStatusRequest*,
                                      admin::v1::GetStatusResponse*) override {
    return dispatch_.Run(ctx, kBare, "",
                         [](const auto&) { return absl::OkStatus(); });
  }

  Work work_;
  std::string id_;

 private:
  Dispatch& dispatch_;
  WipingMessages<admin::v1::SetLogLevelRequest, admin::v1::SetLogLevelResponse>
      messages_;
  WipingMessages<admin::v1::RotateCryptoKeyRequest,
                 admin::v1::RotateCryptoKeyResponse>
      rotate_messages_;
};

class DispatchTest : public ::testing::Test {
 protected:
  void StartServer(int workers = 4, size_t queue = 16,
                   absl::Duration deadline = absl::Seconds(20)) {
    ordinary_.emplace(Executor::Options{.workers = workers, .queue = queue});
    quick_.emplace(Executor::Options{.name = "quick", .workers = 1});
    dispatch_.emplace(Dispatch::Options{.ordinary = &*ordinary_,
                                        .quick = &*quick_,
                                        .connections = &connections_,
                                        .default_deadline = deadline,
                                        .max_deadline = deadline,
                                        .metrics = &metrics_});
    echo_.emplace(*dispatch_);
    grpc::ServerBuilder builder;
    builder.RegisterService(&*echo_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }
  void TearDown() override {
    if (server_ != nullptr) {
      server_->Shutdown(std::chrono::system_clock::now());
    }
  }

  // A client on a connection of its own.
  std::unique_ptr<admin::v1::Admin::Stub> Client(uint32_t uid = 1000) {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
                         ends),
              0);
    const auto number =
        connections_.Add(ends[0], {.uid = uid, .gid = 7, .pid = 1},
                         {core::FrontEnd::kAdmin, "", "/run/test.sock"});
    EXPECT_OK(number);
    grpc::AddInsecureChannelFromFd(server_.get(), *number);
    return admin::v1::Admin::NewStub(
        grpc::CreateInsecureChannelFromFd("test", ends[1]));
  }
  static grpc::Status Call(
      admin::v1::Admin::Stub& stub, std::string* answer = nullptr,
      std::chrono::milliseconds deadline = std::chrono::seconds(20),
      grpc::ClientContext* context = nullptr) {
    std::optional<grpc::ClientContext> own;
    if (context == nullptr) context = &own.emplace();
    if (deadline.count() > 0) {
      context->set_deadline(std::chrono::system_clock::now() + deadline);
    }
    admin::v1::SetLogLevelRequest request;
    request.set_level("question");
    admin::v1::SetLogLevelResponse response;
    const grpc::Status status = stub.SetLogLevel(context, request, &response);
    if (answer != nullptr) *answer = response.previous();
    return status;
  }

  base::Metrics metrics_;
  Connections connections_;
  std::optional<Executor> ordinary_, quick_;
  std::optional<Dispatch> dispatch_;
  std::optional<Echo> echo_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(DispatchTest, WorkSeesCallerDeadlineAndRequestAndItsAnswerArrives) {
  StartServer();
  core::CallInfo seen;
  echo_->work_ = [&](const auto& call, const auto& request, auto& response) {
    seen = call;
    response.set_previous(absl::StrCat(request.level(), " answered"));
    return absl::OkStatus();
  };
  std::string answer;
  const base::Deadline before = std::chrono::steady_clock::now();

  EXPECT_TRUE(Call(*Client(), &answer, std::chrono::seconds(5)).ok());

  EXPECT_EQ(answer, "question answered");
  EXPECT_EQ(seen.caller.name(), "unix:uid:1000");
  EXPECT_EQ(seen.caller.peer, "unix:/run/test.sock pid 1");
  EXPECT_EQ(seen.caller.front_end, core::FrontEnd::kAdmin);
  // gRPC rounds a timeout up on the wire.
  EXPECT_LE(seen.deadline,
            std::chrono::steady_clock::now() + std::chrono::milliseconds(5100));
  EXPECT_GE(seen.deadline, before + std::chrono::seconds(4));
  EXPECT_EQ(metrics_
                .GetCounter("kekd_requests_total", "",
                            {{"api", "test"},
                             {"binding", ""},
                             {"method", "SetLogLevel"},
                             {"code", "OK"}})
                ->Value(),
            1);
}

TEST_F(DispatchTest, LongDeadlinesAreCutAndMissingOnesGetTheDefault) {
  StartServer(4, 16, absl::Seconds(2));
  std::vector<double> left;
  echo_->work_ = [&](const auto& call, const auto&, auto&) {
    left.push_back(std::chrono::duration<double>(
                       call.deadline - std::chrono::steady_clock::now())
                       .count());
    return absl::OkStatus();
  };
  auto client = Client();
  EXPECT_TRUE(Call(*client, nullptr, std::chrono::hours(1)).ok());
  EXPECT_TRUE(Call(*client, nullptr, std::chrono::milliseconds(0)).ok());
  ASSERT_THAT(left, SizeIs(2));
  EXPECT_THAT(left,
              ::testing::Each(AllOf(::testing::Gt(0.1), ::testing::Le(2.0))));
}

TEST_F(DispatchTest, CallsOfTwoConnectionsHaveTheirOwnCallers) {
  StartServer();
  auto one = Client(1000), two = Client(2000);
  for (auto* client : {one.get(), two.get(), one.get()}) {
    grpc::ClientContext context;
    admin::v1::RotateCryptoKeyResponse response;
    ASSERT_TRUE(client->RotateCryptoKey(&context, {}, &response).ok());
    EXPECT_EQ(response.primary_version(),
              client == two.get() ? "unix:uid:2000" : "unix:uid:1000");
  }
}

TEST_F(DispatchTest, FullQueueRefusesAtOnceAndQuickWorkPasses) {
  StartServer(1, 1);
  absl::Notification started, release;
  std::atomic<int> running{0};
  echo_->work_ = [&](const auto&, const auto&, auto&) {
    if (running++ == 0) started.Notify();
    release.WaitForNotification();
    return absl::OkStatus();
  };
  auto client = Client();
  std::thread first([&] { EXPECT_TRUE(Call(*client).ok()); });
  started.WaitForNotification();
  // One more fits into the queue; of two that come at once, one is refused.
  std::atomic<int> refused{0};
  absl::Notification one_refused;
  std::vector<std::thread> more;
  for (int i = 0; i < 2; ++i) {
    more.emplace_back([&] {
      const grpc::Status status = Call(*client);
      if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
        EXPECT_THAT(status.error_message(), HasSubstr("too many calls"));
        if (refused++ == 0) one_refused.Notify();
      }
    });
  }
  one_refused.WaitForNotification();
  grpc::ClientContext context;
  admin::v1::RotateCryptoKeyResponse response;
  EXPECT_TRUE(client->RotateCryptoKey(&context, {}, &response).ok());
  release.Notify();
  first.join();
  for (std::thread& thread : more) thread.join();
  EXPECT_EQ(refused, 1);
}

TEST_F(DispatchTest, StuckWorkIsAnsweredAtTheDeadlineAndItsResultDiscarded) {
  StartServer(4, 16, absl::Milliseconds(200));
  absl::Notification release, returned;
  echo_->work_ = [&](const auto&, const auto& request, auto& response) {
    release.WaitForNotification();
    // The messages are still there, long after the call.
    EXPECT_EQ(request.level(), "question");
    response.set_previous("late");
    returned.Notify();
    return absl::OkStatus();
  };
  auto client = Client();
  std::string answer = "none";

  // The client brings no deadline: it is the server that gives up.
  const grpc::Status status =
      Call(*client, &answer, std::chrono::milliseconds(0));

  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(status.error_message(), HasSubstr("deadline passed"));
  EXPECT_EQ(answer, "");
  release.Notify();
  ASSERT_OK(ordinary_->Drain(base::DeadlineAfter(std::chrono::seconds(20))));
  EXPECT_TRUE(returned.HasBeenNotified());
}

TEST_F(DispatchTest, ClientThatGoesAwayFreesNobodyElsesCall) {
  StartServer(2);
  absl::Notification started, release;
  std::atomic<int> calls{0};
  echo_->work_ = [&](const auto&, const auto& request, auto& response) {
    if (calls++ == 0) {
      started.Notify();
      release.WaitForNotification();
    }
    response.set_previous(request.level());
    return absl::OkStatus();
  };
  auto client = Client();
  grpc::ClientContext cancelled;
  std::thread canceller([&] {
    started.WaitForNotification();
    cancelled.TryCancel();
  });
  EXPECT_EQ(
      Call(*client, nullptr, std::chrono::seconds(20), &cancelled).error_code(),
      grpc::StatusCode::CANCELLED);
  canceller.join();
  // On the same connection, while the first worker is still stuck.
  std::string answer;
  EXPECT_TRUE(Call(*client, &answer).ok());
  EXPECT_EQ(answer, "question");
  release.Notify();
  ASSERT_OK(ordinary_->Drain(base::DeadlineAfter(std::chrono::seconds(20))));
}

TEST_F(DispatchTest, WorkOfACallCancelledInTheQueueIsNotDone) {
  StartServer(1);
  absl::Notification started, release;
  std::atomic<int> done{0};
  echo_->work_ = [&](const auto&, const auto&, auto&) {
    if (done++ == 0) {
      started.Notify();
      release.WaitForNotification();
    }
    return absl::OkStatus();
  };
  auto client = Client();
  std::thread first([&] { Call(*client); });
  started.WaitForNotification();
  // Ends by the client's own deadline while it waits for the worker.
  EXPECT_EQ(Call(*client, nullptr, std::chrono::milliseconds(50)).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  release.Notify();
  first.join();
  ASSERT_OK(ordinary_->Drain(base::DeadlineAfter(std::chrono::seconds(20))));
  EXPECT_EQ(done, 1);
}

TEST_F(DispatchTest, RequestIdIsTheProtocolsOrTheMetadatasOrMade) {
  StartServer();
  std::string seen;
  echo_->work_ = [&](const auto& call, const auto&, auto&) {
    seen = call.request_id;
    return absl::OkStatus();
  };
  auto client = Client();
  const auto call = [&](const std::string& metadata) {
    grpc::ClientContext context;
    if (!metadata.empty()) context.AddMetadata("x-request-id", metadata);
    EXPECT_TRUE(
        Call(*client, nullptr, std::chrono::seconds(20), &context).ok());
    const auto& trailers = context.GetServerTrailingMetadata();
    const auto it = trailers.find("x-request-id");
    EXPECT_NE(it, trailers.end());
    return std::string(it->second.data(), it->second.size());
  };
  const std::string made = call("");
  EXPECT_THAT(made, MatchesRegex("[0-9a-f]{16}-[0-9]+"));
  EXPECT_EQ(seen, made);
  EXPECT_NE(call(""), made);
  EXPECT_EQ(call("abc-123"), "abc-123");
  EXPECT_EQ(call("two words"), "two\\x20words");
  EXPECT_EQ(call(std::string(500, 'x')), std::string(128, 'x'));
  echo_->id_ = "7ad8\x01\xff uid";
  EXPECT_EQ(call("abc-123"), "7ad8\\x01\\xff\\x20uid");
  EXPECT_EQ(seen, "7ad8\\x01\\xff\\x20uid");
}

TEST_F(DispatchTest, ConnectionThatWasNotAcceptedByUsIsUnauthenticated) {
  StartServer();
  int ends[2];
  ASSERT_EQ(
      socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends),
      0);
  grpc::AddInsecureChannelFromFd(server_.get(), ends[0]);
  auto client = admin::v1::Admin::NewStub(
      grpc::CreateInsecureChannelFromFd("test", ends[1]));
  EXPECT_EQ(Call(*client).error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(DispatchTest, MethodWithoutMessageAllocatorIsAnInternalError) {
  StartServer();
  grpc::ClientContext context;
  admin::v1::GetStatusResponse response;
  const grpc::Status status = Client()->GetStatus(&context, {}, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(status.error_message(), HasSubstr("message allocator"));
}

TEST_F(DispatchTest, ShutdownWithinItsBoundAnswersStuckCalls) {
  StartServer();
  absl::Notification started, release;
  echo_->work_ = [&](const auto&, const auto&, auto&) {
    started.Notify();
    release.WaitForNotification();
    return absl::OkStatus();
  };
  auto client = Client();
  std::thread caller([&] { EXPECT_FALSE(Call(*client).ok()); });
  started.WaitForNotification();
  server_->Shutdown(std::chrono::system_clock::now() +
                    std::chrono::milliseconds(50));
  caller.join();
  server_.reset();
  release.Notify();
  ASSERT_OK(ordinary_->Drain(base::DeadlineAfter(std::chrono::seconds(20))));
}

// Two users on one socket are two principals, whatever descriptor numbers the
// kernel gives.
TEST_F(DispatchTest, K8s40TwoUsersOnOneSocketAreTwoPrincipals) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to become two users";
  StartServer();
  base::testing::TempDir dir;
  ASSERT_EQ(chmod(dir.path().c_str(), 0755), 0);
  UnixListener::Options options;
  options.path = dir.File("s.sock");
  options.access.mode = 0666;
  options.access.uids = {5001, 5002};
  ASSERT_OK_AND_ASSIGN(auto listener, UnixListener::Open(options));
  listener->Start(
      [&](int fd, const PeerCredentials& peer) {
        const auto number = connections_.Add(
            fd, peer, {core::FrontEnd::kAdmin, "", options.path});
        if (number.ok()) {
          grpc::AddInsecureChannelFromFd(server_.get(), *number);
        }
      },
      nullptr);
  const auto whoami = [&](uid_t uid) {
    int result[2];
    EXPECT_EQ(pipe(result), 0);
    const pid_t child = fork();
    if (child == 0) {
      // gRPC does not survive a fork: the child runs a new program.
      dup2(result[1], 3);
      execl("/proc/self/exe", "dispatch_test", "--whoami", options.path.c_str(),
            absl::StrCat(uid).c_str(), nullptr);
      _exit(127);
    }
    close(result[1]);
    std::string answer;
    char buffer[256];
    ssize_t size = 0;
    while ((size = read(result[0], buffer, sizeof(buffer))) > 0) {
      answer.append(buffer, size);
    }
    close(result[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return answer;
  };
  EXPECT_EQ(whoami(5001), "unix:uid:5001");
  EXPECT_EQ(whoami(5002), "unix:uid:5002");
  EXPECT_EQ(whoami(5001), "unix:uid:5001");
  listener->Stop();
}

TEST(ToGrpcStatusTest, EveryCodeKeepsItsMeaningAndUnknownBecomesInternal) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    const grpc::Status translated = ToGrpcStatus(status);
    EXPECT_EQ(translated.error_code(), code == 2 ? 13 : code);
    EXPECT_EQ(translated.error_message(), "why");
  }
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
}

TEST(ToGrpcStatusTest, MessageIsCutBetweenCharactersAndPayloadsStay) {
  absl::Status status = absl::UnavailableError(
      absl::StrCat(std::string(1023, 'x'), "\xc3\xa4", "rest"));
  status.SetPayload("kekd/test", absl::Cord("payload"));
  const grpc::Status translated = ToGrpcStatus(status);
  EXPECT_EQ(translated.error_message(), std::string(1023, 'x'));
  EXPECT_EQ(translated.error_details(), "");
}

// The child of K8s40TwoUsersOnOneSocketAreTwoPrincipals.
int WhoAmI(const std::string& socket, uid_t uid) {
  if (setgid(uid) != 0 || setuid(uid) != 0) return 1;
  auto stub = admin::v1::Admin::NewStub(grpc::CreateChannel(
      absl::StrCat("unix:", socket), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::seconds(20));
  admin::v1::RotateCryptoKeyResponse response;
  const grpc::Status status = stub->RotateCryptoKey(&context, {}, &response);
  const std::string answer =
      status.ok() ? response.primary_version() : status.error_message();
  return write(3, answer.data(), answer.size()) ==
                 static_cast<ssize_t>(answer.size())
             ? 0
             : 1;
}

}  // namespace
}  // namespace kek::service

int main(int argc, char** argv) {
  if (argc == 4 && absl::string_view(argv[1]) == "--whoami") {
    return kek::service::WhoAmI(argv[2], std::atoi(argv[3]));
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
