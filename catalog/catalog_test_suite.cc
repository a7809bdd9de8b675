// SPDX-License-Identifier: Apache-2.0
#include "catalog/catalog_test_suite.h"

#include <atomic>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace kek::catalog {

using base::testing::IsOkAndHolds;
using base::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

base::Deadline Soon() { return base::DeadlineAfter(std::chrono::seconds(60)); }
absl::Time At(int64_t seconds) {
  return absl::FromUnixSeconds(1767225600 + seconds);
}
ResourceName NameOf(absl::string_view text) {
  return *ResourceName::Parse(text);
}
const ResourceName& RingName() {
  static const auto* const name =
      new ResourceName(NameOf("projects/p/locations/l/keyRings/r"));
  return *name;
}
const ResourceName& KeyName() {
  static const auto* const name = new ResourceName(*RingName().Child("k"));
  return *name;
}

KeyRing FullRing(const ResourceName& name) {
  return {.name = name, .create_time = At(1) + absl::Microseconds(7)};
}
CryptoKey FullKey(const ResourceName& name) {
  CryptoKey key{.name = name};
  for (uint8_t i = 0; i < 16; ++i) key.uuid[i] = static_cast<uint8_t>(0xf0 + i);
  key.purpose = Purpose::kMac;
  key.algorithm = 32;
  key.protection_level = ProtectionLevel::kHsm;
  key.residency = Residency::kWrapped;
  key.create_time = At(2);
  key.labels = {{"env", "prod"}, {"team", "alpha"}, {"empty", ""}};
  key.destroy_scheduled_duration = absl::Hours(24 * 30);
  key.import_only = true;
  key.rotation_period = absl::Hours(24 * 90);
  key.next_rotation_time = At(3600);
  key.primary_version = 3;
  key.primary_activation = 9;
  key.next_version = 4;
  key.rotate_after_uses = uint64_t{1} << 40;
  return key;
}
CryptoKeyVersion FullVersion(const ResourceName& name) {
  CryptoKeyVersion version{.name = name};
  version.key_uuid[3] = 0x5a;
  version.state = VersionState::kDestroyScheduled;
  version.algorithm = 1;
  version.protection_level = ProtectionLevel::kHsm;
  version.residency = Residency::kWrapped;
  version.create_time = At(3);
  version.generate_time = At(4);
  version.destroy_time = At(5);
  version.destroy_event_time = At(6);
  version.failure_reason = "none";
  version.token = "SoftHSM project/SoftHSM v2/1234/kek-a";
  version.object_id = {1, 2, 0, 255};
  version.object_label = "label";
  version.canary = StoredCanary{.iv = {1, 2, 3},
                                .ciphertext = {4, 5},
                                .aad = {},
                                .plaintext_sha256 = {9}};
  version.attributes = "CKA_SENSITIVE=1";
  version.primary_on_enable = true;
  return version;
}
void StoreParents(Catalog& catalog) {
  KeyRing ring = FullRing(RingName());
  CryptoKey key = FullKey(KeyName());
  ASSERT_OK(Store(catalog, ring));
  ASSERT_OK(Store(catalog, key));
}

namespace {

std::string Hex(absl::string_view bytes) {
  return absl::BytesToHexString(bytes);
}
template <typename Bytes>
std::string HexOf(const Bytes& bytes) {
  return Hex(absl::string_view(reinterpret_cast<const char*>(bytes.data()),
                               bytes.size()));
}
std::string ShowTime(const std::optional<absl::Time>& time) {
  return time.has_value() ? absl::StrCat(absl::ToUnixMicros(*time)) : "-";
}

}  // namespace

std::string Show(const KeyRing& r) {
  return absl::StrCat(r.name.ToString(), "|", ShowTime(r.create_time), "|",
                      r.revision);
}
std::string Show(const CryptoKey& k) {
  return absl::StrCat(
      k.name.ToString(), "|", UuidToString(k.uuid), "|",
      static_cast<int>(k.purpose), "|", k.algorithm, "|",
      static_cast<int>(k.protection_level), "|", static_cast<int>(k.residency),
      "|", ShowTime(k.create_time), "|",
      absl::StrJoin(k.labels, ",", absl::PairFormatter("=")), "|",
      absl::FormatDuration(k.destroy_scheduled_duration), "|", k.import_only,
      "|",
      k.rotation_period.has_value() ? absl::FormatDuration(*k.rotation_period)
                                    : "-",
      "|", ShowTime(k.next_rotation_time), "|", k.primary_version, "|",
      k.primary_activation, "|", k.next_version, "|", k.rotate_after_uses, "|",
      k.revision);
}
std::string Show(const CryptoKeyVersion& v) {
  std::string canary = "-";
  if (v.canary.has_value()) {
    canary = absl::StrCat(HexOf(v.canary->iv), "/", HexOf(v.canary->ciphertext),
                          "/", HexOf(v.canary->aad), "/",
                          HexOf(v.canary->plaintext_sha256));
  }
  return absl::StrCat(
      v.name.ToString(), "|", UuidToString(v.key_uuid), "|",
      VersionStateName(v.state), "|", v.algorithm, "|",
      static_cast<int>(v.protection_level), "|", static_cast<int>(v.residency),
      "|", ShowTime(v.create_time), "|", ShowTime(v.generate_time), "|",
      ShowTime(v.destroy_time), "|", ShowTime(v.destroy_event_time), "|",
      v.failure_reason, "|", v.token, "|", HexOf(v.object_id), "|",
      v.object_label, "|", canary, "|", v.attributes, "|", v.primary_on_enable,
      "|", v.revision);
}

namespace {

template <typename Record>
std::vector<std::string> Ids(const absl::StatusOr<std::vector<Record>>& list) {
  if (!list.ok()) return {list.status().ToString()};
  std::vector<std::string> ids;
  for (const Record& record : *list) ids.emplace_back(record.name.id());
  return ids;
}
std::vector<std::string> Texts(
    const absl::StatusOr<std::vector<ResourceName>>& names) {
  if (!names.ok()) return {names.status().ToString()};
  std::vector<std::string> texts;
  for (const ResourceName& name : *names) texts.push_back(name.ToString());
  return texts;
}

TEST_P(CatalogTest, RecordsComeBackWhole) {
  KeyRing ring = FullRing(RingName());
  CryptoKey key = FullKey(KeyName());
  CryptoKeyVersion version = FullVersion(KeyName().Version(3));
  ASSERT_OK(Store(*catalog_, ring));
  ASSERT_OK(Store(*catalog_, key));
  ASSERT_OK(Store(*catalog_, version));
  EXPECT_EQ(ring.revision, 1u);
  ASSERT_OK_AND_ASSIGN(const KeyRing r, catalog_->GetKeyRing(ring.name));
  ASSERT_OK_AND_ASSIGN(const CryptoKey k, catalog_->GetCryptoKey(key.name));
  ASSERT_OK_AND_ASSIGN(const CryptoKeyVersion v,
                       catalog_->GetVersion(version.name));
  EXPECT_EQ(Show(r), Show(ring));
  EXPECT_EQ(Show(k), Show(key));
  EXPECT_EQ(Show(v), Show(version));
}

TEST_P(CatalogTest, AbsentRecordsAreNotFoundInCloudKmsWords) {
  EXPECT_THAT(catalog_->GetKeyRing(RingName()),
              StatusIs(absl::StatusCode::kNotFound,
                       "KeyRing projects/p/locations/l/keyRings/r not found."));
  EXPECT_THAT(catalog_->GetCryptoKey(KeyName()),
              StatusIs(absl::StatusCode::kNotFound,
                       "CryptoKey projects/p/locations/l/keyRings/r/cryptoKeys/"
                       "k not found."));
  EXPECT_THAT(catalog_->GetVersion(KeyName().Version(1)),
              StatusIs(absl::StatusCode::kNotFound,
                       "CryptoKeyVersion projects/p/locations/l/keyRings/r/"
                       "cryptoKeys/k/cryptoKeyVersions/1 not found."));
}

TEST_P(CatalogTest, NameOfTheWrongKindIsTheCallersMistake) {
  EXPECT_THAT(catalog_->GetKeyRing(KeyName()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(catalog_->ListVersions(RingName(), {}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(catalog_->UsesReserved(KeyName()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  KeyRing wrong = FullRing(KeyName());
  EXPECT_THAT(Store(*catalog_, wrong),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_P(CatalogTest, NothingIsStoredUnderAMissingParent) {
  CryptoKey key = FullKey(KeyName());
  EXPECT_THAT(Store(*catalog_, key),
              StatusIs(absl::StatusCode::kNotFound,
                       "KeyRing projects/p/locations/l/keyRings/r not found."));
  KeyRing ring = FullRing(RingName());
  ASSERT_OK(Store(*catalog_, ring));
  CryptoKeyVersion version = FullVersion(KeyName().Version(1));
  EXPECT_THAT(Store(*catalog_, version),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("CryptoKey ")));
  EXPECT_EQ(version.revision, 0u);
}

TEST_P(CatalogTest, CreatingTwiceIsRefused) {
  KeyRing first = FullRing(RingName()), second = FullRing(RingName());
  second.create_time = At(99);
  ASSERT_OK(Store(*catalog_, first));
  EXPECT_THAT(
      Store(*catalog_, second),
      StatusIs(absl::StatusCode::kAlreadyExists,
               "KeyRing projects/p/locations/l/keyRings/r already exists."));
  ASSERT_OK_AND_ASSIGN(const KeyRing stored, catalog_->GetKeyRing(RingName()));
  EXPECT_EQ(Show(stored), Show(first));
}

TEST_P(CatalogTest, WriterWithAnOldRevisionIsRefused) {
  StoreParents(*catalog_);
  ASSERT_OK_AND_ASSIGN(CryptoKey mine, catalog_->GetCryptoKey(KeyName()));
  CryptoKey theirs = mine;
  theirs.primary_version = 7;
  ASSERT_OK(Store(*catalog_, theirs));
  EXPECT_EQ(theirs.revision, mine.revision + 1);
  mine.primary_version = 8;
  EXPECT_THAT(Store(*catalog_, mine), StatusIs(absl::StatusCode::kAborted));
  ASSERT_OK_AND_ASSIGN(const CryptoKey stored,
                       catalog_->GetCryptoKey(KeyName()));
  EXPECT_EQ(Show(stored), Show(theirs));
  // A revision from the future is no better, and neither is one of a record
  // that is not there.
  mine.revision = 100;
  EXPECT_THAT(Store(*catalog_, mine), StatusIs(absl::StatusCode::kAborted));
  CryptoKey absent = FullKey(*RingName().Child("absent"));
  absent.revision = 1;
  EXPECT_THAT(Store(*catalog_, absent), StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(CatalogTest, TransactionSeesItsOwnWritesAndOthersDoNot) {
  StoreParents(*catalog_);
  const ResourceName name = KeyName().Version(1);
  EXPECT_OK(catalog_->Transact(
      [&](Transaction& t) -> absl::Status {
        CryptoKeyVersion version = FullVersion(name);
        if (auto s = t.Put(version); !s.ok()) return s;
        EXPECT_EQ(version.revision, 1u);
        version.state = VersionState::kEnabled;
        if (auto s = t.Put(version); !s.ok()) return s;
        const auto inside = t.GetVersion(name);
        EXPECT_OK(inside);
        EXPECT_EQ(Show(*inside), Show(version));
        EXPECT_OK(t.GetKeyRing(RingName()));
        EXPECT_OK(t.GetCryptoKey(KeyName()));
        EXPECT_THAT(catalog_->GetVersion(name),
                    StatusIs(absl::StatusCode::kNotFound));
        return absl::OkStatus();
      },
      Soon()));
  ASSERT_OK_AND_ASSIGN(const CryptoKeyVersion stored,
                       catalog_->GetVersion(name));
  EXPECT_EQ(stored.revision, 2u);
  EXPECT_EQ(stored.state, VersionState::kEnabled);
}

TEST_P(CatalogTest, FailedTransactionLeavesNothing) {
  StoreParents(*catalog_);
  EXPECT_THAT(
      catalog_->Transact(
          [&](Transaction& t) -> absl::Status {
            auto key = t.GetCryptoKey(KeyName());
            EXPECT_OK(key);
            key->primary_version = 77;
            EXPECT_OK(t.Put(*key));
            CryptoKeyVersion version = FullVersion(KeyName().Version(1));
            EXPECT_OK(t.Put(version));
            return absl::FailedPreconditionError("the caller's own reason");
          },
          Soon()),
      StatusIs(absl::StatusCode::kFailedPrecondition,
               "the caller's own reason"));
  ASSERT_OK_AND_ASSIGN(const CryptoKey key, catalog_->GetCryptoKey(KeyName()));
  EXPECT_EQ(key.primary_version, 3u);
  EXPECT_EQ(key.revision, 1u);
  EXPECT_THAT(catalog_->GetVersion(KeyName().Version(1)),
              StatusIs(absl::StatusCode::kNotFound));
  // And the next one works.
  CryptoKeyVersion version = FullVersion(KeyName().Version(1));
  EXPECT_OK(Store(*catalog_, version));
}

TEST_P(CatalogTest, ChangeWhoseDeadlinePassedLeavesNothing) {
  KeyRing ring = FullRing(RingName());
  EXPECT_THAT(catalog_->Transact([&](Transaction& t) { return t.Put(ring); },
                                 base::DeadlineAfter(-std::chrono::seconds(1))),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(catalog_->GetKeyRing(RingName()),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(CatalogTest, WriterWaitsForItsTurnNoLongerThanItsDeadline) {
  StoreParents(*catalog_);
  EXPECT_OK(catalog_->Transact(
      [&](Transaction&) {
        // The writer is busy: a second one gives up, readers go on.
        absl::Status second;
        std::thread([&] {
          CryptoKeyVersion version = FullVersion(KeyName().Version(1));
          second = catalog_->Transact(
              [&](Transaction& t) { return t.Put(version); },
              base::DeadlineAfter(std::chrono::milliseconds(20)));
        }).join();
        EXPECT_THAT(second, StatusIs(absl::StatusCode::kDeadlineExceeded));
        EXPECT_OK(catalog_->GetCryptoKey(KeyName()));
        return absl::OkStatus();
      },
      Soon()));
}

TEST_P(CatalogTest, RecordThatNoRowCanHoldIsRefused) {
  StoreParents(*catalog_);
  CryptoKeyVersion version = FullVersion(KeyName().Version(1));
  version.attributes.assign(2 << 20, 'x');
  EXPECT_THAT(Store(*catalog_, version),
              StatusIs(absl::StatusCode::kInvalidArgument));
  version = FullVersion(KeyName().Version(1));
  version.state = static_cast<VersionState>(42);
  EXPECT_THAT(Store(*catalog_, version),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("state")));
}

TEST_P(CatalogTest, ChildrenAreListedInOrderOfIdAndVersionsByNumber) {
  StoreParents(*catalog_);
  for (const char* id : {"b", "Z", "a-b", "a", "0"}) {
    CryptoKey key = FullKey(*RingName().Child(id));
    ASSERT_OK(Store(*catalog_, key));
  }
  for (const uint32_t number : {10u, 2u, 1u, 4294967295u, 9u}) {
    CryptoKeyVersion version = FullVersion(KeyName().Version(number));
    ASSERT_OK(Store(*catalog_, version));
  }
  // Others' children, in names that sort beside ours.
  KeyRing ring = FullRing(NameOf("projects/p/locations/l/keyRings/r-2"));
  ASSERT_OK(Store(*catalog_, ring));
  CryptoKey other = FullKey(*ring.name.Child("other"));
  ASSERT_OK(Store(*catalog_, other));

  EXPECT_THAT(Ids(catalog_->ListCryptoKeys(RingName(), {})),
              ElementsAre("0", "Z", "a", "a-b", "b", "k"));
  EXPECT_THAT(Ids(catalog_->ListVersions(KeyName(), {})),
              ElementsAre("1", "2", "9", "10", "4294967295"));
  EXPECT_THAT(Ids(catalog_->ListKeyRings(NameOf("projects/p/locations/l"), {})),
              ElementsAre("r", "r-2"));
  EXPECT_THAT(catalog_->CountChildren(RingName()), IsOkAndHolds(6u));
  EXPECT_THAT(catalog_->CountChildren(KeyName()), IsOkAndHolds(5u));
  EXPECT_THAT(catalog_->CountChildren(NameOf("projects/p/locations/l")),
              IsOkAndHolds(2u));
  EXPECT_THAT(catalog_->CountChildren(KeyName().Version(1)), IsOkAndHolds(0u));
}

TEST_P(CatalogTest, ParentThatDoesNotExistHasNoChildren) {
  EXPECT_THAT(Ids(catalog_->ListCryptoKeys(RingName(), {})), IsEmpty());
  EXPECT_THAT(catalog_->CountChildren(RingName()), IsOkAndHolds(0u));
}

TEST_P(CatalogTest, PagesContinueAfterTheLastId) {
  StoreParents(*catalog_);
  for (uint32_t number = 1; number <= 12; ++number) {
    CryptoKeyVersion version = FullVersion(KeyName().Version(number));
    ASSERT_OK(Store(*catalog_, version));
  }
  std::vector<std::string> seen;
  Page page{.size = 5};
  std::vector<size_t> sizes;
  while (true) {
    const std::vector<std::string> ids =
        Ids(catalog_->ListVersions(KeyName(), page));
    sizes.push_back(ids.size());
    if (ids.empty()) break;
    seen.insert(seen.end(), ids.begin(), ids.end());
    page.start_after = ids.back();
  }
  EXPECT_THAT(seen, ElementsAre("1", "2", "3", "4", "5", "6", "7", "8", "9",
                                "10", "11", "12"));
  EXPECT_THAT(sizes, ElementsAre(5u, 5u, 2u, 0u));
  // An id need not exist to start after it, but it must be an id.
  EXPECT_THAT(Ids(catalog_->ListVersions(
                  KeyName(), {.size = 1, .start_after = "4000000000"})),
              IsEmpty());
  EXPECT_THAT(Ids(catalog_->ListCryptoKeys(RingName(), {.start_after = "j"})),
              ElementsAre("k"));
  EXPECT_THAT(catalog_->ListVersions(KeyName(), {.start_after = "x"}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Ids(catalog_->ListVersions(KeyName(), {.size = 0})), IsEmpty());
}

TEST_P(CatalogTest, VisitsAllInNameOrderAndStopsAtAnError) {
  for (const char* ring_id : {"b", "a", "a-1"}) {
    KeyRing ring = FullRing(
        NameOf(absl::StrCat("projects/p/locations/l/keyRings/", ring_id)));
    ASSERT_OK(Store(*catalog_, ring));
    for (const char* key_id : {"y", "x"}) {
      CryptoKey key = FullKey(*ring.name.Child(key_id));
      ASSERT_OK(Store(*catalog_, key));
      for (const uint32_t number : {10u, 2u}) {
        CryptoKeyVersion version = FullVersion(key.name.Version(number));
        ASSERT_OK(Store(*catalog_, version));
      }
    }
  }
  std::vector<ResourceName> keys, versions;
  EXPECT_OK(catalog_->VisitCryptoKeys([&](const CryptoKey& key) {
    keys.push_back(key.name);
    return absl::OkStatus();
  }));
  EXPECT_OK(catalog_->VisitVersions([&](const CryptoKeyVersion& version) {
    versions.push_back(version.name);
    // The catalog may be used from within.
    return catalog_->GetVersion(version.name).status();
  }));
  EXPECT_EQ(keys.size(), 6u);
  EXPECT_EQ(versions.size(), 12u);
  EXPECT_TRUE(std::is_sorted(keys.begin(), keys.end()));
  EXPECT_TRUE(std::is_sorted(versions.begin(), versions.end()));
  int calls = 0;
  EXPECT_THAT(catalog_->VisitVersions([&](const CryptoKeyVersion&) {
    return ++calls == 5 ? absl::CancelledError("enough") : absl::OkStatus();
  }),
              StatusIs(absl::StatusCode::kCancelled, "enough"));
  EXPECT_EQ(calls, 5);
}

TEST_P(CatalogTest, DueRotationsAreFoundEarliestFirst) {
  StoreParents(*catalog_);  // "k" is due at 3600
  const auto put = [&](const char* id, std::optional<absl::Time> at) {
    CryptoKey key = FullKey(*RingName().Child(id));
    key.next_rotation_time = at;
    ASSERT_OK(Store(*catalog_, key));
  };
  put("late", At(5000));
  put("early", At(100));
  put("never", std::nullopt);
  put("same", At(100));
  const std::string ring = RingName().ToString() + "/cryptoKeys/";
  EXPECT_THAT(Texts(catalog_->DueRotations(At(99), 10)), IsEmpty());
  EXPECT_THAT(Texts(catalog_->DueRotations(At(100), 10)),
              ElementsAre(ring + "early", ring + "same"));
  EXPECT_THAT(Texts(catalog_->DueRotations(At(3600), 10)),
              ElementsAre(ring + "early", ring + "same", ring + "k"));
  EXPECT_THAT(Texts(catalog_->DueRotations(At(9999), 1)),
              ElementsAre(ring + "early"));
  // A rotation that was carried out is no longer due.
  ASSERT_OK_AND_ASSIGN(CryptoKey key,
                       catalog_->GetCryptoKey(*RingName().Child("early")));
  key.next_rotation_time = At(9000);
  ASSERT_OK(Store(*catalog_, key));
  EXPECT_THAT(Texts(catalog_->DueRotations(At(100), 10)),
              ElementsAre(ring + "same"));
}

TEST_P(CatalogTest, DueDestructionsAndPendingVersionsFollowTheState) {
  StoreParents(*catalog_);
  const auto put = [&](uint32_t number, VersionState state, int64_t created,
                       int64_t destroy) {
    CryptoKeyVersion version = FullVersion(KeyName().Version(number));
    version.state = state;
    version.create_time = At(created);
    version.destroy_time = At(destroy);
    ASSERT_OK(Store(*catalog_, version));
  };
  put(1, VersionState::kEnabled, 0, 10);
  put(2, VersionState::kDestroyScheduled, 0, 30);
  put(3, VersionState::kDestroyScheduled, 0, 20);
  put(4, VersionState::kPendingGeneration, 8, 10);
  put(5, VersionState::kPendingGeneration, 7, 10);
  put(6, VersionState::kPendingImport, 0, 10);
  put(7, VersionState::kDestroyed, 0, 10);
  const auto name = [](uint32_t n) { return KeyName().Version(n).ToString(); };
  EXPECT_THAT(Texts(catalog_->DueDestructions(At(19), 9)), IsEmpty());
  EXPECT_THAT(Texts(catalog_->DueDestructions(At(30), 9)),
              ElementsAre(name(3), name(2)));
  EXPECT_THAT(Texts(catalog_->PendingVersions(9)),
              ElementsAre(name(5), name(4)));
  EXPECT_THAT(Texts(catalog_->PendingVersions(1)), ElementsAre(name(5)));
  // Restored and generated: no longer found.
  for (const uint32_t number : {3u, 5u}) {
    ASSERT_OK_AND_ASSIGN(CryptoKeyVersion version,
                         catalog_->GetVersion(KeyName().Version(number)));
    version.state = VersionState::kDisabled;
    ASSERT_OK(Store(*catalog_, version));
  }
  EXPECT_THAT(Texts(catalog_->DueDestructions(At(30), 9)),
              ElementsAre(name(2)));
  EXPECT_THAT(Texts(catalog_->PendingVersions(9)), ElementsAre(name(4)));
}

TEST_P(CatalogTest, UsesAreReservedInBlocks) {
  StoreParents(*catalog_);
  CryptoKeyVersion one = FullVersion(KeyName().Version(1));
  CryptoKeyVersion two = FullVersion(KeyName().Version(2));
  ASSERT_OK(Store(*catalog_, one));
  ASSERT_OK(Store(*catalog_, two));
  EXPECT_THAT(catalog_->UsesReserved(one.name), IsOkAndHolds(0u));
  EXPECT_THAT(catalog_->ReserveUses(one.name, 1000, Soon()),
              IsOkAndHolds(1000u));
  EXPECT_THAT(catalog_->ReserveUses(one.name, 24, Soon()), IsOkAndHolds(1024u));
  EXPECT_THAT(catalog_->UsesReserved(one.name), IsOkAndHolds(1024u));
  EXPECT_THAT(catalog_->UsesReserved(two.name), IsOkAndHolds(0u));
  EXPECT_THAT(catalog_->ReserveUses(KeyName().Version(3), 1, Soon()),
              StatusIs(absl::StatusCode::kNotFound));
  // A counter that is at its end refuses; it never wraps.
  EXPECT_THAT(catalog_->ReserveUses(one.name, UINT64_MAX, Soon()),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(
      catalog_->ReserveUses(one.name, uint64_t{INT64_MAX} - 1024, Soon()),
      IsOkAndHolds(uint64_t{INT64_MAX}));
  EXPECT_THAT(catalog_->ReserveUses(one.name, 1, Soon()),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(catalog_->UsesReserved(one.name),
              IsOkAndHolds(uint64_t{INT64_MAX}));
  // Counting does not change the record.
  ASSERT_OK_AND_ASSIGN(const CryptoKeyVersion stored,
                       catalog_->GetVersion(one.name));
  EXPECT_EQ(stored.revision, 1u);
}

TEST_P(CatalogTest, ChecksItself) {
  EXPECT_OK(catalog_->Check(Soon()));
  EXPECT_OK(catalog_->Check(Soon()));
}

TEST_P(CatalogTest, ConcurrentWritersLoseNoUpdate) {
  StoreParents(*catalog_);
  CryptoKeyVersion version = FullVersion(KeyName().Version(1));
  ASSERT_OK(Store(*catalog_, version));
  constexpr int kThreads = 4, kRounds = 25;
  std::atomic<int> failed = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kRounds; ++i) {
        // Half inside one transaction, half read outside and retried.
        if (i % 2 == 0) {
          const absl::Status status = catalog_->Transact(
              [&](Transaction& tr) -> absl::Status {
                auto key = tr.GetCryptoKey(KeyName());
                if (!key.ok()) return key.status();
                ++key->primary_activation;
                return tr.Put(*key);
              },
              Soon());
          if (!status.ok()) ++failed;
        } else {
          absl::Status status;
          do {
            auto key = catalog_->GetCryptoKey(KeyName());
            if (!key.ok()) {
              status = key.status();
              break;
            }
            ++key->primary_activation;
            status = Store(*catalog_, *key);
          } while (absl::IsAborted(status));
          if (!status.ok()) ++failed;
        }
        if (!catalog_->ReserveUses(version.name, 3, Soon()).ok()) ++failed;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 0);
  ASSERT_OK_AND_ASSIGN(const CryptoKey key, catalog_->GetCryptoKey(KeyName()));
  EXPECT_EQ(key.primary_activation, 9u + kThreads * kRounds);
  EXPECT_EQ(key.revision, 1u + kThreads * kRounds);
  EXPECT_THAT(catalog_->UsesReserved(version.name),
              IsOkAndHolds(uint64_t{3} * kThreads * kRounds));
}

// A page costs what the page holds, not what the catalog does: the last page of
// ten thousand may not take many times as long as the first.
TEST_P(CatalogTest, TenThousandVersionsAreListedPageByPage) {
  StoreParents(*catalog_);
  constexpr uint32_t kVersions = 10000;
  EXPECT_OK(catalog_->Transact(
      [&](Transaction& t) {
        for (uint32_t number = 1; number <= kVersions; ++number) {
          CryptoKeyVersion version = FullVersion(KeyName().Version(number));
          if (absl::Status s = t.Put(version); !s.ok()) return s;
        }
        return absl::OkStatus();
      },
      Soon()));
  const auto time_page = [&](uint32_t after) {
    auto best = std::chrono::nanoseconds::max();
    for (int i = 0; i < 5; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      const auto page = catalog_->ListVersions(
          KeyName(), {.size = 100, .start_after = absl::StrCat(after)});
      const auto took = std::chrono::steady_clock::now() - begin;
      EXPECT_OK(page);
      EXPECT_EQ(page->size(), 100u);
      EXPECT_EQ(page->front().name.version(), after + 1);
      best = std::min<std::chrono::nanoseconds>(best, took);
    }
    return best;
  };
  const auto first = time_page(1);
  const auto last = time_page(kVersions - 100);
  EXPECT_LT(last, 10 * first);
  EXPECT_THAT(catalog_->CountChildren(KeyName()), IsOkAndHolds(kVersions));
  uint32_t next = 1;
  EXPECT_OK(catalog_->VisitVersions([&](const CryptoKeyVersion& version) {
    EXPECT_EQ(version.name.version(), next++);
    return absl::OkStatus();
  }));
  EXPECT_EQ(next, kVersions + 1);
}

}  // namespace

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CatalogTest);

}  // namespace kek::catalog
