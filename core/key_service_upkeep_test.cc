// SPDX-License-Identifier: Apache-2.0
//
// Key material: made, rotated, destroyed; what is due; catalog and token
// compared.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/key_service.h"
#include "tests/support/service_test.h"

namespace kek::core {
namespace {

using base::testing::IsOkAndHolds;
using base::testing::StatusIs;
using catalog::CryptoKeyVersion;
using catalog::ResourceName;
using catalog::VersionState;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;

class KeyServiceUpkeepTest : public ServiceTest {
 protected:
  CryptoKeyVersion Stored(const ResourceName& version) {
    absl::StatusOr<CryptoKeyVersion> v = catalog_->GetVersion(version);
    EXPECT_OK(v);
    return *std::move(v);
  }
  catalog::CryptoKey StoredKey(const ResourceName& key) {
    absl::StatusOr<catalog::CryptoKey> k = catalog_->GetCryptoKey(key);
    EXPECT_OK(k);
    return *std::move(k);
  }
  uint64_t VersionCount(const ResourceName& key) {
    return catalog_->CountChildren(key).value();
  }
  // Objects of this version on the token.
  size_t ObjectsOf(const CryptoKeyVersion& version) {
    const auto objects = token_->ListKeys(Soon());
    EXPECT_OK(objects);
    size_t count = 0;
    for (const pkcs11::ObjectInfo& object : *objects) {
      if (object.id == version.object_id) ++count;
    }
    return count;
  }
  size_t ObjectCount() { return token_->ListKeys(Soon()).value().size(); }

  ResourceName MakeScheduledKey(const std::string& id, absl::Duration period,
                                absl::Duration first) {
    CreateCryptoKeyRequest request = KeyRequest(id);
    request.rotation_period = period;
    request.next_rotation_time = clock_.Now() + first;
    EXPECT_OK(service_->CreateCryptoKey(Root(), request));
    return Name(absl::StrCat(kRing, "/cryptoKeys/", id));
  }
};

// ---- creation that fails

TEST_F(KeyServiceUpkeepTest, AVersionThatCannotBeMadeLeavesNoObject) {
  const ResourceName key = MakeKey("k");
  rules_->Set({"C_GenerateKey count=-1 rv=CKR_DEVICE_ERROR"});
  const absl::Status failed = service_->CreateVersion(Root(), key).status();
  EXPECT_THAT(failed, StatusIs(absl::StatusCode::kUnavailable));
  rules_->Clear();
  const CryptoKeyVersion two = Stored(key.Version(2));
  EXPECT_EQ(two.state, VersionState::kGenerationFailed);
  EXPECT_THAT(two.failure_reason, HasSubstr("CKR_DEVICE_ERROR"));
  EXPECT_FALSE(two.canary.has_value());
  EXPECT_EQ(ObjectsOf(two), 0u);
  // Its number is not used again, and the primary never moved.
  ASSERT_OK_AND_ASSIGN(const CryptoKeyVersion next,
                       service_->CreateVersion(Root(), key));
  EXPECT_EQ(next.name, key.Version(3));
  EXPECT_EQ(StoredKey(key).primary_version, 1u);
  EXPECT_THAT(service_->Enable(Root(), key.Version(2)),
              StatusIs(kPrecondition));
  EXPECT_THAT(Encrypt(key.Version(2), "x"),
              StatusIs(kPrecondition, HasSubstr("GENERATION_FAILED")));
}

TEST_F(KeyServiceUpkeepTest, ARotationThatFailsLeavesThePrimary) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, "x"));
  // The key is generated, but will not encrypt its canary.
  rules_->Set({"C_Encrypt count=-1 size=32 rv=CKR_FUNCTION_NOT_SUPPORTED"});
  EXPECT_FALSE(service_->Rotate(Root(), key).ok());
  rules_->Clear();
  const CryptoKeyVersion two = Stored(key.Version(2));
  EXPECT_EQ(two.state, VersionState::kGenerationFailed);
  EXPECT_EQ(ObjectsOf(two), 0u);
  EXPECT_EQ(StoredKey(key).primary_version, 1u);
  EXPECT_EQ(Opened(key, sealed.ciphertext), "x");
  ASSERT_OK_AND_ASSIGN(const CryptoKeyView view, service_->Rotate(Root(), key));
  EXPECT_EQ(view.key.primary_version, 3u);
  EXPECT_EQ(view.key.primary_activation, 2u);
}

TEST_F(KeyServiceUpkeepTest, ACreationThatFailedIsCompletedWhenAskedAgain) {
  rules_->Set({"C_GenerateKey count=-1 rv=CKR_DEVICE_ERROR"});
  EXPECT_THAT(service_->CreateCryptoKey(Root(), KeyRequest("k")),
              StatusIs(absl::StatusCode::kUnavailable));
  rules_->Clear();
  const ResourceName key = Name(absl::StrCat(kRing, "/cryptoKeys/k"));
  EXPECT_THAT(Encrypt(key, "x"), StatusIs(kPrecondition));
  const catalog::Uuid uuid = StoredKey(key).uuid;
  CreateCryptoKeyRequest again = KeyRequest("k");
  again.labels = {{"try", "2"}};
  ASSERT_OK_AND_ASSIGN(const CryptoKeyView made,
                       service_->CreateCryptoKey(Root(), again));
  EXPECT_EQ(made.key.primary_version, 2u);
  EXPECT_EQ(made.key.uuid, uuid);
  EXPECT_THAT(made.key.labels, SizeIs(1));
  EXPECT_EQ(made.primary->state, VersionState::kEnabled);
  EXPECT_OK(Encrypt(key, "x"));
  EXPECT_THAT(service_->CreateCryptoKey(Root(), KeyRequest("k")),
              StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST_F(KeyServiceUpkeepTest, WhileTheTokenIsAwayNothingIsWritten) {
  const ResourceName key = MakeKey("k");
  TakeTokenAway();
  CallInfo call = Root();
  call.deadline = base::DeadlineAfter(std::chrono::seconds(2));
  EXPECT_FALSE(service_->CreateVersion(call, key).ok());
  call.deadline = base::DeadlineAfter(std::chrono::seconds(2));
  EXPECT_FALSE(service_->CreateCryptoKey(call, KeyRequest("other")).ok());
  rules_->Clear();
  EXPECT_EQ(VersionCount(key), 1u);
  EXPECT_THAT(
      catalog_->GetCryptoKey(Name(absl::StrCat(kRing, "/cryptoKeys/other"))),
      StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(KeyServiceUpkeepTest, WhatCouldNotBeClearedIsClearedByResume) {
  const ResourceName key = MakeKey("k");
  // Made, without a canary, and it cannot be destroyed either.
  rules_->Set({"C_Encrypt count=-1 size=32 rv=CKR_FUNCTION_NOT_SUPPORTED",
               "C_DestroyObject count=-1 rv=CKR_FUNCTION_FAILED"});
  EXPECT_FALSE(service_->Rotate(Root(), key).ok());
  CryptoKeyVersion two = Stored(key.Version(2));
  EXPECT_EQ(two.state, VersionState::kPendingGeneration);
  EXPECT_FALSE(two.failure_reason.empty());
  EXPECT_EQ(ObjectsOf(two), 1u);
  EXPECT_FALSE(service_->ResumePending(Soon()).ok());
  rules_->Clear();
  // Its maker was told that it failed: it does not come to life.
  EXPECT_OK(service_->ResumePending(Soon()));
  two = Stored(key.Version(2));
  EXPECT_EQ(two.state, VersionState::kGenerationFailed);
  EXPECT_EQ(ObjectsOf(two), 0u);
  EXPECT_EQ(StoredKey(key).primary_version, 1u);
}

TEST_F(KeyServiceUpkeepTest, MutationsOfOneKeyTakeTurns) {
  const ResourceName key = MakeKey("k");
  std::vector<std::thread> callers;
  std::vector<absl::Status> results(6, absl::UnknownError(""));
  for (size_t i = 0; i < results.size(); ++i) {
    callers.emplace_back([&, i] {
      results[i] = i % 2 == 0 ? service_->Rotate(Root(), key).status()
                              : service_->CreateVersion(Root(), key).status();
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const absl::Status& result : results) EXPECT_OK(result);
  EXPECT_EQ(VersionCount(key), 7u);
  const catalog::CryptoKey stored = StoredKey(key);
  EXPECT_EQ(stored.primary_activation, 4u);
  EXPECT_EQ(stored.next_version, 8u);
  EXPECT_TRUE(Stored(key.Version(stored.primary_version)).primary_on_enable);
}

// ---- rotation by schedule

TEST_F(KeyServiceUpkeepTest, DueRotationMovesTheScheduleByOnePeriod) {
  const ResourceName key =
      MakeScheduledKey("k", absl::Hours(24), absl::Hours(48));
  const absl::Time first = clock_.Now() + absl::Hours(48);
  EXPECT_EQ(service_->RunDue(Soon()), 0);
  clock_.Set(first - absl::Microseconds(1));
  EXPECT_EQ(service_->RunDue(Soon()), 0);
  clock_.Set(first);
  EXPECT_EQ(service_->RunDue(Soon()), 1);
  const catalog::CryptoKey stored = StoredKey(key);
  EXPECT_EQ(stored.primary_version, 2u);
  EXPECT_EQ(stored.next_rotation_time, first + absl::Hours(24));
  EXPECT_EQ(Stored(key.Version(1)).state, VersionState::kEnabled);
  EXPECT_EQ(service_->RunDue(Soon()), 0);
  EXPECT_THAT(AuditLines({"\"op\":\"RotateCryptoKey\"", "kekd:lifecycle",
                          "by schedule"}),
              SizeIs(1));
}

TEST_F(KeyServiceUpkeepTest, MissedRotationsAreMadeUpByOne) {
  const ResourceName key =
      MakeScheduledKey("k", absl::Hours(24), absl::Hours(24));
  const absl::Time first = clock_.Now() + absl::Hours(24);
  Stop();
  clock_.Set(first + absl::Hours(24 * 10) + absl::Hours(5));
  Start();
  EXPECT_EQ(service_->RunDue(Soon()), 1);
  EXPECT_EQ(VersionCount(key), 2u);
  EXPECT_EQ(StoredKey(key).next_rotation_time, first + absl::Hours(24 * 11));
  EXPECT_EQ(service_->RunDue(Soon()), 0);
}

TEST_F(KeyServiceUpkeepTest, ATimeAloneRotatesOnce) {
  CreateCryptoKeyRequest request = KeyRequest("k");
  request.next_rotation_time = clock_.Now() + absl::Hours(1);
  ASSERT_OK(service_->CreateCryptoKey(Root(), request));
  const ResourceName key = Name(absl::StrCat(kRing, "/cryptoKeys/k"));
  clock_.Advance(absl::Hours(2));
  EXPECT_EQ(service_->RunDue(Soon()), 1);
  EXPECT_EQ(StoredKey(key).primary_version, 2u);
  EXPECT_EQ(StoredKey(key).next_rotation_time, std::nullopt);
  clock_.Advance(absl::Hours(2000));
  EXPECT_EQ(service_->RunDue(Soon()), 0);
}

TEST_F(KeyServiceUpkeepTest, RotationByHandDoesNotMoveTheSchedule) {
  const ResourceName key =
      MakeScheduledKey("k", absl::Hours(24), absl::Hours(24));
  const absl::Time first = clock_.Now() + absl::Hours(24);
  clock_.Advance(absl::Hours(23));
  ASSERT_OK(service_->Rotate(Root(), key));
  ASSERT_OK(service_->CreateVersion(Root(), key));
  ASSERT_OK(service_->SetPrimaryVersion(Root(), key, 1));
  EXPECT_EQ(StoredKey(key).next_rotation_time, first);
}

TEST_F(KeyServiceUpkeepTest, WhileTheTokenIsAwayNoRotationIsTried) {
  const ResourceName key =
      MakeScheduledKey("k", absl::Hours(24), absl::Hours(24));
  clock_.Advance(absl::Hours(24));
  TakeTokenAway();
  EXPECT_EQ(service_->RunDue(base::DeadlineAfter(std::chrono::seconds(2))), 0);
  EXPECT_EQ(VersionCount(key), 1u);
  rules_->Clear();
  EXPECT_OK(token_->Probe(Soon()));
  EXPECT_EQ(service_->RunDue(Soon()), 1);
  EXPECT_EQ(VersionCount(key), 2u);
}

TEST_F(KeyServiceUpkeepTest, ARotationThatFailsIsNotTriedAtEveryRound) {
  const ResourceName key =
      MakeScheduledKey("k", absl::Hours(24), absl::Hours(24));
  clock_.Advance(absl::Hours(24));
  rules_->Set({"C_GenerateKey count=-1 rv=CKR_TEMPLATE_INCONSISTENT"});
  for (int round = 0; round < 5; ++round) {
    EXPECT_EQ(service_->RunDue(Soon()), 0);
  }
  rules_->Clear();
  EXPECT_EQ(VersionCount(key), 2u);
}

// ---- rotation by use

TEST_F(KeyServiceUpkeepTest, TheKeysOwnUseLimitRotatesIt) {
  options_.max_use_block = 4;
  Restart();
  CreateCryptoKeyRequest request = KeyRequest("k");
  request.rotate_after_uses = 10;
  ASSERT_OK(service_->CreateCryptoKey(Root(), request));
  const ResourceName key = Name(absl::StrCat(kRing, "/cryptoKeys/k"));
  for (int i = 0; i < 9; ++i) ASSERT_OK(Encrypt(key, "x"));
  EXPECT_EQ(service_->RunDue(Soon()), 0);
  ASSERT_OK(Encrypt(key, "x"));
  EXPECT_EQ(service_->RunDue(Soon()), 1);
  EXPECT_EQ(StoredKey(key).primary_version, 2u);
  EXPECT_EQ(service_->RunDue(Soon()), 0);
  ASSERT_OK_AND_ASSIGN(const EncryptResult next, Encrypt(key, "x"));
  EXPECT_EQ(next.version, key.Version(2));
  EXPECT_THAT(AuditLines({"\"op\":\"RotateCryptoKey\"", "by use count"}),
              SizeIs(1));
}

// ---- destruction

TEST_F(KeyServiceUpkeepTest, DueDestructionLeavesNoObject) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, "x"));
  ASSERT_OK(service_->ScheduleDestroy(Root(), key.Version(1)));
  clock_.Advance(absl::Hours(24 * 30) - absl::Seconds(1));
  EXPECT_EQ(service_->RunDue(Soon()), 0);
  EXPECT_EQ(ObjectsOf(Stored(key.Version(1))), 1u);
  // It also happens when the service was down at that moment.
  Stop();
  clock_.Advance(absl::Seconds(100));
  Start();
  EXPECT_EQ(service_->RunDue(Soon()), 1);
  ASSERT_OK_AND_ASSIGN(const CryptoKeyVersion gone,
                       service_->GetVersion(Root(), key.Version(1)));
  EXPECT_EQ(gone.state, VersionState::kDestroyed);
  EXPECT_EQ(gone.destroy_event_time, clock_.Now());
  EXPECT_EQ(gone.destroy_time, std::nullopt);
  EXPECT_EQ(ObjectsOf(gone), 0u);
  EXPECT_EQ(Opened(key, sealed.ciphertext),
            absl::StrCat("[", key.Version(1).ToString(),
                         " is not enabled, current state is: DESTROYED.]"));
  EXPECT_THAT(service_->ScheduleDestroy(Root(), key.Version(1)),
              StatusIs(kPrecondition));
  EXPECT_THAT(service_->Restore(Root(), key.Version(1)),
              StatusIs(kPrecondition));
  EXPECT_THAT(service_->Enable(Root(), key.Version(1)),
              StatusIs(kPrecondition));
  EXPECT_EQ(service_->RunDue(Soon()), 0);
  EXPECT_THAT(AuditLines({"\"op\":\"DestroyKeyMaterial\"",
                          "state DESTROY_SCHEDULED -> DESTROYED"}),
              SizeIs(1));
}

TEST_F(KeyServiceUpkeepTest, DestroyedIsNotSaidBeforeTheObjectIsGone) {
  const ResourceName key = MakeKey("k");
  const ResourceName v1 = key.Version(1);
  ASSERT_OK(service_->ScheduleDestroy(Root(), v1));
  clock_.Advance(absl::Hours(24 * 30));
  rules_->Set({"C_DestroyObject count=-1 rv=CKR_FUNCTION_FAILED"});
  EXPECT_EQ(service_->RunDue(Soon()), 0);
  rules_->Clear();
  ASSERT_OK_AND_ASSIGN(CryptoKeyVersion version,
                       service_->GetVersion(Root(), v1));
  EXPECT_EQ(version.state, VersionState::kDestroyScheduled);
  EXPECT_EQ(version.destroy_event_time, std::nullopt);
  // Begun is begun: setting the clock back opens no way back.
  clock_.Advance(-absl::Hours(24 * 29));
  EXPECT_THAT(service_->Restore(Root(), v1), StatusIs(kPrecondition));
  clock_.Advance(absl::Hours(24 * 29));
  service_ = Fresh();  // which does not wait before it tries again
  EXPECT_EQ(service_->RunDue(Soon()), 1);
  ASSERT_OK_AND_ASSIGN(version, service_->GetVersion(Root(), v1));
  EXPECT_EQ(version.state, VersionState::kDestroyed);
}

TEST_F(KeyServiceUpkeepTest, AnObjectThatIsGoneAlreadyIsDestroyed) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK(service_->ScheduleDestroy(Root(), key.Version(1)));
  const CryptoKeyVersion version = Stored(key.Version(1));
  ASSERT_OK(token_->DestroyUnprovenKey(
      {.id = version.object_id, .label = version.object_label}, Soon()));
  clock_.Advance(absl::Hours(24 * 30));
  EXPECT_EQ(service_->RunDue(Soon()), 1);
  EXPECT_EQ(Stored(key.Version(1)).state, VersionState::kDestroyed);
}

TEST_F(KeyServiceUpkeepTest, RestoredVersionsAreNotDestroyed) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, "x"));
  ASSERT_OK(service_->ScheduleDestroy(Root(), key.Version(1)));
  ASSERT_OK(service_->Restore(Root(), key.Version(1)));
  clock_.Advance(absl::Hours(24 * 400));
  EXPECT_EQ(service_->RunDue(Soon()), 0);
  ASSERT_OK(service_->Enable(Root(), key.Version(1)));
  EXPECT_EQ(Opened(key, sealed.ciphertext), "x");
}

TEST_F(KeyServiceUpkeepTest, MetricsShowAgesAndUsesOfTheKeysOnShow) {
  const ResourceName key = MakeKey("k");
  MakeKey("other");
  ASSERT_OK(Encrypt(key, "x"));
  service_->ShowInMetrics(key);
  ASSERT_OK(Encrypt(key, "x"));
  EXPECT_THAT(metrics_.Expose(),
              HasSubstr(absl::StrCat(
                  "kekd_key_version_operations_total{code=\"OK\",key=\"",
                  key.ToString(), "\",method=\"Encrypt\",version=\"1\"} 1")));
  clock_.Advance(absl::Seconds(100));
  service_->RunDue(Soon());
  const auto series = [&](absl::string_view name, absl::string_view value) {
    return HasSubstr(absl::StrCat(name, "{key=\"", key.ToString(),
                                  "\",version=\"1\"} ", value));
  };
  EXPECT_THAT(metrics_.Expose(), series("kekd_key_version_age_seconds", "100"));
  EXPECT_THAT(metrics_.Expose(),
              series("kekd_key_version_uses_reserved", "1024"));
  EXPECT_THAT(metrics_.Expose(), Not(HasSubstr("cryptoKeys/other")));
  ASSERT_OK(service_->ScheduleDestroy(Root(), key.Version(1)));
  clock_.Advance(absl::Hours(24 * 30));
  service_->RunDue(Soon());
  EXPECT_THAT(metrics_.Expose(),
              Not(HasSubstr("kekd_key_version_age_seconds{")));
}

// ---- catalog and token compared

TEST_F(KeyServiceUpkeepTest, ReconcileFindsNothingWhereAllIsWell) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK(service_->Rotate(Root(), key));
  ASSERT_OK(service_->Disable(Root(), key.Version(1)));
  ASSERT_OK_AND_ASSIGN(const ReconcileReport report,
                       service_->Reconcile(Soon()));
  EXPECT_EQ(report.time, clock_.Now());
  EXPECT_THAT(report.missing, IsEmpty());
  EXPECT_THAT(report.orphans, IsEmpty());
  EXPECT_THAT(report.half_objects, IsEmpty());
  EXPECT_THAT(report.pending, IsEmpty());
}

TEST_F(KeyServiceUpkeepTest, ReconcileReportsDifferencesAndMendsNothing) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK(service_->Rotate(Root(), key));
  // Missing: version 1's object is taken away.
  const CryptoKeyVersion v1 = Stored(key.Version(1));
  ASSERT_OK(token_->DestroyUnprovenKey(
      {.id = v1.object_id, .label = v1.object_label}, Soon()));
  // Orphan: an object with our prefix that no version names. Foreign: without.
  ASSERT_OK(token_->GenerateKey(
      {.id = std::vector<uint8_t>(16, 0xab), .label = "kek:orphan:v1"},
      Soon()));
  ASSERT_OK(token_->GenerateKey(
      {.id = std::vector<uint8_t>(16, 0xcd), .label = "somebody-elses"},
      Soon()));
  // Half: what a kill in C_GenerateKey leaves has neither id nor label.
  ASSERT_TRUE(soft_hsm_.Tool("kek-a", {"--keygen", "--key-type", "AES:32"}));
  // Pending.
  ASSERT_OK(catalog_->Transact(
      [&](catalog::Transaction& transaction) {
        CryptoKeyVersion version{.name = key.Version(3),
                                 .key_uuid = v1.key_uuid,
                                 .object_id = std::vector<uint8_t>(16, 0xef)};
        return transaction.Put(version);
      },
      Soon()));
  Restart();  // SoftHSM shows what another process made to new libraries
  const size_t objects = ObjectCount();

  for (int run = 0; run < 2; ++run) {
    ASSERT_OK_AND_ASSIGN(const ReconcileReport report,
                         service_->Reconcile(Soon()));
    EXPECT_THAT(report.missing, ElementsAre(key.Version(1).ToString()));
    EXPECT_THAT(report.orphans,
                ElementsAre(HasSubstr("abababababababababababababababab")));
    EXPECT_THAT(report.half_objects, ElementsAre(HasSubstr("(none)")));
    EXPECT_THAT(report.pending, ElementsAre(key.Version(3).ToString()));
  }
  EXPECT_EQ(ObjectCount(), objects);
  EXPECT_EQ(Stored(key.Version(1)).state, VersionState::kEnabled);
  EXPECT_THAT(metrics_.Expose(),
              HasSubstr("kekd_reconcile_findings{kind=\"orphan\"} 1"));
}

TEST_F(KeyServiceUpkeepTest, AMissingKeyIsUnavailableAndStaysInTheCatalog) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, "x"));
  const CryptoKeyVersion v1 = Stored(key.Version(1));
  ASSERT_OK(token_->DestroyUnprovenKey(
      {.id = v1.object_id, .label = v1.object_label}, Soon()));
  CallInfo call = Root();
  call.deadline = base::DeadlineAfter(std::chrono::seconds(3));
  EXPECT_THAT(service_->Decrypt(call, {.key = key,
                                       .context = EnvelopeContext::kCloudKms,
                                       .ciphertext = sealed.ciphertext}),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(Stored(key.Version(1)).state, VersionState::kEnabled);
}

}  // namespace
}  // namespace kek::core
