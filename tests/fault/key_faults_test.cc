// SPDX-License-Identifier: Apache-2.0
//
// Keys that are generated with trouble, or are not what was asked for.
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "pkcs11/error.h"
#include "tests/fault/fault_test.h"
#include "tests/support/test_tokens.h"

namespace kek::fault {
namespace {

using base::testing::StatusIs;
using pkcs11::TokenState;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class KeyFaultTest : public FaultTest {
 protected:
  void SetUp() override {
    FaultTest::SetUp();
    ASSERT_NO_FATAL_FAILURE(OpenReady());
    rules_->Forget();
  }

  std::vector<pkcs11::ObjectInfo> Objects() {
    absl::StatusOr<std::vector<pkcs11::ObjectInfo>> objects =
        token_->ListKeys(Soon());
    EXPECT_OK(objects);
    return objects.ok() ? *std::move(objects)
                        : std::vector<pkcs11::ObjectInfo>();
  }

  // Generates a key; it is whole, usable and the only object on the token.
  pkcs11::KeyAttributes ExpectOneGoodKey() {
    const KnownKey key = {NewIdentity("key"), {}, nullptr};
    const absl::StatusOr<pkcs11::KeyAttributes> attributes =
        token_->GenerateKey(key.identity, Soon());
    EXPECT_OK(attributes);
    rules_->Clear();
    const std::vector<pkcs11::ObjectInfo> objects = Objects();
    EXPECT_THAT(objects, SizeIs(1));
    if (objects.size() == 1) {
      EXPECT_EQ(objects[0].id, key.identity.id);
      EXPECT_EQ(objects[0].label, key.identity.label);
      EXPECT_TRUE(objects[0].usable);
    }
    EXPECT_OK(token_->MakeCanary(key.identity, aad_, Soon()));
    if (!attributes.ok()) return {};
    EXPECT_EQ(attributes->extractable, false);
    EXPECT_EQ(attributes->sensitive, true);
    return *attributes;
  }
};

TEST_F(KeyFaultTest, Fault57ErrorAfterTheKeyWasMadeLeavesExactlyOneObject) {
  for (const char* rv : {"CKR_DEVICE_ERROR", "CKR_GENERAL_ERROR",
                         "CKR_FUNCTION_FAILED", "CKR_SESSION_HANDLE_INVALID"}) {
    SCOPED_TRACE(rv);
    rules_->Set({absl::StrCat("C_GenerateKey post=1 rv=", rv)});
    ExpectOneGoodKey();
    for (const pkcs11::ObjectInfo& object : Objects()) {
      EXPECT_OK(token_->DestroyUnprovenKey({object.id, object.label}, Soon()));
    }
  }
}

TEST_F(KeyFaultTest, Fault57ErrorAfterTheKeyWasMadeIsNotMadeTwice) {
  rules_->Set({"C_GenerateKey post=1 rv=CKR_DEVICE_ERROR"});
  ExpectOneGoodKey();
  int made = 0;
  for (const FaultRules::Call& call : rules_->Calls("C_GenerateKey")) {
    made += call.details.count("object") != 0 ? 1 : 0;
  }
  // Adopted, or destroyed before a second one was made.
  EXPECT_EQ(made - rules_->Count("C_DestroyObject"), 1);
}

TEST_F(KeyFaultTest, Fault63GeneralErrorOfSomeGenerationsIsInvisible) {
  rules_->Set({"C_GenerateKey every=5 count=-1 rv=CKR_GENERAL_ERROR"});
  for (int i = 0; i < 20; ++i) {
    EXPECT_OK(token_->GenerateKey(NewIdentity(absl::StrCat("k", i)), Soon()));
  }
  int errors = 0;
  for (const FaultRules::Call& call : rules_->Calls("C_GenerateKey")) {
    errors += call.rv != 0 ? 1 : 0;
  }
  EXPECT_GE(errors, 4);
  EXPECT_THAT(Objects(), SizeIs(20));
  EXPECT_EQ(State(), TokenState::kReady);
}

TEST_F(KeyFaultTest, Fault63GenerationBesideSearchesNeverFails) {
  // SoftHSM 2.6.1 itself loses 2-4 % of these when a search runs beside them.
  std::atomic<bool> stop{false};
  std::thread searcher([&] {
    while (!stop) EXPECT_OK(token_->ListKeys(Soon()));
  });
  for (int i = 0; i < 60; ++i) {
    EXPECT_OK(token_->GenerateKey(NewIdentity(absl::StrCat("k", i)), Soon()));
  }
  stop = true;
  searcher.join();
  EXPECT_THAT(Objects(), SizeIs(60));
}

TEST_F(KeyFaultTest, Fault64RefusedAttributesAreDroppedAndRecorded) {
  for (const char* attribute : {"CKA_COPYABLE", "CKA_MODIFIABLE"}) {
    for (const char* rv :
         {"CKR_ATTRIBUTE_TYPE_INVALID", "CKR_TEMPLATE_INCONSISTENT",
          "CKR_ATTRIBUTE_VALUE_INVALID"}) {
      SCOPED_TRACE(absl::StrCat(attribute, " ", rv));
      rules_->Set({absl::StrCat(
          "C_GenerateKey count=-1 refuse_attr=", attribute, ":", rv)});
      const pkcs11::KeyAttributes attributes = ExpectOneGoodKey();
      EXPECT_THAT(attributes.dropped, Contains(attribute));
      for (const pkcs11::ObjectInfo& object : Objects()) {
        EXPECT_OK(
            token_->DestroyUnprovenKey({object.id, object.label}, Soon()));
      }
    }
  }
  // Nothing is dropped without need.
  EXPECT_THAT(ExpectOneGoodKey().dropped, IsEmpty());
}

TEST_F(KeyFaultTest, Fault64AttributesThatProtectTheKeyAreNeverDropped) {
  for (const char* attribute :
       {"CKA_SENSITIVE", "CKA_EXTRACTABLE", "CKA_PRIVATE", "CKA_WRAP"}) {
    SCOPED_TRACE(attribute);
    rules_->Set(
        {absl::StrCat("C_GenerateKey count=-1 refuse_attr=", attribute)});
    EXPECT_THAT(token_->GenerateKey(NewIdentity("key"), Soon()),
                StatusIs(absl::StatusCode::kFailedPrecondition));
    EXPECT_THAT(Objects(), IsEmpty());
  }
}

TEST_F(KeyFaultTest, Fault65KeyThatReadsBackWeakIsDestroyed) {
  for (const char* attribute :
       {"CKA_EXTRACTABLE:1", "CKA_SENSITIVE:0", "CKA_WRAP:1", "CKA_PRIVATE:0",
        "CKA_NEVER_EXTRACTABLE:0", "CKA_ALWAYS_SENSITIVE:0", "CKA_LOCAL:0",
        "CKA_TOKEN:0", "CKA_VALUE_LEN:16", "CKA_DERIVE:1"}) {
    SCOPED_TRACE(attribute);
    rules_->Set(
        {absl::StrCat("C_GetAttributeValue count=-1 attr=", attribute)});
    const pkcs11::KeyIdentity identity = NewIdentity("weak");
    const absl::Status status = token_->GenerateKey(identity, Soon()).status();
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kDataLoss));
    EXPECT_EQ(pkcs11::ClassOf(status), pkcs11::ErrorClass::kIntegrity);
    rules_->Clear();
    EXPECT_THAT(Objects(), IsEmpty());
  }
}

TEST_F(KeyFaultTest, Fault65ModuleThatMakesAllKeysWeakRefusesTheStart) {
  token_.reset();
  for (const char* attribute : {"CKA_EXTRACTABLE:1", "CKA_SENSITIVE:0"}) {
    rules_->Set(
        {absl::StrCat("C_GetAttributeValue count=-1 attr=", attribute)});
    EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kFailedPrecondition))
        << attribute;
  }
  rules_->Clear();
  ASSERT_NO_FATAL_FAILURE(OpenReady());
}

TEST_F(KeyFaultTest, Fault66ModuleThatIgnoresExtractableIsRefused) {
  if (!testing::TestToken::HaveNss()) GTEST_SKIP() << "no NSS";
  ASSERT_OK_AND_ASSIGN(const testing::TestToken nss,
                       testing::TestToken::Nss(dir_.File("nss")));
  pkcs11::TokenOptions options = nss.Options(state_dir_);
  options.profile.attributes = pkcs11::AttributePolicy::kObserved;
  EXPECT_THAT(Open(options), StatusIs(absl::StatusCode::kFailedPrecondition,
                                      HasSubstr("non-extractable")));
  options.profile.insecure_module_ok = true;
  ASSERT_OK(Open(options));
  ASSERT_TRUE(Eventually([&] { return State() == TokenState::kReady; }));
  const KnownKey key = MakeKey();
  ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed sealed, Encrypt(key));
  EXPECT_TRUE(Opens(key, sealed));
}

}  // namespace
}  // namespace kek::fault
