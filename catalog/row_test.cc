// SPDX-License-Identifier: Apache-2.0
#include "catalog/row.h"

#include <random>
#include <string>

#include "absl/strings/escaping.h"
#include "base/crc32c.h"
#include "catalog/catalog_test_suite.h"

namespace kek::catalog {
namespace {

using base::testing::StatusIs;
using ::testing::HasSubstr;
using Bytes = std::vector<uint8_t>;

Bytes WithChecksum(Bytes body) {
  const uint32_t crc = base::Crc32c(body);
  for (int shift = 24; shift >= 0; shift -= 8) {
    body.push_back(static_cast<uint8_t>(crc >> shift));
  }
  return body;
}
Bytes WithoutChecksum(const Bytes& row) { return {row.begin(), row.end() - 4}; }
std::string Hex(const Bytes& bytes) {
  return absl::BytesToHexString(absl::string_view(
      reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

// Decodes as Record; if that works, the row must be what the record encodes to.
template <typename Record>
bool DecodesOnlyToItself(const Bytes& row) {
  const absl::StatusOr<Record> record = DecodeRow<Record>(row);
  if (!record.ok()) return true;
  const absl::StatusOr<Bytes> again = EncodeRow(*record);
  return again.ok() && *again == row;
}
bool IsTotalAndCanonical(const Bytes& row) {
  return DecodesOnlyToItself<KeyRing>(row) &&
         DecodesOnlyToItself<CryptoKey>(row) &&
         DecodesOnlyToItself<CryptoKeyVersion>(row);
}

std::vector<Bytes> Samples() {
  CryptoKey bare{.name = KeyName()};
  CryptoKeyVersion bare_version{.name = KeyName().Version(2)};
  return {*EncodeRow(FullRing(RingName())), *EncodeRow(FullKey(KeyName())),
          *EncodeRow(FullVersion(KeyName().Version(1))), *EncodeRow(bare),
          *EncodeRow(bare_version)};
}

TEST(RowTest, RecordsComeBackWhole) {
  KeyRing ring = FullRing(RingName());
  ring.revision = 5;
  CryptoKey key = FullKey(KeyName());
  key.revision = UINT64_MAX;
  CryptoKeyVersion version = FullVersion(KeyName().Version(1));
  version.revision = 6;
  ASSERT_OK_AND_ASSIGN(const Bytes a, EncodeRow(ring));
  ASSERT_OK_AND_ASSIGN(const Bytes b, EncodeRow(key));
  ASSERT_OK_AND_ASSIGN(const Bytes c, EncodeRow(version));
  ASSERT_OK_AND_ASSIGN(const KeyRing r, DecodeRow<KeyRing>(a));
  ASSERT_OK_AND_ASSIGN(const CryptoKey k, DecodeRow<CryptoKey>(b));
  ASSERT_OK_AND_ASSIGN(const CryptoKeyVersion v,
                       DecodeRow<CryptoKeyVersion>(c));
  EXPECT_EQ(Show(r), Show(ring));
  EXPECT_EQ(Show(k), Show(key));
  EXPECT_EQ(Show(v), Show(version));
}

// The format is for ever: these bytes are what docs/catalog-format.md says, and
// rows in catalogs out there look like this.
TEST(RowTest, BytesAreThoseOfTheFormatPage) {
  KeyRing ring{.name = RingName(), .create_time = absl::FromUnixMicros(258)};
  ring.revision = 1;
  ASSERT_OK_AND_ASSIGN(const Bytes row, EncodeRow(ring));
  EXPECT_EQ(Hex(WithoutChecksum(row)),
            "01"
            "01"
            "00000021" +
                absl::BytesToHexString(RingName().ToString()) +
                "0000000000000001"
                "0000000000000102");
  EXPECT_EQ(row, WithChecksum(WithoutChecksum(row)));
}

TEST(RowTest, TimesAreCutToMicroseconds) {
  KeyRing ring{.name = RingName(),
               .create_time = At(1) + absl::Nanoseconds(1999)};
  ASSERT_OK_AND_ASSIGN(const Bytes row, EncodeRow(ring));
  ASSERT_OK_AND_ASSIGN(const KeyRing back, DecodeRow<KeyRing>(row));
  EXPECT_EQ(back.create_time, At(1) + absl::Microseconds(1));
}

TEST(RowTest, ExtremeTimesKeepTheRowCanonical) {
  for (const absl::Time time : {absl::InfiniteFuture(), absl::InfinitePast(),
                                absl::FromUnixMicros(-1)}) {
    KeyRing ring{.name = RingName(), .create_time = time};
    ASSERT_OK_AND_ASSIGN(const Bytes row, EncodeRow(ring));
    EXPECT_OK(DecodeRow<KeyRing>(row));
    EXPECT_TRUE(IsTotalAndCanonical(row));
  }
}

TEST(RowTest, AnyFlippedBitIsFound) {
  for (const Bytes& row : Samples()) {
    for (size_t bit = 0; bit < row.size() * 8; ++bit) {
      Bytes bad = row;
      bad[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
      EXPECT_FALSE(DecodeRow<KeyRing>(bad).ok());
      EXPECT_FALSE(DecodeRow<CryptoKey>(bad).ok());
      EXPECT_FALSE(DecodeRow<CryptoKeyVersion>(bad).ok());
    }
  }
}

TEST(RowTest, AnyCutOrAdditionIsFound) {
  for (const Bytes& row : Samples()) {
    const Bytes body = WithoutChecksum(row);
    for (size_t size = 0; size < body.size(); ++size) {
      const Bytes cut(body.begin(), body.begin() + static_cast<long>(size));
      EXPECT_FALSE(DecodeRow<KeyRing>(WithChecksum(cut)).ok());
      EXPECT_FALSE(DecodeRow<CryptoKey>(WithChecksum(cut)).ok());
      EXPECT_FALSE(DecodeRow<CryptoKeyVersion>(WithChecksum(cut)).ok());
    }
    Bytes longer = body;
    longer.push_back(0);
    const Bytes row_with_more = WithChecksum(longer);
    EXPECT_FALSE(DecodeRow<KeyRing>(row_with_more).ok());
    EXPECT_FALSE(DecodeRow<CryptoKey>(row_with_more).ok());
    EXPECT_FALSE(DecodeRow<CryptoKeyVersion>(row_with_more).ok());
  }
}

// With a checksum that is right, so that the parser itself is tried: every
// single byte set to every value, then random damage. Whatever still decodes is
// canonical.
TEST(RowTest, OnlyCanonicalBytesDecode) {
  for (const Bytes& row : Samples()) {
    const Bytes body = WithoutChecksum(row);
    for (size_t at = 0; at < body.size(); ++at) {
      for (int value = 0; value < 256; ++value) {
        Bytes changed = body;
        changed[at] = static_cast<uint8_t>(value);
        ASSERT_TRUE(IsTotalAndCanonical(WithChecksum(changed))) << Hex(changed);
      }
    }
  }
  std::mt19937 random(20261121);
  const std::vector<Bytes> samples = Samples();
  for (int i = 0; i < 20000; ++i) {
    Bytes body = WithoutChecksum(samples[random() % samples.size()]);
    for (uint32_t edits = 1 + random() % 4; edits > 0 && !body.empty();
         --edits) {
      const auto at = body.begin() + random() % body.size();
      switch (random() % 3) {
        case 0:
          *at = static_cast<uint8_t>(random());
          break;
        case 1:
          body.erase(at, at + std::min<long>(random() % 9, body.end() - at));
          break;
        default:
          body.insert(at, random() % 9, static_cast<uint8_t>(random()));
      }
    }
    ASSERT_TRUE(IsTotalAndCanonical(WithChecksum(body))) << Hex(body);
  }
}

TEST(RowTest, LabelsOutOfOrderAreRefused) {
  CryptoKey key{.name = KeyName(), .labels = {{"a", "1"}, {"b", "2"}}};
  Bytes body = WithoutChecksum(*EncodeRow(key));
  const std::string text(body.begin(), body.end());
  body[text.find("\x01"
                 "b") +
       1] = 'a';
  EXPECT_THAT(DecodeRow<CryptoKey>(WithChecksum(body)),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("order")));
}

TEST(RowTest, NewerFormatIsRefusedAsSuch) {
  Bytes row = Samples()[0];
  row[0] = kRowFormat + 1;
  EXPECT_THAT(
      DecodeRow<KeyRing>(row),
      StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("newer kekd")));
  row[0] = 0;
  EXPECT_THAT(DecodeRow<KeyRing>(WithChecksum(WithoutChecksum(row))),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("format 0")));
}

TEST(RowTest, RowInAnothersPlaceIsFound) {
  ASSERT_OK_AND_ASSIGN(const Bytes row, EncodeRow(FullKey(KeyName())));
  ASSERT_OK_AND_ASSIGN(const ResourceName other, RingName().Child("other"));
  EXPECT_OK(DecodeRowOf<CryptoKey>(KeyName(), row));
  EXPECT_THAT(DecodeRowOf<CryptoKey>(other, row),
              StatusIs(absl::StatusCode::kDataLoss,
                       HasSubstr("cryptoKeys/other: its row is that of")));
  EXPECT_THAT(DecodeRowOf<KeyRing>(RingName(), row),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("kind")));
}

TEST(RowTest, RecordsThatNoRowCanHoldAreRefused) {
  CryptoKey key = FullKey(KeyName());
  key.purpose = static_cast<Purpose>(2);
  EXPECT_THAT(EncodeRow(key), StatusIs(absl::StatusCode::kInvalidArgument,
                                       HasSubstr("purpose")));
  key = FullKey(KeyName());
  key.algorithm = -1;
  EXPECT_THAT(EncodeRow(key), StatusIs(absl::StatusCode::kInvalidArgument,
                                       HasSubstr("algorithm")));
  key = FullKey(KeyName());
  key.residency = static_cast<Residency>(0);
  EXPECT_THAT(EncodeRow(key), StatusIs(absl::StatusCode::kInvalidArgument,
                                       HasSubstr("residency")));
  EXPECT_THAT(EncodeRow(FullKey(RingName())),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("CryptoKey is that of a KeyRing")));
}

}  // namespace
}  // namespace kek::catalog
