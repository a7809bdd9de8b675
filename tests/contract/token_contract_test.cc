// SPDX-License-Identifier: Apache-2.0

// What pkcs11::Token promises, asserted on each PKCS#11 implementation at hand.
// Where an implementation does not enforce what PKCS#11 says, the suite asserts
// that kekd refuses it by default, and what it really does.

#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <openssl/rand.h>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "pkcs11/token.h"
#include "tests/support/test_tokens.h"

namespace kek::pkcs11 {
namespace {

using ::kek::base::testing::StatusIs;
using ::kek::base::testing::TempDir;
using ::kek::testing::TestToken;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Observed = Guarantee::Observed;

// One implementation, and what is known of it.
struct Implementation {
  std::string name;
  // What its start-up probe observes, by Guarantee::name.
  std::map<std::string, Observed> guarantees;
  bool safe = true;             // the default config serves from it
  bool local_is_true = true;    // CKA_LOCAL of a generated key
  bool has_check_value = true;  // CKA_CHECK_VALUE
};

Implementation SoftHsm() {
  return {.name = "SoftHsm",
          .guarantees = {{"tag-checked", Observed::kEnforced},
                         {"attributes-kept", Observed::kEnforced},
                         {"value-hidden", Observed::kEnforced},
                         {"no-wrap", Observed::kEnforced},
                         {"no-copy-extractable", Observed::kEnforced},
                         {"no-set-extractable", Observed::kEnforced},
                         {"no-set-insensitive", Observed::kEnforced},
                         {"unwrap-template", Observed::kEnforced},
                         {"wrap-with-trusted", Observed::kEnforced},
                         {"copyable", Observed::kEnforced},
                         {"modifiable", Observed::kEnforced},
                         {"destroyable", Observed::kEnforced},
                         {"allowed-mechanisms", Observed::kEnforced}}};
}

Implementation Nss() {
  return {.name = "Nss",
          .guarantees = {{"tag-checked", Observed::kEnforced},
                         {"attributes-kept", Observed::kEnforced},
                         {"value-hidden", Observed::kEnforced},
                         {"no-wrap", Observed::kNotEnforced},
                         {"no-copy-extractable", Observed::kNotEnforced},
                         {"no-set-extractable", Observed::kEnforced},
                         {"no-set-insensitive", Observed::kEnforced},
                         {"unwrap-template", Observed::kNotEnforced},
                         {"wrap-with-trusted", Observed::kNotEnforced},
                         {"copyable", Observed::kNotEnforced},
                         {"modifiable", Observed::kEnforced},
                         {"destroyable", Observed::kNotEnforced},
                         {"allowed-mechanisms", Observed::kNotEnforced}},
          .safe = false,
          .local_is_true = false,
          .has_check_value = false};
}

std::vector<uint8_t> Bytes(absl::string_view text) {
  return {text.begin(), text.end()};
}

base::Deadline Soon() { return base::DeadlineAfter(std::chrono::seconds(20)); }

KeyIdentity NewIdentity(const std::string& label = "kek:test:v1") {
  KeyIdentity identity{.id = std::vector<uint8_t>(16), .label = label};
  RAND_bytes(identity.id.data(), 16);
  return identity;
}

class TokenContract : public ::testing::TestWithParam<Implementation> {
 protected:
  void SetUp() override {
    if (GetParam().name == "Nss") {
      if (!TestToken::HaveNss()) GTEST_SKIP() << "no NSS softokn here";
      ASSERT_OK_AND_ASSIGN(made_, TestToken::Nss(dir_.File("token")));
    } else {
      ASSERT_OK_AND_ASSIGN(made_, TestToken::SoftHsm(dir_.File("token")));
    }
    made_.Use();
  }

  // As an operator would have to open it.
  TokenOptions Options() {
    TokenOptions options = made_.Options(dir_.path());
    options.metrics = &metrics_;
    if (!GetParam().safe) {
      options.profile.insecure_module_ok = true;
      options.profile.attributes = AttributePolicy::kObserved;
    }
    return options;
  }
  void Open() {
    token_.reset();
    ASSERT_OK_AND_ASSIGN(token_, Token::Open(Options()));
    ASSERT_EQ(token_->health().state, TokenState::kReady)
        << token_->health().last_error;
  }

  struct Made {
    KeyIdentity identity;
    Canary canary;
    std::shared_ptr<Key> key;
  };
  absl::StatusOr<Made> MakeKey() {
    Made made{.identity = NewIdentity()};
    ASSIGN_OR_RETURN(const KeyAttributes attributes,
                     token_->GenerateKey(made.identity, Soon()));
    ASSIGN_OR_RETURN(made.canary, token_->MakeCanary(made.identity,
                                                     Bytes("canary"), Soon()));
    made.key = token_->AddKey(made.identity, made.canary);
    return made;
  }

  absl::StatusOr<Sealed> Encrypt(const Made& made, absl::string_view text) {
    return token_->Encrypt(made.key, Bytes("aad"), Bytes(text), {}, Soon());
  }
  absl::StatusOr<std::string> Decrypt(const Made& made, const Sealed& sealed,
                                      absl::string_view aad = "aad") {
    ASSIGN_OR_RETURN(const base::SecretBytes opened,
                     token_->Decrypt(made.key, Bytes(aad), sealed, Soon()));
    return std::string(opened.span().begin(), opened.span().end());
  }

  TempDir dir_;
  base::Metrics metrics_;
  TestToken made_;
  std::unique_ptr<Token> token_;
};

TEST_P(TokenContract, DefaultConfigServesOnlyFromAModuleThatKeepsKeysSafe) {
  const absl::StatusOr<std::unique_ptr<Token>> opened =
      Token::Open(made_.Options(dir_.path()));
  if (GetParam().safe) {
    EXPECT_OK(opened);
  } else {
    EXPECT_THAT(opened, StatusIs(absl::StatusCode::kFailedPrecondition,
                                 AllOf(HasSubstr("no-wrap"),
                                       HasSubstr("no-copy-extractable"))));
  }
}

TEST_P(TokenContract, ProbeObservesWhatTheModuleEnforces) {
  ASSERT_NO_FATAL_FAILURE(Open());
  std::map<std::string, Observed> observed;
  for (const Guarantee& guarantee : token_->guarantees()) {
    observed[guarantee.name] = guarantee.observed;
  }
  EXPECT_EQ(observed, GetParam().guarantees);
}

TEST_P(TokenContract, ProbeLeavesNothingBehind) {
  ASSERT_NO_FATAL_FAILURE(Open());
  ASSERT_OK_AND_ASSIGN(const std::vector<ObjectInfo> keys,
                       token_->ListKeys(Soon()));
  EXPECT_THAT(keys, IsEmpty());
}

TEST_P(TokenContract, GeneratedKeyNeverLeavesTheToken) {
  ASSERT_NO_FATAL_FAILURE(Open());
  const KeyIdentity identity = NewIdentity();
  ASSERT_OK_AND_ASSIGN(const KeyAttributes made,
                       token_->GenerateKey(identity, Soon()));
  ASSERT_OK_AND_ASSIGN(const KeyAttributes read,
                       token_->ReadAttributes(identity, Soon()));
  for (const KeyAttributes& a : {made, read}) {
    EXPECT_EQ(a.sensitive, true);
    EXPECT_EQ(a.extractable, false);
    EXPECT_EQ(a.token, true);
    EXPECT_EQ(a.is_private, true);
    EXPECT_EQ(a.encrypt, true);
    EXPECT_EQ(a.decrypt, true);
    EXPECT_EQ(a.wrap, false);
    EXPECT_EQ(a.unwrap, false);
    EXPECT_EQ(a.value_len, 32u);
    EXPECT_EQ(a.local, GetParam().local_is_true);
    EXPECT_EQ(!a.check_value.empty(), GetParam().has_check_value);
  }
}

TEST_P(TokenContract, StrictAttributesRefuseAKeyThatIsNotLocal) {
  TokenOptions options = Options();
  options.profile.attributes = AttributePolicy::kStrict;
  ASSERT_OK_AND_ASSIGN(token_, Token::Open(options));
  const absl::StatusOr<KeyAttributes> made =
      token_->GenerateKey(NewIdentity(), Soon());
  ASSERT_OK_AND_ASSIGN(const std::vector<ObjectInfo> keys,
                       token_->ListKeys(Soon()));
  if (GetParam().local_is_true) {
    EXPECT_OK(made);
    EXPECT_EQ(keys.size(), 1u);
  } else {
    EXPECT_THAT(made,
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("CKA_LOCAL")));
    EXPECT_THAT(keys, IsEmpty()) << "the refused key was not destroyed";
  }
}

TEST_P(TokenContract, RoundTripBindsTheAdditionalData) {
  ASSERT_NO_FATAL_FAILURE(Open());
  ASSERT_OK_AND_ASSIGN(const Made made, MakeKey());
  ASSERT_OK_AND_ASSIGN(const Sealed sealed, Encrypt(made, "a secret"));
  EXPECT_EQ(sealed.iv.size(), 12u);
  EXPECT_EQ(sealed.ciphertext.size(), 8u + 16u);
  ASSERT_OK_AND_ASSIGN(const std::string opened, Decrypt(made, sealed));
  EXPECT_EQ(opened, "a secret");
  EXPECT_THAT(Decrypt(made, sealed, "other"),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_P(TokenContract, EveryDamagedCiphertextIsTheCallersFault) {
  ASSERT_NO_FATAL_FAILURE(Open());
  ASSERT_OK_AND_ASSIGN(const Made made, MakeKey());
  ASSERT_OK_AND_ASSIGN(const Sealed good, Encrypt(made, "a secret"));
  const uint64_t generation = token_->health().generation;
  std::vector<Sealed> damaged(5, good);
  damaged[0].ciphertext.back() ^= 1;   // tag
  damaged[1].ciphertext.front() ^= 1;  // body
  damaged[2].iv[0] ^= 1;
  damaged[3].ciphertext.pop_back();
  damaged[4].ciphertext.resize(3);
  std::vector<std::string> messages;
  for (const Sealed& sealed : damaged) {
    const absl::StatusOr<std::string> opened = Decrypt(made, sealed);
    EXPECT_THAT(opened, StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_EQ(ClassOf(opened.status()), ErrorClass::kCallerData);
    messages.emplace_back(opened.status().message());
  }
  EXPECT_EQ(messages, std::vector<std::string>(5, messages[0]))
      << "the message says which part was wrong";
  EXPECT_EQ(token_->health().state, TokenState::kReady);
  EXPECT_EQ(token_->health().generation, generation);
  EXPECT_OK(Decrypt(made, good));
}

TEST_P(TokenContract, SameIdTwiceIsRefusedAndTheFirstKeyLives) {
  ASSERT_NO_FATAL_FAILURE(Open());
  ASSERT_OK_AND_ASSIGN(const Made made, MakeKey());
  ASSERT_OK_AND_ASSIGN(const Sealed sealed, Encrypt(made, "a secret"));
  EXPECT_THAT(token_->GenerateKey(made.identity, Soon()),
              StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_OK(Decrypt(made, sealed));
}

TEST_P(TokenContract, KeySurvivesReloginAndReopening) {
  ASSERT_NO_FATAL_FAILURE(Open());
  ASSERT_OK_AND_ASSIGN(Made made, MakeKey());
  ASSERT_OK_AND_ASSIGN(const Sealed sealed, Encrypt(made, "a secret"));
  const uint64_t generation = token_->health().generation;
  ASSERT_OK(token_->Relogin(Soon()));
  EXPECT_GT(token_->health().generation, generation);
  EXPECT_OK(Decrypt(made, sealed));
  ASSERT_NO_FATAL_FAILURE(Open());
  made.key = token_->AddKey(made.identity, made.canary);
  EXPECT_OK(token_->Prove(made.key, Soon()));
  EXPECT_OK(Decrypt(made, sealed));
}

TEST_P(TokenContract, CiphertextOfAnEarlierGenerationIsNotProvenByThisOne) {
  ASSERT_NO_FATAL_FAILURE(Open());
  ASSERT_OK_AND_ASSIGN(const Made made, MakeKey());
  ASSERT_OK(Encrypt(made, "a secret"));
  ASSERT_OK(token_->Relogin(Soon()));
  const absl::Status proof = token_->Prove(made.key, Soon());
  EXPECT_THAT(proof, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(ClassOf(proof), ErrorClass::kHandle);
  EXPECT_FALSE(token_->IsQuarantined(made.key));
  ASSERT_OK(Encrypt(made, "a secret"));
  EXPECT_OK(token_->Prove(made.key, Soon()));
}

TEST_P(TokenContract, AnotherKeysCanaryQuarantinesUntilAnOperatorClears) {
  ASSERT_NO_FATAL_FAILURE(Open());
  ASSERT_OK_AND_ASSIGN(const Made made, MakeKey());
  ASSERT_OK_AND_ASSIGN(const Made other, MakeKey());
  const std::shared_ptr<Key> wrong =
      token_->AddKey(made.identity, other.canary);
  const absl::StatusOr<Sealed> sealed =
      token_->Encrypt(wrong, Bytes("aad"), Bytes("x"), {}, Soon());
  EXPECT_THAT(sealed, StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(ClassOf(sealed.status()), ErrorClass::kIntegrity);
  EXPECT_TRUE(token_->IsQuarantined(wrong));
  EXPECT_FALSE(token_->IsQuarantined(made.key));
  token_->ClearQuarantine(wrong);
  EXPECT_FALSE(token_->IsQuarantined(wrong));
  EXPECT_THAT(token_->Prove(wrong, Soon()),
              StatusIs(absl::StatusCode::kDataLoss));
}

TEST_P(TokenContract, DestroyedKeyIsGoneAndDestroyingAgainIsFine) {
  ASSERT_NO_FATAL_FAILURE(Open());
  ASSERT_OK_AND_ASSIGN(const Made made, MakeKey());
  ASSERT_OK_AND_ASSIGN(const Made other, MakeKey());
  ASSERT_OK(Encrypt(made, "a secret"));
  EXPECT_THAT(token_->DestroyKey(made.identity, other.canary, Soon()),
              StatusIs(absl::StatusCode::kDataLoss));
  ASSERT_OK(token_->DestroyKey(made.identity, made.canary, Soon()));
  EXPECT_OK(token_->DestroyKey(made.identity, made.canary, Soon()));
  EXPECT_THAT(token_->ReadAttributes(made.identity, Soon()),
              StatusIs(absl::StatusCode::kNotFound));
  const absl::StatusOr<Sealed> sealed = Encrypt(made, "a secret");
  EXPECT_THAT(sealed, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(ClassOf(sealed.status()), ErrorClass::kHandle);
  EXPECT_OK(Encrypt(other, "a secret"));
}

TEST_P(TokenContract, ListKeysShowsExactlyTheKeys) {
  ASSERT_NO_FATAL_FAILURE(Open());
  ASSERT_OK_AND_ASSIGN(const Made made, MakeKey());
  ASSERT_OK_AND_ASSIGN(const std::vector<ObjectInfo> keys,
                       token_->ListKeys(Soon()));
  ASSERT_EQ(keys.size(), 1u);
  EXPECT_EQ(keys[0].id, made.identity.id);
  EXPECT_EQ(keys[0].label, made.identity.label);
  EXPECT_TRUE(keys[0].usable);
}

TEST_P(TokenContract, ThreadsShareKeysAndSessions) {
  ASSERT_NO_FATAL_FAILURE(Open());
  ASSERT_OK_AND_ASSIGN(const Made made, MakeKey());
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) {
        const std::string text = absl::StrCat("secret ", t, " ", i);
        const absl::StatusOr<Sealed> sealed = Encrypt(made, text);
        ASSERT_OK(sealed);
        EXPECT_THAT(Decrypt(made, *sealed), base::testing::IsOkAndHolds(text));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(token_->health().sessions_open, 16);
  EXPECT_EQ(token_->health().sessions_in_use, 0);
}

TEST_P(TokenContract, RandomBytesDiffer) {
  ASSERT_NO_FATAL_FAILURE(Open());
  ASSERT_OK_AND_ASSIGN(const base::SecretBytes a,
                       token_->GenerateRandom(32, Soon()));
  ASSERT_OK_AND_ASSIGN(const base::SecretBytes b,
                       token_->GenerateRandom(32, Soon()));
  EXPECT_EQ(a.size(), 32u);
  EXPECT_FALSE(a == b);
}

TEST_P(TokenContract, WrongPinIsTriedOnceAndRememberedAcrossOpens) {
  TempDir other;
  TokenOptions options = Options();
  options.pin = PinSource::File(other.Write("pin", "wrong-pin\n"));
  EXPECT_THAT(Token::Open(options),
              StatusIs(absl::StatusCode::kPermissionDenied));
  const auto tries = [&] {
    return metrics_
        .GetCounter("kekd_token_logins_total", "",
                    {{"rv", "CKR_PIN_INCORRECT"}})
        ->Value();
  };
  EXPECT_EQ(tries(), 1);
  EXPECT_THAT(Token::Open(options),
              StatusIs(absl::StatusCode::kPermissionDenied,
                       HasSubstr("refused this PIN before")));
  EXPECT_EQ(tries(), 1);
  options.retry_refused_pin = true;
  EXPECT_THAT(Token::Open(options),
              StatusIs(absl::StatusCode::kPermissionDenied));
  EXPECT_EQ(tries(), 2);
  ASSERT_NO_FATAL_FAILURE(Open());  // the right one, from another file
}

TEST_P(TokenContract, ProbeProvesTheTokenAlive) {
  ASSERT_NO_FATAL_FAILURE(Open());
  const auto before = token_->health().last_success;
  ASSERT_OK(token_->Probe(Soon()));
  EXPECT_GT(token_->health().last_success, before);
}

TEST_P(TokenContract, InfoNamesTheToken) {
  ASSERT_NO_FATAL_FAILURE(Open());
  EXPECT_EQ("pkcs11:token=" + token_->info().label, made_.uri);
  EXPECT_THAT(token_->info().library, Not(IsEmpty()));
}

INSTANTIATE_TEST_SUITE_P(Modules, TokenContract,
                         ::testing::Values(SoftHsm(), Nss()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace kek::pkcs11
