// SPDX-License-Identifier: Apache-2.0
#include "cli/key_name.h"

#include <string>

#include "base/testing/matchers.h"
#include "cli/exit_code.h"

namespace kek::cli {
namespace {

using ::testing::HasSubstr;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
using base::testing::StatusIs;

const NameDefaults kDefaults = {
    .project = "p", .location = "l", .key_ring = "ring"};
const NameDefaults kNoRing = {.project = "p", .location = "l"};
constexpr char kKey[] = "projects/p/locations/l/keyRings/ring/cryptoKeys/key";

std::string Resolved(absl::string_view name, const NameDefaults& defaults) {
  const auto resolved = ResolveKeyOrVersion(name, defaults);
  return resolved.ok() ? resolved->ToString()
                       : std::string(resolved.status().message());
}

TEST(KeyNameTest, ShortNamesTakeWhatTheyLeaveOutFromTheDefaults) {
  EXPECT_EQ(Resolved("key", kDefaults), kKey);
  EXPECT_EQ(Resolved("ring/key", kNoRing), kKey);
  EXPECT_EQ(Resolved("other/key", kDefaults),
            "projects/p/locations/l/keyRings/other/cryptoKeys/key");
  EXPECT_EQ(Resolved("key:3", kDefaults),
            std::string(kKey) + "/cryptoKeyVersions/3");
  EXPECT_EQ(Resolved("ring/key:12", kNoRing),
            std::string(kKey) + "/cryptoKeyVersions/12");
}

TEST(KeyNameTest, FullNamesNeedNoDefaults) {
  const NameDefaults none;
  EXPECT_EQ(Resolved(kKey, none), kKey);
  EXPECT_EQ(Resolved(std::string(kKey) + ":2", none),
            std::string(kKey) + "/cryptoKeyVersions/2");
  EXPECT_EQ(Resolved(std::string(kKey) + "/cryptoKeyVersions/2", none),
            std::string(kKey) + "/cryptoKeyVersions/2");
  // A colon of the project is not a version's.
  EXPECT_EQ(
      Resolved("projects/example.com:p/locations/l/keyRings/r/cryptoKeys/k",
               none),
      "projects/example.com:p/locations/l/keyRings/r/cryptoKeys/k");
}

TEST(KeyNameTest, WhatIsMissingIsNamedAndHowToGiveIt) {
  const auto no_ring = ResolveCryptoKey("key", kNoRing);
  EXPECT_THAT(no_ring, StatusIs(kInvalid, HasSubstr("names no key ring")));
  EXPECT_THAT(HintOf(no_ring.status()), HasSubstr("KEKCTL_KEY_RING"));
  const auto no_project = ResolveCryptoKey("r/key", NameDefaults());
  EXPECT_THAT(no_project, StatusIs(kInvalid, HasSubstr("project")));
  EXPECT_THAT(HintOf(no_project.status()), HasSubstr("KEKCTL_PROJECT"));
  const auto no_location = ResolveKeyRing("r", {.project = "p"});
  EXPECT_THAT(no_location, StatusIs(kInvalid, HasSubstr("location")));
}

TEST(KeyNameTest, KindsAreToldApart) {
  EXPECT_THAT(ResolveCryptoKey("key:3", kDefaults),
              StatusIs(kInvalid, HasSubstr("one version")));
  const auto no_version = ResolveVersion("key", kDefaults);
  EXPECT_THAT(no_version, StatusIs(kInvalid));
  EXPECT_THAT(HintOf(no_version.status()), HasSubstr("key:1"));
  EXPECT_THAT(ResolveKeyRing(kKey, kDefaults), StatusIs(kInvalid));
  EXPECT_THAT(ResolveKeyRing("ring/key", kDefaults), StatusIs(kInvalid));
  EXPECT_THAT(ResolveCryptoKey("projects/p/locations/l/keyRings/r", kDefaults),
              StatusIs(kInvalid, HasSubstr("KeyRing")));
}

TEST(KeyNameTest, MalformedNamesAreRefused) {
  for (const char* name :
       {"", "/", "a/b/c", "/key", "ring/", "key:", "key:0", "key:01", "key:-1",
        "key:x", "key:4294967296", "k y", "key:1:2", "ring/key:1/x",
        "projects/p", "projects/p/locations/l/keyRings/r/cryptoKeys/k:1:2"}) {
    EXPECT_THAT(ResolveKeyOrVersion(name, kDefaults), StatusIs(kInvalid))
        << name;
  }
}

TEST(KeyNameTest, ShortNameIsTheShortestThatLeadsBack) {
  const auto check = [](const char* name, const NameDefaults& defaults,
                        const std::string& expected) {
    ASSERT_OK_AND_ASSIGN(const catalog::ResourceName resolved,
                         ResolveKeyOrVersion(name, defaults));
    EXPECT_EQ(ShortName(resolved, defaults), expected);
    EXPECT_EQ(Resolved(expected, defaults), resolved.ToString());
  };
  check("ring/key:3", kDefaults, "key:3");
  check("other/key", kDefaults, "other/key");
  check("ring/key", kNoRing, "ring/key");
  check("projects/x/locations/l/keyRings/ring/cryptoKeys/key", kDefaults,
        "projects/x/locations/l/keyRings/ring/cryptoKeys/key");
}

}  // namespace
}  // namespace kek::cli
