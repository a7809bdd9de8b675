// SPDX-License-Identifier: Apache-2.0
// status, token and log-level against a server that is in states a healthy kekd
// does not show; the real one is met in tests/packaging.
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <yaml-cpp/yaml.h>

#include <memory>
#include <string>

#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "cli/testing/run_kekctl.h"
#include "kek/admin.grpc.pb.h"

namespace kek::cli {
namespace {

namespace admin = kek::admin::v1;
using ::testing::HasSubstr;
using testing::Kekctl;
using ::testing::Not;
using testing::Ran;

class Server : public admin::Admin::Service {
 public:
  admin::GetStatusResponse status;
  grpc::Status login = grpc::Status::OK;

  grpc::Status GetStatus(grpc::ServerContext*, const admin::GetStatusRequest*,
                         admin::GetStatusResponse* response) override {
    *response = status;
    return grpc::Status::OK;
  }
  grpc::Status RetryTokenLogin(grpc::ServerContext*,
                               const admin::RetryTokenLoginRequest*,
                               admin::TokenLoginResponse* response) override {
    response->mutable_token()->set_state("READY");
    return login;
  }
  grpc::Status SetLogLevel(grpc::ServerContext*,
                           const admin::SetLogLevelRequest* request,
                           admin::SetLogLevelResponse* response) override {
    response->set_previous(status.log_level());
    status.set_log_level(request->level());
    return grpc::Status::OK;
  }
};

class AdminTest : public ::testing::Test {
 protected:
  AdminTest() {
    service_.status.set_version("1.2.3");
    service_.status.set_log_level("info");
    service_.status.mutable_token()->set_state("READY");
    service_.status.mutable_audit()->set_health("ok");
    auto& binding = *service_.status.add_kubernetes();
    binding.set_name("prod");
    binding.set_socket("/run/kekd/prod/kms.sock");
    binding.set_health("ok");
    binding.set_primary_version(
        "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/7");
    server_ = grpc::ServerBuilder()
                  .AddListeningPort("unix:" + socket_,
                                    grpc::InsecureServerCredentials())
                  .RegisterService(&service_)
                  .BuildAndStart();
  }
  Ran Run(std::vector<std::string> arguments) {
    arguments.push_back("--socket");
    arguments.push_back(socket_);
    return Kekctl(std::move(arguments));
  }

  base::testing::TempDir dir_;
  std::string socket_ = dir_.File("admin.sock");
  Server service_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(AdminTest, StatusOfAReadyServerExits0) {
  const Ran ran = Run({"status"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("1.2.3"));
  EXPECT_THAT(ran.out, ::testing::ContainsRegex("prod +ok +7 "));
  EXPECT_THAT(ran.out, Not(HasSubstr("CATALOG AND TOKEN DIFFER")));
  EXPECT_EQ(ran.err, "");
}

TEST_F(AdminTest, StatusSaysWhyItIsNotReadyAndExits69) {
  service_.status.mutable_token()->set_state("ABSENT");
  service_.status.mutable_token()->set_reason("no token matches");
  service_.status.add_not_ready("token: no token matches");
  service_.status.mutable_reconcile()->add_missing("k:1");
  const Ran ran = Run({"status"});
  EXPECT_EQ(ran.code, 69);
  EXPECT_THAT(ran.out, HasSubstr("ABSENT: no token matches"));
  EXPECT_THAT(ran.out, ::testing::ContainsRegex("Key not on the token +k:1"));
  EXPECT_THAT(ran.err, HasSubstr("not ready: token: no token matches"));
  const Ran json = Run({"status", "--output", "json"});
  EXPECT_EQ(json.code, 69);
  EXPECT_EQ(YAML::Load(json.out)["token"]["state"].as<std::string>(), "ABSENT");
}

TEST_F(AdminTest, ARefusedPinExits79AndSaysHowToGoOn) {
  service_.status.mutable_token()->set_state("PIN_REFUSED");
  service_.status.add_not_ready("token: the PIN was refused");
  const Ran status = Run({"status"});
  EXPECT_EQ(status.code, 79);
  EXPECT_THAT(status.err, HasSubstr("kekctl token login --retry"));

  service_.login =
      grpc::Status(grpc::PERMISSION_DENIED, "the token refused the PIN");
  const Ran refused = Run({"token", "login", "--retry"});
  EXPECT_EQ(refused.code, 79);
  EXPECT_THAT(refused.err, HasSubstr("each try counts"));
  // Not the PIN but the caller.
  service_.login =
      grpc::Status(grpc::PERMISSION_DENIED, "Permission 'x' denied");
  EXPECT_EQ(Run({"token", "login", "--retry"}).code, 77);
  service_.login = grpc::Status::OK;
  EXPECT_EQ(Run({"token", "login", "--retry"}).code, 0);
}

TEST_F(AdminTest, LogLevelIsShownAndSet) {
  EXPECT_EQ(Run({"log-level"}).out, "info\n");
  EXPECT_THAT(Run({"log-level", "debug"}).out, HasSubstr("was info"));
  EXPECT_EQ(Run({"log-level"}).out, "debug\n");
  EXPECT_EQ(Run({"log-level", "loud"}).code, 64);
}

TEST_F(AdminTest, KubernetesConfigAsksKekdForItsBindings) {
  const Ran ran = Run({"kubernetes", "config", "--output", "json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(YAML::Load(ran.out)["socket"].as<std::string>(),
            "/run/kekd/prod/kms.sock");
  EXPECT_EQ(Run({"kubernetes", "config", "test"}).code, 66);
  service_.status.clear_kubernetes();
  EXPECT_EQ(Run({"kubernetes", "config"}).code, 66);
}

}  // namespace
}  // namespace kek::cli
