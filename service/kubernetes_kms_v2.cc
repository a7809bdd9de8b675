// SPDX-License-Identifier: Apache-2.0
#include "service/kubernetes_kms_v2.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "core/envelope.h"
#include "kubernetes/kms/v2/api.grpc.pb.h"
#include "service/bytes.h"
#include "service/kubernetes_key_id.h"
#include "service/kubernetes_plugin.h"
#include "service/messages.h"

namespace kek::service {
namespace {

// kube-apiserver's limits (k8s.io/apiserver, kmsv2/envelope.go).
constexpr size_t kMaxCiphertext = 1024;
constexpr size_t kMaxPlaintext = kMaxCiphertext - core::kMaxEnvelopeOverhead;

// How long the first Status after a start waits for the first self-test.
constexpr std::chrono::milliseconds kFirstHealth(1000);

constexpr Method kStatus = {"kubernetes.v2", "Status",
                            core::FrontEnd::kKubernetesV2,
                            Method::Speed::kQuick};
constexpr Method kEncrypt = {"kubernetes.v2", "Encrypt",
                             core::FrontEnd::kKubernetesV2};
constexpr Method kDecrypt = {"kubernetes.v2", "Decrypt",
                             core::FrontEnd::kKubernetesV2};

class KubernetesKmsV2 final : public v2::KeyManagementService::CallbackService {
 public:
  KubernetesKmsV2(core::KeyService& keys, core::KeyHealth& health,
                  Dispatch& dispatch, KubernetesKmsV2Options options)
      : keys_(keys),
        health_(health),
        dispatch_(dispatch),
        options_(std::move(options)) {
    SetMessageAllocatorFor_Status(&status_messages_);
    SetMessageAllocatorFor_Encrypt(&encrypt_messages_);
    SetMessageAllocatorFor_Decrypt(&decrypt_messages_);
  }

  grpc::ServerUnaryReactor* Status(grpc::CallbackServerContext* ctx,
                                   const v2::StatusRequest*,
                                   v2::StatusResponse* response) override {
    return dispatch_.Run(ctx, kStatus, "",
                         [this, response](const core::CallInfo& call) {
                           return DoStatus(call, *response);
                         });
  }

  grpc::ServerUnaryReactor* Encrypt(grpc::CallbackServerContext* ctx,
                                    const v2::EncryptRequest* request,
                                    v2::EncryptResponse* response) override {
    return dispatch_.Run(ctx, kEncrypt, request->uid(),
                         [this, request, response](const core::CallInfo& call) {
                           return NoteKubernetesWork(
                               health_, options_.key,
                               DoEncrypt(call, *request, *response));
                         });
  }

  grpc::ServerUnaryReactor* Decrypt(grpc::CallbackServerContext* ctx,
                                    const v2::DecryptRequest* request,
                                    v2::DecryptResponse* response) override {
    return dispatch_.Run(ctx, kDecrypt, request->uid(),
                         [this, request, response](const core::CallInfo& call) {
                           return NoteKubernetesWork(
                               health_, options_.key,
                               DoDecrypt(call, *request, *response));
                         });
  }

 private:
  absl::Status DoStatus(const core::CallInfo& call,
                        v2::StatusResponse& response) {
    ASSIGN_OR_RETURN(const core::PrimaryInfo primary,
                     keys_.Primary(call, options_.key));
    if (primary.state != catalog::VersionState::kEnabled) {
      return absl::FailedPreconditionError(absl::StrCat(
          primary.version.ToString(), " is not enabled, current state is: ",
          catalog::VersionStateName(primary.state), "."));
    }
    const absl::Status health = health_.Check(
        options_.key,
        std::min(call.deadline, base::DeadlineAfter(kFirstHealth)));
    const std::string text = KubernetesHealthText(health);
    if (!health.ok() && options_.on_hsm_loss ==
                            KubernetesKmsV2Options::OnHsmLoss::kStopWrites) {
      return absl::Status(health.code(), text);
    }
    response.set_version(options_.version);
    response.set_healthz(text);
    response.set_key_id(KubernetesKeyId::Of(primary).ToString());
    return absl::OkStatus();
  }

  absl::Status DoEncrypt(const core::CallInfo& call,
                         const v2::EncryptRequest& request,
                         v2::EncryptResponse& response) {
    RETURN_IF_ERROR(AuditRefusal(keys_, call, kEncrypt.name, options_.key,
                                 Validate(request)));
    ASSIGN_OR_RETURN(const core::PrimaryInfo primary,
                     keys_.Primary(call, options_.key));
    std::string key_id = KubernetesKeyId::Of(primary).ToString();
    ASSIGN_OR_RETURN(
        const core::EncryptResult result,
        keys_.Encrypt(call, {.name = primary.version,
                             .context = core::EnvelopeContext::kKubernetesV2,
                             .plaintext = BytesOf(request.plaintext()),
                             .aad = BytesOf(key_id),
                             .allow_empty_plaintext = false}));
    // kube-apiserver would refuse the answer; the reason is known here.
    if (result.ciphertext.empty() ||
        result.ciphertext.size() > kMaxCiphertext) {
      return absl::InternalError(absl::StrCat(
          "the ciphertext came out ", result.ciphertext.size(),
          " bytes long; kube-apiserver takes 1 to ", kMaxCiphertext));
    }
    response.set_ciphertext(result.ciphertext.data(), result.ciphertext.size());
    response.set_key_id(std::move(key_id));
    return absl::OkStatus();
  }

  absl::Status DoDecrypt(const core::CallInfo& call,
                         const v2::DecryptRequest& request,
                         v2::DecryptResponse& response) {
    RETURN_IF_ERROR(AuditRefusal(keys_, call, kDecrypt.name, options_.key,
                                 Validate(request)));
    ASSIGN_OR_RETURN(
        const core::DecryptResult result,
        keys_.Decrypt(call, {.key = options_.key,
                             .context = core::EnvelopeContext::kKubernetesV2,
                             .ciphertext = BytesOf(request.ciphertext()),
                             .aad = BytesOf(request.key_id())}));
    response.set_plaintext(result.plaintext.data(), result.plaintext.size());
    return absl::OkStatus();
  }

  absl::Status Validate(const v2::EncryptRequest& request) const {
    RETURN_IF_ERROR(ValidateUid(request.uid()));
    if (request.plaintext().empty()) {
      return absl::InvalidArgumentError("plaintext is empty");
    }
    if (request.plaintext().size() > kMaxPlaintext) {
      return absl::InvalidArgumentError(absl::StrCat(
          "plaintext is ", request.plaintext().size(), " bytes long; at most ",
          kMaxPlaintext, " fit a ciphertext of ", kMaxCiphertext));
    }
    return absl::OkStatus();
  }

  absl::Status Validate(const v2::DecryptRequest& request) const {
    RETURN_IF_ERROR(ValidateUid(request.uid()));
    if (request.ciphertext().empty()) {
      return absl::InvalidArgumentError("ciphertext is empty");
    }
    if (request.ciphertext().size() > kMaxCiphertext) {
      return absl::InvalidArgumentError(absl::StrCat(
          "ciphertext is ", request.ciphertext().size(),
          " bytes long; at most ", kMaxCiphertext, " are allowed"));
    }
    ASSIGN_OR_RETURN(const KubernetesKeyId key_id,
                     KubernetesKeyId::Parse(request.key_id()));
    ASSIGN_OR_RETURN(const core::Envelope envelope,
                     core::Envelope::Parse(BytesOf(request.ciphertext())));
    if (envelope.key_uuid != key_id.key_uuid ||
        envelope.version != key_id.version) {
      return absl::InvalidArgumentError(
          "key_id and ciphertext name different keys or versions");
    }
    return absl::OkStatus();
  }

  absl::Status ValidateUid(const std::string& uid) const {
    if (!options_.require_uid || !uid.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError("uid is empty");
  }

  core::KeyService& keys_;
  core::KeyHealth& health_;
  Dispatch& dispatch_;
  const KubernetesKmsV2Options options_;
  WipingMessages<v2::StatusRequest, v2::StatusResponse> status_messages_;
  WipingMessages<v2::EncryptRequest, v2::EncryptResponse> encrypt_messages_;
  WipingMessages<v2::DecryptRequest, v2::DecryptResponse> decrypt_messages_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeKubernetesKmsV2(
    core::KeyService& keys, core::KeyHealth& health, Dispatch& dispatch,
    KubernetesKmsV2Options options) {
  return std::make_unique<KubernetesKmsV2>(keys, health, dispatch,
                                           std::move(options));
}

}  // namespace kek::service
