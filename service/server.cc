// SPDX-License-Identifier: Apache-2.0
#include "service/server.h"

#include <fcntl.h>
#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_posix.h>
#include <openssl/sha.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <functional>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/status_macros.h"
#include "catalog/catalog.h"
#include "catalog/resource_name.h"
#include "core/audit_log.h"
#include "core/authorizer.h"
#include "core/key_service.h"
#include "core/lifecycle.h"
#include "pkcs11/token.h"
#include "service/admin_service.h"
#include "service/cloud_kms_v1.h"
#include "service/connections.h"
#include "service/dispatch.h"
#include "service/executor.h"
#include "service/exit_code.h"
#include "service/http_endpoint.h"
#include "service/kubernetes_key_id.h"
#include "service/kubernetes_kms_v1beta1.h"
#include "service/kubernetes_kms_v2.h"
#include "service/systemd.h"
#include "service/unix_listener.h"

namespace kek::service {
namespace {

using std::chrono::steady_clock;

// The largest legal message of the Kubernetes API is about 35 KiB; of Cloud
// KMS, 64 KiB of plaintext and as much AAD.
constexpr int kKubernetesMessageBytes = 64 << 10;
constexpr int kAdminMessageBytes = 192 << 10;
// Making a key on a slow HSM takes its time.
constexpr absl::Duration kAdminMaxDeadline = absl::Minutes(2);

// gRPC reads into a buffer that it keeps, and what it has read stays there,
// until 8 KiB have come or the connection ends. So that a DEK does not stay for
// hours in the buffer of a kube-apiserver that only asks for Status, quiet
// connections are ended (GOAWAY; clients connect again with their next call),
// and what they leave behind is wiped by free.
constexpr int kConnectionIdleMs = 5000;

constexpr int kQuickWorkers = 4;
constexpr size_t kQuickQueue = 256;

constexpr std::chrono::seconds kGiveUp{2};
constexpr std::chrono::seconds kTick{1};
constexpr std::chrono::seconds kCheckPeriod{5};

absl::Duration ToDuration(const google::protobuf::Duration& proto) {
  return absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

core::CallInfo OwnCall(std::chrono::nanoseconds patience) {
  return {.caller = core::Caller{.principals = {"kekd:server"}},
          .request_id = "",
          .deadline = base::DeadlineAfter(patience)};
}

// gRPC's own messages, of which a peer can cause as many as it likes.
void LogGrpc(gpr_log_func_args* args) {
  static std::atomic<int64_t> window{0};
  static std::atomic<int> count{0};
  const int64_t now = std::chrono::duration_cast<std::chrono::seconds>(
                          steady_clock::now().time_since_epoch())
                          .count() /
                      10;
  if (window.exchange(now) != now) count = 0;
  if (count.fetch_add(1) >= 5) return;
  base::Log(args->severity == GPR_LOG_SEVERITY_ERROR ? base::LogLevel::kWarning
                                                     : base::LogLevel::kDebug,
            "gRPC", {{"message", args->message}});
}

// Makes the state directory if only it is missing, and takes it for this
// process: two kekd with one state would spoil it. The descriptor holds the
// lock.
absl::StatusOr<int> TakeStateDirectory(const std::string& path) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    const std::string text = absl::StrCat(
        "cannot create the state directory ", path, ": ", std::strerror(errno),
        "; create it, owned by kekd's user, with mode 0700");
    return WithExitCode(
        absl::FailedPreconditionError(text),
        errno == EACCES ? ExitCode::kRefused : ExitCode::kConfig);
  }
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) != 0) {
    absl::Status error = absl::PermissionDeniedError(absl::StrCat(
        "cannot open the state directory ", path, ": ", std::strerror(errno)));
    if (fd >= 0) close(fd);
    return WithExitCode(std::move(error), ExitCode::kRefused);
  }
  absl::Status error;
  if (status.st_uid != geteuid() || (status.st_mode & 0077) != 0) {
    error = WithExitCode(
        absl::PermissionDeniedError(absl::StrCat(
            "the state directory ", path,
            " must belong to kekd's user and be closed to all others (mode "
            "0700); it belongs to uid ",
            status.st_uid, " and has mode ",
            absl::Hex((status.st_mode >> 6) & 7),
            absl::Hex((status.st_mode >> 3) & 7),
            absl::Hex(status.st_mode & 7))),
        ExitCode::kRefused);
  } else if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    error = WithExitCode(
        absl::FailedPreconditionError(absl::StrCat(
            "the state directory ", path,
            " is used by another kekd that runs; stop that one, or give this "
            "one a state_dir of its own")),
        ExitCode::kCannotCreate);
  }
  if (error.ok()) return fd;
  close(fd);
  return error;
}

ExitCode TokenExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kPermissionDenied:
      return ExitCode::kPinRefused;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
      return ExitCode::kConfig;
    default:
      return ExitCode::kUnavailable;
  }
}

ExitCode StoreExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kDataLoss:
      return ExitCode::kData;
    case absl::StatusCode::kPermissionDenied:
      return ExitCode::kRefused;
    default:
      return ExitCode::kIo;
  }
}

ExitCode SocketExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kPermissionDenied:
      return ExitCode::kRefused;
    case absl::StatusCode::kInvalidArgument:
      return ExitCode::kConfig;
    case absl::StatusCode::kFailedPrecondition:
      return ExitCode::kCannotCreate;
    default:
      return ExitCode::kOs;
  }
}

pkcs11::PinSource PinSourceOf(const config::v1::Pin& pin) {
  if (!pin.credential().empty()) {
    return pkcs11::PinSource::Credential(pin.credential());
  }
  if (!pin.file().empty()) return pkcs11::PinSource::File(pin.file());
  if (pin.has_file_descriptor()) {
    return pkcs11::PinSource::Descriptor(pin.file_descriptor());
  }
  return pkcs11::PinSource::Environment(pin.environment());
}

pkcs11::TokenProfile ProfileOf(const config::v1::Token& token) {
  pkcs11::TokenProfile profile;
  switch (token.iv_mode()) {
    case config::v1::Token::token_random:
      profile.iv_mode = pkcs11::IvMode::kTokenRandom;
      break;
    case config::v1::Token::token_writeback:
      profile.iv_mode = pkcs11::IvMode::kTokenWriteback;
      break;
    case config::v1::Token::token_append:
      profile.iv_mode = pkcs11::IvMode::kTokenAppend;
      break;
    default:
      profile.iv_mode = pkcs11::IvMode::kHostXorToken;
  }
  profile.max_sessions = token.max_sessions();
  profile.read_write_sessions = token.read_write_sessions();
  profile.allow_host_only_iv = token.allow_host_only_iv();
  profile.attributes = token.attributes() == config::v1::Token::observed
                           ? pkcs11::AttributePolicy::kObserved
                           : pkcs11::AttributePolicy::kStrict;
  profile.insecure_module_ok = token.insecure_module_ok();
  return profile;
}

core::KeyService::Options KeyOptionsOf(const config::v1::Keys& keys,
                                       base::Metrics& metrics) {
  core::KeyService::Options options;
  options.default_destroy_scheduled_duration =
      ToDuration(keys.default_destroy_scheduled_duration());
  options.default_rotate_after_uses = keys.rotate_after_uses();
  options.verify_after_encrypt = keys.verify_after_encrypt();
  options.locations.assign(keys.locations().begin(), keys.locations().end());
  options.metrics = &metrics;
  return options;
}

// Policy as the config implies it. A binding's peers may use its key; who may
// open the admin socket may do everything.
std::vector<core::Grant> GrantsOf(const Config& config) {
  constexpr char kUser[] = "roles/cloudkms.cryptoKeyEncrypterDecrypter";
  std::vector<core::Grant> grants;
  for (const auto& binding : config.settings.kubernetes()) {
    grants.push_back(
        {absl::StrCat("kubernetes:", binding.name()), kUser, binding.key()});
  }
  const auto administrator = [&](const std::string& principal) {
    for (const char* role :
         {"roles/cloudkms.admin", kUser, "roles/kekd.operator"}) {
      grants.push_back({principal, role, ""});
    }
  };
  for (uint32_t uid : config.admin.uids) {
    administrator(absl::StrCat("unix:uid:", uid));
  }
  for (uint32_t gid : config.admin.gids) {
    administrator(absl::StrCat("unix:gid:", gid));
  }
  return grants;
}

// As kube-apiserver writes a key_id into the labels of its own metrics.
std::string KeyIdHash(absl::string_view key_id) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(key_id.data()), key_id.size(),
         digest);
  return absl::StrCat(
      "sha256:", absl::BytesToHexString(absl::string_view(
                     reinterpret_cast<const char*>(digest), sizeof(digest))));
}

// A gRPC server that listens on nothing; connections come by
// AddInsecureChannelFromFd.
std::unique_ptr<grpc::Server> MakeGrpcServer(
    const std::vector<grpc::Service*>& services, int max_message_bytes) {
  grpc::ServerBuilder builder;
  for (grpc::Service* service : services) builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(max_message_bytes);
  builder.SetMaxSendMessageSize(max_message_bytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 1024);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS,
                             kConnectionIdleMs);
  return builder.BuildAndStart();
}

}  // namespace

class Server::Parts {
 public:
  explicit Parts(Config config) : config_(std::move(config)) {}

  absl::Status Start(std::map<std::string, int> passed);
  absl::StatusOr<std::vector<std::string>> Reload(Config wanted);
  absl::Status Check(base::Deadline deadline);
  std::vector<std::string> NotReady() const;
  int http_port() const { return http_ == nullptr ? 0 : http_->port(); }
  bool Stop();
  ~Parts() {
    if (state_directory_ >= 0) close(state_directory_);
  }

 private:
  // One Kubernetes socket and what serves it.
  struct Binding {
    Binding(std::string n, std::string s, catalog::ResourceName k)
        : name(std::move(n)), socket(std::move(s)), key(std::move(k)) {}
    const std::string name;
    const std::string socket;
    const catalog::ResourceName key;
    std::unique_ptr<core::KeyHealth> health;
    std::unique_ptr<grpc::Service> v2, v1beta1;
    std::unique_ptr<grpc::Server> server;
    std::unique_ptr<UnixListener> listener;

    // Of the supervisor: what the gauges show now.
    std::string key_id;
    absl::Time version_made;
    base::Metrics::Labels info_labels, age_labels;
  };

  // Hears of the token's events from before there is an audit log until after
  // there is one.
  struct TokenEvents {
    base::Mutex mu;
    std::function<void(const std::string&, const std::string&)> record
        ABSL_GUARDED_BY(mu);
  };

  absl::Status StartCore();
  absl::Status OpenSockets(std::map<std::string, int> passed);
  void MakeServers();
  void Accept(UnixListener& listener, grpc::Server& server,
              const Connections::Origin& origin);
  std::vector<std::string> NotLive() const;
  void Supervise();
  void ShowKey(Binding& binding);
  void ShowToken();

  // Guarded by config_mu_ once running; what Start reads is constant.
  mutable base::Mutex config_mu_;
  Config config_;
  const absl::Time start_time_ = absl::Now();

  base::Metrics metrics_;
  int state_directory_ = -1;  // locked
  const std::shared_ptr<TokenEvents> token_events_ =
      std::make_shared<TokenEvents>();

  // Made in this order, destroyed in the reverse one: everything is made of
  // what stands above it.
  std::unique_ptr<pkcs11::Token> token_;
  std::unique_ptr<catalog::Catalog> catalog_;
  std::unique_ptr<core::AuditLog> audit_;
  std::unique_ptr<core::Authorizer> authorizer_;
  std::unique_ptr<core::KeyService> keys_;
  std::unique_ptr<core::Lifecycle> lifecycle_;
  std::unique_ptr<Connections> connections_;
  std::unique_ptr<Executor> ordinary_, quick_;
  std::unique_ptr<Dispatch> kubernetes_dispatch_, admin_dispatch_;
  std::vector<std::unique_ptr<Binding>> bindings_;
  std::unique_ptr<grpc::Service> cloud_kms_, admin_;
  std::unique_ptr<grpc::Server> admin_server_;
  std::unique_ptr<UnixListener> admin_listener_;
  std::unique_ptr<HttpEndpoint> http_;

  std::atomic<bool> stopping_{false};
  mutable base::Mutex supervisor_mu_;
  base::CondVar supervisor_wake_;
  absl::Status last_check_ ABSL_GUARDED_BY(supervisor_mu_);
  base::Deadline checked_ ABSL_GUARDED_BY(supervisor_mu_) = steady_clock::now();
  std::thread supervisor_;
};

absl::Status Server::Parts::StartCore() {
  const config::v1::Config& settings = config_.settings;
  absl::StatusOr<int> state = TakeStateDirectory(settings.state_dir());
  if (!state.ok()) return state.status();
  state_directory_ = *state;

  pkcs11::TokenOptions token;
  token.module_path = settings.token().module();
  token.init_args = settings.token().init_args();
  token.uri = settings.token().uri();
  token.pin = PinSourceOf(settings.token().pin());
  token.state_dir = settings.state_dir();
  token.profile = ProfileOf(settings.token());
  token.metrics = &metrics_;
  token.call_deadline = ToDuration(settings.token().call_deadline());
  token.on_event = [events = token_events_](const std::string& event,
                                            const std::string& detail) {
    base::MutexLock lock(events->mu);
    if (events->record != nullptr) events->record(event, detail);
  };
  auto opened = pkcs11::Token::Open(std::move(token));
  if (!opened.ok()) {
    return WithExitCode(opened.status(), TokenExitCode(opened.status()));
  }
  token_ = *std::move(opened);

  auto catalog =
      catalog::OpenSqliteCatalog({.path = settings.catalog().path()});
  if (!catalog.ok()) {
    return WithExitCode(catalog.status(), StoreExitCode(catalog.status()));
  }
  catalog_ = *std::move(catalog);

  core::AuditLog::Options audit_options;
  audit_options.directory = settings.audit().directory();
  audit_options.segment_bytes = settings.audit().segment_bytes();
  audit_options.metrics = &metrics_;
  auto audit = core::AuditLog::Open(std::move(audit_options));
  if (!audit.ok()) {
    return WithExitCode(audit.status(), StoreExitCode(audit.status()));
  }
  audit_ = *std::move(audit);

  auto authorizer = core::Authorizer::Create(GrantsOf(config_));
  if (!authorizer.ok()) {
    return WithExitCode(authorizer.status(), ExitCode::kConfig);
  }
  authorizer_ = *std::move(authorizer);

  keys_ = std::make_unique<core::KeyService>(
      *catalog_, *token_, *authorizer_, *audit_,
      KeyOptionsOf(settings.keys(), metrics_));
  return absl::OkStatus();
}

absl::Status Server::Parts::OpenSockets(std::map<std::string, int> passed) {
  const auto open = [&](const std::string& name, const std::string& path,
                        const SocketAccess& access)
      -> absl::StatusOr<std::unique_ptr<UnixListener>> {
    UnixListener::Options options;
    options.path = path;
    options.access = access;
    options.metrics = &metrics_;
    if (const auto it = passed.find(name); it != passed.end()) {
      options.inherited_fd = it->second;
      passed.erase(it);
    }
    auto listener = UnixListener::Open(std::move(options));
    if (!listener.ok()) {
      return WithExitCode(listener.status(), SocketExitCode(listener.status()));
    }
    return listener;
  };
  ASSIGN_OR_RETURN(
      admin_listener_,
      open("admin", config_.settings.admin().socket(), config_.admin));
  for (size_t i = 0; i < bindings_.size(); ++i) {
    ASSIGN_OR_RETURN(
        bindings_[i]->listener,
        open(bindings_[i]->name, bindings_[i]->socket, config_.kubernetes[i]));
  }
  if (!passed.empty()) {
    const std::string name = passed.begin()->first;
    for (const auto& [unused, fd] : passed) close(fd);
    return WithExitCode(
        absl::InvalidArgumentError(absl::StrCat(
            "systemd passed a socket named \"", name,
            "\", which is neither \"admin\" nor the name of a binding in ",
            config_.file, "; set FileDescriptorName= in its socket unit")),
        ExitCode::kConfig);
  }
  return absl::OkStatus();
}

void Server::Parts::MakeServers() {
  const config::v1::Config& settings = config_.settings;
  connections_ = std::make_unique<Connections>();
  ordinary_ = std::make_unique<Executor>(Executor::Options{
      .name = "ordinary",
      .workers = settings.executor().workers(),
      .queue = static_cast<size_t>(settings.executor().queue()),
      .metrics = &metrics_});
  quick_ =
      std::make_unique<Executor>(Executor::Options{.name = "quick",
                                                   .workers = kQuickWorkers,
                                                   .queue = kQuickQueue,
                                                   .metrics = &metrics_});
  Dispatch::Options dispatch;
  dispatch.ordinary = ordinary_.get();
  dispatch.quick = quick_.get();
  dispatch.connections = connections_.get();
  dispatch.default_deadline =
      ToDuration(settings.executor().default_deadline());
  dispatch.max_deadline = dispatch.default_deadline;
  dispatch.metrics = &metrics_;
  kubernetes_dispatch_ = std::make_unique<Dispatch>(dispatch);
  dispatch.max_deadline = std::max(dispatch.max_deadline, kAdminMaxDeadline);
  admin_dispatch_ = std::make_unique<Dispatch>(dispatch);

  AdminContext context{.keys = *keys_,
                       .token = *token_,
                       .audit = *audit_,
                       .lifecycle = *lifecycle_,
                       .bindings = {},
                       .version = KEKD_VERSION,
                       .start_time = start_time_,
                       .token_uri = settings.token().uri(),
                       .token_module = settings.token().module(),
                       .audit_directory = settings.audit().directory(),
                       .not_ready = [this] { return NotReady(); },
                       .config_digest =
                           [this] {
                             base::MutexLock lock(config_mu_);
                             return config_.digest;
                           }};
  for (size_t i = 0; i < bindings_.size(); ++i) {
    Binding& binding = *bindings_[i];
    const config::v1::KubernetesBinding& wanted =
        settings.kubernetes(static_cast<int>(i));
    core::KeyHealth::Options health;
    health.period = ToDuration(wanted.health_period());
    binding.health = std::make_unique<core::KeyHealth>(*keys_, health);
    binding.health->Watch(binding.key);
    using OnHsmLoss = KubernetesKmsV2Options::OnHsmLoss;
    binding.v2 = MakeKubernetesKmsV2(
        *keys_, *binding.health, *kubernetes_dispatch_,
        {.key = binding.key,
         .version = wanted.version(),
         .on_hsm_loss =
             wanted.on_hsm_loss() == config::v1::KubernetesBinding::keep_writes
                 ? OnHsmLoss::kKeepWrites
                 : OnHsmLoss::kStopWrites,
         .require_uid = wanted.require_uid()});
    binding.v1beta1 = MakeKubernetesKmsV1Beta1(
        *keys_, *binding.health, *kubernetes_dispatch_, binding.key);
    binding.server = MakeGrpcServer({binding.v2.get(), binding.v1beta1.get()},
                                    kKubernetesMessageBytes);
    context.bindings.push_back(
        {binding.name, binding.socket, binding.key, binding.health.get()});
  }
  cloud_kms_ = MakeCloudKmsV1(*keys_, *admin_dispatch_);
  admin_ = MakeAdminService(std::move(context), *admin_dispatch_);
  // The switch is global and read by BuildAndStart: grpc.health.v1 is for the
  // admin socket only.
  grpc::EnableDefaultHealthCheckService(true);
  admin_server_ =
      MakeGrpcServer({cloud_kms_.get(), admin_.get()}, kAdminMessageBytes);
  grpc::EnableDefaultHealthCheckService(false);
}

void Server::Parts::Accept(UnixListener& listener, grpc::Server& server,
                           const Connections::Origin& origin) {
  listener.Start(
      [this, &server, origin](int fd, const PeerCredentials& peer) {
        const absl::StatusOr<int> number = connections_->Add(fd, peer, origin);
        if (number.ok()) {
          grpc::AddInsecureChannelFromFd(&server, *number);
          return;
        }
        metrics_
            .GetCounter("kekd_connections_dropped_total",
                        "Connections closed because there were too many.",
                        {{"socket", origin.socket}})
            ->Increment();
        base::LogWarning("connection closed", {{"socket", origin.socket},
                                               {"uid", peer.uid},
                                               {"reason", number.status()}});
      },
      [this, origin](const PeerCredentials& peer, int times) {
        core::CallInfo call = OwnCall(kGiveUp);
        call.caller.principals = {absl::StrCat("unix:uid:", peer.uid),
                                  absl::StrCat("unix:gid:", peer.gid)};
        call.caller.authenticator = core::Authenticator::kPeerCredentials;
        call.caller.front_end = origin.front_end;
        call.caller.binding = origin.binding;
        call.caller.peer =
            absl::StrCat("unix:", origin.socket, " pid ", peer.pid);
        // Not on the accepting thread, which must not wait for the disk.
        const absl::Status queued = ordinary_->Submit(
            call.deadline,
            [this, call, socket = origin.socket, times] {
              const absl::Status recorded = keys_->Audit(
                  call, "Connect", socket,
                  absl::PermissionDeniedError("not on the socket's list"),
                  absl::StrCat("times ", times));
              if (!recorded.ok()) {
                base::LogError("refused peer not recorded",
                               {{"reason", recorded}});
              }
            },
            [] { base::LogError("refused peer not recorded"); });
        if (!queued.ok()) base::LogError("refused peer not recorded");
      });
}

absl::Status Server::Parts::Start(std::map<std::string, int> passed) {
  gpr_set_log_function(LogGrpc);
  for (const auto& wanted : config_.settings.kubernetes()) {
    // Checked by the config.
    auto key = catalog::ResourceName::Parse(
        wanted.key(), catalog::ResourceName::Kind::kCryptoKey);
    if (!key.ok()) return WithExitCode(key.status(), ExitCode::kConfig);
    bindings_.push_back(std::make_unique<Binding>(
        wanted.name(), wanted.socket(), *std::move(key)));
  }
  absl::Status status = StartCore();
  if (!status.ok()) {
    for (const auto& [name, fd] : passed) close(fd);
    return status;
  }
  RETURN_IF_ERROR(OpenSockets(std::move(passed)));

  lifecycle_ =
      std::make_unique<core::Lifecycle>(*keys_, core::Lifecycle::Options());
  MakeServers();
  if (!config_.settings.http().listen().empty()) {
    HttpEndpoint::Options http;
    http.listen = config_.settings.http().listen();
    http.metrics = [this] { return metrics_.Expose(); };
    http.not_live = [this] { return NotLive(); };
    http.not_ready = [this] { return NotReady(); };
    auto started = HttpEndpoint::Start(std::move(http));
    if (!started.ok()) {
      return WithExitCode(started.status(), ExitCode::kCannotCreate);
    }
    http_ = *std::move(started);
  }

  {
    base::MutexLock lock(token_events_->mu);
    token_events_->record = [this, uri = config_.settings.token().uri()](
                                const std::string& event,
                                const std::string& detail) {
      // On a worker: the token may be waiting for this to return.
      const absl::Status queued = ordinary_->Submit(
          base::DeadlineAfter(kGiveUp),
          [this, event, detail] {
            const absl::Status recorded = keys_->Audit(
                OwnCall(kGiveUp), "TokenEvent", config_.settings.token().uri(),
                absl::OkStatus(), absl::StrCat(event, ": ", detail));
            if (!recorded.ok()) {
              base::LogError("token event not recorded",
                             {{"event", event}, {"reason", recorded}});
            }
          },
          [] {});
      if (!queued.ok()) {
        base::LogError("token event not recorded", {{"event", event}});
      }
    };
  }

  Accept(*admin_listener_, *admin_server_,
         {core::FrontEnd::kAdmin, "", admin_listener_->path()});
  for (const auto& binding : bindings_) {
    Accept(*binding->listener, *binding->server,
           {core::FrontEnd::kKubernetesV2, binding->name, binding->socket});
  }
  supervisor_ = std::thread([this] { Supervise(); });
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> Server::Parts::Reload(Config wanted) {
  RETURN_IF_ERROR(authorizer_->Replace(GrantsOf(wanted)));
  // Checked by the config.
  ASSIGN_OR_RETURN(const base::LogLevel level,
                   base::ParseLogLevel(wanted.settings.log().level()));
  base::SetLogLevel(level);
  base::SetLogFormat(wanted.settings.log().format() == "json"
                         ? base::LogFormat::kJson
                         : base::LogFormat::kText);
  const auto admit = [&](UnixListener& listener, SocketAccess& running,
                         const SocketAccess& access) {
    running.uids = access.uids;
    running.gids = access.gids;
    listener.SetAccess(running);
    connections_->Revoke(listener.path(), [&](const PeerCredentials& peer) {
      return running.Admits(peer);
    });
  };
  base::MutexLock lock(config_mu_);
  std::vector<std::string> restart = NeedRestart(config_, wanted);
  *config_.settings.mutable_log() = wanted.settings.log();
  *config_.settings.mutable_executor()->mutable_stop_grace() =
      wanted.settings.executor().stop_grace();
  admit(*admin_listener_, config_.admin, wanted.admin);
  *config_.settings.mutable_admin()->mutable_allowed_users() =
      wanted.settings.admin().allowed_users();
  *config_.settings.mutable_admin()->mutable_allowed_groups() =
      wanted.settings.admin().allowed_groups();
  for (size_t i = 0; i < bindings_.size(); ++i) {
    for (size_t k = 0; k < wanted.kubernetes.size(); ++k) {
      const auto& binding = wanted.settings.kubernetes(static_cast<int>(k));
      if (binding.name() != bindings_[i]->name) continue;
      admit(*bindings_[i]->listener, config_.kubernetes[i],
            wanted.kubernetes[k]);
      auto& running = *config_.settings.mutable_kubernetes(static_cast<int>(i));
      *running.mutable_allowed_users() = binding.allowed_users();
      *running.mutable_allowed_groups() = binding.allowed_groups();
    }
  }
  if (restart.empty()) config_.digest = wanted.digest;
  return restart;
}

absl::Status Server::Parts::Check(base::Deadline deadline) {
  RETURN_IF_ERROR(quick_->Check(deadline));
  RETURN_IF_ERROR(ordinary_->Check(deadline));
  RETURN_IF_ERROR(catalog_->Check(deadline));
  return audit_->Check(deadline);
}

std::vector<std::string> Server::Parts::NotReady() const {
  std::vector<std::string> reasons;
  if (stopping_) reasons.push_back("kekd is stopping");
  if (const pkcs11::TokenHealth health = token_->health();
      health.state != pkcs11::TokenState::kReady) {
    reasons.push_back(absl::StrCat("token: ", TokenStateName(health.state),
                                   health.last_error.ok() ? "" : ": ",
                                   health.last_error.message()));
  }
  for (const auto& binding : bindings_) {
    const absl::Status health =
        binding->health->Check(binding->key, steady_clock::now());
    if (!health.ok()) {
      reasons.push_back(
          absl::StrCat("binding ", binding->name, ": ", health.message()));
    }
  }
  if (const absl::Status health = audit_->health(); !health.ok()) {
    reasons.push_back(absl::StrCat("audit log: ", health.message()));
  }
  return reasons;
}

std::vector<std::string> Server::Parts::NotLive() const {
  base::MutexLock lock(supervisor_mu_);
  if (!last_check_.ok()) return {std::string(last_check_.message())};
  if (steady_clock::now() - checked_ > 12 * kCheckPeriod) {
    return {"the last look at workers, catalog and audit log was too long ago"};
  }
  return {};
}

void Server::Parts::Supervise() {
  const std::optional<absl::Duration> watchdog = WatchdogTimeout();
  std::chrono::nanoseconds period = kCheckPeriod;
  std::chrono::nanoseconds patience = 4 * kCheckPeriod;
  if (watchdog.has_value()) {
    period = std::min(period, absl::ToChronoNanoseconds(*watchdog / 3));
    patience = std::min(patience, absl::ToChronoNanoseconds(*watchdog / 2));
  }
  const std::chrono::nanoseconds tick =
      std::min<std::chrono::nanoseconds>(kTick, period);
  grpc::HealthCheckServiceInterface* health =
      admin_server_->GetHealthCheckService();
  base::Deadline next_check = steady_clock::now();
  std::optional<std::string> told;  // the reasons that were logged last
  while (true) {
    if (steady_clock::now() >= next_check) {
      next_check = base::DeadlineAfter(period);
      const absl::Status status = Check(base::DeadlineAfter(patience));
      if (status.ok()) {
        NotifyWatchdog();
      } else {
        base::LogError("self-check failed", {{"reason", status}});
      }
      base::MutexLock lock(supervisor_mu_);
      last_check_ = status;
      checked_ = steady_clock::now();
    }
    const std::vector<std::string> reasons = NotReady();
    const std::string text = absl::StrJoin(reasons, "; ");
    if (text != told) {
      told = text;
      health->SetServingStatus(reasons.empty());
      if (reasons.empty()) {
        base::LogInfo("ready");
      } else {
        base::LogWarning("not ready", {{"reasons", text}});
      }
      NotifyStatus(reasons.empty() ? "ready"
                                   : absl::StrCat("not ready: ", text));
    }
    ShowToken();
    for (const auto& binding : bindings_) ShowKey(*binding);

    const base::Deadline wake = base::DeadlineAfter(tick);
    base::MutexLock lock(supervisor_mu_);
    while (!stopping_ && supervisor_wake_.WaitUntil(supervisor_mu_, wake)) {
    }
    if (stopping_) {
      health->SetServingStatus(false);
      return;
    }
  }
}

void Server::Parts::ShowToken() {
  const pkcs11::TokenHealth health = token_->health();
  metrics_.GetGauge("kekd_token_ready", "1 while the token works.")
      ->Set(health.state == pkcs11::TokenState::kReady ? 1 : 0);
  const auto sessions = [&](const char* state, int count) {
    metrics_
        .GetGauge("kekd_sessions",
                  "Sessions with the token, and calls that wait for one.",
                  {{"state", state}})
        ->Set(count);
  };
  sessions("open", health.sessions_open);
  sessions("in_use", health.sessions_in_use);
  sessions("awaited", health.waiters);
  metrics_.GetGauge("kekd_connections_open", "Connections to all sockets.")
      ->Set(static_cast<double>(connections_->open()));
}

void Server::Parts::ShowKey(Binding& binding) {
  const base::Metrics::Labels of = {{"binding", binding.name}};
  metrics_
      .GetGauge("kekd_key_healthy",
                "1 while the key of a binding works, as Status has it.", of)
      ->Set(binding.health->Check(binding.key, steady_clock::now()).ok() ? 1
                                                                         : 0);
  if (const auto last = keys_->LastSuccess(binding.key)) {
    metrics_
        .GetGauge("kekd_key_self_test_age_seconds",
                  "Time since work or a self-test under the key succeeded.", of)
        ->Set(
            std::chrono::duration<double>(steady_clock::now() - *last).count());
  }
  const core::CallInfo call = OwnCall(kGiveUp);
  const auto primary = keys_->Primary(call, binding.key);
  if (!primary.ok()) return;
  const std::string key_id = KubernetesKeyId::Of(*primary).ToString();
  if (key_id != binding.key_id) {
    const auto version = keys_->GetVersion(call, primary->version);
    if (!version.ok()) return;
    if (!binding.key_id.empty()) {
      metrics_.RemoveGauge("kekd_kubernetes_key_info", binding.info_labels);
      metrics_.RemoveGauge("kekd_key_version_age_seconds", binding.age_labels);
    }
    const std::string number = absl::StrCat(primary->version.version());
    binding.key_id = key_id;
    binding.version_made =
        version->generate_time.value_or(version->create_time);
    binding.info_labels = {{"binding", binding.name},
                           {"key_id_hash", KeyIdHash(key_id)},
                           {"version", number}};
    binding.age_labels = {{"binding", binding.name}, {"version", number}};
    metrics_
        .GetGauge("kekd_kubernetes_key_info",
                  "1 for the key_id that Status answers, hashed as in "
                  "kube-apiserver's metrics.",
                  binding.info_labels)
        ->Set(1);
  }
  metrics_
      .GetGauge("kekd_key_version_age_seconds",
                "Age of the version that new ciphertexts are made under.",
                binding.age_labels)
      ->Set(absl::ToDoubleSeconds(absl::Now() - binding.version_made));
}

bool Server::Parts::Stop() {
  stopping_ = true;
  absl::Duration grace;
  {
    base::MutexLock lock(config_mu_);
    grace = ToDuration(config_.settings.executor().stop_grace());
  }
  if (supervisor_.joinable()) {
    {
      base::MutexLock lock(supervisor_mu_);
      supervisor_wake_.NotifyAll();
    }
    supervisor_.join();
  }
  if (admin_listener_ != nullptr) admin_listener_->Stop();
  for (const auto& binding : bindings_) {
    if (binding->listener != nullptr) binding->listener->Stop();
  }
  // Each Shutdown waits for its own server's calls: all at once, so that the
  // bound holds for the whole.
  const auto deadline =
      std::chrono::system_clock::now() +
      std::chrono::duration_cast<std::chrono::system_clock::duration>(
          absl::ToChronoNanoseconds(grace));
  std::vector<std::thread> shutdowns;
  const auto shut_down = [&](grpc::Server* server) {
    if (server == nullptr) return;
    shutdowns.emplace_back([server, deadline] { server->Shutdown(deadline); });
  };
  shut_down(admin_server_.get());
  for (const auto& binding : bindings_) shut_down(binding->server.get());
  for (std::thread& shutdown : shutdowns) shutdown.join();

  {
    base::MutexLock lock(token_events_->mu);
    token_events_->record = nullptr;
  }
  // Every call has its answer; what still runs is work nobody waits for.
  for (Executor* executor : {ordinary_.get(), quick_.get()}) {
    if (executor == nullptr) continue;
    if (const absl::Status drained =
            executor->Drain(base::DeadlineAfter(kGiveUp));
        !drained.ok()) {
      base::LogWarning("work given up", {{"reason", drained}});
      return false;
    }
  }
  if (audit_ != nullptr) {
    if (const absl::Status flushed =
            audit_->Check(base::DeadlineAfter(kGiveUp));
        !flushed.ok()) {
      base::LogError("audit log not flushed", {{"reason", flushed}});
    }
  }
  // A self-test or the lifecycle may hang in the token: their destructors wait
  // for it, but not the process.
  struct Outcome {
    base::Mutex mu;
    base::CondVar changed;
    bool done ABSL_GUARDED_BY(mu) = false;
  };
  auto outcome = std::make_shared<Outcome>();
  std::thread([this, outcome] {
    http_.reset();
    admin_server_.reset();
    for (const auto& binding : bindings_) binding->server.reset();
    admin_listener_.reset();
    admin_.reset();
    cloud_kms_.reset();
    bindings_.clear();
    admin_dispatch_.reset();
    kubernetes_dispatch_.reset();
    quick_.reset();
    ordinary_.reset();
    connections_.reset();
    lifecycle_.reset();
    keys_.reset();
    authorizer_.reset();
    audit_.reset();
    catalog_.reset();
    token_.reset();
    base::MutexLock lock(outcome->mu);
    outcome->done = true;
    outcome->changed.NotifyAll();
  }).detach();
  const base::Deadline give_up = base::DeadlineAfter(kGiveUp);
  base::MutexLock lock(outcome->mu);
  while (!outcome->done) {
    if (!outcome->changed.WaitUntil(outcome->mu, give_up) && !outcome->done) {
      base::LogWarning("the token does not let go; left as it is");
      return false;
    }
  }
  return true;
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    Config config, std::map<std::string, int> passed) {
  auto parts = std::make_unique<Parts>(std::move(config));
  if (absl::Status status = parts->Start(std::move(passed)); !status.ok()) {
    // Takes apart what was made so far.
    if (!parts->Stop()) static_cast<void>(parts.release());
    return status;
  }
  return std::unique_ptr<Server>(new Server(std::move(parts)));
}

Server::Server(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Server::~Server() {
  if (parts_ != nullptr) Stop();
}

absl::StatusOr<std::vector<std::string>> Server::Reload(Config config) {
  return parts_->Reload(std::move(config));
}
absl::Status Server::Check(base::Deadline deadline) {
  return parts_->Check(deadline);
}
std::vector<std::string> Server::NotReady() const { return parts_->NotReady(); }
int Server::http_port() const { return parts_->http_port(); }

bool Server::Stop() {
  const bool clean = parts_->Stop();
  // What hangs still uses the parts; they stay for as long as the process.
  if (clean) {
    parts_.reset();
  } else {
    static_cast<void>(parts_.release());
  }
  return clean;
}

}  // namespace kek::service
