// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/lane.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/secret_bytes.h"
#include "base/sync.h"
#include "base/testing/matchers.h"

namespace kek::base {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using testing::StatusIs;

std::span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

TEST(SecretBytesTest, MoveLeavesTheSourceEmpty) {
  SecretBytes a(Bytes("0123456789abcdef"));
  SecretBytes b(std::move(a));
  EXPECT_TRUE(
      a.empty());  // NOLINT(bugprone-use-after-move): the point of the test
  EXPECT_EQ(b, SecretBytes(Bytes("0123456789abcdef")));
}

TEST(SecretBytesTest, TruncateWipesTheTail) {
  SecretBytes a(Bytes("secret-tail"));
  const uint8_t* tail = a.data() + 6;
  a.Truncate(6);
  EXPECT_EQ(a.size(), 6u);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(tail), 5),
            std::string(5, '\0'));
}

TEST(SecretBytesTest, SizesThatDifferAreUnequal) {
  EXPECT_FALSE(ConstantTimeEqual(Bytes("a"), Bytes("ab")));
  EXPECT_TRUE(ConstantTimeEqual(Bytes(""), Bytes("")));
  EXPECT_FALSE(ConstantTimeEqual(Bytes("ab"), Bytes("ac")));
}

TEST(SecretBytesTest, WipeOfAStringReachesItsSpareCapacity) {
  std::string text = "a marked secret that is longer than the small buffer";
  const char* data = text.data();
  const size_t size = text.size();
  text.resize(3);
  Wipe(text);
  EXPECT_TRUE(text.empty());
  EXPECT_EQ(std::string(data + 1, size - 1), std::string(size - 1, '\0'));
}

// Vectors of RFC 3720 B.4 and the check value of the CRC catalogue.
TEST(Crc32cTest, KnownVectors) {
  EXPECT_EQ(Crc32c({}), 0u);
  EXPECT_EQ(Crc32c(Bytes("123456789")), 0xE3069283u);
  EXPECT_EQ(Crc32c(Bytes(std::string(32, '\0'))), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(Bytes(std::string(32, '\xff'))), 0x62A8AB43u);
}

TEST(LaneTest, SecondCallerWaitsForTheFirst) {
  Lane lane({.name = "test lane"});
  ASSERT_OK_AND_ASSIGN(Lane::Hold first, lane.Enter(DeadlineAfter(seconds(5))));
  EXPECT_THAT(
      lane.Enter(DeadlineAfter(milliseconds(5))),
      StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("test lane")));
  first.Release();
  EXPECT_OK(lane.Enter(DeadlineAfter(seconds(5))));
}

TEST(LaneTest, QueueIsBounded) {
  Lane lane({.name = "l", .max_waiters = 0});
  EXPECT_THAT(lane.Enter(DeadlineAfter(seconds(1))),
              StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST(LaneTest, AbandonedHolderIsToldAndFreesNothing) {
  Lane lane({.name = "l"});
  ASSERT_OK_AND_ASSIGN(Lane::Hold hung, lane.Enter(DeadlineAfter(seconds(5))));
  EXPECT_TRUE(hung.valid());
  EXPECT_EQ(lane.AbandonHolders(DeadlineAfter(seconds(1))), 1);
  EXPECT_FALSE(hung.valid());
  ASSERT_OK_AND_ASSIGN(Lane::Hold next, lane.Enter(DeadlineAfter(seconds(5))));
  hung.Release();
  EXPECT_THAT(lane.Enter(DeadlineAfter(milliseconds(5))),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST(LaneTest, OneHolderAtATimeUnderLoad) {
  Lane lane({.name = "l"});
  int inside = 0;
  int total = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        auto hold = lane.Enter(DeadlineAfter(seconds(30)));
        ASSERT_TRUE(hold.ok());
        ASSERT_EQ(++inside, 1);
        ++total;
        --inside;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(total, 8 * 200);
}

TEST(LogTest, JsonStringsAreEscapedAndAlwaysUtf8) {
  std::string out;
  AppendJsonString(std::string("a\"b\\c\n\x01\x7f\xff\xc3\xa9\xc0\xaf", 13),
                   out);
  EXPECT_EQ(
      out, "\"a\\\"b\\\\c\\u000a\\u0001\\u007f\\ufffd\xc3\xa9\\ufffd\\ufffd\"");
}

TEST(LogTest, LevelNamesRoundTrip) {
  for (const char* name : {"debug", "info", "warning", "error"}) {
    ASSERT_OK_AND_ASSIGN(LogLevel level, ParseLogLevel(name));
    EXPECT_EQ(LogLevelName(level), name);
  }
  EXPECT_THAT(
      ParseLogLevel("loud"),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("debug, info")));
}

TEST(MetricsTest, SameNameAndLabelsAreOneSeries) {
  Metrics metrics;
  metrics.GetCounter("kekd_test_total", "A test.", {{"code", "OK"}})
      ->Increment();
  metrics.GetCounter("kekd_test_total", "A test.", {{"code", "OK"}})
      ->Increment();
  EXPECT_THAT(metrics.Expose(), HasSubstr("kekd_test_total{code=\"OK\"} 2"));
}

TEST(MetricsTest, RemovedGaugeIsNotExposed) {
  Metrics metrics;
  metrics.GetGauge("kekd_test", "A test.", {{"v", "1"}})->Set(3);
  metrics.RemoveGauge("kekd_test", {{"v", "1"}});
  EXPECT_THAT(metrics.Expose(), ::testing::Not(HasSubstr("kekd_test{")));
}

TEST(ManualClockTest, StandsStillUntilTold) {
  ManualClock clock(absl::FromUnixSeconds(1000));
  clock.Advance(absl::Seconds(5));
  EXPECT_EQ(clock.Now(), absl::FromUnixSeconds(1005));
}

}  // namespace
}  // namespace kek::base
