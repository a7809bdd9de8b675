// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/testing/matchers.h"
#include "gmock/gmock.h"
#include "google/cloud/kms/v1/service.grpc.pb.h"
#include "gtest/gtest.h"
#include "kek/admin.grpc.pb.h"
#include "kubernetes/kms/v1beta1/api.grpc.pb.h"
#include "kubernetes/kms/v2/api.grpc.pb.h"
#include "tests/support/fault_rules.h"
#include "tests/support/kekd_process.h"

// The statements of docs/conformance-kubernetes.md as tests against the real
// kekd on a fresh SoftHSM token; each test's name begins with its numbers.
namespace kek::integration {

namespace kms = google::cloud::kms::v1;
using std::chrono::milliseconds;
using std::chrono::seconds;

absl::Status FromGrpc(const grpc::Status& status);

// What kube-apiserver does with a plugin's socket.
class Plugin {
 public:
  explicit Plugin(const std::string& socket, const std::string& authority = "");

  absl::StatusOr<v2::StatusResponse> Status(
      std::chrono::nanoseconds timeout = seconds(3));
  absl::StatusOr<v2::EncryptResponse> Encrypt(
      const std::string& plaintext, const std::string& uid = "uid-encrypt",
      std::chrono::nanoseconds timeout = seconds(3));
  absl::StatusOr<std::string> Decrypt(
      const v2::DecryptRequest& request,
      std::chrono::nanoseconds timeout = seconds(3));
  // Of what Encrypt answered.
  absl::StatusOr<std::string> Decrypt(
      const v2::EncryptResponse& encrypted,
      std::chrono::nanoseconds timeout = seconds(3));

  absl::StatusOr<std::string> EncryptV1(const std::string& plain,
                                        const std::string& version = "v1beta1");
  absl::StatusOr<std::string> DecryptV1(const std::string& cipher,
                                        const std::string& version = "v1beta1");
  absl::StatusOr<v1beta1::VersionResponse> VersionV1(
      const std::string& version = "v1beta1");

  // Calls any method with an empty message.
  absl::Status Call(const std::string& method);

  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v2::KeyManagementService::Stub> v2_;
  std::unique_ptr<v1beta1::KeyManagementService::Stub> v1_;
};

// What an administrator does on the admin socket.
class Administrator {
 public:
  explicit Administrator(const std::string& socket);

  absl::Status Rotate(const std::string& key);
  absl::Status SetPrimary(const std::string& key, const std::string& version);
  absl::Status SetState(const std::string& version,
                        kms::CryptoKeyVersion::CryptoKeyVersionState state);
  absl::Status Destroy(const std::string& version);
  absl::Status Relogin();

  kms::KeyManagementService::Stub& keys() { return *keys_; }
  kek::admin::v1::Admin::Stub& server() { return *server_; }

 private:
  std::unique_ptr<kms::KeyManagementService::Stub> keys_;
  std::unique_ptr<kek::admin::v1::Admin::Stub> server_;
};

v2::DecryptRequest RequestFor(const v2::EncryptResponse& encrypted,
                              const std::string& uid = "uid-decrypt");

// size bytes that are not all the same.
std::string Plaintext(size_t size);

// GET http://127.0.0.1:port/path: status and body; nullopt if nothing answers.
std::optional<std::pair<int, std::string>> HttpGet(int port,
                                                   const std::string& path);
// The sum of a metric's series whose line contains every one of labels.
double MetricSum(int port, const std::string& name,
                 const std::vector<std::string>& labels = {});

class KubernetesTest : public ::testing::Test {
 protected:
  KubernetesTest() { DropPrivileges(); }
  void TearDown() override;

  // Starts kekd_ and waits until every binding is healthy.
  void Start(KekdProcess::Options options = KekdProcess::Options());
  // The same on the fault module; rules_ steers it.
  void StartFaulty(KekdProcess::Options options = KekdProcess::Options());

  Plugin Connect(absl::string_view binding = "main") {
    return Plugin(kekd_->Socket(binding));
  }
  Administrator Admin() { return Administrator(kekd_->AdminSocket()); }

  std::optional<fault::FaultRules> rules_;
  std::unique_ptr<KekdProcess> kekd_;
};

}  // namespace kek::integration
