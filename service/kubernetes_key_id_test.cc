// SPDX-License-Identifier: Apache-2.0
#include "service/kubernetes_key_id.h"

#include <limits>
#include <string>

#include "absl/strings/ascii.h"
#include "base/testing/matchers.h"

namespace kek::service {
namespace {

using base::testing::StatusIs;

KubernetesKeyId Example() {
  KubernetesKeyId id;
  for (size_t i = 0; i < id.key_uuid.size(); ++i) {
    id.key_uuid[i] = static_cast<uint8_t>(i * 0x11);
  }
  id.version = 7;
  id.activation = 9;
  return id;
}

TEST(KubernetesKeyIdTest, TextIsWhatTheApiSaysForEver) {
  EXPECT_EQ(Example().ToString(), "kekd-00112233445566778899aabbccddeeff-7-9");
}

TEST(KubernetesKeyIdTest, LargestIsPrintableAndShort) {
  KubernetesKeyId id = Example();
  id.version = std::numeric_limits<uint32_t>::max();
  id.activation = std::numeric_limits<uint64_t>::max();
  const std::string text = id.ToString();
  EXPECT_EQ(text.size(), KubernetesKeyId::kMaxSize);
  EXPECT_LE(text.size(), 128u);
  for (const char c : text) {
    EXPECT_TRUE(absl::ascii_isgraph(static_cast<unsigned char>(c)));
  }
  ASSERT_OK_AND_ASSIGN(const KubernetesKeyId parsed,
                       KubernetesKeyId::Parse(text));
  EXPECT_EQ(parsed.key_uuid, id.key_uuid);
  EXPECT_EQ(parsed.version, id.version);
  EXPECT_EQ(parsed.activation, id.activation);
}

TEST(KubernetesKeyIdTest, EveryPartNames) {
  const std::string text = Example().ToString();
  KubernetesKeyId other = Example();
  other.key_uuid[15] ^= 1;
  EXPECT_NE(other.ToString(), text);
  other = Example();
  other.version = 8;
  EXPECT_NE(other.ToString(), text);
  other = Example();
  other.activation = 10;
  EXPECT_NE(other.ToString(), text);
}

TEST(KubernetesKeyIdTest, AnythingElseIsRefused) {
  for (const std::string& text : {
           std::string(),
           std::string("kekd"),
           std::string("projects/p/locations/l/keyRings/r/cryptoKeys/k"),
           std::string("kekd-00112233445566778899aabbccddeeff-7"),
           std::string("kekd-00112233445566778899aabbccddeeff-7-9-"),
           std::string("kekd-00112233445566778899aabbccddeeff-7-9 "),
           std::string("kekd-00112233445566778899aabbccddeeff-7-9\0", 42),
           std::string(" kekd-00112233445566778899aabbccddeeff-7-9"),
           std::string("Kekd-00112233445566778899aabbccddeeff-7-9"),
           std::string("kekd-00112233445566778899AABBCCDDEEFF-7-9"),
           std::string("kekd-00112233445566778899aabbccddeefg-7-9"),
           std::string("kekd-00112233445566778899aabbccddeef-7-9"),
           std::string("kekd-00112233445566778899aabbccddeeff-0-9"),
           std::string("kekd-00112233445566778899aabbccddeeff-07-9"),
           std::string("kekd-00112233445566778899aabbccddeeff-7-09"),
           std::string("kekd-00112233445566778899aabbccddeeff-+7-9"),
           std::string("kekd-00112233445566778899aabbccddeeff- 7-9"),
           std::string("kekd-00112233445566778899aabbccddeeff-7--9"),
           std::string("kekd-00112233445566778899aabbccddeeff-4294967296-9"),
           std::string("kekd-00112233445566778899aabbccddeeff-7-"
                       "18446744073709551616"),
           std::string(1024, 'a'),
       }) {
    EXPECT_THAT(KubernetesKeyId::Parse(text),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << text;
  }
}

}  // namespace
}  // namespace kek::service
