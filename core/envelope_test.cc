// SPDX-License-Identifier: Apache-2.0
#include "core/envelope.h"

#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>

#include <openssl/evp.h>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "base/testing/matchers.h"

namespace kek::core {
namespace {

using base::testing::IsOk;
using base::testing::StatusIs;
using ::testing::SizeIs;
using Bytes = std::vector<uint8_t>;

Bytes FromHex(const std::string& hex) {
  const std::string bytes = absl::HexStringToBytes(hex);
  return {bytes.begin(), bytes.end()};
}

Bytes ToBytes(const base::SecretBytes& secret) {
  return {secret.span().begin(), secret.span().end()};
}

bool Same(const Envelope& a, const Envelope& b) {
  return a.algorithm == b.algorithm && a.context == b.context &&
         a.key_uuid == b.key_uuid && a.version == b.version && a.iv == b.iv &&
         a.ciphertext == b.ciphertext;
}

using Vector = std::map<std::string, std::string>;

std::vector<Vector> ReadVectors() {
  const char* root = std::getenv("KEK_SOURCE_DIR");
  const std::string path = std::string(root != nullptr ? root : ".") +
                           "/tests/vectors/envelope/envelope_v1.rsp";
  std::ifstream in(path);
  EXPECT_TRUE(in.is_open()) << path << " (KEK_SOURCE_DIR is the checkout)";
  std::vector<Vector> vectors;
  for (std::string line; std::getline(in, line);) {
    const size_t eq = line.find(" =");
    if (line.empty() || line[0] == '#' || eq == std::string::npos) continue;
    const std::string name = line.substr(0, eq);
    if (name == "Name") vectors.emplace_back();
    vectors.back()[name] = eq + 3 <= line.size() ? line.substr(eq + 3) : "";
  }
  return vectors;
}

// AES-256-GCM of OpenSSL; empty optional when the tag is wrong.
std::optional<Bytes> Open(const Bytes& key, const Envelope& envelope,
                          const Bytes& aad) {
  std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)> ctx(
      EVP_CIPHER_CTX_new(), &EVP_CIPHER_CTX_free);
  const size_t size = envelope.ciphertext.size() - 16;
  Bytes tag(envelope.ciphertext.end() - 16, envelope.ciphertext.end());
  Bytes out(size + 1);
  int n = 0;
  EXPECT_EQ(EVP_DecryptInit_ex(ctx.get(), EVP_aes_256_gcm(), nullptr, nullptr,
                               nullptr),
            1);
  EXPECT_EQ(EVP_CIPHER_CTX_ctrl(ctx.get(), EVP_CTRL_AEAD_SET_IVLEN,
                                static_cast<int>(envelope.iv.size()), nullptr),
            1);
  EXPECT_EQ(EVP_DecryptInit_ex(ctx.get(), nullptr, nullptr, key.data(),
                               envelope.iv.data()),
            1);
  EXPECT_EQ(EVP_DecryptUpdate(ctx.get(), nullptr, &n, aad.data(),
                              static_cast<int>(aad.size())),
            1);
  EXPECT_EQ(
      EVP_DecryptUpdate(ctx.get(), out.data(), &n, envelope.ciphertext.data(),
                        static_cast<int>(size)),
      1);
  EXPECT_EQ(
      EVP_CIPHER_CTX_ctrl(ctx.get(), EVP_CTRL_AEAD_SET_TAG, 16, tag.data()), 1);
  if (EVP_DecryptFinal_ex(ctx.get(), out.data() + size, &n) != 1) {
    return std::nullopt;
  }
  out.resize(size);
  return out;
}

Envelope Example(size_t iv_size = 12) {
  Envelope envelope;
  envelope.context = EnvelopeContext::kKubernetesV2;
  for (size_t i = 0; i < 16; ++i) {
    envelope.key_uuid[i] = static_cast<uint8_t>(i + 1);
  }
  envelope.version = 0x01020304;
  envelope.iv.assign(iv_size, 0xAA);
  envelope.ciphertext.assign(8 + 32 + 16, 0xCC);
  return envelope;
}

TEST(EnvelopeTest, CommittedVectorsHold) {
  const std::vector<Vector> vectors = ReadVectors();
  ASSERT_THAT(vectors, SizeIs(6));
  for (const Vector& v : vectors) {
    SCOPED_TRACE(v.at("Name"));
    const Bytes blob = FromHex(v.at("Envelope"));
    const Bytes plaintext = FromHex(v.at("PT"));
    ASSERT_OK_AND_ASSIGN(const Envelope envelope, Envelope::Parse(blob));
    EXPECT_EQ(envelope.algorithm, EnvelopeAlgorithm::kAes256Gcm);
    EXPECT_EQ(std::to_string(static_cast<int>(envelope.context)),
              v.at("Context"));
    EXPECT_EQ(Bytes(envelope.key_uuid.begin(), envelope.key_uuid.end()),
              FromHex(v.at("Uuid")));
    EXPECT_EQ(std::to_string(envelope.version), v.at("Version"));
    EXPECT_EQ(envelope.iv, FromHex(v.at("IV")));
    EXPECT_EQ(envelope.ciphertext, FromHex(v.at("CT")));
    EXPECT_EQ(envelope.Serialize(), blob);

    const Bytes aad = envelope.BuildAad(FromHex(v.at("CallerAAD")));
    EXPECT_EQ(aad, FromHex(v.at("AAD")));
    ASSERT_OK_AND_ASSIGN(const base::SecretBytes payload,
                         SealPayload(plaintext));
    EXPECT_EQ(ToBytes(payload), FromHex(v.at("Payload")));

    const std::optional<Bytes> opened =
        Open(FromHex(v.at("Key")), envelope, aad);
    ASSERT_TRUE(opened.has_value());
    EXPECT_EQ(*opened, ToBytes(payload));
    ASSERT_OK_AND_ASSIGN(const base::SecretBytes back, OpenPayload(*opened));
    EXPECT_EQ(ToBytes(back), plaintext);
  }
}

// The header is authenticated: under the right key and IV, a vector opens with
// its own AAD and with no other vector's.
TEST(EnvelopeTest, VectorsOpenUnderTheirOwnAadOnly) {
  const std::vector<Vector> vectors = ReadVectors();
  for (const Vector& v : vectors) {
    ASSERT_OK_AND_ASSIGN(const Envelope envelope,
                         Envelope::Parse(FromHex(v.at("Envelope"))));
    for (const Vector& other : vectors) {
      EXPECT_EQ(Open(FromHex(v.at("Key")), envelope, FromHex(other.at("AAD")))
                    .has_value(),
                &v == &other)
          << v.at("Name") << " with the AAD of " << other.at("Name");
    }
  }
}

TEST(EnvelopeTest, WrappedDekStaysSmall) {
  const Envelope envelope = Example(16);
  EXPECT_EQ(envelope.Serialize().size(), 32 + kMaxEnvelopeOverhead);
  EXPECT_LE(envelope.Serialize().size(), 128u);
}

TEST(EnvelopeTest, EveryTruncationOfTheHeaderAndBelowTheTagFails) {
  for (const size_t iv_size : {12, 16}) {
    const Bytes blob = Example(iv_size).Serialize();
    const size_t shortest = 28 + iv_size + 8 + 16;
    for (size_t size = 0; size < blob.size(); ++size) {
      const auto parsed = Envelope::Parse(std::span(blob).first(size));
      if (size < shortest) {
        EXPECT_THAT(parsed, StatusIs(absl::StatusCode::kInvalidArgument,
                                     std::string(kDecryptionFailed)))
            << size;
      } else {
        // The parser cannot know where a ciphertext ends; the tag does.
        ASSERT_OK(parsed);
        EXPECT_FALSE(Same(*parsed, Example(iv_size)));
        EXPECT_THAT(parsed->Serialize(), SizeIs(size));
      }
    }
  }
}

TEST(EnvelopeTest, EveryBitFlipFailsOrParsesToAnotherEnvelope) {
  for (const size_t iv_size : {12, 16}) {
    const Envelope original = Example(iv_size);
    const Bytes blob = original.Serialize();
    for (size_t bit = 0; bit < blob.size() * 8; ++bit) {
      Bytes changed = blob;
      changed[bit / 8] ^= static_cast<uint8_t>(1U << (bit % 8));
      const auto parsed = Envelope::Parse(changed);
      if (!parsed.ok()) {
        EXPECT_THAT(parsed, StatusIs(absl::StatusCode::kInvalidArgument,
                                     std::string(kDecryptionFailed)));
        continue;
      }
      EXPECT_FALSE(Same(*parsed, original)) << "bit " << bit;
      EXPECT_EQ(parsed->Serialize(), changed) << "bit " << bit;
      // A change before the IV is always a change of what is authenticated.
      if (bit / 8 < 28) {
        EXPECT_NE(parsed->BuildAad({}), original.BuildAad({})) << "bit " << bit;
      }
    }
  }
}

TEST(EnvelopeTest, RandomBytesParseExactlyOrNotAtAll) {
  std::mt19937 random(20261121);
  int parsed_count = 0;
  for (int i = 0; i < 50'000; ++i) {
    Bytes bytes = Example(i % 2 == 0 ? 12 : 16).Serialize();
    bytes.resize(random() % 120, 0x5A);
    for (int changes = static_cast<int>(random() % 4); changes > 0; --changes) {
      if (!bytes.empty()) {
        bytes[random() % bytes.size()] = static_cast<uint8_t>(random());
      }
    }
    const auto parsed = Envelope::Parse(bytes);
    if (!parsed.ok()) continue;
    ++parsed_count;
    ASSERT_EQ(parsed->Serialize(), bytes);
  }
  EXPECT_GT(parsed_count, 1000);
}

TEST(EnvelopeTest, UnknownNumbersAreRefused) {
  const Bytes good = Example().Serialize();
  ASSERT_THAT(Envelope::Parse(good), IsOk());
  const auto with = [&good](size_t at, uint8_t value) {
    Bytes bytes = good;
    bytes[at] = value;
    return Envelope::Parse(bytes);
  };
  for (int value = 0; value < 256; ++value) {
    const auto byte = static_cast<uint8_t>(value);
    EXPECT_EQ(with(3, byte).ok(), value == 1) << "format " << value;
    EXPECT_EQ(with(4, byte).ok(), value == 1) << "algorithm " << value;
    EXPECT_EQ(with(5, byte).ok(), value >= 1 && value <= 4)
        << "context " << value;
    EXPECT_EQ(with(6, byte).ok(), value == 0) << "derivation " << value;
    EXPECT_EQ(with(27, byte).ok(), value == 12 || value == 16)
        << "IV length " << value;
  }
  Bytes version0 = good;
  std::fill(version0.begin() + 23, version0.begin() + 27, 0);
  EXPECT_FALSE(Envelope::Parse(version0).ok());
}

TEST(EnvelopeTest, AadSeparatesHeaderAndCallersAad) {
  const Envelope envelope = Example();
  EXPECT_EQ(envelope.BuildAad({}).size(), 8u + 28 + 8);
  const Bytes a = {1, 2};
  const Bytes b = {1, 2, 0};
  EXPECT_NE(envelope.BuildAad(a), envelope.BuildAad(b));
  // The IV's bytes are no part of it, its length is.
  Envelope other_iv = envelope;
  other_iv.iv.assign(12, 0x55);
  EXPECT_EQ(envelope.BuildAad(a), other_iv.BuildAad(a));
  other_iv.iv.assign(16, 0x55);
  EXPECT_NE(envelope.BuildAad(a), other_iv.BuildAad(a));
}

TEST(PayloadTest, AnyFlippedBitIsDataLoss) {
  const Bytes plaintext = {'d', 'e', 'k'};
  ASSERT_OK_AND_ASSIGN(const base::SecretBytes payload, SealPayload(plaintext));
  ASSERT_EQ(payload.size(), 11u);
  for (size_t bit = 0; bit < payload.size() * 8; ++bit) {
    Bytes changed = ToBytes(payload);
    changed[bit / 8] ^= static_cast<uint8_t>(1U << (bit % 8));
    EXPECT_THAT(OpenPayload(changed), StatusIs(absl::StatusCode::kDataLoss));
  }
  for (size_t size = 0; size < payload.size(); ++size) {
    EXPECT_THAT(OpenPayload(payload.span().first(size)),
                StatusIs(absl::StatusCode::kDataLoss));
  }
}

TEST(PayloadTest, EmptyPlaintextRoundTrips) {
  ASSERT_OK_AND_ASSIGN(const base::SecretBytes payload, SealPayload({}));
  EXPECT_EQ(payload.size(), kPayloadChecksumSize);
  ASSERT_OK_AND_ASSIGN(const base::SecretBytes back,
                       OpenPayload(payload.span()));
  EXPECT_TRUE(back.empty());
}

}  // namespace
}  // namespace kek::core
