// SPDX-License-Identifier: Apache-2.0
#include "tests/support/kekd_process.h"

#include <fcntl.h>
#include <grp.h>
#include <grpc/grpc.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "google/cloud/kms/v1/service.grpc.pb.h"
#include "kubernetes/kms/v2/api.grpc.pb.h"

namespace kek::integration {
namespace {

namespace kms = google::cloud::kms::v1;

constexpr uid_t kNobody = 65534;
constexpr char kSoftHsm[] = "/usr/lib/softhsm/libsofthsm2.so";
constexpr char kTokenLabel[] = "kek-test";

void Demand(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "%s: errno %d\n", what, errno);
  std::abort();
}

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
}

}  // namespace

void DropPrivileges() {
  if (getuid() != 0) return;  // the real one: AsRoot lends the effective one
  Demand(setgroups(0, nullptr) == 0, "setgroups");
  // LeakSanitizer looks at the process from outside when it ends, which a
  // process with two identities does not allow.
  std::atexit([] {
    static_cast<void>(setresuid(0, 0, 0) == 0 || seteuid(0) == 0);
    prctl(PR_SET_DUMPABLE, 1);
  });
  Demand(setresgid(kNobody, kNobody, 0) == 0, "setresgid");
  Demand(setresuid(kNobody, kNobody, 0) == 0, "setresuid");
  // A change of identity makes a process undumpable, and its /proc root's.
  prctl(PR_SET_DUMPABLE, 1);
}

bool AsRoot(const std::function<void()>& run) {
  uid_t real, effective, saved;
  getresuid(&real, &effective, &saved);
  if (effective == 0) {
    run();
    return true;
  }
  if (saved != 0) return false;
  Demand(seteuid(0) == 0, "seteuid");
  run();
  Demand(seteuid(kNobody) == 0, "seteuid");
  prctl(PR_SET_DUMPABLE, 1);
  return true;
}

std::string Reachable(const std::string& binary) {
  DropPrivileges();
  if (access(binary.c_str(), X_OK) == 0) return binary;
  static std::map<std::string, std::string> copies;
  static const base::testing::TempDir dir;
  std::string& copy = copies[binary];
  if (copy.empty()) {
    copy = dir.File(std::filesystem::path(binary).filename().string());
    chmod(dir.path().c_str(), 0711);
    const bool copied = AsRoot([&] {
      std::filesystem::copy_file(binary, copy);
      chmod(copy.c_str(), 0755);
    });
    Demand(copied, "the binary cannot be reached");
  }
  return copy;
}

bool Eventually(const std::function<bool()>& condition,
                base::Deadline deadline) {
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

std::shared_ptr<grpc::Channel> ConnectTo(const std::string& socket,
                                         const std::string& authority) {
  // Kept for ever: with the last channel gRPC ends as a library, and takes
  // seconds for it.
  static const bool initialised = (grpc_init(), true);
  static_cast<void>(initialised);
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  if (!authority.empty()) {
    arguments.SetString(GRPC_ARG_DEFAULT_AUTHORITY, authority);
  }
  return grpc::CreateCustomChannel(
      socket[0] == '@' ? absl::StrCat("unix-abstract:", socket.substr(1))
                       : absl::StrCat("unix:", socket),
      grpc::InsecureChannelCredentials(), arguments);
}

std::unique_ptr<grpc::ClientContext> Context(std::chrono::nanoseconds delay) {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_wait_for_ready(true);
  context->set_deadline(
      std::chrono::system_clock::now() +
      std::chrono::duration_cast<std::chrono::system_clock::duration>(delay));
  return context;
}

KekdProcess::KekdProcess(Options options)
    : options_((DropPrivileges(), std::move(options))) {
  for (const char* name : {"tokens", "state", "run"}) {
    Demand(mkdir(dir_.File(name).c_str(), 0700) == 0, "mkdir");
  }
  dir_.Write("softhsm2.conf",
             absl::StrCat("directories.tokendir = ", dir_.File("tokens"),
                          "\nobjectstore.backend = file\n"
                          "log.level = ERROR\nslots.removable = false\n"));
  pin_ = absl::StrCat("pin-", getpid(), "-",
                      dir_.path().substr(dir_.path().size() - 6));
  dir_.Write("pin", absl::StrCat(pin_, "\n"));
  const pid_t init =
      Spawn({"/usr/bin/softhsm2-util", "--init-token", "--free", "--label",
             kTokenLabel, "--so-pin", "87654321", "--pin", pin_},
            "softhsm2-util.log");
  int status = 0;
  Demand(waitpid(init, &status, 0) == init && status == 0, "softhsm2-util");
  WriteConfig(options_);
}

KekdProcess::~KekdProcess() {
  if (pid_ > 0) Kill();
}

void KekdProcess::WriteConfig(const Options& options) {
  options_ = options;
  std::string yaml =
      absl::StrCat("state_dir: ", dir_.File("state"), "\ntoken:\n  module: ",
                   options.module.empty() ? kSoftHsm : options.module,
                   "\n  uri: \"pkcs11:token=", kTokenLabel,
                   "\"\n  pin:\n    file: ", dir_.File("pin"), "\n");
  for (const std::string& line : options.token) {
    absl::StrAppend(&yaml, "  ", line, "\n");
  }
  absl::StrAppend(&yaml, "admin:\n  socket: ", AdminSocket(), "\n");
  for (const std::string& line : options.admin) {
    absl::StrAppend(&yaml, "  ", line, "\n");
  }
  if (!options.bindings.empty()) absl::StrAppend(&yaml, "kubernetes:\n");
  for (const Binding& binding : options.bindings) {
    absl::StrAppend(&yaml, "  - name: ", binding.name, "\n    socket: \"",
                    Socket(binding.name), "\"\n    key: ", KeyName(binding.key),
                    "\n");
    for (const std::string& line : binding.yaml) {
      absl::StrAppend(&yaml, "    ", line, "\n");
    }
  }
  dir_.Write("kekd.yaml", absl::StrCat(yaml, options.yaml));
}

pid_t KekdProcess::Spawn(const std::vector<std::string>& argv,
                         const std::string& log) {
  std::vector<char*> arguments;
  for (const std::string& argument : argv) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  std::vector<std::string> environment = {
      absl::StrCat("SOFTHSM2_CONF=", dir_.File("softhsm2.conf"))};
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const absl::string_view text(*variable);
    if (text.substr(0, 14) != "SOFTHSM2_CONF=") {
      environment.emplace_back(text);
    }
  }
  std::vector<char*> variables;
  for (std::string& variable : environment)
    variables.push_back(variable.data());
  variables.push_back(nullptr);
  const std::string log_path = dir_.File(log);
  const pid_t pid = fork();
  Demand(pid >= 0, "fork");
  if (pid == 0) {
    // Only what may be called after fork in a process with threads.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int out = open(log_path.c_str(), O_CREAT | O_APPEND | O_WRONLY, 0600);
    dup2(out, 1);
    dup2(out, 2);
    for (int fd = 3; fd < 1024; ++fd) close(fd);
    execve(arguments[0], arguments.data(), variables.data());
    _exit(127);
  }
  return pid;
}

absl::Status KekdProcess::Start() {
  pid_ = Spawn({Reachable(KEKD_BINARY), "--config", config()}, "kekd.log");
  const base::Deadline deadline = Within(std::chrono::seconds(20));
  grpc::Status last;
  while (std::chrono::steady_clock::now() < deadline) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      return absl::UnavailableError(
          absl::StrCat("kekd ended with status ", status, "\n", Log()));
    }
    // A new channel each time: gRPC tries a socket that was not there again
    // only after seconds.
    auto stub = kms::KeyManagementService::NewStub(ConnectTo(AdminSocket()));
    kms::ListKeyRingsRequest request;
    request.set_parent(kLocation);
    kms::ListKeyRingsResponse response;
    last = stub->ListKeyRings(Context(std::chrono::seconds(2)).get(), request,
                              &response);
    if (last.ok()) return absl::OkStatus();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return absl::UnavailableError(absl::StrCat(
      "kekd does not answer: ", last.error_message(), "\n", Log()));
}

absl::Status KekdProcess::StartWithKeys() {
  RETURN_IF_ERROR(Start());
  auto stub = kms::KeyManagementService::NewStub(ConnectTo(AdminSocket()));
  kms::CreateKeyRingRequest ring;
  ring.set_parent(kLocation);
  ring.set_key_ring_id("ring");
  kms::KeyRing made_ring;
  absl::Status status =
      FromGrpc(stub->CreateKeyRing(Context().get(), ring, &made_ring));
  if (!status.ok() && !absl::IsAlreadyExists(status)) return status;
  for (const Binding& binding : options_.bindings) {
    kms::CreateCryptoKeyRequest key;
    key.set_parent(kRing);
    key.set_crypto_key_id(binding.key);
    key.mutable_crypto_key()->set_purpose(kms::CryptoKey::ENCRYPT_DECRYPT);
    kms::CryptoKey made_key;
    status = FromGrpc(stub->CreateCryptoKey(Context().get(), key, &made_key));
    if (!status.ok() && !absl::IsAlreadyExists(status)) return status;
  }
  return WaitHealthy(Within(std::chrono::seconds(20)));
}

absl::Status KekdProcess::WaitHealthy(base::Deadline deadline) {
  for (const Binding& binding : options_.bindings) {
    auto stub =
        v2::KeyManagementService::NewStub(ConnectTo(Socket(binding.name)));
    grpc::Status status;
    v2::StatusResponse response;
    if (!Eventually(
            [&] {
              status = stub->Status(Context(std::chrono::seconds(3)).get(),
                                    v2::StatusRequest(), &response);
              return status.ok() && response.healthz() == "ok";
            },
            deadline)) {
      return absl::UnavailableError(
          absl::StrCat("binding ", binding.name, ": ", status.error_message(),
                       response.healthz(), "\n", Log()));
    }
  }
  return absl::OkStatus();
}

void KekdProcess::Signal(int signal) {
  Demand(kill(pid_, signal) == 0, "kill");
}

void KekdProcess::Kill() {
  Signal(SIGKILL);
  int status = 0;
  Demand(waitpid(pid_, &status, 0) == pid_, "waitpid");
  pid_ = -1;
}

absl::StatusOr<int> KekdProcess::Terminate() {
  Signal(SIGTERM);
  return WaitForEnd(Within(std::chrono::seconds(20)));
}

absl::StatusOr<int> KekdProcess::WaitForEnd(base::Deadline deadline) {
  int status = 0;
  if (!Eventually([&] { return waitpid(pid_, &status, WNOHANG) == pid_; },
                  deadline)) {
    return absl::DeadlineExceededError(
        absl::StrCat("kekd did not end\n", Log()));
  }
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

std::pair<int, std::string> KekdProcess::Run(
    const std::vector<std::string>& arguments) {
  static int runs = 0;
  const std::string log = absl::StrCat("run-", ++runs, ".log");
  std::vector<std::string> argv = {Reachable(KEKD_BINARY)};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  const pid_t pid = Spawn(argv, log);
  int status = 0;
  if (!Eventually([&] { return waitpid(pid, &status, WNOHANG) == pid; },
                  Within(std::chrono::seconds(20)))) {
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
  }
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status),
          base::testing::TempDir::Read(dir_.File(log))};
}

void KekdProcess::TakeTokenAway() {
  std::filesystem::rename(dir_.File("tokens"), dir_.File("tokens.away"));
}
void KekdProcess::BringTokenBack() {
  std::filesystem::rename(dir_.File("tokens.away"), dir_.File("tokens"));
}

std::string KekdProcess::KeyName(absl::string_view id) const {
  return absl::StrCat(kRing, "/cryptoKeys/", id);
}

std::string KekdProcess::Socket(absl::string_view name) const {
  for (const Binding& binding : options_.bindings) {
    if (binding.name == name && !binding.socket.empty()) return binding.socket;
  }
  return absl::StrCat(run(), "/", name, ".sock");
}

std::string KekdProcess::Log() const {
  return base::testing::TempDir::Read(dir_.File("kekd.log"));
}

int KekdProcess::HttpPort() const {
  constexpr absl::string_view kField = "http_port=";
  const std::string log = Log();
  const size_t at = log.rfind(std::string(kField));
  return at == std::string::npos ? 0 : std::atoi(&log[at + kField.size()]);
}

std::vector<std::string> KekdProcess::AuditLines() const {
  std::set<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(audit())) {
    if (entry.is_regular_file()) files.insert(entry.path());
  }
  std::vector<std::string> lines;
  for (const std::string& file : files) {
    const std::string text = base::testing::TempDir::Read(file);
    for (const absl::string_view line :
         absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      lines.emplace_back(line);
    }
  }
  return lines;
}

}  // namespace kek::integration
