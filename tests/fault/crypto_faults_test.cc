// SPDX-License-Identifier: Apache-2.0
//
// Ciphertexts and random numbers that are wrong, the callers' or the token's.
#include <algorithm>
#include <atomic>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/envelope.h"
#include "pkcs11/error.h"
#include "tests/fault/fault_test.h"

namespace kek::fault {
namespace {

using base::testing::StatusIs;
using pkcs11::TokenState;
using ::testing::Contains;
using ::testing::HasSubstr;

class CryptoFaultTest : public FaultTest {
 protected:
  void SetUp() override {
    FaultTest::SetUp();
    ASSERT_NO_FATAL_FAILURE(OpenReady());
    key_ = MakeKey();
    ASSERT_OK_AND_ASSIGN(sealed_, Encrypt(key_));
    rules_->Forget();
  }

  void ExpectDataLossAndQuarantine(bool verify) {
    EXPECT_THAT(Encrypt(key_, verify), StatusIs(absl::StatusCode::kDataLoss));
    EXPECT_TRUE(token_->IsQuarantined(key_.key));
    EXPECT_THAT(Events(), Contains(HasSubstr("key-quarantined")));
    // Quarantine is of a Key, not of the token.
    rules_->Clear();
    EXPECT_THAT(Encrypt(key_, verify), StatusIs(absl::StatusCode::kDataLoss));
    key_ = Reopened(MakeKey("another"));
    EXPECT_OK(Encrypt(key_, verify));
  }

  // Encryptions give distinct IVs, those asked of the module and those given
  // back; returns them.
  void ExpectUniqueIvs(int encryptions) {
    rules_->Forget();
    std::set<std::string> returned;
    for (int i = 0; i < encryptions; ++i) {
      ASSERT_OK_AND_ASSIGN(const pkcs11::Sealed sealed, Encrypt(key_));
      EXPECT_TRUE(returned.insert(Hex(sealed.iv)).second);
      EXPECT_NE(sealed.iv, std::vector<uint8_t>(12, 0));
      EXPECT_TRUE(Opens(key_, sealed));
    }
    const std::vector<std::string> ivs = Ivs();
    EXPECT_EQ(std::set<std::string>(ivs.begin(), ivs.end()).size(), ivs.size());
  }

  KnownKey key_;
  pkcs11::Sealed sealed_;
};

TEST_F(CryptoFaultTest, Fault36JunkCiphertextsAreTheirSendersFaultOnly) {
  constexpr int kJunk = 10000;
  const uint64_t generation = Generation();
  std::string message;
  std::atomic<bool> stop{false};
  std::atomic<int> others{0};
  std::thread other_client([&] {
    while (!stop) {
      ASSERT_TRUE(Opens(key_, sealed_));
      ++others;
    }
  });
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kJunk; ++i) {
    pkcs11::Sealed junk = sealed_;
    std::vector<uint8_t> aad = aad_;
    const size_t bit = static_cast<size_t>(i);
    switch (i % 4) {
      case 0:
        junk.ciphertext[bit / 8 % junk.ciphertext.size()] ^= 1U << (bit % 8);
        break;
      case 1:
        junk.iv[bit / 8 % junk.iv.size()] ^= 1U << (bit % 8);
        break;
      case 2:
        junk.ciphertext.resize(bit % junk.ciphertext.size());
        break;
      case 3:
        aad.push_back(static_cast<uint8_t>(i));
        break;
    }
    const absl::Status status =
        token_->Decrypt(key_.key, aad, junk, Soon()).status();
    ASSERT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument));
    if (i == 0) message = std::string(status.message());
    ASSERT_EQ(status.message(), message) << "the texts tell what was wrong";
    ASSERT_EQ(State(), TokenState::kReady);
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
          .count();
  stop = true;
  other_client.join();
  EXPECT_GT(others, 0);
  EXPECT_EQ(Generation(), generation);
  EXPECT_EQ(rules_->Count("C_Initialize"), 0);
  EXPECT_EQ(rules_->Count("C_Login"), 0);
  // The sessions are not broken by their callers' bytes.
  EXPECT_LT(rules_->Count("C_OpenSession"), 16);
  // Canaries (32 bytes and their tag) settle the doubt a few times a second,
  // not each time.
  int canaries = 0;
  for (const FaultRules::Call& call : rules_->Calls("C_Decrypt")) {
    canaries += call.details.at("size") == "48" ? 1 : 0;
  }
  EXPECT_LE(canaries, 4 * (seconds + 1));
}

TEST_F(CryptoFaultTest, Fault36JunkOfEveryShapeIsInvalid) {
  for (size_t size : {0, 1, 15, 16, 17, 39, 41, 4096}) {
    pkcs11::Sealed junk = sealed_;
    junk.ciphertext.resize(size, 0xff);
    EXPECT_THAT(Decrypt(key_, junk),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << "ciphertext of " << size;
  }
  for (size_t size : {0, 1, 11, 13, 15, 16, 17, 64}) {
    pkcs11::Sealed junk = sealed_;
    junk.iv.resize(size);
    EXPECT_THAT(Decrypt(key_, junk),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << "IV of " << size;
  }
  EXPECT_TRUE(Opens(key_, sealed_));
  EXPECT_EQ(State(), TokenState::kReady);
}

TEST_F(CryptoFaultTest, Fault39FlippedCiphertextIsNeverReturned) {
  rules_->Set({absl::StrCat("C_Encrypt count=-1 size=24 flip=", 100)});
  ExpectDataLossAndQuarantine(/*verify=*/true);
}

TEST_F(CryptoFaultTest, Fault39NoBitOfTheCiphertextMayFlip) {
  for (size_t bit = 0; bit < kSealedSize * 8; bit += 17) {
    rules_->Set({absl::StrCat("C_Encrypt size=24 flip=", bit)});
    const KnownKey key = Reopened(key_);
    const absl::StatusOr<pkcs11::Sealed> sealed = Encrypt(key);
    rules_->Clear();
    if (sealed.ok()) {
      EXPECT_TRUE(Opens(key_, *sealed)) << "bit " << bit;
    } else {
      EXPECT_THAT(sealed, StatusIs(absl::StatusCode::kDataLoss));
    }
  }
}

TEST_F(CryptoFaultTest, Fault40FlippedPlaintextIsSeenByThePayloadChecksum) {
  const std::vector<uint8_t> dek(32, 0x77);
  ASSERT_OK_AND_ASSIGN(const base::SecretBytes payload, core::SealPayload(dek));
  ASSERT_OK_AND_ASSIGN(
      const pkcs11::Sealed sealed,
      token_->Encrypt(key_.key, aad_, payload.span(), {}, Soon()));
  for (size_t bit = 0; bit < payload.size() * 8; bit += 13) {
    rules_->Set({absl::StrCat("C_Decrypt size=", sealed.ciphertext.size(),
                              " flip=", bit)});
    // GCM has been satisfied inside the module: only the payload can tell.
    ASSERT_OK_AND_ASSIGN(const base::SecretBytes opened,
                         token_->Decrypt(key_.key, aad_, sealed, Soon()));
    EXPECT_THAT(core::OpenPayload(opened.span()),
                StatusIs(absl::StatusCode::kDataLoss))
        << "bit " << bit;
  }
  rules_->Clear();
  ASSERT_OK_AND_ASSIGN(const base::SecretBytes opened,
                       token_->Decrypt(key_.key, aad_, sealed, Soon()));
  EXPECT_OK(core::OpenPayload(opened.span()));
}

TEST_F(CryptoFaultTest, Fault40FlippedCanaryFailsTheProof) {
  rules_->Set({"C_Decrypt count=-1 flip=5"});
  EXPECT_THAT(token_->Prove(key_.key, Soon()),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_TRUE(token_->IsQuarantined(key_.key));
}

TEST_F(CryptoFaultTest, Fault41ShortCiphertextLengthIsDataLoss) {
  rules_->Set({"C_Encrypt count=-1 size=24 short=1"});
  ExpectDataLossAndQuarantine(/*verify=*/false);
}

TEST_F(CryptoFaultTest, Fault41LongCiphertextLengthIsDataLoss) {
  rules_->Set({"C_Encrypt count=-1 size=24 long=1"});
  ExpectDataLossAndQuarantine(/*verify=*/false);
}

TEST_F(CryptoFaultTest, Fault41LengthBeyondTheBufferIsDataLoss) {
  rules_->Set({"C_Encrypt count=-1 size=24 long=1000000"});
  ExpectDataLossAndQuarantine(/*verify=*/true);
}

TEST_F(CryptoFaultTest, Fault41WrongPlaintextLengthIsDataLoss) {
  for (const char* rule : {"short=1", "long=1", "long=1000000"}) {
    rules_->Set(
        {absl::StrCat("C_Decrypt count=-1 size=", kSealedSize, " ", rule)});
    EXPECT_THAT(Decrypt(Reopened(key_), sealed_),
                StatusIs(absl::StatusCode::kDataLoss))
        << rule;
  }
}

TEST_F(CryptoFaultTest, Fault42ZeroCiphertextIsDataLossEvenWithoutVerify) {
  rules_->Set({"C_Encrypt count=-1 size=24 zero=1"});
  ExpectDataLossAndQuarantine(/*verify=*/false);
}

TEST_F(CryptoFaultTest, Fault42ZeroCiphertextIsDataLossWithVerify) {
  rules_->Set({"C_Encrypt count=-1 size=24 zero=1"});
  ExpectDataLossAndQuarantine(/*verify=*/true);
}

TEST_F(CryptoFaultTest, Fault43ZeroRandomKeepsNoncesUniqueAndRaisesTheAlarm) {
  rules_->Set({"C_GenerateRandom count=-1 zero=1"});
  ExpectUniqueIvs(500);
  ASSERT_OK_AND_ASSIGN(const base::SecretBytes one,
                       token_->GenerateRandom(32, Soon()));
  ASSERT_OK_AND_ASSIGN(const base::SecretBytes two,
                       token_->GenerateRandom(32, Soon()));
  EXPECT_FALSE(one == two);
  EXPECT_FALSE(one == base::SecretBytes(32));
  EXPECT_THAT(Events(), Contains(HasSubstr("random")));
}

TEST_F(CryptoFaultTest,
       Fault44RepeatedRandomKeepsNoncesUniqueAndRaisesTheAlarm) {
  rules_->Set({"C_GenerateRandom count=-1 repeat=1"});
  ExpectUniqueIvs(1000);
  ASSERT_OK_AND_ASSIGN(const base::SecretBytes one,
                       token_->GenerateRandom(32, Soon()));
  ASSERT_OK_AND_ASSIGN(const base::SecretBytes two,
                       token_->GenerateRandom(32, Soon()));
  EXPECT_FALSE(one == two);
  EXPECT_THAT(Events(), Contains(HasSubstr("random")));
}

TEST_F(CryptoFaultTest, Fault45WithoutTokenRandomEncryptFailsAndDecryptWorks) {
  rules_->Set({"C_GenerateRandom count=-1 rv=CKR_RANDOM_NO_RNG"});
  // What each session fetched beforehand may be used up first.
  int in_a_row = 0;
  for (int i = 0; i < 8192 && in_a_row < 50; ++i) {
    const absl::Status status = Encrypt(key_, /*verify=*/false).status();
    if (!status.ok()) {
      ASSERT_THAT(status, StatusIs(absl::StatusCode::kUnavailable));
    }
    in_a_row = status.ok() ? 0 : in_a_row + 1;
    ASSERT_TRUE(Opens(key_, sealed_));
  }
  EXPECT_EQ(in_a_row, 50);
  EXPECT_THAT(token_->GenerateRandom(32, Soon()),
              StatusIs(absl::StatusCode::kUnavailable));
  rules_->Clear();
  EXPECT_OK(EncryptsBefore(key_, Soon()));
}

TEST_F(CryptoFaultTest, Fault45HostRandomAloneIsUsedWherePolicyAllowsIt) {
  token_.reset();
  pkcs11::TokenOptions options = Options();
  options.profile.allow_host_only_iv = true;
  ASSERT_OK(Open(std::move(options)));
  key_ = Reopened(key_);
  ASSERT_OK(EncryptsBefore(key_, Soon()));
  rules_->Set({"C_GenerateRandom count=-1 rv=CKR_RANDOM_NO_RNG"});
  ExpectUniqueIvs(1000);
  EXPECT_THAT(Events(), Contains(HasSubstr("random")));
}

TEST_F(CryptoFaultTest, Fault45SlowTokenRandomDelaysButDoesNotFail) {
  rules_->Set({"C_GenerateRandom count=-1 delay=20ms"});
  for (int i = 0; i < 10; ++i) EXPECT_OK(Encrypt(key_));
}

}  // namespace
}  // namespace kek::fault
