// SPDX-License-Identifier: Apache-2.0
//
// Status: statements 6-14.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <set>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/envelope.h"
#include "service/kubernetes_key_id.h"
#include "tests/integration/kubernetes_test.h"

namespace kek::integration {
namespace {

using base::testing::IsOkAndHolds;
using base::testing::StatusIs;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Clock = std::chrono::steady_clock;

class K8sStatusTest : public KubernetesTest {
 protected:
  std::string KeyIdOf(absl::string_view binding = "main") {
    const absl::StatusOr<v2::StatusResponse> status = Connect(binding).Status();
    EXPECT_OK(status);
    return status.ok() ? status->key_id() : "";
  }
  // Waits until Status of the binding answers so.
  bool Becomes(absl::string_view binding, bool healthy,
               std::chrono::nanoseconds within) {
    Plugin plugin = Connect(binding);
    return Eventually(
        [&] {
          const auto status = plugin.Status();
          return (status.ok() && status->healthz() == "ok") == healthy;
        },
        Within(within));
  }
};

TEST_F(K8sStatusTest, K8s06HealthyStatus) {
  KekdProcess::Options options;
  options.bindings = {
      {.name = "main", .key = "main"},
      {.name = "old", .key = "main", .yaml = {"version: v2beta1"}}};
  ASSERT_NO_FATAL_FAILURE(Start(options));
  ASSERT_OK_AND_ASSIGN(const v2::StatusResponse status, Connect().Status());
  EXPECT_EQ(status.healthz(), "ok");
  EXPECT_EQ(status.version(), "v2");
  EXPECT_FALSE(status.key_id().empty());
  EXPECT_LE(status.key_id().size(), 128u);
  for (const char c : status.key_id()) {
    EXPECT_TRUE(absl::ascii_isgraph(static_cast<unsigned char>(c)));
  }
  ASSERT_OK_AND_ASSIGN(const v2::StatusResponse old, Connect("old").Status());
  EXPECT_EQ(old.version(), "v2beta1");
  EXPECT_EQ(old.healthz(), "ok");
  EXPECT_EQ(old.key_id(), status.key_id());
}

TEST_F(K8sStatusTest, K8s07VersionNeverChanges) {
  KekdProcess::Options options;
  options.bindings = {{.name = "main", .yaml = {"version: v2beta1"}}};
  ASSERT_NO_FATAL_FAILURE(Start(options));
  Plugin plugin = Connect();
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK(Admin().Rotate(kekd_->KeyName("main")));
    ASSERT_OK_AND_ASSIGN(const v2::StatusResponse status, plugin.Status());
    EXPECT_EQ(status.version(), "v2beta1");
  }
  EXPECT_THAT(kekd_->Terminate(), IsOkAndHolds(0));
  ASSERT_OK(kekd_->StartWithKeys());
  ASSERT_OK_AND_ASSIGN(const v2::StatusResponse status, Connect().Status());
  EXPECT_EQ(status.version(), "v2beta1");

  // Nothing else can be configured.
  options.bindings[0].yaml = {"version: v3"};
  kekd_->WriteConfig(options);
  EXPECT_NE(kekd_->Run({"--check-config", kekd_->config()}).first, 0);
}

TEST_F(K8sStatusTest, K8s08KeyIdIsStableAndNeverUsedAgain) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Administrator admin = Admin();
  const std::string key = kekd_->KeyName("main");
  const std::string first = KeyIdOf();

  // The same version: the same key_id.
  EXPECT_THAT(kekd_->Terminate(), IsOkAndHolds(0));
  ASSERT_OK(kekd_->StartWithKeys());
  EXPECT_EQ(KeyIdOf(), first);
  kekd_->Kill();
  ASSERT_OK(kekd_->StartWithKeys());
  EXPECT_EQ(KeyIdOf(), first);
  admin = Admin();
  ASSERT_OK(admin.Relogin());
  EXPECT_TRUE(Becomes("main", true, seconds(10)));
  EXPECT_EQ(KeyIdOf(), first);
  const std::string version1 = absl::StrCat(key, "/cryptoKeyVersions/1");
  ASSERT_OK(admin.SetState(version1, kms::CryptoKeyVersion::DISABLED));
  ASSERT_OK(admin.SetState(version1, kms::CryptoKeyVersion::ENABLED));
  EXPECT_TRUE(Becomes("main", true, seconds(10)));
  EXPECT_EQ(KeyIdOf(), first);
  ASSERT_OK(admin.SetPrimary(key, "1"));
  EXPECT_EQ(KeyIdOf(), first);

  // A, B, A, B, A: every activation has a key_id of its own.
  std::set<std::string> seen = {first};
  ASSERT_OK(admin.Rotate(key));
  EXPECT_TRUE(seen.insert(KeyIdOf()).second);
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       Connect().Encrypt("seed"));
  for (const char* version : {"1", "2", "1"}) {
    ASSERT_OK(admin.SetPrimary(key, version));
    EXPECT_TRUE(seen.insert(KeyIdOf()).second) << version;
  }
  // What was made under an earlier activation still opens.
  EXPECT_THAT(Connect().Decrypt(encrypted), IsOkAndHolds("seed"));
  kekd_->Kill();
  ASSERT_OK(kekd_->StartWithKeys());
  EXPECT_FALSE(seen.insert(KeyIdOf()).second);
}

TEST_F(K8sStatusTest, K8s09StatusAndEncryptAgreeUnderTenRotationsASecond) {
  ASSERT_NO_FATAL_FAILURE(Start());
  std::atomic<int> begun{0}, ended{0};
  std::atomic<bool> stop{false};
  std::thread rotations([&] {
    Administrator admin = Admin();
    Clock::time_point next = Clock::now();
    for (int i = 0; i < 30; ++i) {
      ++begun;
      EXPECT_OK(admin.Rotate(kekd_->KeyName("main")));
      ++ended;
      next += milliseconds(100);
      std::this_thread::sleep_until(next);  // the load is ten a second
    }
    stop = true;
  });
  std::atomic<int> rounds{0}, second_tries{0};
  std::vector<std::thread> apiservers;
  for (int i = 0; i < 4; ++i) {
    apiservers.emplace_back([&] {
      Plugin plugin = Connect();
      while (!stop) {
        // As kube-apiserver: Status, and if it is news, Encrypt.
        for (int tries = 1;; ++tries) {
          const int before = ended;
          const auto status = plugin.Status();
          ASSERT_OK(status);
          EXPECT_EQ(status->healthz(), "ok");
          const auto encrypted = plugin.Encrypt("seed");
          ASSERT_OK(encrypted);
          const int after = begun;
          // What Encrypt says and what it did are one.
          const auto id = service::KubernetesKeyId::Parse(encrypted->key_id());
          ASSERT_OK(id);
          const auto envelope = core::Envelope::Parse(
              {reinterpret_cast<const uint8_t*>(encrypted->ciphertext().data()),
               encrypted->ciphertext().size()});
          ASSERT_OK(envelope);
          ASSERT_EQ(id->version, envelope->version);
          ASSERT_THAT(plugin.Decrypt(*encrypted), IsOkAndHolds("seed"));
          ++rounds;
          if (encrypted->key_id() == status->key_id()) break;
          // Only because a rotation came between.
          ASSERT_GT(after, before);
          ASSERT_GT(id->version,
                    service::KubernetesKeyId::Parse(status->key_id())->version);
          ++second_tries;
        }
      }
    });
  }
  for (std::thread& apiserver : apiservers) apiserver.join();
  rotations.join();
  EXPECT_GT(rounds, 30);
  // At most once a rotation and API server.
  EXPECT_LE(second_tries, 30 * 4);
  // After the last rotation there is nothing left to disagree about.
  ASSERT_OK_AND_ASSIGN(const v2::StatusResponse status, Connect().Status());
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       Connect().Encrypt("seed"));
  EXPECT_EQ(status.key_id(), encrypted.key_id());
  EXPECT_EQ(service::KubernetesKeyId::Parse(status.key_id())->version, 31u);
}

TEST_F(K8sStatusTest, K8s10StatusIsQuickAndAnswersWhileTheTokenHangs) {
  ASSERT_NO_FATAL_FAILURE(StartFaulty());
  Plugin plugin = Connect();
  const auto p99 = [&](int calls) {
    std::vector<Clock::duration> times;
    for (int i = 0; i < calls; ++i) {
      const Clock::time_point start = Clock::now();
      plugin.Status().status().IgnoreError();
      times.push_back(Clock::now() - start);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() * 99 / 100];
  };
  EXPECT_LT(p99(300), milliseconds(50));

  rules_->Set({absl::StrCat("C_*crypt count=-1 hang=", rules_->HangFile())});
  // All workers of a modest kekd hang in the token.
  std::vector<std::thread> stuck;
  for (int i = 0; i < 40; ++i) {
    stuck.emplace_back([&] {
      EXPECT_THAT(Connect().Encrypt("seed", "uid", milliseconds(500)),
                  Not(base::testing::IsOk()));
    });
  }
  ASSERT_TRUE(rules_->WaitForHangs(1, Within(seconds(5))));
  for (std::thread& caller : stuck) caller.join();
  EXPECT_LT(p99(300), milliseconds(50));
  // And within a few seconds it says what is the matter.
  EXPECT_TRUE(Becomes("main", false, seconds(15)));
  EXPECT_LT(p99(300), milliseconds(50));

  rules_->Clear();
  rules_->Release();
  EXPECT_TRUE(Becomes("main", true, seconds(30)));
}

TEST_F(K8sStatusTest, K8s11SelfTestsAreSharedRareAndSparedByTraffic) {
  const auto start_options = [] {
    KekdProcess::Options options;
    options.bindings = {{.name = "idle", .key = "idle"},
                        {.name = "busy", .key = "busy"}};
    return options;
  };
  ASSERT_NO_FATAL_FAILURE(StartFaulty(start_options()));
  // A self-test wraps 32 bytes and nothing else does here; the traffic wraps
  // 48. Encryptions of 40 bytes at the token, since its start: by key.
  const auto self_tests = [&] {
    std::map<std::string, int> count;
    for (const auto& call : rules_->Calls("C_Encrypt")) {
      const auto size = call.details.find("size");
      if (size != call.details.end() && size->second == "40") {
        ++count[call.details.count("key") != 0 ? call.details.at("key") : ""];
      }
    }
    int all = 0;
    for (const auto& [key, number] : count) all += number;
    return all;
  };
  rules_->Forget();
  const Clock::time_point start = Clock::now();
  std::atomic<bool> stop{false};
  std::vector<std::thread> askers;
  for (const char* binding : {"idle", "idle", "busy", "busy"}) {
    askers.emplace_back([&, binding] {
      Plugin plugin = Connect(binding);
      while (!stop) {
        EXPECT_OK(plugin.Status());
        std::this_thread::sleep_for(milliseconds(50));  // the load's pace
      }
    });
  }
  std::thread traffic([&] {
    Plugin plugin = Connect("busy");
    while (!stop) {
      EXPECT_OK(plugin.Encrypt(Plaintext(48)));
      std::this_thread::sleep_for(milliseconds(500));
    }
  });
  // The idle key is tested once in its period of 20 s, for all who ask; the
  // busy one not at all.
  EXPECT_TRUE(
      Eventually([&] { return self_tests() >= 1; }, Within(seconds(30))));
  const Clock::duration first = Clock::now() - start;
  EXPECT_GT(first, seconds(15));
  EXPECT_FALSE(
      Eventually([&] { return self_tests() > 1; }, Within(seconds(5))));
  stop = true;
  for (std::thread& asker : askers) asker.join();
  traffic.join();
}

TEST_F(K8sStatusTest, K8s12K8s14TokenLostByPolicyAndBackWithoutRestart) {
  KekdProcess::Options options;
  options.bindings = {
      {.name = "stop", .key = "main"},
      {.name = "keep", .key = "main", .yaml = {"on_hsm_loss: keep_writes"}}};
  ASSERT_NO_FATAL_FAILURE(StartFaulty(options));
  const pid_t pid = kekd_->pid();
  const std::string key_id = KeyIdOf("keep");
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       Connect("stop").Encrypt("seed"));
  rules_->Set({"C_*crypt* count=-1 rv=CKR_DEVICE_REMOVED",
               "C_OpenSession count=-1 rv=CKR_TOKEN_NOT_PRESENT",
               "C_GetSlotList count=-1 slots=none"});
  // Each binding has a health of its own; work that fails makes it look.
  EXPECT_FALSE(Connect("stop").Encrypt("seed").ok());
  EXPECT_FALSE(Connect("keep").Encrypt("seed").ok());
  ASSERT_TRUE(Becomes("stop", false, seconds(10)));
  ASSERT_TRUE(Becomes("keep", false, seconds(10)));

  const absl::Status stopped = Connect("stop").Status().status();
  EXPECT_THAT(stopped, StatusIs(absl::StatusCode::kUnavailable));
  ASSERT_OK_AND_ASSIGN(const v2::StatusResponse kept, Connect("keep").Status());
  EXPECT_NE(kept.healthz(), "ok");
  EXPECT_FALSE(kept.healthz().empty());
  EXPECT_EQ(kept.version(), "v2");
  EXPECT_EQ(kept.key_id(), key_id);
  for (const std::string& text :
       {std::string(stopped.message()), kept.healthz()}) {
    for (const std::string& secret :
         {kekd_->pin(), std::string("kek-test"), std::string("/"),
          std::string("pkcs11:"), std::string("CKR_")}) {
      EXPECT_THAT(text, Not(HasSubstr(secret)));
    }
  }

  rules_->Clear();
  EXPECT_TRUE(Becomes("stop", true, seconds(20)));
  EXPECT_TRUE(Becomes("keep", true, seconds(20)));
  EXPECT_EQ(KeyIdOf("keep"), key_id);
  EXPECT_THAT(Connect("stop").Decrypt(encrypted), IsOkAndHolds("seed"));
  EXPECT_EQ(kekd_->pid(), pid);
}

TEST_F(K8sStatusTest, K8s13HealthIsPerKey) {
  KekdProcess::Options options;
  options.bindings = {{.name = "a", .key = "a"}, {.name = "b", .key = "b"}};
  ASSERT_NO_FATAL_FAILURE(Start(options));
  ASSERT_OK(Admin().SetState(
      absl::StrCat(kekd_->KeyName("b"), "/cryptoKeyVersions/1"),
      kms::CryptoKeyVersion::DISABLED));
  for (int i = 0; i < 20; ++i) {
    ASSERT_OK_AND_ASSIGN(const v2::StatusResponse a, Connect("a").Status());
    EXPECT_EQ(a.healthz(), "ok");
    EXPECT_THAT(Connect("b").Status(),
                StatusIs(absl::StatusCode::kFailedPrecondition));
  }
  // And A's success does not hide B's failure, nor the other way round.
  ASSERT_OK(Connect("a").Encrypt("seed"));
  EXPECT_FALSE(Connect("b").Encrypt("seed").ok());
  EXPECT_THAT(Connect("b").Status(),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  ASSERT_OK_AND_ASSIGN(const v2::StatusResponse a, Connect("a").Status());
  EXPECT_EQ(a.healthz(), "ok");
}

}  // namespace
}  // namespace kek::integration
