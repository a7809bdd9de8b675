// SPDX-License-Identifier: Apache-2.0
#include "core/use_counter.h"

#include <algorithm>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "base/testing/matchers.h"
#include "catalog/records.h"

namespace kek::core {
namespace {

using base::testing::IsOkAndHolds;
using base::testing::StatusIs;
using ::testing::HasSubstr;

base::Deadline Soon() { return base::DeadlineAfter(std::chrono::seconds(10)); }

class UseCounterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK(catalog_->Transact(
        [&](catalog::Transaction& transaction) -> absl::Status {
          catalog::KeyRing ring{.name = version_.CryptoKey().Parent()};
          if (absl::Status s = transaction.Put(ring); !s.ok()) return s;
          catalog::CryptoKey key{.name = version_.CryptoKey()};
          if (absl::Status s = transaction.Put(key); !s.ok()) return s;
          catalog::CryptoKeyVersion version{.name = version_};
          return transaction.Put(version);
        },
        Soon()));
  }

  const catalog::ResourceName version_ = *catalog::ResourceName::Parse(
      "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1");
  std::unique_ptr<catalog::Catalog> catalog_ = catalog::MakeMemoryCatalog();
};

TEST_F(UseCounterTest, NumbersCountFromOneAndAreReservedBefore) {
  UseCounter counter(*catalog_, version_, {.max_uses = 1000, .max_block = 4});
  for (uint64_t n = 1; n <= 50; ++n) {
    EXPECT_THAT(counter.Take(Soon()), IsOkAndHolds(n));
    ASSERT_OK_AND_ASSIGN(const uint64_t reserved,
                         catalog_->UsesReserved(version_));
    EXPECT_GE(reserved, n);
    EXPECT_LT(reserved, n + 4);
  }
}

TEST_F(UseCounterTest, BlocksDoubleUpToTheLargest) {
  UseCounter counter(*catalog_, version_,
                     {.max_uses = 1'000'000, .max_block = 4096});
  std::set<uint64_t> reserved;
  for (int i = 0; i < 20'000; ++i) {
    ASSERT_OK(counter.Take(Soon()));
    ASSERT_OK_AND_ASSIGN(const uint64_t total,
                         catalog_->UsesReserved(version_));
    reserved.insert(total);
  }
  // 1024, then 2048 more, then 4096 at a time.
  EXPECT_THAT(reserved, ::testing::ElementsAre(1024, 3072, 7168, 11264, 15360,
                                               19456, 23552));
}

TEST_F(UseCounterTest, TheLimitIsExactAndNothingMoreIsReserved) {
  UseCounter counter(*catalog_, version_, {.max_uses = 25, .max_block = 10});
  for (uint64_t n = 1; n <= 25; ++n) {
    EXPECT_THAT(counter.Take(Soon()), IsOkAndHolds(n));
  }
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(counter.Take(Soon()),
                StatusIs(absl::StatusCode::kFailedPrecondition,
                         HasSubstr("cryptoKeyVersions/1 has made 25")));
  }
  EXPECT_THAT(catalog_->UsesReserved(version_), IsOkAndHolds(25u));
}

TEST_F(UseCounterTest, ARestartGoesOnAfterWhatWasReserved) {
  {
    UseCounter counter(*catalog_, version_, {.max_uses = 25, .max_block = 10});
    for (int i = 0; i < 3; ++i) ASSERT_OK(counter.Take(Soon()));
  }
  UseCounter counter(*catalog_, version_, {.max_uses = 25, .max_block = 10});
  EXPECT_THAT(counter.Take(Soon()), IsOkAndHolds(11u));
}

TEST_F(UseCounterTest, TwoCountersOfOneVersionNeverGiveTheSameNumber) {
  UseCounter a(*catalog_, version_, {.max_uses = 100, .max_block = 8});
  UseCounter b(*catalog_, version_, {.max_uses = 100, .max_block = 8});
  std::set<uint64_t> numbers;
  int taken = 0;
  for (;;) {
    const absl::StatusOr<uint64_t> x = a.Take(Soon());
    const absl::StatusOr<uint64_t> y = b.Take(Soon());
    if (x.ok()) numbers.insert(*x), ++taken;
    if (y.ok()) numbers.insert(*y), ++taken;
    if (!x.ok() && !y.ok()) break;
  }
  EXPECT_EQ(numbers.size(), static_cast<size_t>(taken));
  EXPECT_EQ(*numbers.rbegin(), 100u);
}

TEST_F(UseCounterTest, ManyThreadsGetDifferentNumbers) {
  UseCounter counter(*catalog_, version_,
                     {.max_uses = 100'000, .max_block = 16});
  constexpr int kThreads = 8;
  constexpr int kEach = 500;
  std::vector<std::vector<uint64_t>> taken(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        const absl::StatusOr<uint64_t> use = counter.Take(Soon());
        if (use.ok()) taken[t].push_back(*use);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<uint64_t> all;
  for (const auto& some : taken)
    all.insert(all.end(), some.begin(), some.end());
  std::sort(all.begin(), all.end());
  ASSERT_EQ(all.size(), static_cast<size_t>(kThreads * kEach));
  for (size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], i + 1);
}

}  // namespace
}  // namespace kek::core
