// SPDX-License-Identifier: Apache-2.0
//
// What sessions, logins and the library lose, and how it comes back.
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "pkcs11/error.h"
#include "tests/fault/fault_test.h"

namespace kek::fault {
namespace {

using base::testing::StatusIs;
using pkcs11::TokenState;
using ::testing::AnyOf;
using ::testing::HasSubstr;

std::string SessionOf(const FaultRules::Call& call) {
  return call.details.at("session");
}

class SessionFaultTest : public FaultTest {
 protected:
  void SetUp() override {
    FaultTest::SetUp();
    ASSERT_NO_FATAL_FAILURE(OpenReady());
    key_ = MakeKey();
    ASSERT_OK(Encrypt(key_));
    rules_->Forget();
  }

  // One encryption under the rule succeeds at the second attempt, with a new IV
  // on another session, and the session that failed is closed.
  void ExpectRetriedOnAnotherSession(const std::string& function,
                                     const std::string& rule,
                                     const std::string& rv_name, uint64_t rv) {
    const uint64_t generation = Generation();
    rules_->Set({function + " " + rule});
    ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed sealed, Encrypt(key_));
    std::vector<FaultRules::Call> failed;
    std::vector<FaultRules::Call> good;
    for (const FaultRules::Call& call : rules_->Calls(function)) {
      (call.rv == rv ? failed : good).push_back(call);
    }
    ASSERT_EQ(failed.size(), 1u);
    ASSERT_EQ(good.size(), 1u);
    EXPECT_NE(SessionOf(failed[0]), SessionOf(good[0]));
    const std::vector<FaultRules::Call> closed =
        rules_->Calls("C_CloseSession");
    ASSERT_EQ(closed.size(), 1u);
    EXPECT_EQ(SessionOf(closed[0]), SessionOf(failed[0]));
    const std::vector<std::string> ivs = Ivs();
    ASSERT_EQ(ivs.size(), 2u);
    EXPECT_NE(ivs[0], ivs[1]);
    EXPECT_EQ(Hex(sealed.iv), ivs[1]);
    EXPECT_EQ(rules_->Count("C_Login"), 0);
    EXPECT_EQ(rules_->Count("C_Initialize"), 0);
    EXPECT_EQ(Generation(), generation);
    EXPECT_TRUE(Opens(key_, sealed));
    EXPECT_EQ(State(), TokenState::kReady);
    EXPECT_THAT(metrics_.Expose(), HasSubstr(rv_name));
  }

  KnownKey key_;
};

TEST_F(SessionFaultTest, Fault01DeviceErrorOnceGivesTheSameResult) {
  ExpectRetriedOnAnotherSession("C_Encrypt", "rv=CKR_DEVICE_ERROR",
                                "CKR_DEVICE_ERROR", 0x30);
}

TEST_F(SessionFaultTest, Fault02DeviceErrorForEverOpensTheBreakerAndHeals) {
  rules_->Set({"C_Encrypt count=-1 rv=CKR_DEVICE_ERROR"});
  int calls = 0;
  while (State() != TokenState::kDegraded && calls < 32) {
    EXPECT_THAT(Encrypt(key_), StatusIs(absl::StatusCode::kUnavailable));
    ++calls;
  }
  ASSERT_EQ(State(), TokenState::kDegraded) << "after " << calls << " calls";
  // With the breaker open, work fails without asking the token each time.
  rules_->Forget();
  for (int i = 0; i < 200; ++i) {
    EXPECT_THAT(Encrypt(key_), StatusIs(absl::StatusCode::kUnavailable));
  }
  EXPECT_LT(rules_->Count("C_Encrypt"), 100);
  EXPECT_EQ(rules_->Count("C_Login"), 0) << "not a login's trouble";
  rules_->Clear();
  EXPECT_OK(EncryptsBefore(key_, Soon()));
  EXPECT_TRUE(Eventually([&] { return State() == TokenState::kReady; }));
}

TEST_F(SessionFaultTest, Fault02TokenDownForGoodIsDegradedAndHealsByItself) {
  rules_->Set({"C_*crypt* count=-1 rv=CKR_DEVICE_ERROR",
               "C_GenerateRandom count=-1 rv=CKR_DEVICE_ERROR"});
  EXPECT_TRUE(Eventually([&] {
    EXPECT_THAT(Encrypt(key_), StatusIs(absl::StatusCode::kUnavailable));
    return State() == TokenState::kDegraded || State() == TokenState::kAbsent;
  }));
  EXPECT_FALSE(token_->health().last_error.ok());
  rules_->Clear();
  EXPECT_OK(EncryptsBefore(key_, Soon()));
  EXPECT_TRUE(Eventually([&] { return State() == TokenState::kReady; }));
  EXPECT_OK(token_->health().last_error);
}

TEST_F(SessionFaultTest, Fault03OperationActiveGivesTheSameResult) {
  ExpectRetriedOnAnotherSession("C_EncryptInit", "rv=CKR_OPERATION_ACTIVE",
                                "CKR_OPERATION_ACTIVE", 0x90);
}

TEST_F(SessionFaultTest, Fault04OperationNotInitializedGivesTheSameResult) {
  ExpectRetriedOnAnotherSession("C_Encrypt", "rv=CKR_OPERATION_NOT_INITIALIZED",
                                "CKR_OPERATION_NOT_INITIALIZED", 0x91);
}

TEST_F(SessionFaultTest, Fault05ErrorAfterRealSuccessDiscardsTheBlob) {
  rules_->Set({"C_Encrypt every=2 count=-1 post=1 rv=CKR_DEVICE_ERROR"});
  std::set<std::string> returned;
  for (int i = 0; i < 50; ++i) {
    ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed sealed, Encrypt(key_));
    EXPECT_TRUE(returned.insert(Hex(sealed.iv)).second);
    EXPECT_TRUE(Opens(key_, sealed));
  }
  const std::vector<std::string> ivs = Ivs();
  EXPECT_GE(ivs.size(), 99u) << "every second call failed after the fact";
  EXPECT_EQ(std::set<std::string>(ivs.begin(), ivs.end()).size(), ivs.size())
      << "two blobs with one nonce";
}

TEST_F(SessionFaultTest, Fault06OneInvalidSessionIsReplacedAlone) {
  // Two calls at a time make the pool open two sessions.
  rules_->Set({"C_Encrypt count=2 hang=" + rules_->HangFile()});
  std::thread one([&] { EXPECT_OK(Encrypt(key_)); });
  std::thread two([&] { EXPECT_OK(Encrypt(key_)); });
  EXPECT_TRUE(rules_->WaitForHangs(2, Soon()));
  rules_->Release();
  one.join();
  two.join();
  const int sessions = token_->health().sessions_open;
  const uint64_t generation = Generation();
  ASSERT_GE(sessions, 2);

  rules_->Forget();
  rules_->Set(
      {"C_Encrypt same_session=1 count=-1 rv=CKR_SESSION_HANDLE_INVALID"});
  for (int i = 0; i < 20; ++i) {
    ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed sealed, Encrypt(key_));
    EXPECT_TRUE(Opens(key_, sealed));
  }
  int failures = 0;
  for (const FaultRules::Call& call : rules_->Calls("C_Encrypt")) {
    failures += call.rv != 0 ? 1 : 0;
  }
  EXPECT_EQ(failures, 1) << "the broken session was used again";
  EXPECT_EQ(rules_->Count("C_CloseSession"), 1);
  EXPECT_LE(rules_->Count("C_OpenSession"), 1);
  EXPECT_EQ(rules_->Count("C_Login"), 0);
  EXPECT_EQ(Generation(), generation);
}

TEST_F(SessionFaultTest, Fault07LostSessionsCostOneLoginAndNoOperation) {
  const uint64_t generation = Generation();
  UnderLoad(key_, [&] { rules_->Set({"C_Encrypt dropsessions=1"}); });
  EXPECT_EQ(rules_->Count("C_Login"), 1);
  EXPECT_GT(Generation(), generation);
  EXPECT_EQ(rules_->Count("C_Initialize"), 0);
  EXPECT_EQ(State(), TokenState::kReady);
}

TEST_F(SessionFaultTest, Fault08LostLoginUnderLoadCostsOneLogin) {
  const uint64_t generation = Generation();
  UnderLoad(key_, [&] { rules_->Set({"C_Encrypt logout=1"}); });
  EXPECT_EQ(rules_->Count("C_Login"), 1);
  EXPECT_GT(Generation(), generation);
  EXPECT_EQ(rules_->Count("C_Initialize"), 0);
  EXPECT_EQ(State(), TokenState::kReady);
}

TEST_F(SessionFaultTest, Fault20LibraryNotInitializedIsInitializedAgain) {
  const uint64_t generation = Generation();
  UnderLoad(key_, [&] { rules_->Set({"C_Encrypt finalize=1"}); });
  EXPECT_EQ(rules_->Count("C_Initialize"), 1);
  EXPECT_EQ(rules_->Count("C_Login"), 1);
  EXPECT_GT(Generation(), generation);
  EXPECT_EQ(State(), TokenState::kReady);
}

TEST_F(SessionFaultTest, Fault20TheCodeAloneDrainsAndInitializesAgain) {
  const uint64_t generation = Generation();
  rules_->Set({"C_Encrypt rv=CKR_CRYPTOKI_NOT_INITIALIZED"});
  ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed sealed, Encrypt(key_));
  EXPECT_TRUE(Opens(key_, sealed));
  EXPECT_GT(Generation(), generation);
  EXPECT_EQ(rules_->Count("C_Initialize"), 1);
}

// What a pulled card looks like from every function that could see it.
std::vector<std::string> TokenGone() {
  std::vector<std::string> rules = {"C_GetSlotList count=-1 slots=none"};
  for (const char* function :
       {"C_GetTokenInfo", "C_OpenSession", "C_Login", "C_*cryptInit",
        "C_GenerateRandom", "C_GenerateKey", "C_FindObjectsInit",
        "C_GetSessionInfo"}) {
    rules.push_back(std::string(function) +
                    " count=-1 rv=CKR_TOKEN_NOT_PRESENT");
  }
  return rules;
}

TEST_F(SessionFaultTest, Fault23TokenGoneAndBackRecoversByItself) {
  ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed before, Encrypt(key_));
  rules_->Set(TokenGone());
  EXPECT_TRUE(Eventually([&] {
    EXPECT_THAT(Encrypt(key_), StatusIs(absl::StatusCode::kUnavailable));
    return State() == TokenState::kAbsent || State() == TokenState::kDegraded;
  }));
  EXPECT_THAT(Decrypt(key_, before), StatusIs(absl::StatusCode::kUnavailable));
  rules_->Clear();
  EXPECT_TRUE(Eventually([&] { return State() == TokenState::kReady; },
                         base::DeadlineAfter(std::chrono::seconds(20))))
      << "without any traffic; " << token_->health().last_error;
  EXPECT_OK(Encrypt(key_));
  EXPECT_TRUE(Opens(key_, before));
}

TEST_F(SessionFaultTest, Fault23LibraryThatRefusesToBeFinalizedIsStillOurs) {
  rules_->Set({"C_* count=-1 rv=CKR_DEVICE_REMOVED"});
  EXPECT_TRUE(Eventually([&] {
    EXPECT_THAT(Encrypt(key_), StatusIs(absl::StatusCode::kUnavailable));
    return rules_->Count("C_Finalize") >= 2;
  }));
  rules_->Clear();
  EXPECT_TRUE(Eventually([&] { return State() == TokenState::kReady; },
                         base::DeadlineAfter(std::chrono::seconds(20))))
      << token_->health().last_error;
  EXPECT_OK(Encrypt(key_));
  // Nor does one that refused at the end of a Token keep out the next.
  rules_->Set({"C_Finalize rv=CKR_DEVICE_REMOVED"});
  token_.reset();
  rules_->Clear();
  OpenReady();
}

TEST_F(SessionFaultTest, Fault23TokenThatIsAbsentAtStartIsWaitedFor) {
  token_.reset();
  rules_->Set(TokenGone());
  ASSERT_OK(Open());
  EXPECT_THAT(State(), AnyOf(TokenState::kAbsent, TokenState::kStarting));
  const KnownKey key = Reopened(key_);
  EXPECT_THAT(
      token_->Encrypt(key.key, aad_, plaintext_, {},
                      base::DeadlineAfter(std::chrono::milliseconds(200))),
      AnyOf(StatusIs(absl::StatusCode::kUnavailable),
            StatusIs(absl::StatusCode::kDeadlineExceeded)));
  rules_->Clear();
  EXPECT_TRUE(Eventually([&] { return State() == TokenState::kReady; },
                         base::DeadlineAfter(std::chrono::seconds(20))))
      << token_->health().last_error;
  EXPECT_OK(Encrypt(key));
}

TEST_F(SessionFaultTest, Fault30InvalidKeyHandleOnceIsResolvedAgain) {
  rules_->Set({"C_EncryptInit rv=CKR_KEY_HANDLE_INVALID"});
  ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed sealed, Encrypt(key_));
  EXPECT_GE(rules_->Count("C_FindObjectsInit"), 1);
  EXPECT_TRUE(Opens(key_, sealed));
  EXPECT_EQ(rules_->Count("C_Login"), 0);
  EXPECT_EQ(State(), TokenState::kReady);
}

}  // namespace
}  // namespace kek::fault
