// SPDX-License-Identifier: Apache-2.0
#include "service/cloud_kms_v1.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/status_macros.h"
#include "google/cloud/kms/v1/service.grpc.pb.h"
#include "service/cloud_kms_messages.h"
#include "service/messages.h"

namespace kek::service {
namespace {

namespace kms = google::cloud::kms::v1;
using catalog::ResourceName;
using core::CallInfo;
using Kind = catalog::ResourceName::Kind;

// A method that is not overridden answers UNIMPLEMENTED.
class CloudKmsV1 final : public kms::KeyManagementService::CallbackService {
 public:
  CloudKmsV1(core::KeyService& keys, Dispatch& dispatch)
      : keys_(keys), dispatch_(dispatch) {
    SetMessageAllocatorFor_ListKeyRings(&list_key_rings_messages_);
    SetMessageAllocatorFor_ListCryptoKeys(&list_crypto_keys_messages_);
    SetMessageAllocatorFor_ListCryptoKeyVersions(
        &list_crypto_key_versions_messages_);
    SetMessageAllocatorFor_GetKeyRing(&get_key_ring_messages_);
    SetMessageAllocatorFor_GetCryptoKey(&get_crypto_key_messages_);
    SetMessageAllocatorFor_GetCryptoKeyVersion(
        &get_crypto_key_version_messages_);
    SetMessageAllocatorFor_CreateKeyRing(&create_key_ring_messages_);
    SetMessageAllocatorFor_CreateCryptoKey(&create_crypto_key_messages_);
    SetMessageAllocatorFor_CreateCryptoKeyVersion(
        &create_crypto_key_version_messages_);
    SetMessageAllocatorFor_UpdateCryptoKey(&update_crypto_key_messages_);
    SetMessageAllocatorFor_UpdateCryptoKeyVersion(
        &update_crypto_key_version_messages_);
    SetMessageAllocatorFor_UpdateCryptoKeyPrimaryVersion(
        &update_crypto_key_primary_version_messages_);
    SetMessageAllocatorFor_DestroyCryptoKeyVersion(
        &destroy_crypto_key_version_messages_);
    SetMessageAllocatorFor_RestoreCryptoKeyVersion(
        &restore_crypto_key_version_messages_);
    SetMessageAllocatorFor_Encrypt(&encrypt_messages_);
    SetMessageAllocatorFor_Decrypt(&decrypt_messages_);
  }

  grpc::ServerUnaryReactor* ListKeyRings(
      grpc::CallbackServerContext* ctx, const kms::ListKeyRingsRequest* request,
      kms::ListKeyRingsResponse* response) override {
    return Run(
        ctx, "ListKeyRings", request, response,
        [this](const CallInfo& call, const kms::ListKeyRingsRequest& request)
            -> absl::StatusOr<core::ListResult<catalog::KeyRing>> {
          ASSIGN_OR_RETURN(
              const ResourceName location,
              ResourceName::Parse(request.parent(), Kind::kLocation));
          ASSIGN_OR_RETURN(const core::ListPage page, PageOf(request));
          return keys_.ListKeyRings(call, location, page);
        });
  }

  grpc::ServerUnaryReactor* ListCryptoKeys(
      grpc::CallbackServerContext* ctx,
      const kms::ListCryptoKeysRequest* request,
      kms::ListCryptoKeysResponse* response) override {
    return Run(
        ctx, "ListCryptoKeys", request, response,
        [this](const CallInfo& call, const kms::ListCryptoKeysRequest& request)
            -> absl::StatusOr<core::ListResult<core::CryptoKeyView>> {
          ASSIGN_OR_RETURN(
              const ResourceName ring,
              ResourceName::Parse(request.parent(), Kind::kKeyRing));
          ASSIGN_OR_RETURN(const core::ListPage page, PageOf(request));
          return keys_.ListCryptoKeys(call, ring, page);
        });
  }

  grpc::ServerUnaryReactor* ListCryptoKeyVersions(
      grpc::CallbackServerContext* ctx,
      const kms::ListCryptoKeyVersionsRequest* request,
      kms::ListCryptoKeyVersionsResponse* response) override {
    return Run(
        ctx, "ListCryptoKeyVersions", request, response,
        [this](const CallInfo& call,
               const kms::ListCryptoKeyVersionsRequest& request)
            -> absl::StatusOr<core::ListResult<catalog::CryptoKeyVersion>> {
          ASSIGN_OR_RETURN(
              const ResourceName key,
              ResourceName::Parse(request.parent(), Kind::kCryptoKey));
          ASSIGN_OR_RETURN(const core::ListPage page, PageOf(request));
          return keys_.ListVersions(call, key, page);
        });
  }

  grpc::ServerUnaryReactor* GetKeyRing(grpc::CallbackServerContext* ctx,
                                       const kms::GetKeyRingRequest* request,
                                       kms::KeyRing* response) override {
    return Run(
        ctx, "GetKeyRing", request, response,
        [this](const CallInfo& call, const kms::GetKeyRingRequest& request)
            -> absl::StatusOr<catalog::KeyRing> {
          ASSIGN_OR_RETURN(const ResourceName name,
                           ResourceName::Parse(request.name(), Kind::kKeyRing));
          return keys_.GetKeyRing(call, name);
        });
  }

  grpc::ServerUnaryReactor* GetCryptoKey(
      grpc::CallbackServerContext* ctx, const kms::GetCryptoKeyRequest* request,
      kms::CryptoKey* response) override {
    return Run(
        ctx, "GetCryptoKey", request, response,
        [this](const CallInfo& call, const kms::GetCryptoKeyRequest& request)
            -> absl::StatusOr<core::CryptoKeyView> {
          ASSIGN_OR_RETURN(
              const ResourceName name,
              ResourceName::Parse(request.name(), Kind::kCryptoKey));
          return keys_.GetCryptoKey(call, name);
        });
  }

  grpc::ServerUnaryReactor* GetCryptoKeyVersion(
      grpc::CallbackServerContext* ctx,
      const kms::GetCryptoKeyVersionRequest* request,
      kms::CryptoKeyVersion* response) override {
    return Run(ctx, "GetCryptoKeyVersion", request, response,
               [this](const CallInfo& call,
                      const kms::GetCryptoKeyVersionRequest& request)
                   -> absl::StatusOr<catalog::CryptoKeyVersion> {
                 ASSIGN_OR_RETURN(const ResourceName name,
                                  ResourceName::Parse(request.name(),
                                                      Kind::kCryptoKeyVersion));
                 return keys_.GetVersion(call, name);
               });
  }

  grpc::ServerUnaryReactor* CreateKeyRing(
      grpc::CallbackServerContext* ctx,
      const kms::CreateKeyRingRequest* request,
      kms::KeyRing* response) override {
    return Run(
        ctx, "CreateKeyRing", request, response,
        [this](const CallInfo& call, const kms::CreateKeyRingRequest& request)
            -> absl::StatusOr<catalog::KeyRing> {
          ASSIGN_OR_RETURN(
              const ResourceName location,
              ResourceName::Parse(request.parent(), Kind::kLocation));
          return keys_.CreateKeyRing(call, location, request.key_ring_id());
        });
  }

  grpc::ServerUnaryReactor* CreateCryptoKey(
      grpc::CallbackServerContext* ctx,
      const kms::CreateCryptoKeyRequest* request,
      kms::CryptoKey* response) override {
    return Run(
        ctx, "CreateCryptoKey", request, response,
        [this](const CallInfo& call, const kms::CreateCryptoKeyRequest& request)
            -> absl::StatusOr<core::CryptoKeyView> {
          ASSIGN_OR_RETURN(const core::CreateCryptoKeyRequest create,
                           RequestOf(request));
          return keys_.CreateCryptoKey(call, create);
        });
  }

  grpc::ServerUnaryReactor* CreateCryptoKeyVersion(
      grpc::CallbackServerContext* ctx,
      const kms::CreateCryptoKeyVersionRequest* request,
      kms::CryptoKeyVersion* response) override {
    return Run(ctx, "CreateCryptoKeyVersion", request, response,
               [this](const CallInfo& call,
                      const kms::CreateCryptoKeyVersionRequest& request)
                   -> absl::StatusOr<catalog::CryptoKeyVersion> {
                 ASSIGN_OR_RETURN(
                     const ResourceName key,
                     ResourceName::Parse(request.parent(), Kind::kCryptoKey));
                 RETURN_IF_ERROR(CheckNewVersion(request.crypto_key_version()));
                 return keys_.CreateVersion(call, key);
               });
  }

  grpc::ServerUnaryReactor* UpdateCryptoKey(
      grpc::CallbackServerContext* ctx,
      const kms::UpdateCryptoKeyRequest* request,
      kms::CryptoKey* response) override {
    return Run(
        ctx, "UpdateCryptoKey", request, response,
        [this](const CallInfo& call, const kms::UpdateCryptoKeyRequest& request)
            -> absl::StatusOr<core::CryptoKeyView> {
          ASSIGN_OR_RETURN(const core::UpdateCryptoKeyRequest update,
                           RequestOf(request));
          return keys_.UpdateCryptoKey(call, update);
        });
  }

  grpc::ServerUnaryReactor* UpdateCryptoKeyVersion(
      grpc::CallbackServerContext* ctx,
      const kms::UpdateCryptoKeyVersionRequest* request,
      kms::CryptoKeyVersion* response) override {
    return Run(ctx, "UpdateCryptoKeyVersion", request, response,
               [this](const CallInfo& call,
                      const kms::UpdateCryptoKeyVersionRequest& request)
                   -> absl::StatusOr<catalog::CryptoKeyVersion> {
                 ASSIGN_OR_RETURN(
                     const ResourceName name,
                     ResourceName::Parse(request.crypto_key_version().name(),
                                         Kind::kCryptoKeyVersion));
                 ASSIGN_OR_RETURN(const catalog::VersionState state,
                                  NewStateOf(request));
                 return state == catalog::VersionState::kEnabled
                            ? keys_.Enable(call, name)
                            : keys_.Disable(call, name);
               });
  }

  grpc::ServerUnaryReactor* UpdateCryptoKeyPrimaryVersion(
      grpc::CallbackServerContext* ctx,
      const kms::UpdateCryptoKeyPrimaryVersionRequest* request,
      kms::CryptoKey* response) override {
    return Run(ctx, "UpdateCryptoKeyPrimaryVersion", request, response,
               [this](const CallInfo& call,
                      const kms::UpdateCryptoKeyPrimaryVersionRequest& request)
                   -> absl::StatusOr<core::CryptoKeyView> {
                 ASSIGN_OR_RETURN(
                     const ResourceName key,
                     ResourceName::Parse(request.name(), Kind::kCryptoKey));
                 ASSIGN_OR_RETURN(const ResourceName version,
                                  key.Child(request.crypto_key_version_id()));
                 return keys_.SetPrimaryVersion(call, key, version.version());
               });
  }

  grpc::ServerUnaryReactor* DestroyCryptoKeyVersion(
      grpc::CallbackServerContext* ctx,
      const kms::DestroyCryptoKeyVersionRequest* request,
      kms::CryptoKeyVersion* response) override {
    return Run(ctx, "DestroyCryptoKeyVersion", request, response,
               [this](const CallInfo& call,
                      const kms::DestroyCryptoKeyVersionRequest& request)
                   -> absl::StatusOr<catalog::CryptoKeyVersion> {
                 ASSIGN_OR_RETURN(const ResourceName name,
                                  ResourceName::Parse(request.name(),
                                                      Kind::kCryptoKeyVersion));
                 return keys_.ScheduleDestroy(call, name);
               });
  }

  grpc::ServerUnaryReactor* RestoreCryptoKeyVersion(
      grpc::CallbackServerContext* ctx,
      const kms::RestoreCryptoKeyVersionRequest* request,
      kms::CryptoKeyVersion* response) override {
    return Run(ctx, "RestoreCryptoKeyVersion", request, response,
               [this](const CallInfo& call,
                      const kms::RestoreCryptoKeyVersionRequest& request)
                   -> absl::StatusOr<catalog::CryptoKeyVersion> {
                 ASSIGN_OR_RETURN(const ResourceName name,
                                  ResourceName::Parse(request.name(),
                                                      Kind::kCryptoKeyVersion));
                 return keys_.Restore(call, name);
               });
  }

  grpc::ServerUnaryReactor* Encrypt(grpc::CallbackServerContext* ctx,
                                    const kms::EncryptRequest* request,
                                    kms::EncryptResponse* response) override {
    return Run(ctx, "Encrypt", request, response,
               [this, response](const CallInfo& call,
                                const kms::EncryptRequest& request)
                   -> absl::StatusOr<core::EncryptResult> {
                 ASSIGN_OR_RETURN(const core::EncryptRequest encrypt,
                                  RequestOf(request));
                 // A checksum that is wrong is an error.
                 response->set_verified_plaintext_crc32c(
                     request.has_plaintext_crc32c());
                 response->set_verified_additional_authenticated_data_crc32c(
                     request.has_additional_authenticated_data_crc32c());
                 return keys_.Encrypt(call, encrypt);
               });
  }

  grpc::ServerUnaryReactor* Decrypt(grpc::CallbackServerContext* ctx,
                                    const kms::DecryptRequest* request,
                                    kms::DecryptResponse* response) override {
    return Run(ctx, "Decrypt", request, response,
               [this](const CallInfo& call, const kms::DecryptRequest& request)
                   -> absl::StatusOr<core::DecryptResult> {
                 ASSIGN_OR_RETURN(const core::DecryptRequest decrypt,
                                  RequestOf(request));
                 return keys_.Decrypt(call, decrypt);
               });
  }

 private:
  // Has work done, and the response filled with its result.
  template <typename Request, typename Response, typename Work>
  grpc::ServerUnaryReactor* Run(grpc::CallbackServerContext* ctx,
                                absl::string_view method,
                                const Request* request, Response* response,
                                Work work) {
    return dispatch_.Run(
        ctx, {"cloudkms.v1", method, core::FrontEnd::kCloudKms}, "",
        [request, response,
         work = std::move(work)](const CallInfo& call) -> absl::Status {
          ASSIGN_OR_RETURN(const auto result, work(call, *request));
          Fill(result, *response);
          return absl::OkStatus();
        });
  }

  core::KeyService& keys_;
  Dispatch& dispatch_;
  WipingMessages<kms::ListKeyRingsRequest, kms::ListKeyRingsResponse>
      list_key_rings_messages_;
  WipingMessages<kms::ListCryptoKeysRequest, kms::ListCryptoKeysResponse>
      list_crypto_keys_messages_;
  WipingMessages<kms::ListCryptoKeyVersionsRequest,
                 kms::ListCryptoKeyVersionsResponse>
      list_crypto_key_versions_messages_;
  WipingMessages<kms::GetKeyRingRequest, kms::KeyRing> get_key_ring_messages_;
  WipingMessages<kms::GetCryptoKeyRequest, kms::CryptoKey>
      get_crypto_key_messages_;
  WipingMessages<kms::GetCryptoKeyVersionRequest, kms::CryptoKeyVersion>
      get_crypto_key_version_messages_;
  WipingMessages<kms::CreateKeyRingRequest, kms::KeyRing>
      create_key_ring_messages_;
  WipingMessages<kms::CreateCryptoKeyRequest, kms::CryptoKey>
      create_crypto_key_messages_;
  WipingMessages<kms::CreateCryptoKeyVersionRequest, kms::CryptoKeyVersion>
      create_crypto_key_version_messages_;
  WipingMessages<kms::UpdateCryptoKeyRequest, kms::CryptoKey>
      update_crypto_key_messages_;
  WipingMessages<kms::UpdateCryptoKeyVersionRequest, kms::CryptoKeyVersion>
      update_crypto_key_version_messages_;
  WipingMessages<kms::UpdateCryptoKeyPrimaryVersionRequest, kms::CryptoKey>
      update_crypto_key_primary_version_messages_;
  WipingMessages<kms::DestroyCryptoKeyVersionRequest, kms::CryptoKeyVersion>
      destroy_crypto_key_version_messages_;
  WipingMessages<kms::RestoreCryptoKeyVersionRequest, kms::CryptoKeyVersion>
      restore_crypto_key_version_messages_;
  WipingMessages<kms::EncryptRequest, kms::EncryptResponse> encrypt_messages_;
  WipingMessages<kms::DecryptRequest, kms::DecryptResponse> decrypt_messages_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeCloudKmsV1(core::KeyService& keys,
                                              Dispatch& dispatch) {
  return std::make_unique<CloudKmsV1>(keys, dispatch);
}

}  // namespace kek::service
