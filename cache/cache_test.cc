// SPDX-License-Identifier: Apache-2.0
#include "cache/cache.h"

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "base/testing/matchers.h"
#include "cache/single_flight.h"

namespace kek::cache {
namespace {

using base::Deadline;
using base::DeadlineAfter;
using base::testing::IsOkAndHolds;
using base::testing::StatusIs;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::Pointee;

using StringCache = Cache<std::string, std::string>;
using Flights = SingleFlight<std::string, std::string>;
using Loaded = absl::StatusOr<std::shared_ptr<const std::string>>;

Deadline Soon() { return DeadlineAfter(seconds(30)); }
Loaded Of(std::string text) {
  return std::make_shared<const std::string>(std::move(text));
}
Loaded MustNotLoad() { return absl::InternalError("loaded again"); }

// A gate that a loader can be held at.
class Gate {
 public:
  void Open() {
    base::MutexLock lock(mu_);
    open_ = true;
    changed_.NotifyAll();
  }
  void Pass() {
    base::MutexLock lock(mu_);
    ++arrived_;
    changed_.NotifyAll();
    while (!open_ && changed_.WaitUntil(mu_, Soon())) {
    }
  }
  void AwaitArrival() {
    base::MutexLock lock(mu_);
    while (arrived_ == 0 && changed_.WaitUntil(mu_, Soon())) {
    }
  }

 private:
  base::Mutex mu_;
  base::CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  int arrived_ ABSL_GUARDED_BY(mu_) = 0;
};

// Waits until the cache has counted so many misses: its callers are then in a
// flight, or on the way into it.
void AwaitMisses(StringCache& cache, uint64_t misses) {
  const Deadline deadline = Soon();
  while (cache.GetStats().misses < misses &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  ASSERT_EQ(cache.GetStats().misses, misses);
}

TEST(CacheTest, LoadsOnceAndThenHits) {
  StringCache cache({});
  EXPECT_THAT(cache.GetOrLoad(
                  "a", [] { return Of("1"); }, Soon()),
              IsOkAndHolds(Pointee(std::string("1"))));
  EXPECT_THAT(cache.GetOrLoad("a", MustNotLoad, Soon()),
              IsOkAndHolds(Pointee(std::string("1"))));
  const Stats stats = cache.GetStats();
  EXPECT_EQ(stats.hits, 1u);
  EXPECT_EQ(stats.misses, 1u);
  EXPECT_EQ(stats.loads, 1u);
  EXPECT_EQ(stats.entries, 1u);
  EXPECT_EQ(stats.charge, 1u);
}

TEST(CacheTest, ErrorsAndNullsAreNotKept) {
  StringCache cache({});
  EXPECT_THAT(
      cache.GetOrLoad(
          "a", []() -> Loaded { return absl::UnavailableError("x"); }, Soon()),
      StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(cache.GetOrLoad(
                  "a", []() -> Loaded { return nullptr; }, Soon()),
              StatusIs(absl::StatusCode::kInternal));
  EXPECT_THAT(cache.GetOrLoad(
                  "a", [] { return Of("2"); }, Soon()),
              IsOkAndHolds(Pointee(std::string("2"))));
  EXPECT_EQ(cache.GetStats().entries, 1u);
}

TEST(CacheTest, LeastRecentlyUsedGoesFirst) {
  StringCache cache({.max_charge = 3, .shards = 1});
  for (const char* key : {"a", "b", "c"}) {
    ASSERT_OK(cache.GetOrLoad(
        key, [&] { return Of(key); }, Soon()));
  }
  ASSERT_OK(cache.GetOrLoad("a", MustNotLoad, Soon()));  // b is now the oldest
  ASSERT_OK(cache.GetOrLoad(
      "d", [] { return Of("d"); }, Soon()));
  EXPECT_EQ(cache.Peek("b"), nullptr);
  for (const char* key : {"a", "c", "d"}) {
    EXPECT_THAT(cache.Peek(key), Pointee(std::string(key)));
  }
  EXPECT_EQ(cache.GetStats().evictions, 1u);
}

TEST(CacheTest, PeekIsNoUse) {
  StringCache cache({.max_charge = 2, .shards = 1});
  for (const char* key : {"a", "b"}) {
    ASSERT_OK(cache.GetOrLoad(
        key, [&] { return Of(key); }, Soon()));
  }
  ASSERT_NE(cache.Peek("a"), nullptr);
  ASSERT_OK(cache.GetOrLoad(
      "c", [] { return Of("c"); }, Soon()));
  EXPECT_EQ(cache.Peek("a"), nullptr);
  EXPECT_EQ(cache.GetStats().hits, 0u);
}

TEST(CacheTest, ChargeBoundsWhatIsKept) {
  StringCache cache(
      {.max_charge = 10,
       .charge = [](const std::string&,
                    const std::string& value) { return value.size(); },
       .shards = 1});
  ASSERT_OK(cache.GetOrLoad(
      "a", [] { return Of("12345"); }, Soon()));
  ASSERT_OK(cache.GetOrLoad(
      "b", [] { return Of("12345"); }, Soon()));
  EXPECT_EQ(cache.GetStats().charge, 10u);
  ASSERT_OK(cache.GetOrLoad(
      "c", [] { return Of("1234567"); }, Soon()));
  EXPECT_EQ(cache.GetStats().charge, 7u);
  EXPECT_EQ(cache.GetStats().evictions, 2u);
  // Too big for the cache: returned, not kept, and nothing is pushed out.
  EXPECT_THAT(cache.GetOrLoad(
                  "d", [] { return Of("12345678901"); }, Soon()),
              IsOkAndHolds(Pointee(std::string("12345678901"))));
  EXPECT_EQ(cache.Peek("d"), nullptr);
  EXPECT_NE(cache.Peek("c"), nullptr);
}

TEST(CacheTest, TotalChargeOfAllShardsIsBounded) {
  StringCache cache({.max_charge = 1024});
  for (int i = 0; i < 5000; ++i) {
    ASSERT_OK(cache.GetOrLoad(
        std::to_string(i), [] { return Of("v"); }, Soon()));
  }
  const Stats stats = cache.GetStats();
  EXPECT_LE(stats.charge, 1024u);
  EXPECT_EQ(stats.entries, stats.charge);
  EXPECT_EQ(stats.entries + stats.evictions, 5000u);
  EXPECT_GT(stats.entries, 900u);  // the shards are filled evenly
}

TEST(CacheTest, ValuesExpireByAgeSinceTheirLoadBegan) {
  Deadline now{};
  StringCache cache({.ttl = seconds(10), .now = [&] { return now; }});
  ASSERT_OK(cache.GetOrLoad(
      "a",
      [&] {
        now += seconds(4);  // a slow load
        return Of("1");
      },
      Soon()));
  now += seconds(5);
  EXPECT_THAT(cache.GetOrLoad("a", MustNotLoad, Soon()),
              IsOkAndHolds(Pointee(std::string("1"))));
  now += seconds(1);
  EXPECT_EQ(cache.Peek("a"), nullptr);
  EXPECT_THAT(cache.GetOrLoad(
                  "a", [] { return Of("2"); }, Soon()),
              IsOkAndHolds(Pointee(std::string("2"))));
  EXPECT_EQ(cache.GetStats().expirations, 1u);
  EXPECT_EQ(cache.GetStats().charge, 1u);
}

TEST(CacheTest, InvalidateDropsThatKeyOnly) {
  StringCache cache({});
  for (const char* key : {"a", "b", "ab"}) {
    ASSERT_OK(cache.GetOrLoad(
        key, [&] { return Of(key); }, Soon()));
  }
  cache.Invalidate("b");
  EXPECT_EQ(cache.Peek("b"), nullptr);
  EXPECT_NE(cache.Peek("a"), nullptr);
  cache.InvalidateIf([](const std::string& key) { return key[0] == 'a'; });
  EXPECT_EQ(cache.GetStats().entries, 0u);
  EXPECT_EQ(cache.GetStats().charge, 0u);
  EXPECT_EQ(cache.GetStats().evictions, 0u);
}

TEST(CacheTest, DroppedValueLivesUntilItsLastUserLetsGo) {
  StringCache cache({});
  ASSERT_OK_AND_ASSIGN(std::shared_ptr<const std::string> value,
                       cache.GetOrLoad(
                           "a", [] { return Of("1"); }, Soon()));
  std::weak_ptr<const std::string> watch = value;
  cache.Clear();
  EXPECT_FALSE(watch.expired());
  value.reset();
  EXPECT_TRUE(watch.expired());
}

// A value that looks at its cache while it is destroyed: under a lock it would
// never come back.
struct Nosy {
  Cache<int, Nosy>* cache;
  int* destroyed;
  ~Nosy() {
    (void)cache->GetStats();
    ++*destroyed;
  }
};

TEST(CacheTest, ValuesAreDestroyedOutsideTheLocks) {
  Deadline now{};
  int destroyed = 0;
  Cache<int, Nosy> cache(
      {.max_charge = 2, .ttl = seconds(10), .shards = 1, .now = [&] {
         return now;
       }});
  const auto load = [&]() -> absl::StatusOr<std::shared_ptr<const Nosy>> {
    return std::shared_ptr<const Nosy>(new Nosy{&cache, &destroyed});
  };
  for (int key = 0; key < 3; ++key) {
    ASSERT_OK(cache.GetOrLoad(key, load, Soon()));
  }
  EXPECT_EQ(destroyed, 1);  // evicted
  cache.Invalidate(1);
  EXPECT_EQ(destroyed, 2);
  now += seconds(10);
  ASSERT_OK(cache.GetOrLoad(2, load, Soon()));
  EXPECT_EQ(destroyed, 3);  // expired
  cache.Clear();
  EXPECT_EQ(destroyed, 4);
}

TEST(CacheTest, ConcurrentCallersShareOneLoad) {
  StringCache cache({});
  Gate gate;
  std::atomic<int> loads = 0;
  std::vector<std::thread> threads;
  std::atomic<int> good = 0;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      const Loaded value = cache.GetOrLoad(
          "a",
          [&] {
            ++loads;
            gate.Pass();
            return Of("1");
          },
          Soon());
      if (value.ok() && **value == "1") ++good;
    });
  }
  AwaitMisses(cache, 8);
  gate.Open();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(loads, 1);
  EXPECT_EQ(good, 8);
}

TEST(CacheTest, WaiterGivesUpAtItsDeadlineAndTheLoadGoesOn) {
  StringCache cache({});
  Gate gate;
  std::thread leader([&] {
    EXPECT_OK(cache.GetOrLoad(
        "a",
        [&] {
          gate.Pass();
          return Of("1");
        },
        Soon()));
  });
  gate.AwaitArrival();
  EXPECT_THAT(cache.GetOrLoad("a", MustNotLoad, DeadlineAfter(milliseconds(5))),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  gate.Open();
  leader.join();
  EXPECT_THAT(cache.Peek("a"), Pointee(std::string("1")));
}

TEST(CacheTest, LoadOfOneKeyDoesNotHoldUpAnother) {
  StringCache cache({.shards = 1});
  Gate gate;
  std::thread leader([&] {
    EXPECT_OK(cache.GetOrLoad(
        "slow",
        [&] {
          gate.Pass();
          return Of("1");
        },
        Soon()));
  });
  gate.AwaitArrival();
  EXPECT_OK(cache.GetOrLoad(
      "quick", [] { return Of("2"); }, Soon()));
  EXPECT_OK(cache.GetOrLoad("quick", MustNotLoad, Soon()));
  gate.Open();
  leader.join();
}

// The rule that a disabled key depends on: who asks after the invalidation is
// never served by a load that began before it.
TEST(CacheTest, LoadUnderWayAtInvalidationIsNeitherKeptNorJoined) {
  for (const bool all : {false, true}) {
    StringCache cache({});
    Gate gate;
    Loaded waited, led;
    std::thread leader([&] {
      led = cache.GetOrLoad(
          "a",
          [&] {
            gate.Pass();
            return Of("old");
          },
          Soon());
    });
    gate.AwaitArrival();
    if (all) {
      cache.Clear();
    } else {
      cache.Invalidate("a");
    }
    EXPECT_THAT(cache.GetOrLoad(
                    "a", [] { return Of("new"); }, Soon()),
                IsOkAndHolds(Pointee(std::string("new"))));
    gate.Open();
    leader.join();
    EXPECT_THAT(led, IsOkAndHolds(Pointee(std::string("old"))));
    EXPECT_THAT(cache.Peek("a"), Pointee(std::string("new")));
  }
}

// A source whose value grows; readers must never see a value older than the one
// that was current when they were told to look again.
TEST(CacheTest, NoReaderGoesBackBehindAnInvalidation) {
  Cache<int, uint64_t> cache({.max_charge = 128});
  constexpr int kKeys = 3;
  std::atomic<uint64_t> source[kKeys] = {};
  std::atomic<uint64_t> floor[kKeys] = {};
  std::atomic<bool> stop = false;
  std::atomic<int> reads = 0, stale = 0, failed = 0;
  std::vector<std::thread> readers;
  for (int t = 0; t < 4; ++t) {
    readers.emplace_back([&, t] {
      for (int i = t; !stop; ++i) {
        const int key = i % kKeys;
        const uint64_t at_least = floor[key];
        const auto value = cache.GetOrLoad(
            key,
            [&]() -> absl::StatusOr<std::shared_ptr<const uint64_t>> {
              const uint64_t seen = source[key];
              std::this_thread::yield();
              return std::make_shared<const uint64_t>(seen);
            },
            Soon());
        ++reads;
        if (!value.ok()) {
          ++failed;
        } else if (**value < at_least) {
          ++stale;
        }
      }
    });
  }
  const Deadline deadline = Soon();
  uint64_t i = 0;
  while (reads < 100000 && std::chrono::steady_clock::now() < deadline) {
    const int key = static_cast<int>(++i % kKeys);
    source[key] = i;
    if (i % 7 == 0) {
      cache.InvalidateIf([&](const int& k) { return k == key; });
    } else {
      cache.Invalidate(key);
    }
    floor[key] = i;
    if (i % 16 == 0) std::this_thread::yield();
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(stale, 0);
  EXPECT_EQ(failed, 0);
  EXPECT_GE(reads, 100000);
}

TEST(CacheTest, EvictionUnderConcurrentUseKeepsItsBooks) {
  Cache<int, int> cache({.max_charge = 256, .ttl = std::chrono::hours(1)});
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20000; ++i) {
        const int key = (i * 31 + t * 17) % 700;
        const auto value = cache.GetOrLoad(
            key, [&] { return std::make_shared<const int>(key * 2); }, Soon());
        if (!value.ok() || **value != key * 2) ++wrong;
        if (i % 1000 == 0) cache.Clear();
        if (i % 100 == 0) cache.Invalidate(key);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  const Stats stats = cache.GetStats();
  EXPECT_LE(stats.charge, 256u);
  EXPECT_EQ(stats.entries, stats.charge);
  EXPECT_EQ(stats.hits + stats.misses, 80000u);
  cache.Clear();
  EXPECT_EQ(cache.GetStats().entries, 0u);
  EXPECT_EQ(cache.GetStats().charge, 0u);
}

TEST(SingleFlightTest, KeepsNothing) {
  Flights flights;
  ASSERT_OK_AND_ASSIGN(std::shared_ptr<const std::string> value,
                       flights.Do(
                           "a", [] { return Of("1"); }, Soon()));
  EXPECT_EQ(value.use_count(), 1);
  EXPECT_THAT(flights.Do(
                  "a", [] { return Of("2"); }, Soon()),
              IsOkAndHolds(Pointee(std::string("2"))));
}

TEST(SingleFlightTest, WaitersGetTheErrorOfTheFlightTheyJoined) {
  const Deadline deadline = Soon();
  bool shared = false;
  // A waiter that is slow to join begins a flight of its own: again, then.
  while (!shared && std::chrono::steady_clock::now() < deadline) {
    Flights flights;
    Gate gate;
    std::atomic<int> loads = 0, joining = 0, unavailable = 0;
    const auto call = [&] {
      ++joining;
      const Loaded value = flights.Do(
          "a",
          [&]() -> Loaded {
            ++loads;
            gate.Pass();
            return absl::UnavailableError("token gone");
          },
          Soon());
      if (absl::IsUnavailable(value.status())) ++unavailable;
    };
    std::thread leader(call);
    gate.AwaitArrival();
    std::thread first(call), second(call);
    while (joining < 3) std::this_thread::yield();
    for (int i = 0; i < 100; ++i) std::this_thread::yield();
    gate.Open();
    leader.join();
    first.join();
    second.join();
    ASSERT_EQ(unavailable, 3);
    shared = loads == 1;
  }
  EXPECT_TRUE(shared);
}

TEST(SingleFlightTest, ForgottenFlightIsNotCommitted) {
  Flights flights;
  std::vector<std::string> committed;
  const auto commit = [&](const std::shared_ptr<const std::string>& value) {
    committed.push_back(*value);
  };
  EXPECT_OK(flights.Do(
      "a",
      [&] {
        flights.Forget("a");
        return Of("forgotten");
      },
      commit, Soon()));
  EXPECT_OK(flights.Do(
      "a", [&] { return Of("kept"); }, commit, Soon()));
  EXPECT_OK(flights.Do(
      "b",
      [&] {
        flights.ForgetIf([](const std::string& key) { return key == "a"; });
        return Of("other");
      },
      commit, Soon()));
  EXPECT_THAT(committed, ::testing::ElementsAre("kept", "other"));
}

}  // namespace
}  // namespace kek::cache
