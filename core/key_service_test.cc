// SPDX-License-Identifier: Apache-2.0
//
// Key rings, keys and versions: what Cloud KMS' clients rely on.
#include "core/key_service.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/service_test.h"

namespace kek::core {
namespace {

using base::testing::StatusIs;
using catalog::CryptoKeyVersion;
using catalog::VersionState;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;
constexpr auto kNotFound = absl::StatusCode::kNotFound;
constexpr auto kExists = absl::StatusCode::kAlreadyExists;
constexpr auto kDenied = absl::StatusCode::kPermissionDenied;

class KeyServiceTest : public ServiceTest {
 protected:
  VersionState StateOf(const catalog::ResourceName& version) {
    const absl::StatusOr<CryptoKeyVersion> v =
        service_->GetVersion(Root(), version);
    EXPECT_OK(v);
    return v.ok() ? v->state : VersionState::kPendingImport;
  }
};

TEST_F(KeyServiceTest, KeyRingsAreCreatedOnce) {
  ASSERT_OK_AND_ASSIGN(
      const catalog::KeyRing made,
      service_->CreateKeyRing(Root(), Name(kLocation), "second"));
  EXPECT_EQ(made.name.ToString(), "projects/p/locations/l/keyRings/second");
  EXPECT_EQ(made.create_time, clock_.Now());
  ASSERT_OK_AND_ASSIGN(const catalog::KeyRing got,
                       service_->GetKeyRing(Root(), made.name));
  EXPECT_EQ(got.create_time, made.create_time);
  EXPECT_THAT(
      service_->CreateKeyRing(Root(), Name(kLocation), "second"),
      StatusIs(
          kExists,
          "KeyRing projects/p/locations/l/keyRings/second already exists."));
  EXPECT_THAT(service_->CreateKeyRing(Root(), Name(kLocation), "&bar"),
              StatusIs(kInvalid));
  EXPECT_THAT(
      service_->GetKeyRing(Root(),
                           Name("projects/p/locations/l/keyRings/none")),
      StatusIs(kNotFound,
               "KeyRing projects/p/locations/l/keyRings/none not found."));
}

TEST_F(KeyServiceTest, OnlyConfiguredLocationsExist) {
  options_.locations = {kLocation};
  Restart();
  EXPECT_OK(service_->CreateKeyRing(Root(), Name(kLocation), "here"));
  EXPECT_THAT(service_->CreateKeyRing(
                  Root(), Name("projects/p/locations/elsewhere"), "r"),
              StatusIs(kNotFound));
}

TEST_F(KeyServiceTest, NewKeyHasGooglesDefaultsAndAnEnabledPrimary) {
  ASSERT_OK_AND_ASSIGN(const CryptoKeyView made,
                       service_->CreateCryptoKey(Root(), KeyRequest("k")));
  EXPECT_EQ(made.key.name.ToString(), absl::StrCat(kRing, "/cryptoKeys/k"));
  EXPECT_EQ(made.key.algorithm, 1);
  EXPECT_EQ(made.key.protection_level, catalog::ProtectionLevel::kSoftware);
  EXPECT_EQ(made.key.destroy_scheduled_duration, absl::Seconds(2592000));
  EXPECT_EQ(made.key.primary_version, 1u);
  EXPECT_EQ(made.key.primary_activation, 1u);
  ASSERT_TRUE(made.primary.has_value());
  const CryptoKeyVersion& v = *made.primary;
  EXPECT_EQ(v.name, made.key.name.Version(1));
  EXPECT_EQ(v.state, VersionState::kEnabled);
  EXPECT_EQ(v.generate_time, clock_.Now());
  EXPECT_TRUE(v.canary.has_value());
  EXPECT_EQ(v.object_id.size(), 16u);
  EXPECT_THAT(v.object_label, ::testing::MatchesRegex("kek:[a-z2-7]{26}:v1"));
  EXPECT_THAT(v.token, HasSubstr("kek-a"));
  EXPECT_THAT(v.attributes, HasSubstr("CKA_SENSITIVE=true"));
  // The audit record has the evidence.
  EXPECT_THAT(AuditLines({"\"op\":\"CreateCryptoKey\"", "\"result\":\"OK\"",
                          "CKA_EXTRACTABLE=false", "cryptoKeyVersions/1\""}),
              SizeIs(1));
}

TEST_F(KeyServiceTest, KeyNamesAreTakenOnce) {
  const catalog::ResourceName key = MakeKey("k");
  EXPECT_THAT(service_->CreateCryptoKey(Root(), KeyRequest("k")),
              StatusIs(kExists, absl::StrCat("CryptoKey ", key.ToString(),
                                             " already exists.")));
  CreateCryptoKeyRequest skip = KeyRequest("k");
  skip.skip_initial_version_creation = true;
  EXPECT_THAT(service_->CreateCryptoKey(Root(), skip), StatusIs(kExists));
  ASSERT_OK_AND_ASSIGN(const auto versions,
                       service_->ListVersions(Root(), key, {}));
  EXPECT_EQ(versions.total_size, 1u);
}

TEST_F(KeyServiceTest, KeyInAMissingRingIsNotFound) {
  CreateCryptoKeyRequest request = KeyRequest("k");
  request.ring = Name("projects/p/locations/l/keyRings/none");
  // Also when the rest of the request is wrong.
  request.purpose.reset();
  EXPECT_THAT(service_->CreateCryptoKey(Root(), request),
              StatusIs(kNotFound,
                       "KeyRing projects/p/locations/l/keyRings/none not "
                       "found."));
}

TEST_F(KeyServiceTest, CreateRefusesWhatMakesNoSense) {
  const auto refused = [&](auto change) {
    CreateCryptoKeyRequest request = KeyRequest("bad");
    change(request);
    return service_->CreateCryptoKey(Root(), request).status();
  };
  EXPECT_THAT(refused([](auto& r) { r.id = "a.b"; }), StatusIs(kInvalid));
  EXPECT_THAT(refused([](auto& r) { r.purpose.reset(); }),
              StatusIs(kInvalid, HasSubstr("purpose")));
  EXPECT_THAT(refused([](auto& r) { r.purpose = catalog::Purpose::kMac; }),
              StatusIs(kInvalid, HasSubstr("algorithm")));
  EXPECT_THAT(refused([](auto& r) { r.algorithm = 32; }), StatusIs(kInvalid));
  EXPECT_THAT(
      refused([](auto& r) { r.destroy_scheduled_duration = absl::Hours(23); }),
      StatusIs(kInvalid, HasSubstr("destroy_scheduled_duration")));
  EXPECT_THAT(refused([](auto& r) {
                r.destroy_scheduled_duration =
                    absl::Hours(24 * 120) + absl::Seconds(1);
              }),
              StatusIs(kInvalid, HasSubstr("destroy_scheduled_duration")));
  EXPECT_THAT(refused([](auto& r) { r.rotation_period = absl::Hours(24); }),
              StatusIs(kInvalid, HasSubstr("next_rotation_time")));
  EXPECT_THAT(refused([&](auto& r) {
                r.rotation_period = absl::Seconds(86399);
                r.next_rotation_time = clock_.Now();
              }),
              StatusIs(kInvalid, HasSubstr("rotation_period")));
  EXPECT_THAT(refused([](auto& r) {
                r.labels = {{"Bad", "x"}};
              }),
              StatusIs(kInvalid, HasSubstr("label")));
  EXPECT_THAT(refused([](auto& r) { r.import_only = true; }),
              StatusIs(kInvalid, HasSubstr("skip_initial_version_creation")));
  // Nothing of all that left a trace.
  ASSERT_OK_AND_ASSIGN(const auto keys,
                       service_->ListCryptoKeys(Root(), Ring(), {}));
  EXPECT_EQ(keys.total_size, 0u);
}

TEST_F(KeyServiceTest, KeyWithoutFirstVersionHasNoPrimary) {
  CreateCryptoKeyRequest request = KeyRequest("k");
  request.skip_initial_version_creation = true;
  ASSERT_OK_AND_ASSIGN(const CryptoKeyView made,
                       service_->CreateCryptoKey(Root(), request));
  EXPECT_EQ(made.primary, std::nullopt);
  ASSERT_OK_AND_ASSIGN(const auto versions,
                       service_->ListVersions(Root(), made.key.name, {}));
  EXPECT_THAT(versions.items, IsEmpty());
  EXPECT_THAT(Encrypt(made.key.name, "x"),
              StatusIs(kPrecondition, HasSubstr("no primary version")));
  EXPECT_THAT(service_->Primary(Root(), made.key.name),
              StatusIs(kPrecondition));
  // CreateVersion leaves it so; naming it primary changes that.
  ASSERT_OK(service_->CreateVersion(Root(), made.key.name));
  EXPECT_THAT(Encrypt(made.key.name, "x"), StatusIs(kPrecondition));
  ASSERT_OK_AND_ASSIGN(const CryptoKeyView with,
                       service_->SetPrimaryVersion(Root(), made.key.name, 1));
  EXPECT_EQ(with.key.primary_activation, 1u);
  EXPECT_OK(Encrypt(made.key.name, "x"));
}

TEST_F(KeyServiceTest, NewVersionsCountUpAndLeaveThePrimary) {
  const catalog::ResourceName key = MakeKey("k");
  for (uint32_t n = 2; n <= 4; ++n) {
    ASSERT_OK_AND_ASSIGN(const CryptoKeyVersion version,
                         service_->CreateVersion(Root(), key));
    EXPECT_EQ(version.name, key.Version(n));
    EXPECT_EQ(version.state, VersionState::kEnabled);
    EXPECT_EQ(version.generate_time, clock_.Now());
  }
  ASSERT_OK_AND_ASSIGN(const CryptoKeyView view,
                       service_->GetCryptoKey(Root(), key));
  EXPECT_EQ(view.key.primary_version, 1u);
  EXPECT_EQ(view.key.primary_activation, 1u);
  EXPECT_THAT(service_->CreateVersion(
                  Root(), Name(absl::StrCat(kRing, "/cryptoKeys/none"))),
              StatusIs(kNotFound));
}

TEST_F(KeyServiceTest, GetOfWhatIsMissingNamesIt) {
  const catalog::ResourceName key = MakeKey("k");
  const catalog::ResourceName none =
      Name(absl::StrCat(kRing, "/cryptoKeys/none"));
  EXPECT_THAT(service_->GetCryptoKey(Root(), none),
              StatusIs(kNotFound, absl::StrCat("CryptoKey ", none.ToString(),
                                               " not found.")));
  EXPECT_THAT(service_->GetVersion(Root(), key.Version(2)),
              StatusIs(kNotFound,
                       absl::StrCat("CryptoKeyVersion ",
                                    key.Version(2).ToString(), " not found.")));
  // A name of the wrong kind is malformed here.
  EXPECT_THAT(service_->GetCryptoKey(Root(), Ring()), StatusIs(kInvalid));
  EXPECT_THAT(service_->GetVersion(Root(), key), StatusIs(kInvalid));
}

TEST_F(KeyServiceTest, EverythingIsTheSameAfterARestart) {
  const catalog::ResourceName key = MakeKey("k");
  ASSERT_OK(service_->Rotate(Root(), key));
  ASSERT_OK(service_->Disable(Root(), key.Version(1)));
  ASSERT_OK_AND_ASSIGN(const CryptoKeyView before,
                       service_->GetCryptoKey(Root(), key));
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, "before"));
  Restart();
  ASSERT_OK_AND_ASSIGN(const CryptoKeyView after,
                       service_->GetCryptoKey(Root(), key));
  EXPECT_EQ(after.key.uuid, before.key.uuid);
  EXPECT_EQ(after.key.primary_version, 2u);
  EXPECT_EQ(after.key.primary_activation, before.key.primary_activation);
  EXPECT_EQ(after.primary->object_id, before.primary->object_id);
  EXPECT_EQ(StateOf(key.Version(1)), VersionState::kDisabled);
  EXPECT_EQ(Opened(key, sealed.ciphertext), "before");
  ASSERT_OK_AND_ASSIGN(const CryptoKeyVersion next,
                       service_->CreateVersion(Root(), key));
  EXPECT_EQ(next.name, key.Version(3));
}

// ---- lists

TEST_F(KeyServiceTest, ListsAscendAndPage) {
  for (const char* id : {"b", "c", "a"}) MakeKey(id);
  std::vector<std::string> ids;
  ListPage page{.page_size = 1};
  int pages = 0;
  do {
    ASSERT_OK_AND_ASSIGN(auto list,
                         service_->ListCryptoKeys(Root(), Ring(), page));
    ++pages;
    ASSERT_THAT(list.items, SizeIs(1));
    EXPECT_EQ(list.total_size, 3u);
    EXPECT_EQ(list.items[0].primary->state, VersionState::kEnabled);
    ids.emplace_back(list.items[0].key.name.id());
    page.page_token = list.next_page_token;
  } while (!page.page_token.empty());
  EXPECT_EQ(pages, 3);
  EXPECT_THAT(ids, ElementsAre("a", "b", "c"));
}

TEST_F(KeyServiceTest, VersionsAreListedByNumber) {
  const catalog::ResourceName key = MakeKey("k");
  for (int i = 0; i < 10; ++i) ASSERT_OK(service_->CreateVersion(Root(), key));
  std::vector<uint32_t> numbers;
  ListPage page{.page_size = 4};
  do {
    ASSERT_OK_AND_ASSIGN(auto list, service_->ListVersions(Root(), key, page));
    EXPECT_EQ(list.total_size, 11u);
    for (const CryptoKeyVersion& v : list.items) {
      numbers.push_back(v.name.version());
    }
    page.page_token = list.next_page_token;
  } while (!page.page_token.empty());
  EXPECT_THAT(numbers, ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11));
}

TEST_F(KeyServiceTest, PageTokensAreGoodForTheirListOnly) {
  for (const char* id : {"a", "b"}) MakeKey(id);
  ASSERT_OK(service_->CreateKeyRing(Root(), Name(kLocation), "other"));
  ASSERT_OK_AND_ASSIGN(const auto keys, service_->ListCryptoKeys(
                                            Root(), Ring(), {.page_size = 1}));
  ASSERT_FALSE(keys.next_page_token.empty());
  EXPECT_THAT(service_->ListCryptoKeys(
                  Root(), Name("projects/p/locations/l/keyRings/other"),
                  {.page_size = 1, .page_token = keys.next_page_token}),
              StatusIs(kInvalid, HasSubstr("page_token")));
  EXPECT_THAT(service_->ListKeyRings(
                  Root(), Name(kLocation),
                  {.page_size = 1, .page_token = keys.next_page_token}),
              StatusIs(kInvalid));
  std::string damaged = keys.next_page_token;
  damaged[damaged.size() / 2] ^= 1;
  for (const std::string& token :
       {std::string("nonsense"), damaged, std::string(4000, 'A')}) {
    EXPECT_THAT(service_->ListCryptoKeys(Root(), Ring(),
                                         {.page_size = 1, .page_token = token}),
                StatusIs(kInvalid));
  }
}

TEST_F(KeyServiceTest, ListsOfMissingParentsAreNotFound) {
  EXPECT_THAT(service_->ListCryptoKeys(
                  Root(), Name("projects/p/locations/l/keyRings/none"), {}),
              StatusIs(kNotFound));
  EXPECT_THAT(service_->ListVersions(
                  Root(), Name(absl::StrCat(kRing, "/cryptoKeys/none")), {}),
              StatusIs(kNotFound));
  ASSERT_OK_AND_ASSIGN(
      const auto rings,
      service_->ListKeyRings(Root(), Name("projects/p/locations/other"), {}));
  EXPECT_THAT(rings.items, IsEmpty());
}

// ---- updates

TEST_F(KeyServiceTest, UpdateChangesWhatTheMaskNamesAndNothingElse) {
  const catalog::ResourceName key = MakeKey("k");
  const absl::Time next = clock_.Now() + absl::Hours(48);
  ASSERT_OK_AND_ASSIGN(
      CryptoKeyView view,
      service_->UpdateCryptoKey(
          Root(),
          {.name = key,
           .labels = std::map<std::string, std::string>{{"team", "a"}}}));
  EXPECT_THAT(view.key.labels, ElementsAre(::testing::Pair("team", "a")));
  EXPECT_EQ(view.key.rotation_period, std::nullopt);

  ASSERT_OK_AND_ASSIGN(
      view, service_->UpdateCryptoKey(
                Root(), {.name = key,
                         .rotation_period = absl::Hours(24),
                         .next_rotation_time = std::optional(next)}));
  EXPECT_EQ(view.key.rotation_period, absl::Hours(24));
  EXPECT_EQ(view.key.next_rotation_time, next);
  EXPECT_THAT(view.key.labels, SizeIs(1));

  // Both named and unset: the schedule is gone.
  ASSERT_OK_AND_ASSIGN(
      view, service_->UpdateCryptoKey(
                Root(), {.name = key,
                         .rotation_period = std::optional<absl::Duration>(),
                         .next_rotation_time = std::optional<absl::Time>()}));
  EXPECT_EQ(view.key.rotation_period, std::nullopt);
  EXPECT_EQ(view.key.next_rotation_time, std::nullopt);
  ASSERT_OK_AND_ASSIGN(view, service_->GetCryptoKey(Root(), key));
  EXPECT_EQ(view.key.rotation_period, std::nullopt);
}

TEST_F(KeyServiceTest, UpdateRefusesAnEmptyMaskAndWrongValues) {
  const catalog::ResourceName key = MakeKey("k");
  EXPECT_THAT(service_->UpdateCryptoKey(Root(), {.name = key}),
              StatusIs(kInvalid, HasSubstr("update_mask")));
  EXPECT_THAT(service_->UpdateCryptoKey(
                  Root(), {.name = key, .rotation_period = absl::Hours(24)}),
              StatusIs(kInvalid, HasSubstr("next_rotation_time")));
  EXPECT_THAT(service_->UpdateCryptoKey(Root(), {.name = key, .algorithm = 32}),
              StatusIs(kInvalid));
  EXPECT_OK(service_->UpdateCryptoKey(Root(), {.name = key, .algorithm = 1}));
  EXPECT_THAT(
      service_->UpdateCryptoKey(
          Root(), {.name = Name(absl::StrCat(kRing, "/cryptoKeys/none"))}),
      StatusIs(kNotFound));
}

// ---- primary

TEST_F(KeyServiceTest, PrimaryMovesOnlyToEnabledVersionsThatExist) {
  const catalog::ResourceName key = MakeKey("k");
  ASSERT_OK(service_->CreateVersion(Root(), key));
  ASSERT_OK(service_->CreateVersion(Root(), key));
  ASSERT_OK(service_->Disable(Root(), key.Version(3)));
  EXPECT_THAT(service_->SetPrimaryVersion(Root(), key, 9), StatusIs(kNotFound));
  EXPECT_THAT(service_->SetPrimaryVersion(Root(), key, 3),
              StatusIs(kPrecondition, HasSubstr("is not enabled")));
  EXPECT_THAT(service_->SetPrimaryVersion(Root(), key, 0), StatusIs(kInvalid));
  ASSERT_OK_AND_ASSIGN(CryptoKeyView view,
                       service_->SetPrimaryVersion(Root(), key, 2));
  EXPECT_EQ(view.key.primary_version, 2u);
  EXPECT_EQ(view.key.primary_activation, 2u);
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, "x"));
  EXPECT_EQ(sealed.version, key.Version(2));
}

TEST_F(KeyServiceTest, APrimaryThatComesBackIsAnotherActivation) {
  const catalog::ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const PrimaryInfo first, service_->Primary(Root(), key));
  ASSERT_OK(service_->Rotate(Root(), key));
  ASSERT_OK_AND_ASSIGN(const PrimaryInfo second,
                       service_->Primary(Root(), key));
  ASSERT_OK(service_->SetPrimaryVersion(Root(), key, 1));
  ASSERT_OK_AND_ASSIGN(const PrimaryInfo third, service_->Primary(Root(), key));
  EXPECT_EQ(first.version, third.version);
  EXPECT_EQ(first.activation, 1u);
  EXPECT_EQ(second.activation, 2u);
  EXPECT_EQ(third.activation, 3u);
  // Setting what is set changes nothing.
  ASSERT_OK(service_->SetPrimaryVersion(Root(), key, 1));
  ASSERT_OK_AND_ASSIGN(const PrimaryInfo same, service_->Primary(Root(), key));
  EXPECT_EQ(same.activation, 3u);
}

// ---- states

TEST_F(KeyServiceTest, DisabledPrimaryIsSeenAtOnceEverywhere) {
  const catalog::ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, "secret"));
  ASSERT_OK_AND_ASSIGN(const CryptoKeyVersion disabled,
                       service_->Disable(Root(), key.Version(1)));
  EXPECT_EQ(disabled.state, VersionState::kDisabled);
  const std::string text =
      absl::StrCat(key.Version(1).ToString(),
                   " is not enabled, current state is: DISABLED.");
  EXPECT_THAT(Encrypt(key, "x"), StatusIs(kPrecondition, text));
  EXPECT_THAT(Encrypt(key.Version(1), "x"), StatusIs(kPrecondition, text));
  EXPECT_EQ(Opened(key, sealed.ciphertext), absl::StrCat("[", text, "]"));
  ASSERT_OK_AND_ASSIGN(const CryptoKeyView view,
                       service_->GetCryptoKey(Root(), key));
  EXPECT_EQ(view.primary->state, VersionState::kDisabled);
  ASSERT_OK_AND_ASSIGN(const PrimaryInfo primary,
                       service_->Primary(Root(), key));
  EXPECT_EQ(primary.state, VersionState::kDisabled);
  ASSERT_OK(service_->Enable(Root(), key.Version(1)));
  EXPECT_EQ(Opened(key, sealed.ciphertext), "secret");
  EXPECT_THAT(AuditLines({"\"op\":\"DisableCryptoKeyVersion\"",
                          "state ENABLED -> DISABLED"}),
              SizeIs(1));
}

TEST_F(KeyServiceTest, DestructionIsScheduledAndRestored) {
  const catalog::ResourceName key = MakeKey("k");
  const catalog::ResourceName v1 = key.Version(1);
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, "secret"));
  EXPECT_THAT(service_->Restore(Root(), v1), StatusIs(kPrecondition));
  ASSERT_OK_AND_ASSIGN(CryptoKeyVersion version,
                       service_->ScheduleDestroy(Root(), v1));
  EXPECT_EQ(version.state, VersionState::kDestroyScheduled);
  EXPECT_EQ(version.destroy_time, clock_.Now() + absl::Hours(24 * 30));
  EXPECT_THAT(service_->ScheduleDestroy(Root(), v1), StatusIs(kPrecondition));
  EXPECT_THAT(service_->Enable(Root(), v1), StatusIs(kPrecondition));
  EXPECT_THAT(service_->Disable(Root(), v1), StatusIs(kPrecondition));
  EXPECT_EQ(Opened(key, sealed.ciphertext),
            absl::StrCat("[", v1.ToString(),
                         " is not enabled, current state is: "
                         "DESTROY_SCHEDULED.]"));
  ASSERT_OK_AND_ASSIGN(version, service_->Restore(Root(), v1));
  EXPECT_EQ(version.state, VersionState::kDisabled);
  EXPECT_EQ(version.destroy_time, std::nullopt);
  // From DISABLED too.
  ASSERT_OK(service_->ScheduleDestroy(Root(), v1));
  ASSERT_OK(service_->Restore(Root(), v1));
  ASSERT_OK(service_->Enable(Root(), v1));
  EXPECT_EQ(Opened(key, sealed.ciphertext), "secret");
  EXPECT_THAT(service_->ScheduleDestroy(Root(), key.Version(9)),
              StatusIs(kNotFound));
}

TEST_F(KeyServiceTest, NoRestoreFromDestroyTimeOn) {
  const catalog::ResourceName key = MakeKey("k");
  ASSERT_OK(service_->ScheduleDestroy(Root(), key.Version(1)));
  clock_.Advance(absl::Hours(24 * 30));
  EXPECT_THAT(service_->Restore(Root(), key.Version(1)),
              StatusIs(kPrecondition, HasSubstr("destroy_time has passed")));
}

// ---- permissions

TEST_F(KeyServiceTest, StrangersLearnNothingAndAreRecorded) {
  const catalog::ResourceName key = MakeKey("k");
  const CallInfo stranger = As("unix:uid:4711");
  const auto denied = [](absl::string_view permission,
                         absl::string_view resource) {
    return StatusIs(kDenied, absl::StrCat("Permission '", permission,
                                          "' denied on resource '", resource,
                                          "' (or it may not exist)."));
  };
  // The same words whether it exists or not.
  for (const std::string& name :
       {key.ToString(), absl::StrCat(kRing, "/cryptoKeys/none")}) {
    EXPECT_THAT(
        service_->Encrypt(stranger, {.name = Name(name),
                                     .context = EnvelopeContext::kCloudKms}),
        denied("cloudkms.cryptoKeyVersions.useToEncrypt", name));
    EXPECT_THAT(
        service_->Decrypt(stranger, {.key = Name(name),
                                     .context = EnvelopeContext::kCloudKms}),
        denied("cloudkms.cryptoKeyVersions.useToDecrypt", name));
    EXPECT_THAT(service_->GetCryptoKey(stranger, Name(name)),
                denied("cloudkms.cryptoKeys.get", name));
    EXPECT_THAT(service_->Primary(stranger, Name(name)), StatusIs(kDenied));
  }
  EXPECT_THAT(service_->CreateKeyRing(stranger, Name(kLocation), "x"),
              StatusIs(kDenied));
  EXPECT_THAT(service_->Rotate(stranger, key), StatusIs(kDenied));
  EXPECT_THAT(service_->Disable(stranger, key.Version(1)), StatusIs(kDenied));
  EXPECT_THAT(
      AuditLines({"unix:uid:4711", "\"permitted\":false", "PERMISSION_DENIED"}),
      SizeIs(9));
}

TEST_F(KeyServiceTest, OperationsAreCountedByFrontEndMethodAndCode) {
  const catalog::ResourceName key = MakeKey("k");
  ASSERT_OK(Encrypt(key, "x"));
  ASSERT_OK(Encrypt(key, "y"));
  EXPECT_EQ(Opened(key, Bytes("junk")),
            "[Decryption failed: the ciphertext is invalid.]");
  const std::string exposed = metrics_.Expose();
  EXPECT_THAT(exposed, HasSubstr("kekd_operations_total{code=\"OK\",front_end="
                                 "\"cloudkms\",method=\"Encrypt\"} 2"));
  EXPECT_THAT(exposed,
              HasSubstr("kekd_operations_total{code=\"INVALID_ARGUMENT\","
                        "front_end=\"cloudkms\",method=\"Decrypt\"} 1"));
  EXPECT_THAT(exposed, HasSubstr("kekd_operation_duration_seconds_count"));
}

}  // namespace
}  // namespace kek::core
