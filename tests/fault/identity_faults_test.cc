// SPDX-License-Identifier: Apache-2.0
//
// Tokens, slots, handles and objects that are not what they were.
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "pkcs11/error.h"
#include "tests/fault/fault_test.h"

namespace kek::fault {
namespace {

using base::testing::StatusIs;
using pkcs11::TokenState;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class IdentityFaultTest : public FaultTest {
 protected:
  void SetUp() override {
    FaultTest::SetUp();
    ASSERT_NO_FATAL_FAILURE(OpenReady());
    rules_->Forget();
  }

  // An AES key of the same CKA_ID and label, made by another process.
  void MakeImposter(const SoftHsm& soft_hsm, const std::string& token,
                    const KnownKey& key) {
    ASSERT_TRUE(soft_hsm.Tool(token, {"--keygen", "--key-type", "AES:32",
                                      "--id", Hex(key.identity.id), "--label",
                                      key.identity.label, "--sensitive"}));
  }

  size_t Objects(const KnownKey& key) {
    const absl::StatusOr<std::vector<pkcs11::ObjectInfo>> objects =
        token_->ListKeys(Soon());
    EXPECT_OK(objects);
    size_t count = 0;
    if (objects.ok()) {
      for (const pkcs11::ObjectInfo& object : *objects) {
        count += object.id == key.identity.id ? 1 : 0;
      }
    }
    return count;
  }
};

// ---- tokens
// ------------------------------------------------------------------

TEST_F(IdentityFaultTest, Fault24TokenReplacedByOneOfTheSameLabel) {
  const KnownKey key = MakeKey();
  ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed before, Encrypt(key));
  const std::string serial = token_->info().serial;
  SoftHsm other;
  other.InitToken(kLabel);
  MakeImposter(other, kLabel, key);
  other.Use();
  rules_->Forget();
  rules_->Set({"C_EncryptInit reinit=1"});
  EXPECT_THAT(Encrypt(key), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_NE(token_->info().serial, serial) << "the test has changed nothing";
  EXPECT_TRUE(token_->IsQuarantined(key.key));
  EXPECT_EQ(PlaintextEncryptions(), 0) << "something was wrapped with it";
  EXPECT_THAT(Decrypt(key, before), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(Events(), Contains(HasSubstr("key-quarantined")));
  // The latch holds when the right token is back.
  soft_hsm_.Use();
  rules_->Set({"C_GenerateRandom reinit=1"});
  EXPECT_TRUE(Eventually([&] {
    return token_->Probe(Soon()).ok() && token_->info().serial == serial;
  }));
  EXPECT_THAT(Encrypt(key), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(IdentityFaultTest, Fault24TokenReplacedByAnEmptyOneOfTheSameLabel) {
  const KnownKey key = MakeKey();
  SoftHsm other;
  other.InitToken(kLabel);
  rules_->Forget();
  rules_->Set({"C_EncryptInit reinit=1"});
  const absl::Status status = Encrypt(key).status();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(PlaintextEncryptions(), 0);
  // No proof failed: with the right token back the key is the same as before.
  soft_hsm_.Use();
  rules_->Set({"C_GenerateRandom reinit=1"});
  EXPECT_OK(token_->Probe(Soon()));
  EXPECT_OK(EncryptsBefore(key, Soon()));
}

TEST_F(IdentityFaultTest, Fault25TwoMatchingTokensRefuseTheStart) {
  const std::string serial = token_->info().serial;
  token_.reset();
  soft_hsm_.InitToken(kLabel);
  rules_->Forget();
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(rules_->Count("C_Login"), 0);
  // The serial number tells them apart.
  pkcs11::TokenOptions options = Options();
  options.uri = absl::StrCat("pkcs11:token=", kLabel, ";serial=", serial);
  ASSERT_OK(Open(std::move(options)));
  EXPECT_TRUE(Eventually([&] { return State() == TokenState::kReady; }));
  EXPECT_EQ(token_->info().serial, serial);
}

TEST_F(IdentityFaultTest, Fault26SlotsThatMoveBetweenRunsChangeNothing) {
  const KnownKey made = MakeKey();
  ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed sealed, Encrypt(made));
  const std::string serial = token_->info().serial;
  const std::vector<std::vector<std::string>> runs = {
      {}, {"C_GetSlotList count=-1 slots=reverse"}, {"* slot_offset=4096"}};
  for (const std::vector<std::string>& rules : runs) {
    for (int i = 0; i < 3; ++i) {
      token_.reset();
      // SoftHSM lists tokens by their random directory names.
      soft_hsm_.InitToken(absl::StrCat("other-", rules.size(), "-", i));
      rules_->Set(rules);
      ASSERT_NO_FATAL_FAILURE(OpenReady());
      EXPECT_EQ(token_->info().serial, serial);
      const KnownKey key = Reopened(made);
      EXPECT_TRUE(Opens(key, sealed));
      EXPECT_OK(Encrypt(key));
    }
  }
}

TEST_F(IdentityFaultTest, Fault26SlotsThatMoveUnderARunningTokenChangeNothing) {
  const KnownKey key = MakeKey();
  ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed sealed, Encrypt(key));
  // From now on the token is another slot's, and the old slot is nobody's.
  rules_->Set({"* slot_offset=4096", "C_EncryptInit dropsessions=1"});
  EXPECT_OK(EncryptsBefore(key, Soon()));
  EXPECT_TRUE(Opens(key, sealed));
}

// ---- handles
// -----------------------------------------------------------------

TEST_F(IdentityFaultTest, Fault27SwappedHandleIsCaughtByTheProof) {
  const KnownKey a = MakeKey("a");
  const KnownKey b = MakeKey("b");
  ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed before, Encrypt(a));
  ASSERT_OK(token_->Prove(a.key, Soon()));
  // The handles resolved long ago now stand for each other, for good.
  rules_->Set({"C_*cryptInit count=-1 swapkey=1"});
  const absl::StatusOr<pkcs11::Sealed> wrong = Encrypt(a);
  EXPECT_THAT(token_->Prove(a.key, Soon()),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_TRUE(token_->IsQuarantined(a.key));
  EXPECT_THAT(Events(), Contains(HasSubstr("key-quarantined")));
  rules_->Forget();
  EXPECT_THAT(Encrypt(a), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(token_->Prove(a.key, Soon()),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(PlaintextEncryptions(), 0);

  // Latched, although the handles are right again; the other key is not.
  rules_->Clear();
  EXPECT_THAT(Encrypt(a), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_FALSE(token_->IsQuarantined(b.key));
  EXPECT_OK(Encrypt(b));
  // Only an operator's word ends it.
  token_->ClearQuarantine(a.key);
  EXPECT_FALSE(token_->IsQuarantined(a.key));
  EXPECT_OK(Encrypt(a));
  EXPECT_OK(token_->Prove(a.key, Soon()));
  // That the proof was needed: what the swapped handle made is not a's.
  ASSERT_NO_FATAL_FAILURE(OpenReady());
  const KnownKey again = Reopened(a);
  EXPECT_TRUE(Opens(again, before));
  if (wrong.ok()) {
    EXPECT_THAT(Decrypt(again, *wrong),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST_F(IdentityFaultTest, Fault27NoProvenBlobIsMadeByASwappedHandle) {
  const KnownKey a = MakeKey("a");
  const KnownKey b = MakeKey("b");
  ASSERT_OK(Encrypt(b));
  struct Accepted {
    base::Mutex mu;
    std::vector<pkcs11::Sealed> blobs ABSL_GUARDED_BY(mu);
  } accepted;
  std::atomic<int> proven{0};
  std::atomic<int> refused{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      while (refused < 20) {
        // As the service does it: encrypt, prove, and only then reply.
        absl::StatusOr<pkcs11::Sealed> sealed = Encrypt(a);
        if (sealed.ok() && token_->Prove(a.key, Soon()).ok()) {
          base::MutexLock lock(accepted.mu);
          accepted.blobs.push_back(*std::move(sealed));
          ++proven;
        } else {
          ++refused;
        }
      }
    });
  }
  EXPECT_TRUE(Eventually([&] { return proven >= 50; }));
  rules_->Set({"C_*cryptInit count=-1 swapkey=1"});
  for (std::thread& thread : threads) thread.join();
  rules_->Clear();
  ASSERT_NO_FATAL_FAILURE(OpenReady());
  const KnownKey again = Reopened(a);
  base::MutexLock lock(accepted.mu);
  EXPECT_GE(accepted.blobs.size(), 50u);
  for (const pkcs11::Sealed& blob : accepted.blobs) {
    ASSERT_TRUE(Opens(again, blob));
  }
}

TEST_F(IdentityFaultTest, Fault27SwapAtEncryptOnlyNeverLeaves) {
  const KnownKey a = MakeKey("a");
  const KnownKey b = MakeKey("b");
  ASSERT_OK(Encrypt(a));
  ASSERT_OK(Encrypt(b));
  rules_->Set({"C_EncryptInit count=-1 swapkey=1"});
  EXPECT_THAT(Encrypt(a), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_TRUE(token_->IsQuarantined(a.key));
}

TEST_F(IdentityFaultTest, Fault28RenumberedHandlesAreResolvedAndProven) {
  const KnownKey a = MakeKey("a");
  const KnownKey b = MakeKey("b");
  const KnownKey c = MakeKey("c");
  ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed by_a, Encrypt(a));
  ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed by_b, Encrypt(b));
  ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed by_c, Encrypt(c));
  const auto handle_of_last = [&] {
    return rules_->Calls("C_DecryptInit").back().details.at("key");
  };
  ASSERT_TRUE(Opens(c, by_c));
  const std::string old_handle = handle_of_last();
  const uint64_t generation = Generation();
  // SoftHSM numbers its objects anew, in another order: one key is gone.
  ASSERT_TRUE(soft_hsm_.Tool(kLabel, {"--delete-object", "--type", "secrkey",
                                      "--id", Hex(a.identity.id)}));
  rules_->Set({"C_DecryptInit reinit=1"});
  EXPECT_TRUE(Opens(c, by_c));
  EXPECT_NE(handle_of_last(), old_handle) << "the test has renumbered nothing";
  EXPECT_GT(Generation(), generation);
  EXPECT_TRUE(Opens(b, by_b));
  EXPECT_THAT(Decrypt(a, by_a), StatusIs(absl::StatusCode::kUnavailable));
  ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed again, Encrypt(b));
  EXPECT_THAT(Decrypt(c, again), StatusIs(absl::StatusCode::kInvalidArgument));
}

// ---- objects
// -----------------------------------------------------------------

TEST_F(IdentityFaultTest, Fault31KeyDestroyedByAnotherProcessIsMissing) {
  const KnownKey key = MakeKey("key");
  const KnownKey other = MakeKey("other");
  ASSERT_OK(Encrypt(key));
  ASSERT_OK(Encrypt(other));
  ASSERT_TRUE(soft_hsm_.Tool(kLabel, {"--delete-object", "--type", "secrkey",
                                      "--id", Hex(key.identity.id)}));
  rules_->Forget();
  const absl::Status status = Encrypt(key).status();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(pkcs11::ClassOf(status), pkcs11::ErrorClass::kHandle);
  EXPECT_THAT(Events(), Not(IsEmpty())) << "an operator must know";
  EXPECT_FALSE(token_->IsQuarantined(key.key)) << "missing, not wrong";
  EXPECT_THAT(token_->ReadAttributes(key.identity, Soon()),
              StatusIs(absl::StatusCode::kNotFound));
  // The token is fine, and so is every other key.
  for (int i = 0; i < 50; ++i) {
    EXPECT_THAT(Encrypt(key), StatusIs(absl::StatusCode::kUnavailable));
    EXPECT_OK(Encrypt(other));
  }
  EXPECT_EQ(State(), TokenState::kReady);
  EXPECT_EQ(rules_->Count("C_Login"), 0);
  EXPECT_EQ(rules_->Count("C_Initialize"), 0);
  EXPECT_LT(rules_->Count("C_FindObjectsInit"), 30)
      << "each use of a missing key searches the token";
}

TEST_F(IdentityFaultTest, Fault32TwoObjectsOfOneIdAreBothRefused) {
  const KnownKey made = MakeKey();
  ASSERT_OK(Encrypt(made));
  token_.reset();
  MakeImposter(soft_hsm_, kLabel, made);
  ASSERT_NO_FATAL_FAILURE(OpenReady());
  const KnownKey key = Reopened(made);
  rules_->Forget();
  EXPECT_THAT(Encrypt(key), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_TRUE(token_->IsQuarantined(key.key));
  EXPECT_EQ(PlaintextEncryptions(), 0);
  EXPECT_THAT(token_->ReadAttributes(key.identity, Soon()),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_FALSE(token_->DestroyKey(key.identity, key.canary, Soon()).ok());
  EXPECT_FALSE(token_->DestroyUnprovenKey(key.identity, Soon()).ok());
  EXPECT_EQ(Objects(key), 2u) << "nobody destroyed either";
}

TEST_F(IdentityFaultTest, Fault32FindThatAnswersTwoIsRefused) {
  const KnownKey made = MakeKey();
  token_.reset();
  ASSERT_NO_FATAL_FAILURE(OpenReady());
  const KnownKey key = Reopened(made);
  rules_->Set({"C_FindObjects count=-1 find=2"});
  EXPECT_THAT(Encrypt(key), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_TRUE(token_->IsQuarantined(key.key));
}

TEST_F(IdentityFaultTest, Fault33FindThatAnswersNoneOnceIsRetried) {
  const KnownKey made = MakeKey();
  token_.reset();
  ASSERT_NO_FATAL_FAILURE(OpenReady());
  const KnownKey key = Reopened(made);
  rules_->Set({"C_FindObjects find=0"});
  ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed sealed, Encrypt(key));
  EXPECT_TRUE(Opens(key, sealed));
  EXPECT_EQ(Objects(key), 1u);
  EXPECT_FALSE(token_->IsQuarantined(key.key));
}

TEST_F(IdentityFaultTest, Fault34ErrorInAFindIsFinalizedAndItsSessionClosed) {
  const KnownKey made = MakeKey();
  token_.reset();
  ASSERT_NO_FATAL_FAILURE(OpenReady());
  const KnownKey key = Reopened(made);
  rules_->Forget();
  rules_->Set({"C_FindObjects rv=CKR_DEVICE_ERROR"});
  ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed sealed, Encrypt(key));
  EXPECT_TRUE(Opens(key, sealed));
  std::string broken;
  std::vector<std::string> after;
  for (const FaultRules::Call& call : rules_->Calls()) {
    if (call.function == "C_FindObjects" && call.rv != 0 && broken.empty()) {
      broken = call.details.at("session");
    } else if (!broken.empty() && call.details.count("session") != 0 &&
               call.details.at("session") == broken) {
      after.push_back(call.function);
    }
  }
  EXPECT_THAT(after,
              ::testing::ElementsAre("C_FindObjectsFinal", "C_CloseSession"));
  EXPECT_EQ(State(), TokenState::kReady);
}

}  // namespace
}  // namespace kek::fault
