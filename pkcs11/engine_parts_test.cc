// SPDX-License-Identifier: Apache-2.0
#include <thread>

#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "pkcs11/error_internal.h"
#include "pkcs11/key.h"
#include "pkcs11/key_table.h"
#include "pkcs11/module.h"
#include "pkcs11/random_watch.h"
#include "pkcs11/token_uri.h"

namespace kek::pkcs11 {
namespace {

using ::kek::base::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::Not;
using Outcome = KeyTable::Outcome;

base::Deadline Soon() { return base::DeadlineAfter(std::chrono::seconds(10)); }
base::Deadline AtOnce() {
  return base::DeadlineAfter(std::chrono::milliseconds(20));
}

TEST(ErrorTest, MeaningDependsOnTheOperation) {
  EXPECT_EQ(ClassifyRv(CKR_GENERAL_ERROR, Operation::kDecrypt),
            ErrorClass::kAmbiguous);
  EXPECT_EQ(ClassifyRv(CKR_GENERAL_ERROR, Operation::kEncrypt),
            ErrorClass::kDevice);
  EXPECT_EQ(ClassifyRv(CKR_ARGUMENTS_BAD, Operation::kOpenSession),
            ErrorClass::kCapacity);
  EXPECT_EQ(ClassifyRv(CKR_KEY_TYPE_INCONSISTENT, Operation::kCipherInit),
            ErrorClass::kHandle);
  const uint64_t learned[] = {CKR_DEVICE_ERROR};
  EXPECT_EQ(ClassifyRv(CKR_DEVICE_ERROR, Operation::kDecrypt),
            ErrorClass::kDevice);
  EXPECT_EQ(ClassifyRv(CKR_DEVICE_ERROR, Operation::kDecrypt, learned),
            ErrorClass::kAmbiguous);
}

TEST(ErrorTest, UnknownCodesAreTheDevices) {
  EXPECT_EQ(ClassifyRv(0x80000123, Operation::kEncrypt), ErrorClass::kDevice);
  EXPECT_EQ(ClassifyRv(110, Operation::kOther), ErrorClass::kDevice);
  EXPECT_EQ(RvName(0x80000123), "CKR_0x80000123");
  EXPECT_EQ(RvName(CKR_DEVICE_ERROR), "CKR_DEVICE_ERROR");
}

TEST(ErrorTest, StatusCarriesClassAndCode) {
  const absl::Status status =
      FromRv(CKR_SESSION_COUNT, Operation::kOpenSession, "C_OpenSession");
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted,
                               HasSubstr("CKR_SESSION_COUNT")));
  EXPECT_EQ(ClassOf(status), ErrorClass::kCapacity);
  EXPECT_EQ(RvOf(status), CKR_SESSION_COUNT);
  EXPECT_EQ(ClassOf(absl::InternalError("x")), ErrorClass::kNone);
  EXPECT_EQ(RvOf(absl::OkStatus()), std::nullopt);
}

TEST(TokenUriTest, OnlyWhatNamesATokenIsAllowed) {
  EXPECT_OK(TokenUri::Parse("pkcs11:token=kek-a"));
  EXPECT_OK(TokenUri::Parse("pkcs11:token=a;serial=1;model=m;manufacturer=x"));
  for (const char* uri :
       {"", "token=kek-a", "pkcs11:", "pkcs11:token=a;slot-id=3",
        "pkcs11:token=a;object=k", "pkcs11:token=a?pin-value=98765",
        "pkcs11:token=a?pin-source=file:/p", "pkcs11:token=a;x-y=z",
        "pkcs11:token=a?module-path=/m.so"}) {
    EXPECT_THAT(
        TokenUri::Parse(uri),
        StatusIs(absl::StatusCode::kInvalidArgument, Not(HasSubstr("98765"))))
        << uri;
  }
}

TEST(ModuleTest, LoadSaysWhatIsWrong) {
  EXPECT_THAT(Module::Load("libsofthsm2.so", ""),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Module::Load("/no/such/module.so", ""),
              StatusIs(absl::StatusCode::kNotFound));
  const base::testing::TempDir dir;
  EXPECT_THAT(Module::Load(dir.Write("x.so", "text"), ""),
              StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(ModuleTest, DrainWaitsForThoseInsideAndKeepsOthersOut) {
  ASSERT_OK_AND_ASSIGN(const std::shared_ptr<Module> module,
                       Module::Load("/usr/lib/softhsm/libsofthsm2.so", ""));
  const auto nobody = [] { return 0; };
  ASSERT_OK_AND_ASSIGN(Module::Use inside, Module::Enter(module, Soon()));
  EXPECT_THAT(Module::Drain(module, nobody, AtOnce()),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  {
    ASSERT_OK_AND_ASSIGN(const Module::Exclusive tolerant,
                         Module::Drain(
                             module, [] { return 1; }, Soon()));
    EXPECT_FALSE(tolerant.empty());
    EXPECT_THAT(Module::Enter(module, AtOnce()),
                StatusIs(absl::StatusCode::kDeadlineExceeded));
  }
  std::thread leaves([&] { inside = Module::Use(); });
  {
    ASSERT_OK_AND_ASSIGN(const Module::Exclusive gate,
                         Module::Drain(module, nobody, Soon()));
    EXPECT_TRUE(gate.empty());
  }
  leaves.join();
  EXPECT_OK(Module::Enter(module, Soon()));
}

const std::vector<uint8_t> kId = {1, 2, 3};

FoundObject Object(CK_OBJECT_HANDLE handle) {
  return {.handle = handle, .info = {.id = kId, .label = "k", .usable = true}};
}

TEST(KeyTableTest, DuplicateIdsAreNeitherOfTheObjects) {
  KeyTable table(7);
  EXPECT_EQ(table.Lookup(kId).first, Outcome::kUnknown);
  table.Replace({Object(1)});
  const auto [outcome, entry] = table.Lookup(kId);
  ASSERT_EQ(outcome, Outcome::kFound);
  EXPECT_EQ(entry->handle, (KeyHandle{7, 1}));
  table.Replace({Object(1), Object(2)});
  EXPECT_EQ(table.Lookup(kId).first, Outcome::kDuplicate);
}

TEST(KeyTableTest, MissingIsRememberedUntilTheKeyIsAdded) {
  KeyTable table(1);
  table.Replace({});
  table.RememberMissing(kId);
  EXPECT_EQ(table.Lookup(kId).first, Outcome::kMissing);
  table.Add(kId, 5);
  EXPECT_EQ(table.Lookup(kId).first, Outcome::kFound);
}

TEST(KeyTableTest, AllIsLostWhenNothingThatWasSeenIsFoundAgain) {
  KeyTable table(1);
  const FoundObject other{.handle = 6, .info = {.id = {9, 9}}};
  EXPECT_FALSE(table.LostAll()) << "an empty token has nothing to lose";
  table.Add(kId, 5);
  table.Replace({other});
  EXPECT_FALSE(table.LostAll()) << "one object is destroyed, the token works";
  table.Replace({});
  EXPECT_TRUE(table.LostAll());
  EXPECT_TRUE(table.RevokeAndDrain(kId, AtOnce()));
  EXPECT_TRUE(table.RevokeAndDrain(other.info.id, AtOnce()));
  EXPECT_FALSE(table.LostAll()) << "they were destroyed on purpose";
}

TEST(KeyTableTest, RevokedEntryIsDrainedAndCannotBeEntered) {
  KeyTable table(1);
  table.Replace({Object(1)});
  const std::shared_ptr<KeyTable::Entry> entry = table.Lookup(kId).second;
  auto use = table.Enter(entry);
  ASSERT_TRUE(use.has_value());
  std::thread leaves([&] {
    while (!entry->revoked.load()) std::this_thread::yield();
    EXPECT_FALSE(table.Enter(entry).has_value());
    use.reset();
  });
  EXPECT_TRUE(table.RevokeAndDrain(kId, Soon()));
  leaves.join();
  EXPECT_EQ(table.Lookup(kId).first, Outcome::kUnknown);
}

TEST(KeyTest, ProofCoversOnlyWhatWasMadeThroughTheSameHandleBeforeIt) {
  Key key({.id = kId, .label = "k"}, Canary{});
  const KeyHandle old_handle{1, 9}, new_handle{2, 9};
  key.NoteUse(old_handle);
  EXPECT_TRUE(key.Cover(old_handle, key.uses()));
  key.NoteUse(old_handle);
  const uint64_t first_group = key.uses();
  key.NoteUse(old_handle);  // ends while the first group is being proven
  EXPECT_FALSE(key.Cover(new_handle, first_group));
  EXPECT_FALSE(key.Cover(new_handle, key.uses())) << "the second group's";
  EXPECT_TRUE(key.Cover(new_handle, key.uses()));
}

TEST(RandomWatchTest, ZerosAndRepetitionsAreNoticed) {
  RandomWatch watch;
  std::vector<uint8_t> block(16, 0);
  EXPECT_FALSE(watch.Accept(block));
  block[0] = 1;
  EXPECT_TRUE(watch.Accept(block));
  EXPECT_FALSE(watch.Accept(block));
  block[0] = 2;
  EXPECT_TRUE(watch.Accept(block));
}

}  // namespace
}  // namespace kek::pkcs11
