// SPDX-License-Identifier: Apache-2.0
//
// Encrypt and Decrypt, on a real token.
#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/algorithm.h"
#include "core/key_service.h"
#include "tests/support/service_test.h"

namespace kek::core {
namespace {

using base::testing::IsOk;
using base::testing::StatusIs;
using catalog::ResourceName;
using catalog::VersionState;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;
constexpr auto kNotFound = absl::StatusCode::kNotFound;

constexpr char kInvalidCiphertext[] =
    "Decryption failed: the ciphertext is invalid.";
constexpr char kWrongKey[] =
    "Decryption failed: verify that 'name' refers to the correct CryptoKey.";

class KeyServiceDataTest : public ServiceTest {
 protected:
  // Plaintexts of this size and no other are the tests' (canaries are not).
  static constexpr size_t kSize = 100;
  // What the token then encrypts (a checksum goes before it) and decrypts.
  static constexpr size_t kTokenIn = kSize + 8;
  static constexpr size_t kTokenOut = kTokenIn + 16;

  static std::string Sample() { return std::string(kSize, 'd'); }
};

TEST_F(KeyServiceDataTest, RoundTripUnderThePrimary) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed,
                       Encrypt(key, "a DEK", "context"));
  EXPECT_EQ(sealed.version, key.Version(1));
  EXPECT_EQ(sealed.protection_level, catalog::ProtectionLevel::kSoftware);
  EXPECT_THAT(Text(sealed.ciphertext), Not(HasSubstr("a DEK")));
  ASSERT_OK_AND_ASSIGN(const DecryptResult opened,
                       Decrypt(key, sealed.ciphertext, "context"));
  EXPECT_EQ(Text(opened.plaintext.span()), "a DEK");
  EXPECT_EQ(opened.version, key.Version(1));
  EXPECT_TRUE(opened.used_primary);
}

TEST_F(KeyServiceDataTest, EveryVersionCanBeNamed) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK(service_->CreateVersion(Root(), key));
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed,
                       Encrypt(key.Version(2), "x"));
  EXPECT_EQ(sealed.version, key.Version(2));
  ASSERT_OK_AND_ASSIGN(const DecryptResult opened,
                       Decrypt(key, sealed.ciphertext));
  EXPECT_EQ(opened.version, key.Version(2));
  EXPECT_FALSE(opened.used_primary);
  EXPECT_THAT(Encrypt(key.Version(3), "x"), StatusIs(kNotFound));
  // Decrypt takes keys only.
  EXPECT_THAT(Decrypt(key.Version(2), sealed.ciphertext), StatusIs(kInvalid));
}

TEST_F(KeyServiceDataTest, OldCiphertextsOpenAfterRotation) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult old, Encrypt(key, "old"));
  ASSERT_OK_AND_ASSIGN(const CryptoKeyView rotated,
                       service_->Rotate(Root(), key));
  EXPECT_EQ(rotated.key.primary_version, 2u);
  ASSERT_OK_AND_ASSIGN(const EncryptResult young, Encrypt(key, "new"));
  EXPECT_EQ(young.version, key.Version(2));
  ASSERT_OK_AND_ASSIGN(const DecryptResult opened,
                       Decrypt(key, old.ciphertext));
  EXPECT_EQ(Text(opened.plaintext.span()), "old");
  EXPECT_FALSE(opened.used_primary);
  EXPECT_EQ(Opened(key, young.ciphertext), "new");
}

TEST_F(KeyServiceDataTest, EmptyPlaintextAndEmptyAadAreFine) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult empty, Encrypt(key, "", "aad"));
  EXPECT_EQ(Opened(key, empty.ciphertext, "aad"), "");
  ASSERT_OK_AND_ASSIGN(const EncryptResult both, Encrypt(key, "", ""));
  EXPECT_EQ(Opened(key, both.ciphertext, ""), "");
  EXPECT_THAT(service_->Encrypt(Root(), {.name = key,
                                         .context = EnvelopeContext::kCloudKms,
                                         .allow_empty_plaintext = false}),
              StatusIs(kInvalid, HasSubstr("plaintext")));
}

TEST_F(KeyServiceDataTest, TheSameTwiceIsNotTheSame) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult a, Encrypt(key, "x"));
  ASSERT_OK_AND_ASSIGN(const EncryptResult b, Encrypt(key, "x"));
  EXPECT_NE(a.ciphertext, b.ciphertext);
}

TEST_F(KeyServiceDataTest, WhatWasTamperedWithDoesNotOpen) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, "x", "aad"));
  const std::string invalid = absl::StrCat("[", kInvalidCiphertext, "]");
  EXPECT_EQ(Opened(key, sealed.ciphertext, "AAD"), invalid);
  EXPECT_EQ(Opened(key, sealed.ciphertext, ""), invalid);
  EXPECT_EQ(Opened(key, {}, "aad"), invalid);
  EXPECT_EQ(Opened(key, Bytes("no envelope at all"), "aad"), invalid);
  for (size_t size = 0; size < sealed.ciphertext.size(); ++size) {
    const std::span<const uint8_t> part(sealed.ciphertext.data(), size);
    EXPECT_EQ(Opened(key, part, "aad"), invalid) << size;
  }
  // One bit in each byte.
  for (size_t i = 0; i < sealed.ciphertext.size(); ++i) {
    std::vector<uint8_t> flipped = sealed.ciphertext;
    flipped[i] ^= 1 << (i % 8);
    const absl::StatusOr<DecryptResult> result = Decrypt(key, flipped, "aad");
    ASSERT_FALSE(result.ok()) << i;
    // The uuid, the version and all else: never anything but these.
    EXPECT_TRUE(result.status().code() == kInvalid ||
                result.status().code() == kNotFound)
        << i << ": " << result.status();
  }
}

TEST_F(KeyServiceDataTest, CiphertextOfAnotherKeySaysSo) {
  const ResourceName key = MakeKey("k");
  const ResourceName other = MakeKey("other");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, "x"));
  EXPECT_EQ(Opened(other, sealed.ciphertext),
            absl::StrCat("[", kWrongKey, "]"));
}

TEST_F(KeyServiceDataTest, CiphertextOfAnotherContextIsInvalid) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(
      const EncryptResult sealed,
      service_->Encrypt(Root(), {.name = key,
                                 .context = EnvelopeContext::kKubernetesV2,
                                 .plaintext = Bytes("x")}));
  EXPECT_EQ(Opened(key, sealed.ciphertext),
            absl::StrCat("[", kInvalidCiphertext, "]"));
  // Also when the header is made to say the right one: the token knows better.
  ASSERT_OK_AND_ASSIGN(Envelope envelope, Envelope::Parse(sealed.ciphertext));
  envelope.context = EnvelopeContext::kCloudKms;
  EXPECT_EQ(Opened(key, envelope.Serialize()),
            absl::StrCat("[", kInvalidCiphertext, "]"));
}

TEST_F(KeyServiceDataTest, UnknownVersionIsNotFoundByName) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, "x"));
  ASSERT_OK_AND_ASSIGN(Envelope envelope, Envelope::Parse(sealed.ciphertext));
  envelope.version = 99;
  EXPECT_THAT(Decrypt(key, envelope.Serialize()),
              StatusIs(kNotFound, absl::StrCat("CryptoKeyVersion ",
                                               key.Version(99).ToString(),
                                               " not found.")));
  // A version that exists but is not the one: the header is authenticated.
  ASSERT_OK(service_->CreateVersion(Root(), key));
  envelope.version = 2;
  EXPECT_THAT(Decrypt(key, envelope.Serialize()),
              StatusIs(kInvalid, kInvalidCiphertext));
}

TEST_F(KeyServiceDataTest, SizesAreBoundedByProtectionLevel) {
  const ResourceName soft = MakeKey("soft");
  CreateCryptoKeyRequest request = KeyRequest("hard");
  request.protection_level = catalog::ProtectionLevel::kHsm;
  ASSERT_OK(service_->CreateCryptoKey(Root(), request));
  const ResourceName hard = Name(absl::StrCat(kRing, "/cryptoKeys/hard"));
  const std::string k64(65536, 'p'), k64_1(65537, 'p'), k8(8192, 'p');

  ASSERT_OK_AND_ASSIGN(const EncryptResult large, Encrypt(soft, k64, k64));
  EXPECT_EQ(Opened(soft, large.ciphertext, k64), k64);
  EXPECT_THAT(Encrypt(soft, k64_1), StatusIs(kInvalid, HasSubstr("65536")));
  EXPECT_THAT(Encrypt(soft, "", k64_1), StatusIs(kInvalid, HasSubstr("65536")));

  ASSERT_OK_AND_ASSIGN(const EncryptResult full, Encrypt(hard, k8));
  EXPECT_EQ(full.protection_level, catalog::ProtectionLevel::kHsm);
  EXPECT_EQ(Opened(hard, full.ciphertext), k8);
  EXPECT_THAT(Encrypt(hard, k8, "a"), StatusIs(kInvalid, HasSubstr("8192")));
  EXPECT_OK(Encrypt(hard, k8.substr(1), "a"));
}

TEST_F(KeyServiceDataTest, ThePayloadIsLookedAtLast) {
  const ResourceName key = MakeKey("k");
  const std::string too_long(70'000, 'p');
  EXPECT_THAT(Encrypt(Name(absl::StrCat(kRing, "/cryptoKeys/none")), too_long),
              StatusIs(kNotFound));
  EXPECT_THAT(Encrypt(key.Version(7), too_long), StatusIs(kNotFound));
  ASSERT_OK(service_->Disable(Root(), key.Version(1)));
  EXPECT_THAT(Encrypt(key, too_long), StatusIs(kPrecondition));
  EXPECT_THAT(service_->Encrypt(Root(), {.name = key,
                                         .context = EnvelopeContext::kCloudKms,
                                         .allow_empty_plaintext = false}),
              StatusIs(kPrecondition));
}

TEST_F(KeyServiceDataTest, OtherPurposesDoNotEncrypt) {
  const ResourceName name = Name(absl::StrCat(kRing, "/cryptoKeys/mac"));
  ASSERT_OK(catalog_->Transact(
      [&](catalog::Transaction& transaction) {
        catalog::CryptoKey key{.name = name, .purpose = catalog::Purpose::kMac};
        return transaction.Put(key);
      },
      Soon()));
  EXPECT_THAT(Encrypt(name, ""), StatusIs(kPrecondition, HasSubstr("purpose")));
  EXPECT_THAT(Decrypt(name, {}), StatusIs(kPrecondition, HasSubstr("purpose")));
  EXPECT_THAT(service_->Rotate(Root(), name),
              StatusIs(kPrecondition, HasSubstr("purpose")));
}

TEST_F(KeyServiceDataTest, WarmCallsSearchNeitherTokenNorCatalog) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, Sample()));
  EXPECT_EQ(Opened(key, sealed.ciphertext), Sample());
  rules_->Forget();
  for (int i = 0; i < 20; ++i) {
    ASSERT_OK(Encrypt(key, Sample()));
    ASSERT_EQ(Opened(key, sealed.ciphertext), Sample());
  }
  EXPECT_EQ(rules_->Count("C_FindObjects*"), 0);
  EXPECT_EQ(rules_->Count("C_GetAttributeValue"), 0);
}

TEST_F(KeyServiceDataTest, EveryCallIsRecordedWithSizesAndWithoutContents) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed,
                       Encrypt(key, "sUpErSeCrEt", "sOmEaAd"));
  EXPECT_EQ(Opened(key, sealed.ciphertext, "sOmEaAd"), "sUpErSeCrEt");
  EXPECT_THAT(
      AuditLines(
          {"\"op\":\"Encrypt\"", "\"rid\":\"request-1\"",
           "\"principal\":\"unix:uid:0\"", "\"result\":\"OK\"",
           absl::StrCat("\"ver\":\"", key.Version(1).ToString(), "\""),
           "\"in_len\":\"11\"", "\"aad_len\":\"7\"",
           absl::StrCat("\"out_len\":\"", sealed.ciphertext.size(), "\"")}),
      SizeIs(1));
  EXPECT_THAT(AuditLines({"\"op\":\"Decrypt\"", "\"out_len\":\"11\"",
                          "\"coalesced\":false"}),
              SizeIs(1));
  EXPECT_THAT(AuditLines({"sUpErSeCrEt"}), IsEmpty());
  EXPECT_THAT(AuditLines({"sOmEaAd"}), IsEmpty());
}

// ---- a change holds for what is on its way

TEST_F(KeyServiceDataTest, DisableHoldsForAnEncryptOnItsWayAndDoesNotWait) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK(Encrypt(key, Sample()));  // resolved
  rules_->Set({absl::StrCat("C_Encrypt size=", kTokenIn,
                            " hang=", rules_->HangFile())});
  absl::StatusOr<EncryptResult> result = absl::UnknownError("");
  std::thread caller([&] { result = Encrypt(key, Sample()); });
  ASSERT_TRUE(rules_->WaitForHangs(1, Soon()));
  // The token still hangs in the encryption when this returns.
  EXPECT_OK(service_->Disable(Root(), key.Version(1)));
  rules_->Release();
  caller.join();
  EXPECT_THAT(
      result,
      StatusIs(kPrecondition, absl::StrCat(key.Version(1).ToString(),
                                           " is not enabled, current state is: "
                                           "DISABLED.")));
  EXPECT_THAT(AuditLines({"\"op\":\"Encrypt\"", "result withheld",
                          "FAILED_PRECONDITION"}),
              SizeIs(1));
}

TEST_F(KeyServiceDataTest, ScheduleDestroyHoldsForADecryptOnItsWay) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, Sample()));
  rules_->Set({absl::StrCat("C_Decrypt size=", kTokenOut,
                            " hang=", rules_->HangFile())});
  std::string result;
  std::thread caller([&] { result = Opened(key, sealed.ciphertext); });
  ASSERT_TRUE(rules_->WaitForHangs(1, Soon()));
  EXPECT_OK(service_->ScheduleDestroy(Root(), key.Version(1)));
  rules_->Release();
  caller.join();
  EXPECT_EQ(result, absl::StrCat("[", key.Version(1).ToString(),
                                 " is not enabled, current state is: "
                                 "DESTROY_SCHEDULED.]"));
  EXPECT_THAT(AuditLines({"\"op\":\"Decrypt\"", "result withheld"}), SizeIs(1));
}

TEST_F(KeyServiceDataTest, ChangesOfOtherVersionsDoNotDisturbACallOnItsWay) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK(service_->CreateVersion(Root(), key));
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, Sample()));
  rules_->Set({absl::StrCat("C_Decrypt size=", kTokenOut,
                            " hang=", rules_->HangFile())});
  std::string result;
  std::thread caller([&] { result = Opened(key, sealed.ciphertext); });
  ASSERT_TRUE(rules_->WaitForHangs(1, Soon()));
  EXPECT_OK(service_->Disable(Root(), key.Version(2)));
  rules_->Release();
  caller.join();
  EXPECT_EQ(result, Sample());
  EXPECT_THAT(AuditLines({"result withheld"}), IsEmpty());
}

TEST_F(KeyServiceDataTest, NoResultLeavesAfterDisableReturned) {
  const ResourceName key = MakeKey("k");
  // Callers at full speed. The phase is odd from the return of a Disable to the
  // Enable after it: no call that succeeds lies wholly in such a phase.
  std::atomic<bool> stop = false;
  std::atomic<int> phase = 0;
  std::atomic<int> answers = 0;
  std::atomic<int> refusals = 0;
  std::atomic<int> late = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      while (!stop) {
        const int before = phase;
        const bool ok = Encrypt(key, "x").ok();
        const int after = phase;
        ++(ok ? answers : refusals);
        if (ok && before == after && before % 2 == 1) ++late;
      }
    });
  }
  const auto wait_for = [](const std::atomic<int>& counter, int count) {
    const base::Deadline deadline = Soon();
    while (counter < count && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    return counter >= count;
  };
  for (int round = 0; round < 10; ++round) {
    EXPECT_TRUE(wait_for(answers, answers + 20));
    EXPECT_OK(service_->Disable(Root(), key.Version(1)));
    ++phase;
    EXPECT_TRUE(wait_for(refusals, refusals + 20));
    ++phase;
    EXPECT_OK(service_->Enable(Root(), key.Version(1)));
  }
  stop = true;
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(late, 0);
}

// ---- shared work

TEST_F(KeyServiceDataTest, IdenticalDecryptsShareOneOperationOfTheToken) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, Sample()));
  rules_->Forget();
  rules_->Set({absl::StrCat("C_Decrypt count=-1 size=", kTokenOut,
                            " hang=", rules_->HangFile())});
  std::string first;
  std::thread leader([&] { first = Opened(key, sealed.ciphertext); });
  ASSERT_TRUE(rules_->WaitForHangs(1, Soon()));
  // While the first hangs, others wait for it, until their own deadline and no
  // longer; none asks the token.
  std::vector<std::thread> others;
  std::atomic<int> timed_out = 0;
  for (int i = 0; i < 5; ++i) {
    others.emplace_back([&] {
      CallInfo call = Root();
      call.deadline = base::DeadlineAfter(std::chrono::milliseconds(200));
      const absl::StatusOr<DecryptResult> result =
          service_->Decrypt(call, {.key = key,
                                   .context = EnvelopeContext::kCloudKms,
                                   .ciphertext = sealed.ciphertext});
      if (absl::IsDeadlineExceeded(result.status())) ++timed_out;
    });
  }
  for (std::thread& other : others) other.join();
  EXPECT_EQ(timed_out, 5);
  // Others stay and get the answer; whoever comes after it asks again.
  constexpr int kCallers = 20;
  std::atomic<int> right = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) {
    callers.emplace_back([&] {
      if (Opened(key, sealed.ciphertext) == Sample()) ++right;
    });
  }
  rules_->Release();
  leader.join();
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(first, Sample());
  EXPECT_EQ(right, kCallers);
  // Each answer is recorded, as its own or as shared, and the token did only
  // what was not shared.
  const size_t shared = AuditLines({"\"op\":\"Decrypt\"", "\"result\":\"OK\"",
                                    "\"coalesced\":true"})
                            .size();
  const size_t own = AuditLines({"\"op\":\"Decrypt\"", "\"result\":\"OK\"",
                                 "\"coalesced\":false"})
                         .size();
  EXPECT_EQ(shared + own, static_cast<size_t>(kCallers) + 1);
  EXPECT_EQ(static_cast<size_t>(TokenDecrypts(kTokenOut)), own);
}

TEST_F(KeyServiceDataTest, AStrangerDoesNotShareTheAnswer) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, Sample()));
  rules_->Set({absl::StrCat("C_Decrypt size=", kTokenOut,
                            " hang=", rules_->HangFile())});
  std::string first;
  std::thread leader([&] { first = Opened(key, sealed.ciphertext); });
  ASSERT_TRUE(rules_->WaitForHangs(1, Soon()));
  EXPECT_THAT(service_->Decrypt(As("unix:uid:4711"),
                                {.key = key,
                                 .context = EnvelopeContext::kCloudKms,
                                 .ciphertext = sealed.ciphertext}),
              StatusIs(absl::StatusCode::kPermissionDenied));
  rules_->Release();
  leader.join();
  EXPECT_EQ(first, Sample());
}

// ---- the limit of uses

TEST_F(KeyServiceDataTest, EncryptionEndsAtTheLimitAndDecryptionGoesOn) {
  options_.max_uses = 100;
  options_.max_use_block = 10;
  Restart();
  const ResourceName key = MakeKey("k");
  std::vector<uint8_t> last;
  for (int i = 0; i < 100; ++i) {
    ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, "x"));
    last = sealed.ciphertext;
  }
  EXPECT_THAT(Encrypt(key, "x"),
              StatusIs(kPrecondition, HasSubstr("rotate the key")));
  EXPECT_EQ(Opened(key, last), "x");
  // The service mends it by itself.
  EXPECT_EQ(service_->RunDue(Soon()), 1);
  ASSERT_OK_AND_ASSIGN(const EncryptResult next, Encrypt(key, "y"));
  EXPECT_EQ(next.version, key.Version(2));
  EXPECT_EQ(Opened(key, last), "x");
}

TEST_F(KeyServiceDataTest, ARestartNeverForgetsUses) {
  options_.max_uses = 100;
  options_.max_use_block = 10;
  Restart();
  const ResourceName key = MakeKey("k");
  int made = 0;
  for (int run = 0; run < 30; ++run) {
    for (int i = 0; i < 3; ++i) {
      if (Encrypt(key, "x").ok()) ++made;
    }
    service_ = Fresh();  // what was left of the block is lost
  }
  EXPECT_EQ(made, 30);  // 10 blocks, 3 of each used
  EXPECT_THAT(Encrypt(key, "x"), StatusIs(kPrecondition));
}

// ---- trouble below

TEST_F(KeyServiceDataTest, NoBlobLeavesThatTheRealKeyDoesNotOpen) {
  const ResourceName key = MakeKey("k");
  MakeKey("decoy");                   // what the swap will put in its place
  ASSERT_OK(Encrypt(key, Sample()));  // resolved and proven
  std::atomic<bool> stop = false;
  std::atomic<int> answers = 0;
  std::atomic<int> refusals = 0;
  std::vector<std::vector<std::vector<uint8_t>>> blobs(4);
  std::vector<std::thread> callers;
  for (auto& mine : blobs) {
    callers.emplace_back([&] {
      while (!stop) {
        absl::StatusOr<EncryptResult> sealed = Encrypt(key, Sample());
        if (sealed.ok()) {
          mine.push_back(std::move(sealed->ciphertext));
          ++answers;
        } else {
          ++refusals;
        }
      }
    });
  }
  const auto wait_for = [&](const std::atomic<int>& counter, int count) {
    const base::Deadline deadline = Soon();
    while (counter < count && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    return counter >= count;
  };
  EXPECT_TRUE(wait_for(answers, 50));
  rules_->Set({"C_*cryptInit swapkey=1 count=-1"});
  EXPECT_TRUE(wait_for(refusals, 20));
  stop = true;
  for (std::thread& caller : callers) caller.join();
  rules_->Clear();
  Restart();
  size_t opened = 0;
  for (const auto& some : blobs) {
    for (const std::vector<uint8_t>& blob : some) {
      ASSERT_EQ(Opened(key, blob), Sample());
      ++opened;
    }
  }
  EXPECT_GE(opened, 50u);
}

TEST_F(KeyServiceDataTest, ATokenInTroubleIsATypedErrorAndHeals) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK_AND_ASSIGN(const EncryptResult sealed, Encrypt(key, Sample()));
  TakeTokenAway();
  CallInfo call = Root();
  call.deadline = base::DeadlineAfter(std::chrono::seconds(3));
  const absl::Status failed =
      service_
          ->Encrypt(call, {.name = key,
                           .context = EnvelopeContext::kCloudKms,
                           .plaintext = Bytes(Sample())})
          .status();
  EXPECT_TRUE(absl::IsUnavailable(failed) || absl::IsDeadlineExceeded(failed))
      << failed;
  rules_->Clear();
  const base::Deadline deadline = Soon();
  while (Opened(key, sealed.ciphertext) != Sample() &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_EQ(Opened(key, sealed.ciphertext), Sample());
}

TEST_F(KeyServiceDataTest, SelfTestProvesThePrimary) {
  const ResourceName key = MakeKey("k");
  EXPECT_EQ(service_->LastSuccess(key), std::nullopt);
  const base::Deadline before = std::chrono::steady_clock::now();
  EXPECT_OK(service_->SelfTest(key, Soon()));
  ASSERT_TRUE(service_->LastSuccess(key).has_value());
  EXPECT_GE(*service_->LastSuccess(key), before);
  // It is a use, and no record of the audit log.
  ASSERT_OK_AND_ASSIGN(const uint64_t uses,
                       catalog_->UsesReserved(key.Version(1)));
  EXPECT_GE(uses, 1u);
  EXPECT_THAT(AuditLines({"\"op\":\"Encrypt\""}), IsEmpty());
  ASSERT_OK(service_->Disable(Root(), key.Version(1)));
  EXPECT_THAT(service_->SelfTest(key, Soon()),
              StatusIs(kPrecondition, HasSubstr("DISABLED")));
  EXPECT_THAT(
      service_->SelfTest(Name(absl::StrCat(kRing, "/cryptoKeys/none")), Soon()),
      StatusIs(kNotFound));
}

TEST_F(KeyServiceDataTest, LastSuccessSurvivesChangesOfTheKey) {
  const ResourceName key = MakeKey("k");
  ASSERT_OK(Encrypt(key, "x"));
  const auto success = service_->LastSuccess(key);
  ASSERT_TRUE(success.has_value());
  ASSERT_OK(service_->CreateVersion(Root(), key));
  EXPECT_EQ(service_->LastSuccess(key), success);
}

}  // namespace
}  // namespace kek::core
