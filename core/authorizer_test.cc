// SPDX-License-Identifier: Apache-2.0
#include "core/authorizer.h"

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "base/testing/matchers.h"

namespace kek::core {
namespace {

using base::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr char kRing[] = "projects/p/locations/l/keyRings/r";
constexpr char kKey[] = "projects/p/locations/l/keyRings/r/cryptoKeys/k";

Caller CallerWith(std::vector<std::string> principals) {
  return {.principals = std::move(principals),
          .authenticator = Authenticator::kPeerCredentials,
          .front_end = FrontEnd::kAdmin};
}

catalog::ResourceName Name(absl::string_view text) {
  auto name = catalog::ResourceName::Parse(text);
  if (!name.ok()) ADD_FAILURE() << name.status();
  return *name;
}

std::unique_ptr<Authorizer> Make(std::vector<Grant> grants) {
  auto authorizer = Authorizer::Create(std::move(grants));
  if (!authorizer.ok()) ADD_FAILURE() << authorizer.status();
  return *std::move(authorizer);
}

TEST(AuthorizerTest, NoGrantsDenyInCloudKmsWords) {
  const auto authorizer = Make({});
  EXPECT_THAT(
      authorizer->Check(CallerWith({"unix:uid:1"}), permission::kUseToEncrypt,
                        Name(kKey)),
      StatusIs(absl::StatusCode::kPermissionDenied,
               "Permission 'cloudkms.cryptoKeyVersions.useToEncrypt' denied on "
               "resource 'projects/p/locations/l/keyRings/r/cryptoKeys/k' (or "
               "it may not exist)."));
}

TEST(AuthorizerTest, CallerWithoutPrincipalsIsDenied) {
  const auto authorizer = Make({{"unix:uid:0", "roles/cloudkms.admin", ""}});
  EXPECT_THAT(
      authorizer->Check(CallerWith({}), permission::kKeyRingsGet, Name(kRing)),
      StatusIs(absl::StatusCode::kPermissionDenied));
}

TEST(AuthorizerTest, AnyPrincipalOfTheCallerCounts) {
  const auto authorizer =
      Make({{"unix:gid:33", "roles/cloudkms.cryptoKeyEncrypter", kKey},
            {"kubernetes:main", "roles/cloudkms.cryptoKeyDecrypter", kKey}});
  const Caller caller =
      CallerWith({"unix:uid:1", "unix:gid:33", "kubernetes:main"});
  EXPECT_OK(authorizer->Check(caller, permission::kUseToEncrypt, Name(kKey)));
  EXPECT_OK(authorizer->Check(caller, permission::kUseToDecrypt, Name(kKey)));
}

TEST(AuthorizerTest, PrincipalsMatchWholeOnly) {
  const auto authorizer = Make({{"unix:uid:10", "roles/cloudkms.admin", ""}});
  for (const char* principal :
       {"unix:uid:1", "unix:uid:100", "unix:gid:10", "unix:uid:10 ", ""}) {
    EXPECT_THAT(authorizer->Check(CallerWith({principal}),
                                  permission::kKeyRingsGet, Name(kRing)),
                StatusIs(absl::StatusCode::kPermissionDenied))
        << principal;
  }
}

TEST(AuthorizerTest, GrantReachesDownOnSegmentBoundariesAndNeverUp) {
  const auto authorizer = Make({{"unix:uid:1", "roles/cloudkms.admin", kRing}});
  const Caller caller = CallerWith({"unix:uid:1"});
  for (const char* allowed :
       {"projects/p/locations/l/keyRings/r",
        "projects/p/locations/l/keyRings/r/cryptoKeys/k",
        "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/7"}) {
    EXPECT_OK(
        authorizer->Check(caller, permission::kVersionsGet, Name(allowed)));
  }
  for (const char* denied :
       {"projects/p/locations/l", "projects/p/locations/l/keyRings/r2",
        "projects/p/locations/l/keyRings/r2/cryptoKeys/k",
        "projects/p/locations/l/keyRings/r-/cryptoKeys/k",
        "projects/p/locations/l2/keyRings/r/cryptoKeys/k",
        "projects/p2/locations/l/keyRings/r/cryptoKeys/k"}) {
    EXPECT_THAT(
        authorizer->Check(caller, permission::kVersionsGet, Name(denied)),
        StatusIs(absl::StatusCode::kPermissionDenied))
        << denied;
  }
}

TEST(AuthorizerTest, EmptyResourceIsTheWholeServer) {
  const auto authorizer = Make({{"unix:uid:1", "roles/cloudkms.viewer", ""}});
  EXPECT_OK(authorizer->Check(CallerWith({"unix:uid:1"}),
                              permission::kCryptoKeysGet, Name(kKey)));
}

// Every cell of role x permission.
TEST(AuthorizerTest, RolesHoldGooglesPermissions) {
  namespace p = permission;
  EXPECT_THAT(PermissionsOf("roles/cloudkms.admin"),
              UnorderedElementsAre(
                  p::kKeyRingsCreate, p::kKeyRingsGet, p::kKeyRingsList,
                  p::kCryptoKeysCreate, p::kCryptoKeysGet, p::kCryptoKeysList,
                  p::kCryptoKeysUpdate, p::kVersionsCreate, p::kVersionsGet,
                  p::kVersionsList, p::kVersionsUpdate, p::kVersionsDestroy,
                  p::kVersionsRestore));
  EXPECT_THAT(PermissionsOf("roles/cloudkms.viewer"),
              UnorderedElementsAre(p::kKeyRingsGet, p::kKeyRingsList,
                                   p::kCryptoKeysGet, p::kCryptoKeysList,
                                   p::kVersionsGet, p::kVersionsList));
  EXPECT_THAT(PermissionsOf("roles/cloudkms.cryptoKeyEncrypter"),
              ElementsAre(p::kUseToEncrypt));
  EXPECT_THAT(PermissionsOf("roles/cloudkms.cryptoKeyDecrypter"),
              ElementsAre(p::kUseToDecrypt));
  EXPECT_THAT(PermissionsOf("roles/cloudkms.cryptoKeyEncrypterDecrypter"),
              UnorderedElementsAre(p::kUseToEncrypt, p::kUseToDecrypt));
  EXPECT_THAT(PermissionsOf("roles/kekd.operator"),
              UnorderedElementsAre(p::kServerGet, p::kServerOperate));
  EXPECT_THAT(PermissionsOf("roles/owner"), IsEmpty());
}

TEST(AuthorizerTest, AdminCannotUseKeysAndUserCannotChangeThem) {
  const auto authorizer =
      Make({{"unix:uid:1", "roles/cloudkms.admin", ""},
            {"unix:uid:2", "roles/cloudkms.cryptoKeyEncrypterDecrypter", ""}});
  for (const auto use :
       {permission::kUseToEncrypt, permission::kUseToDecrypt}) {
    EXPECT_THAT(authorizer->Check(CallerWith({"unix:uid:1"}), use, Name(kKey)),
                StatusIs(absl::StatusCode::kPermissionDenied));
  }
  for (const auto change : PermissionsOf("roles/cloudkms.admin")) {
    EXPECT_THAT(
        authorizer->Check(CallerWith({"unix:uid:2"}), change, Name(kKey)),
        StatusIs(absl::StatusCode::kPermissionDenied));
  }
}

TEST(AuthorizerTest, ServerPermissionsNeedAGrantOnTheServer) {
  const auto authorizer = Make({{"unix:uid:1", "roles/kekd.operator", ""},
                                {"unix:uid:2", "roles/cloudkms.admin", ""}});
  EXPECT_OK(authorizer->CheckServer(CallerWith({"unix:uid:1"}),
                                    permission::kServerOperate));
  EXPECT_THAT(
      authorizer->CheckServer(CallerWith({"unix:uid:2"}),
                              permission::kServerOperate),
      StatusIs(absl::StatusCode::kPermissionDenied,
               "Permission 'kekd.server.operate' denied on this server."));
}

TEST(AuthorizerTest, OnlyOwnWorkFromInsideIsAllowedWithoutAGrant) {
  const auto authorizer = Make({});
  const Caller own{.principals = {"kekd:lifecycle"}};
  EXPECT_OK(authorizer->Check(own, permission::kUseToEncrypt, Name(kKey)));
  EXPECT_OK(authorizer->CheckServer(own, permission::kServerGet));
  // A front end that forgets to set the authenticator must not open the door.
  const Caller unset{.principals = {"unix:uid:1"},
                     .front_end = FrontEnd::kCloudKms};
  EXPECT_THAT(authorizer->Check(unset, permission::kUseToEncrypt, Name(kKey)),
              StatusIs(absl::StatusCode::kPermissionDenied));
  EXPECT_THAT(authorizer->CheckServer(unset, permission::kServerGet),
              StatusIs(absl::StatusCode::kPermissionDenied));
}

TEST(AuthorizerTest, BadGrantsAreNamed) {
  const Grant good{"unix:uid:1", "roles/cloudkms.viewer", ""};
  const auto create = [&good](Grant bad) {
    return Authorizer::Create({good, std::move(bad)});
  };
  EXPECT_THAT(create({"unix:uid:1", "roles/cloudkms.vewer", ""}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("grant 2: unknown role "
                                 "\"roles/cloudkms.vewer\"; the roles are "
                                 "roles/cloudkms.admin, ")));
  EXPECT_THAT(create({"unix:uid:1", "roles/cloudkms.viewer", "keyRings/r"}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("grant 2: resource \"keyRings/r\": ")));
  EXPECT_THAT(create({"", "roles/cloudkms.viewer", ""}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "grant 2: the principal is empty"));
  EXPECT_THAT(create({"unix:uid:1", "roles/kekd.operator", kRing}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("leave the resource empty")));
}

TEST(AuthorizerTest, ReplaceHoldsBeforeItReturnsAndABadOneChangesNothing) {
  const auto authorizer = Make({{"unix:uid:1", "roles/cloudkms.viewer", ""}});
  const Caller caller = CallerWith({"unix:uid:1"});
  EXPECT_THAT(authorizer->Replace({{"unix:uid:1", "roles/none", ""}}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(authorizer->Check(caller, permission::kKeyRingsGet, Name(kRing)));
  ASSERT_OK(authorizer->Replace({}));
  EXPECT_THAT(authorizer->Check(caller, permission::kKeyRingsGet, Name(kRing)),
              StatusIs(absl::StatusCode::kPermissionDenied));
}

TEST(AuthorizerTest, ReplaceIsAtomicForReaders) {
  // Uid 1 may encrypt in both policies; no reader may see a moment without.
  const std::vector<Grant> one = {
      {"unix:uid:1", "roles/cloudkms.cryptoKeyEncrypter", kKey}};
  const std::vector<Grant> two = {
      {"unix:uid:1", "roles/cloudkms.cryptoKeyEncrypterDecrypter", kRing}};
  const auto authorizer = Make(one);
  const Caller caller = CallerWith({"unix:uid:1"});
  const catalog::ResourceName key = Name(kKey);
  std::atomic<bool> stop = false;
  std::atomic<int> denied = 0;
  std::vector<std::thread> readers;
  for (int t = 0; t < 3; ++t) {
    readers.emplace_back([&] {
      while (!stop) {
        if (!authorizer->Check(caller, permission::kUseToEncrypt, key).ok()) {
          ++denied;
        }
      }
    });
  }
  for (int i = 0; i < 300; ++i) {
    EXPECT_OK(authorizer->Replace(i % 2 == 0 ? two : one));
  }
  stop = true;
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(denied, 0);
}

}  // namespace
}  // namespace kek::core
