// SPDX-License-Identifier: Apache-2.0
#include "core/lifecycle.h"

#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "core/key_health.h"
#include "tests/support/service_test.h"

namespace kek::core {
namespace {

using base::testing::StatusIs;
using catalog::ResourceName;
using catalog::VersionState;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class LifecycleTest : public ServiceTest {};

TEST_F(LifecycleTest, ReconcilesAtStartAndRunsWhatIsDue) {
  CreateCryptoKeyRequest request = KeyRequest("k");
  request.rotation_period = absl::Hours(24);
  request.next_rotation_time = clock_.Now() + absl::Hours(24);
  ASSERT_OK(service_->CreateCryptoKey(Root(), request));
  const ResourceName key = Name(absl::StrCat(kRing, "/cryptoKeys/k"));
  // Nothing happens by itself for an hour: the test drives it.
  Lifecycle lifecycle(*service_, {.period = absl::Hours(1)});
  ASSERT_OK(lifecycle.RunNow(Soon()));
  ASSERT_TRUE(lifecycle.last_reconcile().has_value());
  EXPECT_EQ(lifecycle.last_reconcile()->time, clock_.Now());
  EXPECT_EQ(catalog_->GetCryptoKey(key)->primary_version, 1u);
  clock_.Advance(absl::Hours(24));
  ASSERT_OK(lifecycle.RunNow(Soon()));
  EXPECT_EQ(catalog_->GetCryptoKey(key)->primary_version, 2u);
  ASSERT_OK(service_->ScheduleDestroy(Root(), key.Version(1)));
  clock_.Advance(absl::Hours(24 * 30));
  ASSERT_OK(lifecycle.RunNow(Soon()));
  EXPECT_EQ(catalog_->GetVersion(key.Version(1))->state,
            VersionState::kDestroyed);
}

TEST_F(LifecycleTest, RoundsComeByThemselves) {
  CreateCryptoKeyRequest request = KeyRequest("k");
  request.next_rotation_time = clock_.Now() + absl::Hours(24);
  ASSERT_OK(service_->CreateCryptoKey(Root(), request));
  const ResourceName key = Name(absl::StrCat(kRing, "/cryptoKeys/k"));
  Lifecycle lifecycle(*service_, {.period = absl::Milliseconds(20)});
  clock_.Advance(absl::Hours(24));
  const base::Deadline deadline = Soon();
  while (catalog_->GetCryptoKey(key)->primary_version == 1 &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_EQ(catalog_->GetCryptoKey(key)->primary_version, 2u);
}

TEST_F(LifecycleTest, ReconcileWaitsForTheToken) {
  TakeTokenAway();
  Lifecycle lifecycle(
      *service_, {.period = absl::Hours(1), .step_deadline = absl::Seconds(1)});
  ASSERT_OK(lifecycle.RunNow(Soon()));
  EXPECT_EQ(lifecycle.last_reconcile(), std::nullopt);
  rules_->Clear();
  ASSERT_OK(token_->Probe(Soon()));
  ASSERT_OK(lifecycle.RunNow(Soon()));
  EXPECT_TRUE(lifecycle.last_reconcile().has_value());
}

class KeyHealthTest : public ServiceTest {
 protected:
  // Whether health of key becomes (un)healthy before the deadline.
  static bool Becomes(const KeyHealth& health, const ResourceName& key,
                      bool healthy) {
    const base::Deadline deadline = Soon();
    while (health.Check(key, deadline).ok() != healthy) {
      if (std::chrono::steady_clock::now() >= deadline) return false;
      std::this_thread::yield();
    }
    return true;
  }
};

TEST_F(KeyHealthTest, TheFirstLookIsAwaited) {
  const ResourceName key = MakeKey("k");
  KeyHealth health(*service_, {});
  EXPECT_THAT(health.Check(key, Soon()), StatusIs(absl::StatusCode::kNotFound));
  health.Watch(key);
  EXPECT_OK(health.Check(key, Soon()));
}

TEST_F(KeyHealthTest, OneSelfTestServesAllAskers) {
  const ResourceName key = MakeKey("k");
  KeyHealth health(*service_, {.period = absl::Hours(1)});
  health.Watch(key);
  ASSERT_OK(health.Check(key, Soon()));
  rules_->Forget();
  for (int i = 0; i < 1000; ++i) ASSERT_OK(health.Check(key, Soon()));
  EXPECT_EQ(rules_->Count("C_*crypt"), 0);
}

TEST_F(KeyHealthTest, RealWorkStandsInForTheSelfTest) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK(Encrypt(key, "x"));
  rules_->Forget();
  KeyHealth health(*service_, {.period = absl::Hours(1)});
  health.Watch(key);
  EXPECT_OK(health.Check(key, Soon()));
  EXPECT_EQ(rules_->Count("C_*crypt"), 0);
}

TEST_F(KeyHealthTest, BeforeTheFirstResultItIsUnavailable) {
  const ResourceName key = MakeKey("k");
  rules_->Set({absl::StrCat("C_Encrypt hang=", rules_->HangFile())});
  KeyHealth health(*service_, {.test_deadline = absl::Seconds(20)});
  health.Watch(key);
  ASSERT_TRUE(rules_->WaitForHangs(1, Soon()));
  EXPECT_THAT(
      health.Check(key, base::DeadlineAfter(std::chrono::milliseconds(20))),
      StatusIs(absl::StatusCode::kUnavailable, "no self-test yet"));
  rules_->Release();
  EXPECT_OK(health.Check(key, Soon()));
}

TEST_F(KeyHealthTest, SuspicionFindsTroubleAndItHealsByItself) {
  const ResourceName key = MakeKey("k");
  KeyHealth health(*service_, {.period = absl::Hours(1),
                               .retry_period = absl::Milliseconds(20),
                               .test_deadline = absl::Seconds(1)});
  health.Watch(key);
  ASSERT_OK(health.Check(key, Soon()));
  TakeTokenAway();
  health.Suspect(key);
  EXPECT_TRUE(Becomes(health, key, false));
  const absl::Status status = health.Check(key, Soon());
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable));
  // Fit for callers.
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("kek-a")));
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("/")));
  rules_->Clear();
  EXPECT_TRUE(Becomes(health, key, true));
}

TEST_F(KeyHealthTest, ADisabledKeySaysSoAndDisturbsNoOther) {
  const ResourceName a = MakeKey("a");
  const ResourceName b = MakeKey("b");
  KeyHealth health(*service_, {.period = absl::Hours(1),
                               .retry_period = absl::Milliseconds(20)});
  health.Watch(a);
  health.Watch(b);
  ASSERT_OK(health.Check(a, Soon()));
  ASSERT_OK(health.Check(b, Soon()));
  ASSERT_OK(service_->Disable(Root(), b.Version(1)));
  health.Suspect(b);
  EXPECT_TRUE(Becomes(health, b, false));
  EXPECT_THAT(health.Check(b, Soon()),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("current state is: DISABLED.")));
  EXPECT_OK(health.Check(a, Soon()));
  ASSERT_OK(service_->Enable(Root(), b.Version(1)));
  EXPECT_TRUE(Becomes(health, b, true));
}

TEST_F(KeyHealthTest, AHungSelfTestIsUnhealthyAndTheAnswerIsPrompt) {
  const ResourceName key = MakeKey("k");
  KeyHealth health(*service_, {.period = absl::Hours(1),
                               .retry_period = absl::Milliseconds(20),
                               .test_deadline = absl::Milliseconds(100)});
  health.Watch(key);
  ASSERT_TRUE(Becomes(health, key, true));
  rules_->Set({absl::StrCat("C_Encrypt count=-1 hang=", rules_->HangFile())});
  health.Suspect(key);
  ASSERT_TRUE(rules_->WaitForHangs(1, Soon()));
  EXPECT_TRUE(Becomes(health, key, false));
  EXPECT_THAT(health.Check(key, Soon()),
              StatusIs(absl::StatusCode::kUnavailable));
  rules_->Release();
  EXPECT_TRUE(Becomes(health, key, true));
}

}  // namespace
}  // namespace kek::core
