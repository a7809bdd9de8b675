// SPDX-License-Identifier: Apache-2.0
// The plugins here are wrong on purpose, each in one way: what kekd would never
// answer is what the check exists to find.
#include "cli/plugin_check.h"

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "cli/testing/run_kekctl.h"
#include "kubernetes/kms/v1beta1/api.grpc.pb.h"
#include "kubernetes/kms/v2/api.grpc.pb.h"

namespace kek::cli {
namespace {

using base::testing::StatusIs;
using ::testing::HasSubstr;

// Keeps the contract unless one of the changes is set.
class PluginV2 : public v2::KeyManagementService::Service {
 public:
  std::function<grpc::Status(v2::StatusResponse&)> on_status;
  std::function<void(v2::EncryptResponse&, const std::string&)> on_encrypt;
  std::function<void(v2::DecryptResponse&)> on_decrypt;
  std::atomic<int> statuses = 0, encrypts = 0;

  grpc::Status Status(grpc::ServerContext*, const v2::StatusRequest*,
                      v2::StatusResponse* response) override {
    ++statuses;
    response->set_version("v2");
    response->set_healthz("ok");
    response->set_key_id("k1");
    return on_status ? on_status(*response) : grpc::Status::OK;
  }
  grpc::Status Encrypt(grpc::ServerContext*, const v2::EncryptRequest* request,
                       v2::EncryptResponse* response) override {
    std::string ciphertext = "c" + std::to_string(++encrypts);
    for (const char c : request->plaintext()) {
      ciphertext.push_back(static_cast<char>(c ^ 0x5a));
    }
    response->set_ciphertext(ciphertext);
    response->set_key_id("k1");
    (*response->mutable_annotations())["version.example.com"] = "1";
    if (on_encrypt) on_encrypt(*response, request->plaintext());
    return grpc::Status::OK;
  }
  grpc::Status Decrypt(grpc::ServerContext*, const v2::DecryptRequest* request,
                       v2::DecryptResponse* response) override {
    const std::string& ciphertext = request->ciphertext();
    std::string plaintext;
    for (size_t i = ciphertext.size() - 32; i < ciphertext.size(); ++i) {
      plaintext.push_back(static_cast<char>(ciphertext[i] ^ 0x5a));
    }
    response->set_plaintext(plaintext);
    if (on_decrypt) on_decrypt(*response);
    return grpc::Status::OK;
  }
};

class PluginV1 : public v1beta1::KeyManagementService::Service {
 public:
  std::string version = "v1beta1";
  bool corrupt = false;

  grpc::Status Version(grpc::ServerContext*, const v1beta1::VersionRequest*,
                       v1beta1::VersionResponse* response) override {
    response->set_version(version);
    response->set_runtime_name("test");
    response->set_runtime_version("1.2.3");
    return grpc::Status::OK;
  }
  grpc::Status Encrypt(grpc::ServerContext*,
                       const v1beta1::EncryptRequest* request,
                       v1beta1::EncryptResponse* response) override {
    std::string cipher = request->plain();
    for (char& c : cipher) c = static_cast<char>(c ^ 0x5a);
    response->set_cipher(cipher);
    return grpc::Status::OK;
  }
  grpc::Status Decrypt(grpc::ServerContext*,
                       const v1beta1::DecryptRequest* request,
                       v1beta1::DecryptResponse* response) override {
    std::string plain = request->cipher();
    for (char& c : plain) c = static_cast<char>(c ^ 0x5a);
    if (corrupt) plain[0] = static_cast<char>(plain[0] ^ 1);
    response->set_plain(plain);
    return grpc::Status::OK;
  }
};

class PluginCheckTest : public ::testing::Test {
 protected:
  void Serve(grpc::Service& service) {
    server_ = grpc::ServerBuilder()
                  .AddListeningPort("unix:" + socket_,
                                    grpc::InsecureServerCredentials())
                  .RegisterService(&service)
                  .BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }
  CheckReport Check() {
    return CheckKmsV2(socket_, base::DeadlineAfter(std::chrono::seconds(10)));
  }

  base::testing::TempDir dir_;
  std::string socket_ = dir_.File("kms.sock");
  PluginV2 plugin_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(PluginCheckTest, AGoodPluginPasses) {
  Serve(plugin_);
  const CheckReport report = Check();
  EXPECT_OK(report.result);
  EXPECT_EQ(report.key_id, "k1");
  EXPECT_EQ(report.version, "v2");
  ASSERT_EQ(report.steps.size(), 5u);
  for (const CheckStep& step : report.steps) {
    EXPECT_TRUE(step.passed) << step.name << ": " << step.detail;
  }
}

TEST_F(PluginCheckTest, WaitsUntilThePluginIsHealthy) {
  plugin_.on_status = [&](v2::StatusResponse& response) {
    if (plugin_.statuses == 1) return grpc::Status(grpc::UNAVAILABLE, "no HSM");
    if (plugin_.statuses == 2) response.set_healthz("HSM is starting");
    return grpc::Status::OK;
  };
  Serve(plugin_);
  EXPECT_OK(Check().result);
  EXPECT_GE(plugin_.statuses, 3);
}

TEST_F(PluginCheckTest, APluginThatStaysUnhealthyIsUnavailableWithItsReason) {
  plugin_.on_status = [](v2::StatusResponse& response) {
    response.set_healthz("token absent");
    return grpc::Status::OK;
  };
  Serve(plugin_);
  const CheckReport report =
      CheckKmsV2(socket_, base::DeadlineAfter(std::chrono::milliseconds(500)));
  EXPECT_THAT(report.result, StatusIs(absl::StatusCode::kUnavailable,
                                      HasSubstr("token absent")));
  ASSERT_EQ(report.steps.size(), 1u);
  EXPECT_FALSE(report.steps[0].passed);
}

TEST_F(PluginCheckTest, NobodyThereIsUnavailable) {
  const CheckReport report =
      CheckKmsV2(socket_, base::DeadlineAfter(std::chrono::milliseconds(300)));
  EXPECT_THAT(report.result, StatusIs(absl::StatusCode::kUnavailable,
                                      HasSubstr("no such socket")));
}

TEST_F(PluginCheckTest, ARotationBetweenStatusAndEncryptIsNoFailure) {
  // Status says k1 once, then k2; Encrypt is always k2.
  plugin_.on_status = [&](v2::StatusResponse& response) {
    if (plugin_.statuses > 1) response.set_key_id("k2");
    return grpc::Status::OK;
  };
  plugin_.on_encrypt = [](v2::EncryptResponse& response, const std::string&) {
    response.set_key_id("k2");
  };
  Serve(plugin_);
  const CheckReport report = Check();
  EXPECT_OK(report.result);
  EXPECT_EQ(report.key_id, "k2");
}

TEST_F(PluginCheckTest, AKeyIdThatNeverAgreesIsAFailure) {
  plugin_.on_encrypt = [](v2::EncryptResponse& response, const std::string&) {
    response.set_key_id("other");
  };
  Serve(plugin_);
  EXPECT_THAT(Check().result, StatusIs(absl::StatusCode::kDataLoss,
                                       HasSubstr("twice in a row")));
}

struct Fault {
  const char* name;
  std::function<void(PluginV2&)> make;
  const char* message;
};
class PluginFaultTest : public PluginCheckTest,
                        public ::testing::WithParamInterface<Fault> {};

TEST_P(PluginFaultTest, IsFound) {
  GetParam().make(plugin_);
  Serve(plugin_);
  const CheckReport report = Check();
  EXPECT_THAT(report.result, StatusIs(absl::StatusCode::kDataLoss,
                                      HasSubstr(GetParam().message)));
  ASSERT_FALSE(report.steps.empty());
  EXPECT_FALSE(report.steps.back().passed);
}

std::function<void(PluginV2&)> InStatus(
    std::function<void(v2::StatusResponse&)> change) {
  return [change](PluginV2& plugin) {
    plugin.on_status = [change](v2::StatusResponse& response) {
      change(response);
      return grpc::Status::OK;
    };
  };
}
std::function<void(PluginV2&)> InEncrypt(
    std::function<void(v2::EncryptResponse&, const std::string&)> change) {
  return [change](PluginV2& plugin) { plugin.on_encrypt = change; };
}

INSTANTIATE_TEST_SUITE_P(
    All, PluginFaultTest,
    ::testing::Values(
        Fault{"StatusVersion",
              InStatus([](auto& r) { r.set_version("v2alpha1"); }),
              "not v2 or v2beta1"},
        Fault{"StatusKeyIdEmpty", InStatus([](auto& r) { r.set_key_id(""); }),
              "key_id is empty"},
        Fault{"StatusKeyIdTooLong",
              InStatus([](auto& r) { r.set_key_id(std::string(1025, 'k')); }),
              "1025 bytes"},
        Fault{"StatusVersionChanges",
              [](PluginV2& plugin) {
                plugin.on_status = [&plugin](v2::StatusResponse& r) {
                  if (plugin.statuses > 1) r.set_version("v2beta1");
                  return grpc::Status::OK;
                };
              },
              "version changed"},
        Fault{"CiphertextEmpty",
              InEncrypt([](auto& r, auto&) { r.set_ciphertext(""); }),
              "ciphertext is empty"},
        Fault{"CiphertextTooLong", InEncrypt([](auto& r, auto&) {
                r.set_ciphertext(std::string(1025, 'c'));
              }),
              "1025 bytes"},
        Fault{"CiphertextHoldsPlaintext",
              InEncrypt([](auto& r, auto& p) { r.set_ciphertext("x" + p); }),
              "contains the plaintext"},
        Fault{"CiphertextNeverChanges", InEncrypt([](auto& r, auto&) {
                r.set_ciphertext(r.ciphertext().substr(2));
              }),
              "same ciphertext twice"},
        Fault{"EncryptKeyIdEmpty",
              InEncrypt([](auto& r, auto&) { r.set_key_id(""); }),
              "key_id is empty"},
        Fault{"AnnotationName", InEncrypt([](auto& r, auto&) {
                (*r.mutable_annotations())["Bad_Key"] = "1";
              }),
              "fully qualified domain name"},
        Fault{"AnnotationOneLabel", InEncrypt([](auto& r, auto&) {
                (*r.mutable_annotations())["version"] = "1";
              }),
              "fully qualified domain name"},
        Fault{"AnnotationsTooLong", InEncrypt([](auto& r, auto&) {
                (*r.mutable_annotations())["a.example.com"] =
                    std::string(32768, 'v');
              }),
              "annotations have"},
        Fault{"AnnotationHoldsPlaintext", InEncrypt([](auto& r, auto& p) {
                (*r.mutable_annotations())["a.example.com"] = p;
              }),
              "annotation contains the plaintext"},
        Fault{"DecryptOther",
              [](PluginV2& plugin) {
                plugin.on_decrypt = [](v2::DecryptResponse& r) {
                  r.set_plaintext(std::string(32, 'x'));
                };
              },
              "not what was encrypted"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(PluginCheckTest, TheCommandExits65ForABrokenContractAnd0ForAGoodOne) {
  Serve(plugin_);
  const testing::Ran good =
      testing::Kekctl({"kubernetes", "check", "--socket", socket_});
  EXPECT_EQ(good.code, 0) << good.err;
  EXPECT_THAT(good.out, HasSubstr("Decrypt"));
  plugin_.on_decrypt = [](v2::DecryptResponse& r) { r.set_plaintext("x"); };
  const testing::Ran bad = testing::Kekctl(
      {"kubernetes", "check", "--socket", socket_, "--output", "json"});
  EXPECT_EQ(bad.code, 65);
  EXPECT_THAT(bad.out, HasSubstr("\"passed\": false"));
}

TEST_F(PluginCheckTest, V1Beta1IsToldApart) {
  PluginV1 old;
  Serve(old);
  const auto check = [&] {
    return CheckKmsV1Beta1(socket_,
                           base::DeadlineAfter(std::chrono::seconds(10)));
  };
  EXPECT_OK(check().result);
  EXPECT_THAT(Check().result, StatusIs(absl::StatusCode::kDataLoss,
                                       HasSubstr("does not serve")));
  old.corrupt = true;
  EXPECT_THAT(check().result, StatusIs(absl::StatusCode::kDataLoss,
                                       HasSubstr("not what was encrypted")));
  old.version = "v1";
  EXPECT_THAT(check().result,
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("not v1beta1")));
}

}  // namespace
}  // namespace kek::cli
