// SPDX-License-Identifier: Apache-2.0
#include "catalog/resource_name.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "base/testing/matchers.h"
#include "catalog/records.h"

namespace kek::catalog {
namespace {

using base::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Kind = ResourceName::Kind;

const char kVersionName[] =
    "projects/oss-tools-test/locations/us-central1/keyRings/Ring_1/cryptoKeys/"
    "-key/cryptoKeyVersions/4294967295";

TEST(ResourceNameTest, ParsesEachKind) {
  ASSERT_OK_AND_ASSIGN(const ResourceName version,
                       ResourceName::Parse(kVersionName));
  EXPECT_EQ(version.kind(), Kind::kCryptoKeyVersion);
  EXPECT_EQ(version.version(), 4294967295u);
  EXPECT_EQ(version.id(), "4294967295");
  EXPECT_EQ(version.ToString(), kVersionName);
  const ResourceName key = version.Parent();
  EXPECT_EQ(key, version.CryptoKey());
  EXPECT_EQ(key, key.CryptoKey());
  EXPECT_EQ(key.kind(), Kind::kCryptoKey);
  EXPECT_EQ(key.id(), "-key");
  EXPECT_EQ(key.version(), 0u);
  EXPECT_EQ(key.Version(4294967295u), version);
  const ResourceName ring = key.Parent();
  EXPECT_EQ(ring.kind(), Kind::kKeyRing);
  EXPECT_EQ(ring.id(), "Ring_1");
  const ResourceName location = ring.Parent();
  EXPECT_EQ(location.kind(), Kind::kLocation);
  EXPECT_EQ(location.ToString(),
            "projects/oss-tools-test/locations/us-central1");
  for (const ResourceName& name : {key, ring, location}) {
    ASSERT_OK_AND_ASSIGN(const ResourceName again,
                         ResourceName::Parse(name.ToString()));
    EXPECT_EQ(again, name);
    EXPECT_EQ(again.kind(), name.kind());
  }
  EXPECT_OK(
      ResourceName::Parse("projects/example.com:p-1/locations/eu.west_1"));
}

TEST(ResourceNameTest, ErrorsNameThePartThatIsWrong) {
  const auto expect = [](absl::string_view name, absl::string_view part) {
    EXPECT_THAT(ResourceName::Parse(name),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr(std::string(part))))
        << name;
  };
  const std::string location = "projects/p/locations/l";
  const std::string key = location + "/keyRings/r/cryptoKeys/k";
  const std::string long_id(64, 'x');
  expect("", "\"projects\" is expected");
  expect("/" + key, "\"projects\" is expected");
  expect("projects", "ends after \"projects\"");
  expect("projects/", "project \"\"");
  expect("projects/p", "before \"locations\"");
  expect("projects/p/", "\"locations\" is expected");
  expect("projects/p/locations", "ends after \"locations\"");
  expect("projects/p q/locations/l", "project \"p q\" must match");
  expect("projects/p/locations/l/", "\"keyRings\" is expected");
  expect(location + "/keyrings/r", "\"keyRings\" is expected");
  expect(location + "/keyRings", "ends after \"keyRings\"");
  expect(location + "/keyRings/", "KeyRing id \"\"");
  expect(location + "/keyRings/&bar", "KeyRing id \"&bar\" must match");
  expect(location + "/keyRings/a.b", "KeyRing id \"a.b\"");
  expect(location + "/keyRings/" + long_id, "KeyRing id");
  expect(location + "/keyRings/r/importJobs/j", "\"cryptoKeys\" is expected");
  expect(key + "/", "\"cryptoKeyVersions\" is expected");
  for (const char* number : {"", "0", "01", "-1", "+1", "1 ", "4294967296",
                             "99999999999", "x", "1e3", "１"}) {
    expect(absl::StrCat(key, "/cryptoKeyVersions/", number),
           "CryptoKeyVersion \"");
  }
  expect(key + "/cryptoKeyVersions/1/publicKey", "after the CryptoKeyVersion");
  expect(key + "/cryptoKeyVersions/1/", "after the CryptoKeyVersion");
  expect(absl::string_view("projects/p\0/locations/l", 23), "p\\x00");
}

TEST(ResourceNameTest, IdsHaveUpTo63Bytes) {
  const std::string id(63, 'x');
  EXPECT_OK(
      ResourceName::Parse(absl::StrCat("projects/", id, "/locations/", id,
                                       "/keyRings/", id, "/cryptoKeys/", id)));
}

TEST(ResourceNameTest, ErrorsNeverEchoMuchOfTheInput) {
  const std::string flood(1 << 20, '\xff');
  for (const std::string& name :
       {flood, "projects/" + flood, "projects/p/locations/l/keyRings/" + flood,
        std::string(kVersionName) + "/" + flood}) {
    const absl::Status status = ResourceName::Parse(name).status();
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_LT(status.message().size(), 4 * 128 + 200);  // \xff is four bytes
  }
}

TEST(ResourceNameTest, KindIsChecked) {
  EXPECT_OK(ResourceName::Parse(kVersionName, Kind::kCryptoKeyVersion));
  EXPECT_THAT(ResourceName::Parse(kVersionName, Kind::kCryptoKey),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("CryptoKeyVersion, not a CryptoKey")));
}

TEST(ResourceNameTest, ChildrenAreChecked) {
  ASSERT_OK_AND_ASSIGN(const ResourceName location,
                       ResourceName::Parse("projects/p/locations/l"));
  ASSERT_OK_AND_ASSIGN(const ResourceName ring, location.Child("r"));
  ASSERT_OK_AND_ASSIGN(const ResourceName key, ring.Child("k"));
  ASSERT_OK_AND_ASSIGN(const ResourceName version, key.Child("12"));
  EXPECT_EQ(version.version(), 12u);
  EXPECT_EQ(version, key.Version(12));
  for (const char* id : {"", "a/b", "a.b", "ä"}) {
    EXPECT_THAT(location.Child(id),
                StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_THAT(ring.Child(id), StatusIs(absl::StatusCode::kInvalidArgument));
  }
  EXPECT_THAT(key.Child("012"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(version.Child("1"), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(ResourceNameTest, NameOrder) {
  ASSERT_OK_AND_ASSIGN(
      const ResourceName key,
      ResourceName::Parse("projects/p/locations/l/keyRings/r/cryptoKeys/k"));
  std::vector<ResourceName> names = {key.Version(10), key.Version(2),
                                     key.Version(1), key.Version(4294967295u)};
  std::sort(names.begin(), names.end());
  EXPECT_THAT(names, ElementsAre(key.Version(1), key.Version(2),
                                 key.Version(10), key.Version(4294967295u)));
  const ResourceName ring = key.Parent();
  EXPECT_TRUE(*ring.Child("Z") < *ring.Child("a"));
  EXPECT_TRUE(*ring.Child("a") < *ring.Child("a-b"));
  EXPECT_FALSE(key < key);
}

TEST(ResourceNameTest, HashAgreesWithEquality) {
  ASSERT_OK_AND_ASSIGN(
      const ResourceName key,
      ResourceName::Parse("projects/p/locations/l/keyRings/r/cryptoKeys/k"));
  const absl::Hash<ResourceName> hash;
  EXPECT_EQ(hash(key), hash(key.Version(1).Parent()));
  EXPECT_NE(hash(key.Version(1)), hash(key.Version(2)));
}

TEST(RecordsTest, UuidsAndStatesHaveTheirUsualText) {
  Uuid uuid{};
  for (uint8_t i = 0; i < 16; ++i) uuid[i] = static_cast<uint8_t>(i * 0x11);
  EXPECT_EQ(UuidToString(uuid), "00112233-4455-6677-8899-aabbccddeeff");
  EXPECT_EQ(VersionStateName(VersionState::kDestroyScheduled),
            "DESTROY_SCHEDULED");
  EXPECT_EQ(VersionStateName(VersionState::kEnabled), "ENABLED");
}

}  // namespace
}  // namespace kek::catalog
