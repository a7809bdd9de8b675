// SPDX-License-Identifier: Apache-2.0
//
// Failure, security and operation: statements 32, 33, 35-43.
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <set>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/integration/kubernetes_test.h"

namespace kek::integration {
namespace {

using base::testing::IsOkAndHolds;
using base::testing::StatusIs;
using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Clock = std::chrono::steady_clock;

class K8sFailureTest : public KubernetesTest {
 protected:
  static KekdProcess::Options WithHttp() {
    KekdProcess::Options options;
    options.yaml = "http:\n  listen: \"127.0.0.1:0\"\n";
    return options;
  }
};

TEST_F(K8sFailureTest, K8s32StaleSocketIsTakenOverALiveOneIsNot) {
  ASSERT_NO_FATAL_FAILURE(Start());
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       Connect().Encrypt("seed"));
  kekd_->Kill();
  struct stat file {};
  ASSERT_EQ(stat(kekd_->Socket().c_str(), &file), 0) << "no stale socket";
  ASSERT_TRUE(S_ISSOCK(file.st_mode));
  ASSERT_OK(kekd_->StartWithKeys());
  EXPECT_THAT(Connect().Decrypt(encrypted), IsOkAndHolds("seed"));

  // A second kekd on the same config, and one with a state of its own that
  // wants the same socket.
  const auto [code, text] = kekd_->Run({"--config", kekd_->config()});
  EXPECT_GT(code, 0);
  EXPECT_THAT(text, HasSubstr("another"));
  KekdProcess other(KekdProcess::Options{
      .bindings = {
          {.name = "main", .key = "main", .socket = kekd_->Socket()}}});
  const auto [other_code, other_text] = other.Run({"--config", other.config()});
  EXPECT_GT(other_code, 0);
  EXPECT_THAT(other_text, HasSubstr(kekd_->Socket()));
  EXPECT_THAT(Connect().Decrypt(encrypted), IsOkAndHolds("seed"));
}

TEST_F(K8sFailureTest, K8s33CallsInProgressEndBeforeKekdDoes) {
  ASSERT_NO_FATAL_FAILURE(StartFaulty());
  rules_->Set(
      {absl::StrCat("C_Encrypt size=56 count=1 hang=", rules_->HangFile())});
  absl::StatusOr<v2::EncryptResponse> answer = absl::UnknownError("none");
  std::thread caller(
      [&] { answer = Connect().Encrypt(Plaintext(48), "uid", seconds(10)); });
  ASSERT_TRUE(rules_->WaitForHangs(1, Within(seconds(5))));
  kekd_->Signal(SIGTERM);
  // The socket is given up while the call is still answered.
  EXPECT_TRUE(
      Eventually([&] { return !Connect().Status(milliseconds(300)).ok(); },
                 Within(seconds(5))));
  rules_->Release();
  caller.join();
  EXPECT_OK(answer);
  EXPECT_THAT(kekd_->WaitForEnd(Within(seconds(20))), IsOkAndHolds(0));

  // And back in no time.
  const Clock::time_point start = Clock::now();
  ASSERT_OK(kekd_->StartWithKeys());
  EXPECT_LT(Clock::now() - start, seconds(2));
  EXPECT_THAT(Connect().Decrypt(*answer), IsOkAndHolds(Plaintext(48)));
}

TEST_F(K8sFailureTest, K8s35HungCallCostsItsCallerOnly) {
  KekdProcess::Options options;
  options.token = {"max_sessions: 4"};
  options.yaml = "executor:\n  workers: 5\n  queue: 4\n";
  ASSERT_NO_FATAL_FAILURE(StartFaulty(options));
  // One call hangs: its caller hears in time, others go on.
  rules_->Set({absl::StrCat("C_Encrypt size=56 count=1 hang=",
                            rules_->HangFile("one"))});
  const Clock::time_point start = Clock::now();
  EXPECT_THAT(Connect().Encrypt(Plaintext(48), "uid", seconds(2)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_LT(Clock::now() - start, seconds(3));
  for (int i = 0; i < 20; ++i) EXPECT_OK(Connect().Encrypt("seed"));
  rules_->Release("one");

  // All hang: the queue fills, and more are turned away at once.
  rules_->Set(
      {absl::StrCat("C_*crypt count=-1 hang=", rules_->HangFile("all"))});
  std::atomic<int> timed_out{0}, turned_away{0}, others{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 40; ++i) {
    callers.emplace_back([&] {
      switch (
          Connect().Encrypt(Plaintext(48), "uid", seconds(2)).status().code()) {
        case absl::StatusCode::kDeadlineExceeded:
          ++timed_out;
          break;
        case absl::StatusCode::kResourceExhausted:
        case absl::StatusCode::kUnavailable:
          ++turned_away;
          break;
        default:
          ++others;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(others, 0);
  EXPECT_GT(timed_out, 0);
  EXPECT_GE(turned_away, 40 - 5 - 4);
  rules_->Clear();
  rules_->Release("all");
  EXPECT_OK(kekd_->WaitHealthy(Within(seconds(30))));
  EXPECT_OK(Connect().Encrypt("seed"));
}

TEST_F(K8sFailureTest, K8s36LostSessionsAndLoginsAreRepairedWithinTheCall) {
  ASSERT_NO_FATAL_FAILURE(StartFaulty());
  Plugin plugin = Connect();
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       plugin.Encrypt("seed"));
  for (const char* rule :
       {"C_EncryptInit rv=CKR_SESSION_HANDLE_INVALID",
        "C_Encrypt rv=CKR_SESSION_HANDLE_INVALID",
        "C_EncryptInit rv=CKR_SESSION_CLOSED",
        "C_EncryptInit rv=CKR_DEVICE_REMOVED",
        "C_EncryptInit rv=CKR_TOKEN_NOT_PRESENT",
        "C_EncryptInit rv=CKR_USER_NOT_LOGGED_IN",
        "C_EncryptInit dropsessions=1", "C_EncryptInit logout=1"}) {
    rules_->Set({rule});
    EXPECT_OK(plugin.Encrypt("seed")) << rule;
    EXPECT_THAT(plugin.Decrypt(encrypted), IsOkAndHolds("seed")) << rule;
  }
}

TEST_F(K8sFailureTest, K8s36RefusedPinIsTriedOnce) {
  ASSERT_NO_FATAL_FAILURE(StartFaulty());
  rules_->Forget();
  rules_->Set(
      {"C_EncryptInit logout=1", "C_Login count=-1 rv=CKR_PIN_INCORRECT"});
  for (int i = 0; i < 10; ++i) {
    EXPECT_FALSE(Connect().Encrypt("seed", "uid", milliseconds(500)).ok());
  }
  EXPECT_EQ(rules_->Count("C_Login"), 1);
  // Not at the next start either, which ends with an exit code of its own.
  kekd_->Kill();
  EXPECT_EQ(kekd_->Run({"--config", kekd_->config()}).first, 79);
  EXPECT_EQ(rules_->Count("C_Login"), 1);
}

TEST_F(K8sFailureTest, K8s37TransientErrorsStayInside) {
  ASSERT_NO_FATAL_FAILURE(StartFaulty());
  Plugin plugin = Connect();
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       plugin.Encrypt("seed"));
  for (const char* rule : {"C_EncryptInit every=7 count=-1 rv=CKR_DEVICE_ERROR",
                           "C_Encrypt every=7 count=-1 rv=CKR_DEVICE_ERROR",
                           "C_DecryptInit every=7 count=-1 rv=CKR_DEVICE_ERROR",
                           "C_Decrypt every=7 count=-1 rv=CKR_DEVICE_ERROR"}) {
    rules_->Set({rule});
    for (int i = 0; i < 50; ++i) {
      EXPECT_OK(plugin.Encrypt("seed").status()) << rule << " " << i;
      EXPECT_OK(plugin.Decrypt(encrypted).status()) << rule << " " << i;
    }
  }
}

TEST_F(K8sFailureTest, K8s38NoOperationIsLeftActiveAndNoSessionLeaks) {
  ASSERT_NO_FATAL_FAILURE(StartFaulty());
  Plugin plugin = Connect();
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       plugin.Encrypt("seed"));
  v2::DecryptRequest junk = RequestFor(encrypted);
  junk.mutable_ciphertext()->back() ^= 1;
  const auto active = [&] {
    int count = 0;
    for (const auto& call : rules_->Calls("*")) {
      count += call.rv == 0x90 ? 1 : 0;  // CKR_OPERATION_ACTIVE
    }
    return count;
  };
  const auto failing = [&](const std::string& how) {
    rules_->Set({"C_Encrypt every=5 count=-1 rv=CKR_FUNCTION_FAILED" + how,
                 "C_Decrypt every=5 count=-1 rv=CKR_FUNCTION_FAILED" + how});
    for (int i = 0; i < 100; ++i) {
      plugin.Encrypt("seed").status().IgnoreError();
      plugin.Decrypt(encrypted).status().IgnoreError();
      EXPECT_FALSE(plugin.Decrypt(junk).ok());
    }
    rules_->Clear();
    ASSERT_OK(kekd_->WaitHealthy(Within(seconds(10))));
  };
  // An operation that failed is over, as the standard has it.
  failing(" post=1");
  EXPECT_EQ(active(), 0);
  // A token that leaves it active costs its session once, nobody's call.
  failing("");
  for (int i = 0; i < 32; ++i) EXPECT_OK(plugin.Encrypt("seed").status());
  rules_->Forget();
  const auto opened = [&](absl::string_view function) {
    int count = 0;
    for (const auto& call : rules_->Calls(function)) {
      count += call.rv == 0 ? 1 : 0;
    }
    return count;
  };
  for (int i = 0; i < 1000; ++i) {
    ASSERT_OK(plugin.Encrypt("seed").status());
    ASSERT_THAT(plugin.Decrypt(encrypted), IsOkAndHolds("seed"));
  }
  EXPECT_EQ(active(), 0);
  EXPECT_LE(opened("C_OpenSession") - opened("C_CloseSession"), 2);
}

TEST_F(K8sFailureTest, K8s39SocketHasItsModeAndForeignFilesAreLeftAlone) {
  KekdProcess::Options options;
  options.bindings = {{.name = "main", .yaml = {"mode: \"0660\""}},
                      {.name = "plain", .key = "main"}};
  ASSERT_NO_FATAL_FAILURE(Start(options));
  struct stat file {};
  ASSERT_EQ(stat(kekd_->Socket().c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 07777, 0660u);
  EXPECT_EQ(file.st_uid, geteuid());
  ASSERT_EQ(stat(kekd_->Socket("plain").c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 07777, 0600u);
  EXPECT_THAT(kekd_->Terminate(), IsOkAndHolds(0));

  // Something else at the path.
  std::filesystem::remove(kekd_->Socket());
  {
    const int fd = open(kekd_->Socket().c_str(), O_CREAT | O_WRONLY, 0600);
    ASSERT_EQ(write(fd, "precious", 8), 8);
    close(fd);
  }
  auto [code, text] = kekd_->Run({"--config", kekd_->config()});
  EXPECT_GT(code, 0);
  EXPECT_THAT(text, HasSubstr(kekd_->Socket()));
  EXPECT_EQ(base::testing::TempDir::Read(kekd_->Socket()), "precious");
  std::filesystem::remove(kekd_->Socket());

  // A directory that others may write to.
  ASSERT_EQ(chmod(kekd_->run().c_str(), 0777), 0);
  std::tie(code, text) = kekd_->Run({"--config", kekd_->config()});
  EXPECT_GT(code, 0);
  EXPECT_THAT(text, HasSubstr(kekd_->run()));
  ASSERT_EQ(chmod(kekd_->run().c_str(), 0700), 0);
  EXPECT_OK(kekd_->StartWithKeys());
}

// Makes a Status call in a process of its own that runs as uid; the exit code
// is the gRPC code, or 100.
int StatusAs(uid_t uid, const std::string& socket) {
  const std::string binary = Reachable(PLUGIN_STATUS_BINARY);
  int status = 0;
  if (!AsRoot([&] {
        const pid_t pid = fork();
        if (pid == 0) {
          setgroups(0, nullptr);
          // The group the socket belongs to, so that its mode lets them by.
          const gid_t gid = getgid();
          if (setresgid(gid, gid, gid) != 0 || setresuid(uid, uid, uid) != 0) {
            _exit(100);
          }
          execl(binary.c_str(), binary.c_str(), socket.c_str(), nullptr);
          _exit(101);
        }
        waitpid(pid, &status, 0);
      })) {
    return -1;
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 102;
}

TEST_F(K8sFailureTest, K8s40PeersAreJudgedByTheKernelsWordOnThem) {
  if (!AsRoot([] {})) GTEST_SKIP() << "needs root, to be several users";
  KekdProcess::Options options;
  options.bindings = {
      {.name = "main",
       .yaml = {"mode: \"0660\"", "allowed_users: [\"65534\", \"20001\"]"}}};
  kekd_ = std::make_unique<KekdProcess>(options);
  // The peers must be able to reach the socket at all.
  ASSERT_EQ(chmod(kekd_->dir().c_str(), 0711), 0);
  ASSERT_EQ(chmod(kekd_->run().c_str(), 0711), 0);
  ASSERT_OK(kekd_->StartWithKeys());

  EXPECT_EQ(StatusAs(20001, kekd_->Socket()), 0);
  EXPECT_NE(StatusAs(20002, kekd_->Socket()), 0);
  EXPECT_NE(StatusAs(0, kekd_->Socket()), 0);  // not listed, so not let in
  EXPECT_OK(Connect().Status());

  // Two users on one socket are two principals in the audit log.
  ASSERT_OK(Connect().Encrypt("seed", "uid-as-nobody"));
  EXPECT_TRUE(Eventually(
      [&] {
        for (const std::string& line : kekd_->AuditLines()) {
          if (absl::StrContains(line, "20002") &&
              !absl::StrContains(line, "\"OK\"")) {
            return true;
          }
        }
        return false;
      },
      Within(seconds(10))))
      << "the refused peer is not in the audit log";
  EXPECT_THAT(kekd_->AuditLines(),
              Contains(::testing::AllOf(
                  HasSubstr("uid-as-nobody"),
                  HasSubstr("\"principal\":\"unix:uid:65534\""))));
}

TEST_F(K8sFailureTest, K8s41UnprivilegedAndBadConfigsAreOneClearLine) {
  ASSERT_NO_FATAL_FAILURE(Start());
  std::string status;
  status = base::testing::TempDir::Read(
      absl::StrCat("/proc/", kekd_->pid(), "/status"));
  EXPECT_THAT(status, HasSubstr("CapEff:\t0000000000000000"));
  EXPECT_THAT(kekd_->Terminate(), IsOkAndHolds(0));

  // As root it does not start.
  std::pair<int, std::string> run;
  if (AsRoot([&] { run = kekd_->Run({"--config", kekd_->config()}); })) {
    EXPECT_GT(run.first, 0);
    EXPECT_THAT(run.second, HasSubstr("root"));
  }

  const auto one_line = [&](KekdProcess::Options options,
                            const std::string& cause) {
    kekd_->WriteConfig(options);
    const auto [code, text] = kekd_->Run({"--config", kekd_->config()});
    EXPECT_GT(code, 0) << cause;
    EXPECT_THAT(text, HasSubstr(cause));
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
    EXPECT_THAT(text, Not(HasSubstr(kekd_->pin())));
  };
  KekdProcess::Options options;
  options.yaml = "nonsense: 1\n";
  one_line(options, "nonsense");
  options.yaml = "";
  options.module = "/nonexistent/module.so";
  one_line(options, "/nonexistent/module.so");
  options.module = "";
  options.bindings[0].yaml = {"mode: \"0999\""};
  one_line(options, "mode");
}

TEST_F(K8sFailureTest, K8s42LivezIsNotForTroubleOfTheToken) {
  ASSERT_NO_FATAL_FAILURE(StartFaulty(WithHttp()));
  const int port = kekd_->HttpPort();
  const auto code = [port](const std::string& path) {
    const auto answer = HttpGet(port, path);
    return answer.has_value() ? answer->first : 0;
  };
  EXPECT_TRUE(
      Eventually([&] { return code("/readyz") == 200; }, Within(seconds(10))));
  EXPECT_EQ(code("/livez"), 200);

  rules_->Set({"C_*crypt* count=-1 rv=CKR_DEVICE_REMOVED",
               "C_OpenSession count=-1 rv=CKR_DEVICE_REMOVED"});
  EXPECT_FALSE(Connect().Encrypt("seed").ok());
  EXPECT_TRUE(
      Eventually([&] { return code("/readyz") == 503; }, Within(seconds(30))));
  EXPECT_EQ(code("/livez"), 200);
  rules_->Clear();
  EXPECT_TRUE(
      Eventually([&] { return code("/readyz") == 200; }, Within(seconds(30))));

  // A disabled key, and callers who go away.
  ASSERT_OK(Admin().SetState(
      absl::StrCat(kekd_->KeyName("main"), "/cryptoKeyVersions/1"),
      kms::CryptoKeyVersion::DISABLED));
  for (int i = 0; i < 20; ++i) {
    Connect().Encrypt("seed", "uid", milliseconds(1)).status().IgnoreError();
  }
  EXPECT_TRUE(
      Eventually([&] { return code("/readyz") == 503; }, Within(seconds(30))));
  EXPECT_EQ(code("/livez"), 200);
}

TEST_F(K8sFailureTest, K8s43MetricsTellWhatHappensInBoundedLabels) {
  ASSERT_NO_FATAL_FAILURE(Start(WithHttp()));
  const int port = kekd_->HttpPort();
  Plugin plugin = Connect();
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       plugin.Encrypt("seed", "uid-in-no-label"));
  ASSERT_OK(plugin.Decrypt(encrypted));
  v2::DecryptRequest bad = RequestFor(encrypted, "uid-in-no-label");
  bad.mutable_ciphertext()->back() ^= 1;
  EXPECT_FALSE(plugin.Decrypt(bad).ok());
  ASSERT_OK(plugin.EncryptV1("dek"));

  const auto requests = [&](const std::string& api, const std::string& method,
                            const std::string& code) {
    return MetricSum(port, "kekd_requests_total",
                     {absl::StrCat("api=\"", api, "\""),
                      absl::StrCat("method=\"", method, "\""),
                      absl::StrCat("code=\"", code, "\"")});
  };
  EXPECT_EQ(requests("kubernetes.v2", "Encrypt", "OK"), 1);
  EXPECT_EQ(requests("kubernetes.v2", "Decrypt", "OK"), 1);
  EXPECT_EQ(requests("kubernetes.v2", "Decrypt", "INVALID_ARGUMENT"), 1);
  EXPECT_EQ(requests("kubernetes.v1beta1", "Encrypt", "OK"), 1);
  EXPECT_GE(requests("kubernetes.v2", "Status", "OK"), 1);
  const auto uses = [&](const std::string& method, const std::string& code) {
    return MetricSum(port, "kekd_key_version_operations_total",
                     {"version=\"1\"", absl::StrCat("method=\"", method, "\""),
                      absl::StrCat("code=\"", code, "\"")});
  };
  EXPECT_EQ(uses("Encrypt", "OK"), 2);
  EXPECT_EQ(uses("Decrypt", "OK"), 1);
  EXPECT_GE(MetricSum(port, "kekd_request_duration_seconds_count"), 5);
  EXPECT_GE(MetricSum(port, "kekd_token_calls_total", {"C_Encrypt"}), 2);
  // What is looked at from time to time, and not per call.
  std::optional<std::pair<int, std::string>> page;
  for (const char* name :
       {"kekd_requests_in_flight", "kekd_executor_queued", "kekd_sessions",
        "kekd_key_version_age_seconds", "kekd_key_self_test_age_seconds",
        "kekd_kubernetes_key_info"}) {
    EXPECT_TRUE(Eventually(
        [&] {
          page = HttpGet(port, "/metrics");
          return page.has_value() && absl::StrContains(page->second, name);
        },
        Within(seconds(10))))
        << name;
  }
  ASSERT_TRUE(page.has_value());
  // As kube-apiserver has it in its own labels.
  EXPECT_THAT(page->second, HasSubstr("sha256:"));
  EXPECT_THAT(page->second, HasSubstr("le=\"0.0001\""));
  EXPECT_THAT(page->second, HasSubstr("le=\"50\""));
  EXPECT_THAT(page->second, Not(HasSubstr("uid-in-no-label")));
  EXPECT_THAT(page->second, Not(HasSubstr(encrypted.key_id())));
}

}  // namespace
}  // namespace kek::integration
