// SPDX-License-Identifier: Apache-2.0
#include "service/kubernetes_kms_v1beta1.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "core/envelope.h"
#include "kubernetes/kms/v1beta1/api.grpc.pb.h"
#include "service/bytes.h"
#include "service/kubernetes_plugin.h"
#include "service/messages.h"

namespace kek::service {
namespace {

// kube-apiserver stores the length of a ciphertext in two bytes
// (k8s.io/apiserver, envelope/envelope.go).
constexpr size_t kMaxCipher = 65535;
constexpr size_t kMaxPlain = kMaxCipher - core::kMaxEnvelopeOverhead;

constexpr Method kVersion = {"kubernetes.v1beta1", "Version",
                             core::FrontEnd::kKubernetesV1Beta1,
                             Method::Speed::kQuick};
constexpr Method kEncrypt = {"kubernetes.v1beta1", "Encrypt",
                             core::FrontEnd::kKubernetesV1Beta1};
constexpr Method kDecrypt = {"kubernetes.v1beta1", "Decrypt",
                             core::FrontEnd::kKubernetesV1Beta1};

class KubernetesKmsV1Beta1 final
    : public v1beta1::KeyManagementService::CallbackService {
 public:
  KubernetesKmsV1Beta1(core::KeyService& keys, core::KeyHealth& health,
                       Dispatch& dispatch, catalog::ResourceName key)
      : keys_(keys),
        health_(health),
        dispatch_(dispatch),
        key_(std::move(key)) {
    SetMessageAllocatorFor_Version(&version_messages_);
    SetMessageAllocatorFor_Encrypt(&encrypt_messages_);
    SetMessageAllocatorFor_Decrypt(&decrypt_messages_);
  }

  grpc::ServerUnaryReactor* Version(
      grpc::CallbackServerContext* ctx, const v1beta1::VersionRequest*,
      v1beta1::VersionResponse* response) override {
    return dispatch_.Run(ctx, kVersion, "", [response](const core::CallInfo&) {
      response->set_version("v1beta1");
      response->set_runtime_name("kekd");
      response->set_runtime_version(KEKD_VERSION);
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* Encrypt(
      grpc::CallbackServerContext* ctx, const v1beta1::EncryptRequest* request,
      v1beta1::EncryptResponse* response) override {
    return dispatch_.Run(ctx, kEncrypt, "",
                         [this, request, response](const core::CallInfo& call) {
                           return NoteKubernetesWork(
                               health_, key_,
                               DoEncrypt(call, *request, *response));
                         });
  }

  grpc::ServerUnaryReactor* Decrypt(
      grpc::CallbackServerContext* ctx, const v1beta1::DecryptRequest* request,
      v1beta1::DecryptResponse* response) override {
    return dispatch_.Run(ctx, kDecrypt, "",
                         [this, request, response](const core::CallInfo& call) {
                           return NoteKubernetesWork(
                               health_, key_,
                               DoDecrypt(call, *request, *response));
                         });
  }

 private:
  absl::Status DoEncrypt(const core::CallInfo& call,
                         const v1beta1::EncryptRequest& request,
                         v1beta1::EncryptResponse& response) {
    RETURN_IF_ERROR(
        AuditRefusal(keys_, call, kEncrypt.name, key_,
                     ValidateSize("plain", request.plain(), kMaxPlain)));
    ASSIGN_OR_RETURN(
        const core::EncryptResult result,
        keys_.Encrypt(call,
                      {.name = key_,
                       .context = core::EnvelopeContext::kKubernetesV1Beta1,
                       .plaintext = BytesOf(request.plain()),
                       .aad = {},
                       .allow_empty_plaintext = false}));
    response.set_cipher(result.ciphertext.data(), result.ciphertext.size());
    return absl::OkStatus();
  }

  absl::Status DoDecrypt(const core::CallInfo& call,
                         const v1beta1::DecryptRequest& request,
                         v1beta1::DecryptResponse& response) {
    RETURN_IF_ERROR(
        AuditRefusal(keys_, call, kDecrypt.name, key_,
                     ValidateSize("cipher", request.cipher(), kMaxCipher)));
    ASSIGN_OR_RETURN(
        const core::DecryptResult result,
        keys_.Decrypt(call,
                      {.key = key_,
                       .context = core::EnvelopeContext::kKubernetesV1Beta1,
                       .ciphertext = BytesOf(request.cipher()),
                       .aad = {}}));
    response.set_plain(result.plaintext.data(), result.plaintext.size());
    return absl::OkStatus();
  }

  static absl::Status ValidateSize(absl::string_view field,
                                   const std::string& value, size_t limit) {
    if (value.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(field, " is empty"));
    }
    if (value.size() > limit) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, " is ", value.size(), " bytes long; at most ",
                       limit, " are allowed"));
    }
    return absl::OkStatus();
  }

  core::KeyService& keys_;
  core::KeyHealth& health_;
  Dispatch& dispatch_;
  const catalog::ResourceName key_;
  WipingMessages<v1beta1::VersionRequest, v1beta1::VersionResponse>
      version_messages_;
  WipingMessages<v1beta1::EncryptRequest, v1beta1::EncryptResponse>
      encrypt_messages_;
  WipingMessages<v1beta1::DecryptRequest, v1beta1::DecryptResponse>
      decrypt_messages_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeKubernetesKmsV1Beta1(
    core::KeyService& keys, core::KeyHealth& health, Dispatch& dispatch,
    catalog::ResourceName key) {
  return std::make_unique<KubernetesKmsV1Beta1>(keys, health, dispatch,
                                                std::move(key));
}

}  // namespace kek::service
