// SPDX-License-Identifier: Apache-2.0
#include "tests/integration/kubernetes_test.h"

#include <arpa/inet.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <iostream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/sync.h"

namespace kek::integration {

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
}

Plugin::Plugin(const std::string& socket, const std::string& authority)
    : channel_(ConnectTo(socket, authority)),
      v2_(v2::KeyManagementService::NewStub(channel_)),
      v1_(v1beta1::KeyManagementService::NewStub(channel_)) {}

absl::StatusOr<v2::StatusResponse> Plugin::Status(
    std::chrono::nanoseconds timeout) {
  v2::StatusResponse response;
  absl::Status status = FromGrpc(
      v2_->Status(Context(timeout).get(), v2::StatusRequest(), &response));
  if (!status.ok()) return status;
  return response;
}

absl::StatusOr<v2::EncryptResponse> Plugin::Encrypt(
    const std::string& plaintext, const std::string& uid,
    std::chrono::nanoseconds timeout) {
  v2::EncryptRequest request;
  request.set_plaintext(plaintext);
  request.set_uid(uid);
  v2::EncryptResponse response;
  absl::Status status =
      FromGrpc(v2_->Encrypt(Context(timeout).get(), request, &response));
  if (!status.ok()) return status;
  return response;
}

absl::StatusOr<std::string> Plugin::Decrypt(const v2::DecryptRequest& request,
                                            std::chrono::nanoseconds timeout) {
  v2::DecryptResponse response;
  absl::Status status =
      FromGrpc(v2_->Decrypt(Context(timeout).get(), request, &response));
  if (!status.ok()) return status;
  return response.plaintext();
}

absl::StatusOr<std::string> Plugin::Decrypt(
    const v2::EncryptResponse& encrypted, std::chrono::nanoseconds timeout) {
  return Decrypt(RequestFor(encrypted), timeout);
}

absl::StatusOr<std::string> Plugin::EncryptV1(const std::string& plain,
                                              const std::string& version) {
  v1beta1::EncryptRequest request;
  request.set_version(version);
  request.set_plain(plain);
  v1beta1::EncryptResponse response;
  absl::Status status =
      FromGrpc(v1_->Encrypt(Context(seconds(3)).get(), request, &response));
  if (!status.ok()) return status;
  return response.cipher();
}

absl::StatusOr<std::string> Plugin::DecryptV1(const std::string& cipher,
                                              const std::string& version) {
  v1beta1::DecryptRequest request;
  request.set_version(version);
  request.set_cipher(cipher);
  v1beta1::DecryptResponse response;
  absl::Status status =
      FromGrpc(v1_->Decrypt(Context(seconds(3)).get(), request, &response));
  if (!status.ok()) return status;
  return response.plain();
}

absl::StatusOr<v1beta1::VersionResponse> Plugin::VersionV1(
    const std::string& version) {
  v1beta1::VersionRequest request;
  request.set_version(version);
  v1beta1::VersionResponse response;
  absl::Status status =
      FromGrpc(v1_->Version(Context(seconds(3)).get(), request, &response));
  if (!status.ok()) return status;
  return response;
}

absl::Status Plugin::Call(const std::string& method) {
  grpc::GenericStub stub(channel_);
  const std::unique_ptr<grpc::ClientContext> context = Context();
  grpc::Slice empty;
  grpc::ByteBuffer request(&empty, 1), response;
  base::Mutex mu;
  base::CondVar done;
  std::optional<grpc::Status> result;
  stub.UnaryCall(context.get(), method, grpc::StubOptions(), &request,
                 &response, [&](grpc::Status status) {
                   base::MutexLock lock(mu);
                   result = std::move(status);
                   done.NotifyAll();
                 });
  base::MutexLock lock(mu);
  while (!result.has_value()) done.Wait(mu);
  return FromGrpc(*result);
}

Administrator::Administrator(const std::string& socket)
    : keys_(kms::KeyManagementService::NewStub(ConnectTo(socket))),
      server_(kek::admin::v1::Admin::NewStub(ConnectTo(socket))) {}

absl::Status Administrator::Rotate(const std::string& key) {
  kek::admin::v1::RotateCryptoKeyRequest request;
  request.set_name(key);
  kek::admin::v1::RotateCryptoKeyResponse response;
  return FromGrpc(
      server_->RotateCryptoKey(Context().get(), request, &response));
}

absl::Status Administrator::SetPrimary(const std::string& key,
                                       const std::string& version) {
  kms::UpdateCryptoKeyPrimaryVersionRequest request;
  request.set_name(key);
  request.set_crypto_key_version_id(version);
  kms::CryptoKey response;
  return FromGrpc(keys_->UpdateCryptoKeyPrimaryVersion(Context().get(), request,
                                                       &response));
}

absl::Status Administrator::SetState(
    const std::string& version,
    kms::CryptoKeyVersion::CryptoKeyVersionState state) {
  kms::UpdateCryptoKeyVersionRequest request;
  request.mutable_crypto_key_version()->set_name(version);
  request.mutable_crypto_key_version()->set_state(state);
  request.mutable_update_mask()->add_paths("state");
  kms::CryptoKeyVersion response;
  return FromGrpc(
      keys_->UpdateCryptoKeyVersion(Context().get(), request, &response));
}

absl::Status Administrator::Destroy(const std::string& version) {
  kms::DestroyCryptoKeyVersionRequest request;
  request.set_name(version);
  kms::CryptoKeyVersion response;
  return FromGrpc(
      keys_->DestroyCryptoKeyVersion(Context().get(), request, &response));
}

absl::Status Administrator::Relogin() {
  kek::admin::v1::TokenLoginResponse response;
  return FromGrpc(server_->ReloginToken(
      Context().get(), kek::admin::v1::ReloginTokenRequest(), &response));
}

v2::DecryptRequest RequestFor(const v2::EncryptResponse& encrypted,
                              const std::string& uid) {
  v2::DecryptRequest request;
  request.set_ciphertext(encrypted.ciphertext());
  request.set_key_id(encrypted.key_id());
  request.set_uid(uid);
  *request.mutable_annotations() = encrypted.annotations();
  return request;
}

std::string Plaintext(size_t size) {
  std::string plaintext(size, '\0');
  for (size_t i = 0; i < size; ++i) {
    plaintext[i] = static_cast<char>(i * 7 + 3);
  }
  return plaintext;
}

std::optional<std::pair<int, std::string>> HttpGet(int port,
                                                   const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const timeval patience{.tv_sec = 5, .tv_usec = 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
    const std::string request =
        absl::StrCat("GET ", path,
                     " HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: "
                     "close\r\n\r\n");
    if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) ==
        static_cast<ssize_t>(request.size())) {
      char buffer[4096];
      for (ssize_t n; (n = recv(fd, buffer, sizeof buffer, 0)) > 0;) {
        answer.append(buffer, static_cast<size_t>(n));
      }
    }
  }
  close(fd);
  const size_t body = answer.find("\r\n\r\n");
  int code = 0;
  if (body == std::string::npos || answer.size() < 12 ||
      !absl::SimpleAtoi(answer.substr(9, 3), &code)) {
    return std::nullopt;
  }
  return std::make_pair(code, answer.substr(body + 4));
}

double MetricSum(int port, const std::string& name,
                 const std::vector<std::string>& labels) {
  const auto page = HttpGet(port, "/metrics");
  double sum = 0;
  if (!page.has_value()) return sum;
  for (const absl::string_view line : absl::StrSplit(page->second, '\n')) {
    if (!absl::StartsWith(line, absl::StrCat(name, "{")) &&
        !absl::StartsWith(line, absl::StrCat(name, " "))) {
      continue;
    }
    bool all = true;
    for (const std::string& label : labels) {
      all = all && absl::StrContains(line, label);
    }
    double value = 0;
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    if (all && absl::SimpleAtod(words.back(), &value)) sum += value;
  }
  return sum;
}

void KubernetesTest::Start(KekdProcess::Options options) {
  kekd_ = std::make_unique<KekdProcess>(std::move(options));
  ASSERT_OK(kekd_->StartWithKeys());
}

void KubernetesTest::StartFaulty(KekdProcess::Options options) {
  rules_.emplace();
  options.module = Reachable(fault::FaultRules::ModulePath());
  Start(std::move(options));
}

void KubernetesTest::TearDown() {
  if (HasFailure() && kekd_ != nullptr) {
    const std::string log = kekd_->Log();
    std::cerr << "---- the end of kekd's log\n"
              << log.substr(log.size() > 8000 ? log.size() - 8000 : 0);
  }
  if (rules_.has_value()) rules_->Release();
  kekd_.reset();
  if (rules_.has_value()) {
    EXPECT_THAT(rules_->Violations(), ::testing::IsEmpty());
  }
}

}  // namespace kek::integration
