// SPDX-License-Identifier: Apache-2.0
#include "service/admin_service.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "kek/admin.grpc.pb.h"
#include "service/kubernetes_key_id.h"
#include "service/messages.h"

namespace kek::service {
namespace {

constexpr char kApi[] = "admin.v1";
constexpr Method kGetStatus = {kApi, "GetStatus", core::FrontEnd::kAdmin,
                               Method::Speed::kQuick};
constexpr Method kRetryTokenLogin = {kApi, "RetryTokenLogin",
                                     core::FrontEnd::kAdmin};
constexpr Method kReloginToken = {kApi, "ReloginToken", core::FrontEnd::kAdmin};
constexpr Method kSetLogLevel = {kApi, "SetLogLevel", core::FrontEnd::kAdmin};
constexpr Method kRotateCryptoKey = {kApi, "RotateCryptoKey",
                                     core::FrontEnd::kAdmin};

// GetStatus answers from memory; what is not there yet is not waited for.
constexpr std::chrono::milliseconds kStatusPatience(50);

absl::string_view IvModeName(pkcs11::IvMode mode) {
  switch (mode) {
    case pkcs11::IvMode::kHostXorToken:
      return "host_xor_token";
    case pkcs11::IvMode::kTokenRandom:
      return "token_random";
    case pkcs11::IvMode::kTokenWriteback:
      return "token_writeback";
    case pkcs11::IvMode::kTokenAppend:
      return "token_append";
  }
  return "";
}

google::protobuf::Timestamp ToTimestamp(absl::Time time) {
  google::protobuf::Timestamp proto;
  const int64_t nanos = absl::ToUnixNanos(time);
  proto.set_seconds(nanos / 1'000'000'000);
  proto.set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  return proto;
}

// Text of the outside world as a proto3 string takes it: a token's label may
// hold any bytes.
std::string Utf8(absl::string_view text) {
  std::string json;
  base::AppendJsonString(text, json);
  const bool plain = json.size() == text.size() + 2;
  return plain ? std::string(text) : json;
}

class Admin final : public admin::v1::Admin::CallbackService {
 public:
  Admin(AdminContext context, Dispatch& dispatch)
      : context_(std::move(context)), dispatch_(dispatch) {
    SetMessageAllocatorFor_GetStatus(&get_status_messages_);
    SetMessageAllocatorFor_RetryTokenLogin(&retry_messages_);
    SetMessageAllocatorFor_ReloginToken(&relogin_messages_);
    SetMessageAllocatorFor_SetLogLevel(&log_level_messages_);
    SetMessageAllocatorFor_RotateCryptoKey(&rotate_messages_);
  }

  grpc::ServerUnaryReactor* GetStatus(
      grpc::CallbackServerContext* ctx, const admin::v1::GetStatusRequest*,
      admin::v1::GetStatusResponse* response) override {
    return dispatch_.Run(ctx, kGetStatus, "",
                         [this, response](const core::CallInfo& call) {
                           return DoGetStatus(call, *response);
                         });
  }

  grpc::ServerUnaryReactor* RetryTokenLogin(
      grpc::CallbackServerContext* ctx,
      const admin::v1::RetryTokenLoginRequest*,
      admin::v1::TokenLoginResponse* response) override {
    return dispatch_.Run(
        ctx, kRetryTokenLogin, "",
        [this, response](const core::CallInfo& call) {
          return Operate(call, kRetryTokenLogin, context_.token_uri, [&] {
            RETURN_IF_ERROR(context_.token.RetryLogin(call.deadline));
            *response->mutable_token() = TokenStatus();
            return absl::OkStatus();
          });
        });
  }

  grpc::ServerUnaryReactor* ReloginToken(
      grpc::CallbackServerContext* ctx, const admin::v1::ReloginTokenRequest*,
      admin::v1::TokenLoginResponse* response) override {
    return dispatch_.Run(
        ctx, kReloginToken, "", [this, response](const core::CallInfo& call) {
          return Operate(call, kReloginToken, context_.token_uri, [&] {
            RETURN_IF_ERROR(context_.token.Relogin(call.deadline));
            *response->mutable_token() = TokenStatus();
            return absl::OkStatus();
          });
        });
  }

  grpc::ServerUnaryReactor* SetLogLevel(
      grpc::CallbackServerContext* ctx,
      const admin::v1::SetLogLevelRequest* request,
      admin::v1::SetLogLevelResponse* response) override {
    return dispatch_.Run(
        ctx, kSetLogLevel, "",
        [this, request, response](const core::CallInfo& call) {
          return Operate(call, kSetLogLevel, "", [&]() -> absl::Status {
            ASSIGN_OR_RETURN(const base::LogLevel level,
                             base::ParseLogLevel(request->level()));
            const base::LogLevel previous = base::GetLogLevel();
            base::SetLogLevel(level);
            base::LogInfo("log level changed",
                          {{"from", base::LogLevelName(previous)},
                           {"to", base::LogLevelName(level)},
                           {"by", call.caller.name()}});
            response->set_previous(std::string(base::LogLevelName(previous)));
            return absl::OkStatus();
          });
        });
  }

  grpc::ServerUnaryReactor* RotateCryptoKey(
      grpc::CallbackServerContext* ctx,
      const admin::v1::RotateCryptoKeyRequest* request,
      admin::v1::RotateCryptoKeyResponse* response) override {
    return dispatch_.Run(
        ctx, kRotateCryptoKey, "",
        [this, request, response](const core::CallInfo& call) -> absl::Status {
          ASSIGN_OR_RETURN(
              const catalog::ResourceName key,
              catalog::ResourceName::Parse(
                  request->name(), catalog::ResourceName::Kind::kCryptoKey));
          // Authorised and audited there.
          ASSIGN_OR_RETURN(const core::CryptoKeyView view,
                           context_.keys.Rotate(call, key));
          response->set_primary_version(
              key.Version(view.key.primary_version).ToString());
          return absl::OkStatus();
        });
  }

 private:
  // Work that changes the server: permitted, done, recorded. No durable record,
  // no reply.
  template <typename Work>
  absl::Status Operate(const core::CallInfo& call, const Method& method,
                       absl::string_view resource, const Work& work) {
    absl::Status status =
        context_.keys.CheckServer(call, core::permission::kServerOperate);
    if (status.ok()) status = work();
    RETURN_IF_ERROR(
        context_.keys.Audit(call, method.name, resource, status, ""));
    return status;
  }

  absl::Status DoGetStatus(const core::CallInfo& call,
                           admin::v1::GetStatusResponse& response) {
    if (absl::Status status =
            context_.keys.CheckServer(call, core::permission::kServerGet);
        !status.ok()) {
      RETURN_IF_ERROR(
          context_.keys.Audit(call, kGetStatus.name, "", status, ""));
      return status;
    }
    response.set_version(context_.version);
    *response.mutable_start_time() = ToTimestamp(context_.start_time);
    *response.mutable_token() = TokenStatus();
    for (const AdminBinding& binding : context_.bindings) {
      AddBinding(call, binding, *response.add_kubernetes());
    }
    response.set_log_level(
        std::string(base::LogLevelName(base::GetLogLevel())));
    const absl::Status audit = context_.audit.health();
    response.mutable_audit()->set_health(audit.ok() ? "ok"
                                                    : Utf8(audit.message()));
    response.mutable_audit()->set_directory(context_.audit_directory);
    if (const auto report = context_.lifecycle.last_reconcile()) {
      auto& reconcile = *response.mutable_reconcile();
      *reconcile.mutable_time() = ToTimestamp(report->time);
      for (const auto& name : report->missing) reconcile.add_missing(name);
      for (const auto& name : report->orphans) {
        reconcile.add_orphans(Utf8(name));
      }
      for (const auto& name : report->half_objects) {
        reconcile.add_half_objects(Utf8(name));
      }
      for (const auto& name : report->pending) reconcile.add_pending(name);
    }
    for (const std::string& reason : context_.not_ready()) {
      response.add_not_ready(Utf8(reason));
    }
    response.set_config_digest(context_.config_digest());
    return absl::OkStatus();
  }

  void AddBinding(const core::CallInfo& call, const AdminBinding& binding,
                  admin::v1::BindingStatus& status) {
    const base::Deadline deadline =
        std::min(call.deadline, base::DeadlineAfter(kStatusPatience));
    status.set_name(binding.name);
    status.set_socket(binding.socket);
    status.set_key(binding.key.ToString());
    // kekd's own question: who may see the status may see what serves the
    // binding.
    core::CallInfo own = call;
    own.caller = core::Caller{.principals = {"kekd:status"}};
    own.deadline = deadline;
    if (const auto primary = context_.keys.Primary(own, binding.key);
        primary.ok()) {
      status.set_primary_version(primary->version.ToString());
      status.set_key_id(KubernetesKeyId::Of(*primary).ToString());
    }
    const absl::Status health = binding.health->Check(binding.key, deadline);
    status.set_health(health.ok() ? "ok" : Utf8(health.message()));
  }

  admin::v1::TokenStatus TokenStatus() const {
    const pkcs11::TokenHealth health = context_.token.health();
    const pkcs11::TokenInfo info = context_.token.info();
    admin::v1::TokenStatus status;
    status.set_state(std::string(TokenStateName(health.state)));
    if (!health.last_error.ok()) {
      status.set_reason(Utf8(health.last_error.message()));
    }
    status.set_uri(Utf8(context_.token_uri));
    status.set_label(Utf8(info.label));
    status.set_manufacturer(Utf8(info.manufacturer));
    status.set_model(Utf8(info.model));
    status.set_serial(Utf8(info.serial));
    status.set_firmware(Utf8(info.firmware));
    status.set_module(context_.token_module);
    status.set_generation(health.generation);
    status.set_sessions_open(health.sessions_open);
    status.set_sessions_in_use(health.sessions_in_use);
    status.set_waiters(health.waiters);
    if (health.last_success.has_value()) {
      const auto since =
          std::chrono::steady_clock::now() - *health.last_success;
      const auto nanos =
          std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
      status.mutable_since_last_success()->set_seconds(nanos / 1'000'000'000);
      status.mutable_since_last_success()->set_nanos(
          static_cast<int32_t>(nanos % 1'000'000'000));
    }
    status.set_iv_mode(
        std::string(IvModeName(context_.token.profile().iv_mode)));
    return status;
  }

  const AdminContext context_;
  Dispatch& dispatch_;
  WipingMessages<admin::v1::GetStatusRequest, admin::v1::GetStatusResponse>
      get_status_messages_;
  WipingMessages<admin::v1::RetryTokenLoginRequest,
                 admin::v1::TokenLoginResponse>
      retry_messages_;
  WipingMessages<admin::v1::ReloginTokenRequest, admin::v1::TokenLoginResponse>
      relogin_messages_;
  WipingMessages<admin::v1::SetLogLevelRequest, admin::v1::SetLogLevelResponse>
      log_level_messages_;
  WipingMessages<admin::v1::RotateCryptoKeyRequest,
                 admin::v1::RotateCryptoKeyResponse>
      rotate_messages_;
};

}  // namespace

absl::string_view TokenStateName(pkcs11::TokenState state) {
  switch (state) {
    case pkcs11::TokenState::kStarting:
      return "STARTING";
    case pkcs11::TokenState::kReady:
      return "READY";
    case pkcs11::TokenState::kDegraded:
      return "DEGRADED";
    case pkcs11::TokenState::kAbsent:
      return "ABSENT";
    case pkcs11::TokenState::kPinRefused:
      return "PIN_REFUSED";
  }
  return "UNKNOWN";
}

std::unique_ptr<grpc::Service> MakeAdminService(AdminContext context,
                                                Dispatch& dispatch) {
  return std::make_unique<Admin>(std::move(context), dispatch);
}

}  // namespace kek::service
