// SPDX-License-Identifier: Apache-2.0
//
// kekd as a process: what systemd, an operator and a debugger see of it.
#include <fcntl.h>
#include <grpcpp/create_channel.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "base/testing/matchers.h"
#include "gmock/gmock.h"
#include "google/cloud/kms/v1/service.grpc.pb.h"
#include "gtest/gtest.h"
#include "kek/admin.grpc.pb.h"
#include "kubernetes/kms/v2/api.grpc.pb.h"
#include "tests/support/kekd_process.h"

namespace kek::integration {
namespace {

using base::testing::IsOkAndHolds;
using base::testing::TempDir;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
namespace admin = kek::admin::v1;

class DaemonTest : public ::testing::Test {
 protected:
  static std::unique_ptr<v2::KeyManagementService::Stub> Plugin(
      const std::string& socket) {
    return v2::KeyManagementService::NewStub(ConnectTo(socket));
  }
  static grpc::Status Status(const std::string& socket,
                             v2::StatusResponse* response = nullptr) {
    v2::StatusResponse own;
    return Plugin(socket)->Status(Context(seconds(5)).get(), {},
                                  response == nullptr ? &own : response);
  }
  static std::unique_ptr<admin::Admin::Stub> Admin(const KekdProcess& kekd) {
    return admin::Admin::NewStub(ConnectTo(kekd.AdminSocket()));
  }
  // Replaces text in the config file.
  static void EditConfig(const KekdProcess& kekd, const std::string& from,
                         const std::string& to) {
    const std::string yaml = TempDir::Read(kekd.config());
    const std::string edited = absl::StrReplaceAll(yaml, {{from, to}});
    ASSERT_NE(edited, yaml);
    std::ofstream(kekd.config(), std::ios::trunc) << edited;
  }
  static bool LogComes(const KekdProcess& kekd, const std::string& text) {
    return Eventually([&] { return absl::StrContains(kekd.Log(), text); },
                      Within(seconds(20)));
  }
};

// ---- configuration, exit codes

TEST_F(DaemonTest, CheckConfigSaysOkOrWhatIsWrong) {
  KekdProcess kekd;
  EXPECT_EQ(kekd.Run({"--check-config", kekd.config()}),
            std::make_pair(0, std::string("config ok\n")));
  EditConfig(kekd, "state_dir:", "state_dirs:");
  const auto [code, text] = kekd.Run({"--check-config", kekd.config()});
  EXPECT_EQ(code, 78);
  EXPECT_THAT(text, AllOf(HasSubstr(":1: unknown field \"state_dirs\""),
                          Not(HasSubstr("config ok"))));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  EXPECT_EQ(kekd.Run({"--no-such-option"}).first, 64);
  EXPECT_EQ(kekd.Run({"--version"}).first, 0);
}

// Why a start fails, the exit code, and that nothing was left behind.
class FailedStartTest : public DaemonTest {
 protected:
  void ExpectFailure(KekdProcess& kekd, int expected,
                     const std::string& reason) {
    const auto before = Files(kekd);
    const auto [code, text] = kekd.Run({"--config", kekd.config()});
    EXPECT_EQ(code, expected) << text;
    EXPECT_THAT(text, AllOf(HasSubstr(reason), Not(HasSubstr(kekd.pin()))));
    EXPECT_EQ(Files(kekd), before);
  }
  static std::set<std::string> Files(const KekdProcess& kekd) {
    std::set<std::string> files;
    for (const char* directory : {"state", "run", "tokens"}) {
      const std::string path = absl::StrCat(kekd.dir(), "/", directory);
      if (!std::filesystem::is_directory(path)) continue;
      for (const auto& entry :
           std::filesystem::recursive_directory_iterator(path)) {
        files.insert(entry.path());
      }
    }
    return files;
  }
};

TEST_F(FailedStartTest, MissingModuleIsAnErrorOfTheConfiguration) {
  KekdProcess kekd({.module = "/nonexistent/libhsm.so"});
  ExpectFailure(kekd, 78, "/nonexistent/libhsm.so");
}

TEST_F(FailedStartTest, PinFileOthersCanReadIsRefused) {
  KekdProcess kekd;
  ASSERT_EQ(chmod(absl::StrCat(kekd.dir(), "/pin").c_str(), 0644), 0);
  ExpectFailure(kekd, 78, "pin");
}

TEST_F(FailedStartTest, OpenStateDirectoryIsRefused) {
  KekdProcess kekd;
  ASSERT_EQ(chmod(absl::StrCat(kekd.dir(), "/state").c_str(), 0755), 0);
  ExpectFailure(kekd, 77, "mode 0700");
}

TEST_F(FailedStartTest, ConfigThatIsNotThereIsNamed) {
  KekdProcess kekd;
  std::filesystem::remove(kekd.config());
  ExpectFailure(kekd, 78, kekd.config());
}

TEST_F(FailedStartTest, WrongPinEndsWithItsOwnCodeAndIsNotTriedAgain) {
  KekdProcess kekd;
  const std::string pin = absl::StrCat(kekd.dir(), "/pin");
  std::ofstream(pin, std::ios::trunc) << "not-the-pin\n";
  for (int i = 0; i < 3; ++i) {
    const auto [code, text] = kekd.Run({"--config", kekd.config()});
    EXPECT_EQ(code, 79) << text;
    EXPECT_THAT(text, Not(HasSubstr("not-the-pin")));
  }
  std::ofstream(pin, std::ios::trunc) << kekd.pin() << "\n";
  EXPECT_OK(kekd.StartWithKeys());
}

TEST_F(FailedStartTest, TakenPortEndsWithItsCode) {
  KekdProcess first({.yaml = "http: {listen: \"127.0.0.1:0\"}\n"});
  ASSERT_OK(first.Start());
  ASSERT_GT(first.HttpPort(), 0);
  KekdProcess second({.yaml = absl::StrCat("http: {listen: \"127.0.0.1:",
                                           first.HttpPort(), "\"}\n")});
  const auto [code, text] = second.Run({"--config", second.config()});
  EXPECT_EQ(code, 73) << text;
  EXPECT_THAT(text, HasSubstr(absl::StrCat("127.0.0.1:", first.HttpPort())));
}

TEST_F(FailedStartTest, SecondKekdOnTheSameStateIsRefusedAndTheFirstServes) {
  KekdProcess kekd;
  ASSERT_OK(kekd.StartWithKeys());
  const auto [code, text] = kekd.Run({"--config", kekd.config()});
  EXPECT_EQ(code, 73) << text;
  EXPECT_THAT(text, HasSubstr("another kekd"));
  EXPECT_TRUE(Status(kekd.Socket()).ok());
}

// ---- reload

TEST_F(DaemonTest, ReloadWithAnErrorChangesNothingAndSaysSo) {
  KekdProcess kekd;
  ASSERT_OK(kekd.StartWithKeys());
  EditConfig(kekd, "state_dir:", "state_dirs:");
  kekd.Signal(SIGHUP);
  EXPECT_TRUE(LogComes(kekd, "configuration not reloaded"));
  EXPECT_THAT(kekd.Log(), HasSubstr("unknown field"));
  EXPECT_TRUE(Status(kekd.Socket()).ok());
}

TEST_F(DaemonTest, ReloadAppliesTheLogLevelAndNamesWhatNeedsARestart) {
  KekdProcess kekd({.yaml = "log: {level: info}\n"});
  ASSERT_OK(kekd.StartWithKeys());
  EXPECT_THAT(kekd.Log(), Not(HasSubstr("call answered")));
  EditConfig(kekd, "log: {level: info}",
             "log: {level: debug, format: json}\nkeys: {rotate_after_uses: "
             "1000}");
  kekd.Signal(SIGHUP);
  ASSERT_TRUE(LogComes(kekd, "configuration reloaded"));
  EXPECT_THAT(kekd.Log(), HasSubstr("\"settings\":\"keys.rotate_after_uses\""));
  ASSERT_TRUE(Status(kekd.Socket()).ok());
  EXPECT_TRUE(LogComes(kekd, "\"msg\":\"call answered\""));
}

TEST_F(DaemonTest, ReloadHoldsForConnectionsThatAreOpen) {
  KekdProcess kekd(
      {.bindings = {{.name = "main", .yaml = {"allowed_users: [\"65534\"]"}}}});
  if (getuid() != 65534) GTEST_SKIP() << "needs to be started by root";
  ASSERT_OK(kekd.StartWithKeys());
  auto plugin = Plugin(kekd.Socket());
  v2::StatusResponse response;
  ASSERT_TRUE(plugin->Status(Context().get(), {}, &response).ok());

  EditConfig(kekd, "[\"65534\"]", "[\"4242\"]");
  kekd.Signal(SIGHUP);
  ASSERT_TRUE(LogComes(kekd, "configuration reloaded"));

  EXPECT_EQ(plugin->Status(Context().get(), {}, &response).error_code(),
            grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_FALSE(Status(kekd.Socket()).ok());  // a new connection
  EditConfig(kekd, "[\"4242\"]", "[\"65534\"]");
  kekd.Signal(SIGHUP);
  EXPECT_TRUE(Eventually([&] { return Status(kekd.Socket()).ok(); },
                         Within(seconds(20))));
}

// ---- systemd

// Where sd_notify goes.
class NotifySocket {
 public:
  explicit NotifySocket(const std::string& path) {
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
  // Reads until a message begins so.
  bool Comes(const std::string& start) {
    return Eventually(
        [&] {
          char buffer[2048];
          ssize_t size = 0;
          while ((size = recv(fd_, buffer, sizeof(buffer), MSG_DONTWAIT)) > 0) {
            if (absl::StartsWith(absl::string_view(buffer, size), start)) {
              return true;
            }
          }
          return false;
        },
        Within(seconds(20)));
  }

 private:
  int fd_ = -1;
};

TEST_F(DaemonTest, SystemdHearsOfReadyReloadWatchdogAndStop) {
  KekdProcess kekd;
  NotifySocket systemd(absl::StrCat(kekd.dir(), "/notify"));
  setenv("WATCHDOG_USEC", "3000000", 1);
  const absl::Status started = kekd.StartWithKeys();
  unsetenv("WATCHDOG_USEC");
  ASSERT_OK(started);
  EXPECT_TRUE(systemd.Comes("READY=1"));
  EXPECT_TRUE(systemd.Comes("WATCHDOG=1"));
  kekd.Signal(SIGHUP);
  EXPECT_TRUE(systemd.Comes("RELOADING=1\nMONOTONIC_USEC="));
  EXPECT_TRUE(systemd.Comes("READY=1"));

  // The watchdog is not about the token.
  kekd.TakeTokenAway();
  EXPECT_TRUE(systemd.Comes("WATCHDOG=1"));
  EXPECT_TRUE(systemd.Comes("WATCHDOG=1"));
  kekd.BringTokenBack();

  kekd.Signal(SIGTERM);
  EXPECT_TRUE(systemd.Comes("STOPPING=1"));
  EXPECT_THAT(kekd.WaitForEnd(Within(seconds(20))), IsOkAndHolds(0));
}

// Starts kekd as systemd would, with listening sockets as descriptors 3 and 4.
pid_t StartActivated(const KekdProcess& kekd, int admin, int main) {
  const std::string binary = Reachable(KEKD_BINARY);
  const std::string config = kekd.config();
  const std::string log = absl::StrCat(kekd.dir(), "/activated.log");
  const std::string soft_hsm = absl::StrCat(kekd.dir(), "/softhsm2.conf");
  const pid_t child = fork();
  if (child != 0) return child;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int out = open(log.c_str(), O_CREAT | O_APPEND | O_WRONLY, 0600);
  dup2(out, 1);
  dup2(out, 2);
  const int a = fcntl(admin, F_DUPFD, 100), m = fcntl(main, F_DUPFD, 100);
  dup2(a, 3);
  dup2(m, 4);
  for (int fd = 5; fd < 1024; ++fd) close(fd);
  setenv("SOFTHSM2_CONF", soft_hsm.c_str(), 1);
  setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
  setenv("LISTEN_FDS", "2", 1);
  setenv("LISTEN_FDNAMES", "admin:main", 1);
  execl(binary.c_str(), binary.c_str(), "--config", config.c_str(), nullptr);
  _exit(127);
}

int Listen(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)),
            0);
  EXPECT_EQ(listen(fd, 64), 0);
  return fd;
}

TEST_F(DaemonTest, SocketsThatSystemdHoldsOutliveARestart) {
  KekdProcess kekd;
  ASSERT_OK(kekd.StartWithKeys());  // makes the key
  ASSERT_THAT(kekd.Terminate(), IsOkAndHolds(0));
  const int admin_fd = Listen(kekd.AdminSocket());
  const int main_fd = Listen(kekd.Socket());

  for (int restart = 0; restart < 3; ++restart) {
    // The call is made while nobody runs, and waits.
    grpc::Status status;
    v2::StatusResponse response;
    auto plugin = Plugin(kekd.Socket());
    std::thread caller([&] {
      auto context = Context(seconds(20));
      context->set_wait_for_ready(true);
      status = plugin->Status(context.get(), {}, &response);
    });
    const pid_t pid = StartActivated(kekd, admin_fd, main_fd);
    caller.join();
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.healthz(), "ok");
    kill(pid, SIGTERM);
    int code = -1;
    waitpid(pid, &code, 0);
    EXPECT_EQ(code, 0);
    EXPECT_TRUE(std::filesystem::is_socket(kekd.Socket()));
  }
  close(admin_fd);
  close(main_fd);
}

TEST_F(DaemonTest, StopIsQuickAndAWarmStartAnswersWithinASecond) {
  KekdProcess kekd({.yaml = "http: {listen: \"127.0.0.1:0\"}\n"});
  ASSERT_OK(kekd.StartWithKeys());
  auto begin = std::chrono::steady_clock::now();
  ASSERT_THAT(kekd.Terminate(), IsOkAndHolds(0));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, seconds(1));
  EXPECT_THAT(kekd.Log(), HasSubstr("kekd has stopped clean=true"));
  EXPECT_FALSE(std::filesystem::exists(kekd.Socket()));

  begin = std::chrono::steady_clock::now();
  ASSERT_OK(kekd.Start());
  ASSERT_OK(kekd.WaitHealthy(Within(seconds(20))));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, seconds(1));
}

// ---- admin API

TEST_F(DaemonTest, StatusTellsOfTokenBindingsAuditAndConfig) {
  KekdProcess kekd;
  ASSERT_OK(kekd.StartWithKeys());
  admin::GetStatusResponse status;
  ASSERT_TRUE(Admin(kekd)->GetStatus(Context().get(), {}, &status).ok());

  EXPECT_EQ(status.token().state(), "READY");
  EXPECT_EQ(status.token().label(), "kek-test");
  EXPECT_EQ(status.token().uri(), "pkcs11:token=kek-test");
  EXPECT_EQ(status.token().iv_mode(), "host_xor_token");
  EXPECT_GE(status.token().generation(), 1u);
  EXPECT_TRUE(status.token().has_since_last_success());
  ASSERT_EQ(status.kubernetes_size(), 1);
  const auto& binding = status.kubernetes(0);
  EXPECT_EQ(binding.name(), "main");
  EXPECT_EQ(binding.socket(), kekd.Socket());
  EXPECT_EQ(binding.key(), kekd.KeyName("main"));
  EXPECT_EQ(binding.primary_version(),
            absl::StrCat(kekd.KeyName("main"), "/cryptoKeyVersions/1"));
  EXPECT_EQ(binding.health(), "ok");
  v2::StatusResponse plugin;
  ASSERT_TRUE(Status(kekd.Socket(), &plugin).ok());
  EXPECT_EQ(binding.key_id(), plugin.key_id());
  EXPECT_EQ(status.audit().health(), "ok");
  EXPECT_EQ(status.audit().directory(), kekd.audit());
  EXPECT_EQ(status.log_level(), "info");
  EXPECT_EQ(status.config_digest().size(), 64u);
  EXPECT_THAT(status.not_ready(), IsEmpty());
  EXPECT_GT(status.start_time().seconds(), 1'700'000'000);
}

TEST_F(DaemonTest, StatusSaysWhyKekdIsNotReady) {
  KekdProcess kekd;
  ASSERT_OK(kekd.Start());  // the binding's key does not exist
  admin::GetStatusResponse status;
  ASSERT_TRUE(Eventually(
      [&] {
        status.Clear();
        return Admin(kekd)->GetStatus(Context().get(), {}, &status).ok() &&
               status.not_ready_size() == 1 &&
               absl::StrContains(status.not_ready(0), "not found");
      },
      Within(seconds(20))))
      << status.DebugString();
  EXPECT_THAT(status.not_ready(0), HasSubstr("binding main: "));
}

TEST_F(DaemonTest, OperatorsActsAreDoneAndAudited) {
  KekdProcess kekd;
  ASSERT_OK(kekd.StartWithKeys());
  auto stub = Admin(kekd);

  admin::SetLogLevelRequest level;
  level.set_level("warning");
  admin::SetLogLevelResponse previous;
  ASSERT_TRUE(stub->SetLogLevel(Context().get(), level, &previous).ok());
  EXPECT_EQ(previous.previous(), "info");
  level.set_level("loud");
  EXPECT_EQ(stub->SetLogLevel(Context().get(), level, &previous).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);

  admin::GetStatusResponse before;
  ASSERT_TRUE(stub->GetStatus(Context().get(), {}, &before).ok());
  admin::TokenLoginResponse login;
  ASSERT_TRUE(stub->ReloginToken(Context().get(), {}, &login).ok());
  EXPECT_EQ(login.token().state(), "READY");
  EXPECT_GT(login.token().generation(), before.token().generation());

  admin::RotateCryptoKeyRequest rotate;
  rotate.set_name(kekd.KeyName("main"));
  admin::RotateCryptoKeyResponse rotated;
  ASSERT_TRUE(stub->RotateCryptoKey(Context().get(), rotate, &rotated).ok());
  EXPECT_EQ(rotated.primary_version(),
            absl::StrCat(kekd.KeyName("main"), "/cryptoKeyVersions/2"));

  for (const char* method : {"SetLogLevel", "ReloginToken"}) {
    EXPECT_THAT(kekd.AuditLines(),
                Contains(AllOf(HasSubstr(absl::StrCat("\"", method, "\"")),
                               HasSubstr(absl::StrCat("unix:uid:", getuid())))))
        << method;
  }
}

TEST_F(DaemonTest, PluginSocketServesNeitherAdminNorCloudKmsNorHealth) {
  KekdProcess kekd;
  ASSERT_OK(kekd.StartWithKeys());
  auto stub = admin::Admin::NewStub(ConnectTo(kekd.Socket()));
  admin::GetStatusResponse status;
  EXPECT_EQ(stub->GetStatus(Context().get(), {}, &status).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

// ---- memory

// Marks of plaintext in a core image that root takes of kekd; nullopt without
// root.
std::optional<size_t> MarksInCore(const KekdProcess& kekd,
                                  const std::string& mark) {
  std::optional<size_t> marks;
  AsRoot([&] {
    TempDir dir;
    const std::string prefix = dir.File("core");
    const std::string pid = absl::StrCat(kekd.pid());
    const pid_t child = fork();
    if (child == 0) {
      // gdb wants to be root altogether.
      if (setresgid(0, 0, 0) != 0 || setresuid(0, 0, 0) != 0) _exit(126);
      const int null = open("/dev/null", O_RDWR);
      dup2(null, 1);
      dup2(null, 2);
      // Pages that are marked as not to be dumped would be left out.
      execl("/usr/bin/gcore", "gcore", "-a", "-o", prefix.c_str(), pid.c_str(),
            nullptr);
      _exit(127);
    }
    int status = -1;
    waitpid(child, &status, 0);
    const std::string core = TempDir::Read(absl::StrCat(prefix, ".", pid));
    EXPECT_EQ(status, 0) << "gcore failed";
    EXPECT_GT(core.size(), 1u << 20);
    marks = 0;
    for (size_t at = core.find(mark); at != std::string::npos;
         at = core.find(mark, at + 1)) {
      ++*marks;
    }
  });
  return marks;
}

TEST_F(DaemonTest, K8s24NoPlaintextDekInACoreImageAfter2000Requests) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's shadow is terabytes, and keeps freed memory";
#endif
  KekdProcess kekd;
  ASSERT_OK(kekd.StartWithKeys());
  std::string mark(16, '\0');
  for (size_t i = 0; i < mark.size(); ++i) {
    mark[i] = static_cast<char>(0x9d ^ (i * 37));
  }
  const auto work = [&](int from) {
    auto plugin = Plugin(kekd.Socket());
    for (int i = from; i < from + 250; ++i) {
      v2::EncryptRequest request;
      request.set_uid("uid");
      request.set_plaintext(mark + absl::StrCat(100000000 + i, "-------"));
      v2::EncryptResponse encrypted;
      ASSERT_TRUE(plugin->Encrypt(Context().get(), request, &encrypted).ok());
      v2::DecryptRequest decrypt;
      decrypt.set_uid("uid");
      decrypt.set_ciphertext(encrypted.ciphertext());
      decrypt.set_key_id(encrypted.key_id());
      v2::DecryptResponse decrypted;
      ASSERT_TRUE(plugin->Decrypt(Context().get(), decrypt, &decrypted).ok());
      ASSERT_EQ(decrypted.plaintext(), request.plaintext());
    }
  };
  // Four connections, 1,000 Encrypts and 1,000 Decrypts.
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) clients.emplace_back(work, i * 250);
  for (std::thread& client : clients) client.join();
  // One that stays open and falls silent, as kube-apiserver's does.
  auto quiet = Plugin(kekd.Socket());
  v2::EncryptRequest last;
  last.set_uid("uid");
  last.set_plaintext(mark + mark);
  v2::EncryptResponse encrypted;
  ASSERT_TRUE(quiet->Encrypt(Context().get(), last, &encrypted).ok());

  // Connections that are quiet are ended after 5 s; until then gRPC may keep
  // what it read last.
  size_t marks = 1;
  const bool gone = Eventually(
      [&] {
        const auto found = MarksInCore(kekd, mark);
        marks = found.value_or(0);
        return marks == 0;
      },
      Within(seconds(30)));
  if (!AsRoot([] {})) GTEST_SKIP() << "only root may take kekd's core image";
  EXPECT_TRUE(gone) << marks << " marks";
  // And the client that fell silent does not notice.
  EXPECT_TRUE(quiet->Encrypt(Context().get(), last, &encrypted).ok());
}

}  // namespace
}  // namespace kek::integration
