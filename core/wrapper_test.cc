// SPDX-License-Identifier: Apache-2.0
#include "core/wrapper.h"

#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/testing/matchers.h"
#include "tests/fault/fault_test.h"

namespace kek::core {
namespace {

using base::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Bytes = std::vector<uint8_t>;

// What the token sees of a 32-byte DEK: 8 bytes of checksum before it, 16 of
// tag after it. A canary has 32 and 48 bytes, so rules can tell them apart.
constexpr int kPayloadSize = 40;
constexpr int kSealedDekSize = 56;
constexpr int kSealedCanarySize = 48;

// A Wrapper over a fresh SoftHSM token behind the fault module.
class WrapperTest : public fault::FaultTest {
 protected:
  void SetUp() override {
    FaultTest::SetUp();
    ASSERT_NO_FATAL_FAILURE(OpenReady());
    wrapper_.emplace(*token_, &metrics_);
    version_ = MakeVersion(1);
  }
  void TearDown() override {
    version_.key = nullptr;
    wrapper_.reset();
    FaultTest::TearDown();
  }

  // A version as create makes it: object, canary, record, resolved.
  ResolvedVersion MakeVersion(uint32_t number) {
    const pkcs11::KeyIdentity identity = NewIdentity("version");
    EXPECT_OK(token_->GenerateKey(identity, Soon()));
    catalog::Uuid uuid{};
    uuid.fill(static_cast<uint8_t>(number));
    auto canary = wrapper_->MakeCanary(identity, uuid, number, Soon());
    EXPECT_OK(canary);
    auto name = catalog::ResourceName::Parse(
        "projects/p/locations/l/keyRings/r/cryptoKeys/k");
    EXPECT_OK(name);
    catalog::CryptoKeyVersion record{.name = name->Version(number)};
    record.key_uuid = uuid;
    record.object_id = identity.id;
    record.object_label = identity.label;
    if (canary.ok()) record.canary = *std::move(canary);
    records_.push_back(record);
    return wrapper_->Resolve(record);
  }

  absl::StatusOr<Bytes> Wrap(const Bytes& aad = {}, bool verify = true) {
    return wrapper_->Wrap(
        version_, dek_, aad,
        {.context = EnvelopeContext::kKubernetesV2, .verify = verify}, Soon());
  }
  absl::StatusOr<base::SecretBytes> Unwrap(const ResolvedVersion& version,
                                           const Bytes& blob,
                                           const Bytes& aad = {}) {
    auto envelope = Envelope::Parse(blob);
    if (!envelope.ok()) return envelope.status();
    return wrapper_->Unwrap(version, *envelope, aad, Soon());
  }
  bool OpensToDek(const ResolvedVersion& version, const Bytes& blob) {
    const auto opened = Unwrap(version, blob);
    EXPECT_OK(opened);
    return opened.ok() && base::ConstantTimeEqual(opened->span(), dek_);
  }
  double Metric(const char* name) {
    return metrics_.GetCounter(name, "")->Value();
  }
  int CallsOfSize(const char* function, int size) const {
    int count = 0;
    for (const auto& call : rules_->Calls(function)) {
      count += call.details.at("size") == absl::StrCat(size) ? 1 : 0;
    }
    return count;
  }

  std::optional<Wrapper> wrapper_;
  ResolvedVersion version_;
  std::vector<catalog::CryptoKeyVersion> records_;
  Bytes dek_ = Bytes(32, 0xD7);
};

TEST_F(WrapperTest, RoundTripsInEveryContext) {
  const Bytes aad = {'a', 'a', 'd'};
  for (const auto context :
       {EnvelopeContext::kKubernetesV1Beta1, EnvelopeContext::kKubernetesV2,
        EnvelopeContext::kCloudKms, EnvelopeContext::kKekV1}) {
    for (const bool verify : {true, false}) {
      for (const size_t size :
           {size_t{0}, size_t{1}, size_t{32}, size_t{8192}}) {
        const Bytes plaintext(size, 0x11);
        ASSERT_OK_AND_ASSIGN(
            const Bytes blob,
            wrapper_->Wrap(version_, plaintext, aad,
                           {.context = context, .verify = verify}, Soon()));
        EXPECT_EQ(blob.size(), size + kMaxEnvelopeOverhead - 4);
        ASSERT_OK_AND_ASSIGN(const Envelope envelope, Envelope::Parse(blob));
        EXPECT_EQ(envelope.context, context);
        EXPECT_EQ(envelope.key_uuid, version_.key_uuid);
        EXPECT_EQ(envelope.version, 1u);
        ASSERT_OK_AND_ASSIGN(const base::SecretBytes opened,
                             wrapper_->Unwrap(version_, envelope, aad, Soon()));
        EXPECT_TRUE(base::ConstantTimeEqual(opened.span(), plaintext));
      }
    }
  }
}

TEST_F(WrapperTest, WrappedDekIsSmallAndNeverTheSameTwice) {
  ASSERT_OK_AND_ASSIGN(const Bytes one, Wrap());
  ASSERT_OK_AND_ASSIGN(const Bytes two, Wrap());
  EXPECT_LE(one.size(), 128u);
  EXPECT_NE(one, two);
}

// Every changed bit of the header is tried as KeyService would (the header must
// match the version) and, past that check, as the token sees it.
TEST_F(WrapperTest, AChangeOfAnyBitNeverYieldsPlaintext) {
  ASSERT_OK_AND_ASSIGN(const Bytes blob, Wrap());
  int reached_token = 0;
  for (size_t bit = 0; bit < blob.size() * 8; ++bit) {
    Bytes changed = blob;
    changed[bit / 8] ^= static_cast<uint8_t>(1U << (bit % 8));
    EXPECT_THAT(Unwrap(version_, changed),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         std::string(kDecryptionFailed)))
        << "bit " << bit;
    const auto envelope = Envelope::Parse(changed);
    if (!envelope.ok()) continue;
    ++reached_token;
    ResolvedVersion misled = version_;
    misled.key_uuid = envelope->key_uuid;
    misled.version = envelope->version;
    EXPECT_THAT(wrapper_->Unwrap(misled, *envelope, {}, Soon()),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         std::string(kDecryptionFailed)))
        << "bit " << bit;
  }
  // UUID, version, IV, ciphertext and tag whole; some bits of the rest.
  EXPECT_GE(reached_token, (16 + 4 + 12 + kSealedDekSize) * 8 - 1);
  // Junk did not shake the token.
  EXPECT_EQ(State(), pkcs11::TokenState::kReady);
  EXPECT_TRUE(OpensToDek(version_, blob));
}

TEST_F(WrapperTest, OtherLengthsNeverYieldPlaintext) {
  ASSERT_OK_AND_ASSIGN(const Bytes blob, Wrap());
  for (size_t size = 0; size < blob.size(); ++size) {
    EXPECT_THAT(Unwrap(version_, Bytes(blob.begin(), blob.begin() + size)),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         std::string(kDecryptionFailed)));
  }
  for (Bytes longer = blob; longer.size() < blob.size() + 20;) {
    longer.push_back(0);
    EXPECT_THAT(Unwrap(version_, longer),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         std::string(kDecryptionFailed)));
  }
}

TEST_F(WrapperTest, OpensWithItsOwnAadOnly) {
  const Bytes aad = {1, 2, 3};
  ASSERT_OK_AND_ASSIGN(const Bytes blob, Wrap(aad));
  EXPECT_OK(Unwrap(version_, blob, aad));
  for (const Bytes& other :
       {Bytes{}, Bytes{1, 2}, Bytes{1, 2, 3, 0}, Bytes{1, 2, 4}}) {
    EXPECT_THAT(Unwrap(version_, blob, other),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         std::string(kDecryptionFailed)));
  }
}

TEST_F(WrapperTest, DoesNotOpenUnderAnotherVersionsKey) {
  const ResolvedVersion other = MakeVersion(2);
  ASSERT_OK_AND_ASSIGN(const Bytes blob, Wrap());
  EXPECT_THAT(Unwrap(other, blob), StatusIs(absl::StatusCode::kInvalidArgument,
                                            std::string(kDecryptionFailed)));
  ResolvedVersion misled = version_;
  misled.key = other.key;
  EXPECT_THAT(Unwrap(misled, blob), StatusIs(absl::StatusCode::kInvalidArgument,
                                             std::string(kDecryptionFailed)));
}

TEST_F(WrapperTest, CanaryNamesKeyAndVersion) {
  ASSERT_EQ(records_.size(), 1u);
  ASSERT_TRUE(records_[0].canary.has_value());
  const Bytes& aad = records_[0].canary->aad;
  Bytes expected = {'k', 'e', 'k', '-', 'c', 'a', 'n', 'a', 'r', 'y'};
  expected.insert(expected.end(), 16, 1);
  expected.insert(expected.end(), {0, 0, 0, 1});
  EXPECT_EQ(aad, expected);
}

TEST_F(WrapperTest, RecordWithoutCanaryIsNotUsable) {
  catalog::CryptoKeyVersion record = records_[0];
  ASSERT_OK_AND_ASSIGN(const Bytes blob, Wrap());
  record.canary.reset();
  const ResolvedVersion unready = wrapper_->Resolve(record);
  EXPECT_EQ(unready.key, nullptr);
  EXPECT_THAT(wrapper_->Wrap(unready, dek_, {}, {}, Soon()),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(Unwrap(unready, blob),
              StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(WrapperTest, BitFlippedByTheTokenAfterTheTagIsDataLoss) {
  ASSERT_OK_AND_ASSIGN(const Bytes blob, Wrap());
  for (const int bit : {0, 63, 64, 319}) {
    rules_->Set(
        {absl::StrCat("C_Decrypt size=", kSealedDekSize, " flip=", bit)});
    EXPECT_THAT(Unwrap(version_, blob), StatusIs(absl::StatusCode::kDataLoss))
        << "bit " << bit;
  }
  rules_->Clear();
  EXPECT_TRUE(OpensToDek(version_, blob));
}

TEST_F(WrapperTest, EveryWrapIsProvenAndManyShareAProof) {
  ASSERT_OK(Wrap({}, false));
  const double wraps = Metric("kekd_wraps_total");
  const double proofs = Metric("kekd_wrap_proofs_total");
  rules_->Forget();
  ASSERT_OK(Wrap({}, false));
  EXPECT_EQ(CallsOfSize("C_Encrypt", kPayloadSize), 1);
  EXPECT_EQ(CallsOfSize("C_Decrypt", kSealedCanarySize), 1);
  // A slow proof gathers those who wrap meanwhile.
  rules_->Set({absl::StrCat("C_Decrypt count=-1 size=", kSealedCanarySize,
                            " delay=5ms")});
  constexpr int kThreads = 8;
  constexpr int kEach = 20;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kEach; ++i) {
        const auto blob = Wrap({}, false);
        EXPECT_OK(blob);
        EXPECT_TRUE(blob.ok() && OpensToDek(version_, *blob));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(Metric("kekd_wraps_total") - wraps, kThreads * kEach + 1);
  EXPECT_LT(Metric("kekd_wrap_proofs_total") - proofs, kThreads * kEach);
}

TEST_F(WrapperTest, FailedProofReleasesNothing) {
  const ResolvedVersion other = MakeVersion(2);
  ASSERT_OK(wrapper_->Wrap(other, dek_, {}, {}, Soon()));
  ASSERT_OK(Wrap());
  // Encryption and verification go through another key's handle alike; only
  // the canary can tell.
  rules_->Set({"C_*cryptInit count=-1 swapkey=1"});
  EXPECT_THAT(Wrap(), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_TRUE(token_->IsQuarantined(version_.key));
  rules_->Clear();
  EXPECT_THAT(Wrap(), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(WrapperTest, HandleSwappedUnderLoadLetsNoWrongBlobOut) {
  const ResolvedVersion other = MakeVersion(2);
  ASSERT_OK(wrapper_->Wrap(other, dek_, {}, {}, Soon()));
  struct Released {
    base::Mutex mu;
    std::vector<Bytes> blobs ABSL_GUARDED_BY(mu);
  } released;
  std::atomic<int> wrapped = 0;
  std::atomic<int> refused = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&] {
      while (refused < 30) {
        auto blob = Wrap({}, false);
        if (!blob.ok()) {
          ++refused;
          continue;
        }
        ++wrapped;
        base::MutexLock lock(released.mu);
        released.blobs.push_back(*std::move(blob));
      }
    });
  }
  EXPECT_TRUE(Eventually([&] { return wrapped >= 60; }));
  rules_->Set({"C_*cryptInit count=-1 swapkey=1"});
  for (auto& thread : threads) thread.join();
  rules_->Clear();
  // A new process, as it were: the quarantine is gone, the handles are right.
  version_.key = nullptr;
  wrapper_.reset();
  ASSERT_NO_FATAL_FAILURE(OpenReady());
  wrapper_.emplace(*token_, &metrics_);
  const ResolvedVersion again = wrapper_->Resolve(records_[0]);
  base::MutexLock lock(released.mu);
  EXPECT_GE(released.blobs.size(), 60u);
  for (const Bytes& blob : released.blobs) {
    ASSERT_TRUE(OpensToDek(again, blob));
  }
}

// The login is lost between an encryption and its proof: the proof then goes
// through a handle of the new generation and says nothing of the old one.
TEST_F(WrapperTest, WrapOfAnOldGenerationIsMadeAnew) {
  ASSERT_OK(Wrap({}, false));
  const uint64_t generation = Generation();
  rules_->Forget();
  // Unverified, so the first decryption is the proof's.
  rules_->Set({"C_DecryptInit logout=1"});
  ASSERT_OK_AND_ASSIGN(const Bytes blob, Wrap({}, false));
  EXPECT_GT(Generation(), generation);
  EXPECT_EQ(Metric("kekd_wraps_total"), 3);
  EXPECT_TRUE(OpensToDek(version_, blob));
}

TEST_F(WrapperTest, DeadlineOfAWaiterIsKeptWhileAProofHangs) {
  ASSERT_OK(Wrap({}, false));
  rules_->Set({absl::StrCat("C_Decrypt size=", kSealedCanarySize,
                            " hang=", rules_->HangFile())});
  std::thread leader([&] { (void)Wrap({}, false); });
  EXPECT_TRUE(rules_->WaitForHangs(1, Soon()));
  EXPECT_THAT(
      wrapper_->Wrap(version_, dek_, {}, {.verify = false},
                     base::DeadlineAfter(std::chrono::milliseconds(50))),
      StatusIs(absl::StatusCode::kDeadlineExceeded));
  rules_->Release();
  leader.join();
  EXPECT_OK(Wrap({}, false));
}

}  // namespace
}  // namespace kek::core
