// SPDX-License-Identifier: Apache-2.0
#include "core/proof_groups.h"

#include <atomic>
#include <chrono>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/testing/matchers.h"

namespace kek::core {
namespace {

using base::testing::StatusIs;
using std::chrono::milliseconds;
using std::chrono::seconds;

base::Deadline Soon() { return base::DeadlineAfter(seconds(30)); }

// A door that proofs wait behind until the test opens it.
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
    while (!open_) ASSERT_TRUE(changed_.WaitUntil(mu_, Soon()) || open_);
  }
  void AwaitArrival() {
    base::MutexLock lock(mu_);
    while (arrived_ == 0) {
      ASSERT_TRUE(changed_.WaitUntil(mu_, Soon()) || arrived_ > 0);
    }
  }

 private:
  base::Mutex mu_;
  base::CondVar changed_;
  int arrived_ = 0;
  bool open_ = false;
};

void AwaitWaiting(const ProofGroups& groups, const void* key, int waiting) {
  const base::Deadline limit = Soon();
  while (groups.waiting(key) < waiting) {
    ASSERT_LT(std::chrono::steady_clock::now(), limit);
    std::this_thread::yield();
  }
}

TEST(ProofGroupsTest, AloneCostsOneProof) {
  ProofGroups groups;
  const int key = 0;
  for (uint64_t i = 1; i <= 3; ++i) {
    EXPECT_OK(groups.Join(
        &key, [](base::Deadline) { return absl::OkStatus(); }, Soon()));
    EXPECT_EQ(groups.proofs(), i);
  }
}

// Every proof answers with the moment it began, so that each released caller
// can tell which proof released it.
TEST(ProofGroupsTest, NobodyIsReleasedByAProofThatBeganBeforeItJoined) {
  ProofGroups groups;
  constexpr int kThreads = 16;
  constexpr int kEach = 300;
  constexpr int kKeys = 2;
  std::atomic<uint64_t> now = 1;
  struct Key {
    std::atomic<int> proving = 0;
    base::Mutex mu;
    std::set<uint64_t> begun;
  };
  Key keys[kKeys];
  std::atomic<int> too_early = 0;
  std::atomic<int> two_at_once = 0;
  std::atomic<int> unknown = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      Key& key = keys[t % kKeys];
      for (int i = 0; i < kEach; ++i) {
        const uint64_t wrapped = now++;
        const absl::Status status = groups.Join(
            &key,
            [&](base::Deadline) {
              const uint64_t begin = now++;
              if (key.proving.fetch_add(1) != 0) ++two_at_once;
              std::this_thread::yield();
              {
                base::MutexLock lock(key.mu);
                key.begun.insert(begin);
              }
              key.proving.fetch_sub(1);
              return absl::DataLossError(absl::StrCat(begin));
            },
            Soon());
        uint64_t begin = 0;
        if (!absl::IsDataLoss(status) ||
            !absl::SimpleAtoi(status.message(), &begin)) {
          ++unknown;
          continue;
        }
        if (begin <= wrapped) ++too_early;
        base::MutexLock lock(key.mu);
        if (key.begun.count(begin) == 0) ++unknown;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(too_early, 0);
  EXPECT_EQ(two_at_once, 0);
  EXPECT_EQ(unknown, 0);
  EXPECT_EQ(groups.proofs(), keys[0].begun.size() + keys[1].begun.size());
  EXPECT_LE(groups.proofs(), uint64_t{kThreads} * kEach);
}

TEST(ProofGroupsTest, ThoseWhoComeDuringAProofShareTheNext) {
  ProofGroups groups;
  const int key = 0;
  Gate gate;
  std::atomic<int> proofs = 0;
  const auto prove = [&](base::Deadline) {
    if (proofs++ == 0) gate.Pass();
    return absl::OkStatus();
  };
  std::vector<std::thread> threads;
  threads.emplace_back([&] { EXPECT_OK(groups.Join(&key, prove, Soon())); });
  gate.AwaitArrival();
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] { EXPECT_OK(groups.Join(&key, prove, Soon())); });
  }
  AwaitWaiting(groups, &key, 8);
  EXPECT_EQ(groups.proofs(), 1u);
  gate.Open();
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(groups.proofs(), 2u);
}

TEST(ProofGroupsTest, KeysDoNotWaitForEachOther) {
  ProofGroups groups;
  const int slow = 0;
  const int fast = 0;
  Gate gate;
  std::thread thread([&] {
    EXPECT_OK(groups.Join(
        &slow,
        [&](base::Deadline) {
          gate.Pass();
          return absl::OkStatus();
        },
        Soon()));
  });
  gate.AwaitArrival();
  EXPECT_OK(groups.Join(
      &fast, [](base::Deadline) { return absl::OkStatus(); }, Soon()));
  gate.Open();
  thread.join();
}

TEST(ProofGroupsTest, WaitersKeepTheirDeadline) {
  ProofGroups groups;
  const int key = 0;
  Gate gate;
  std::thread thread([&] {
    EXPECT_OK(groups.Join(
        &key,
        [&](base::Deadline) {
          gate.Pass();
          return absl::OkStatus();
        },
        Soon()));
  });
  gate.AwaitArrival();
  bool ran = false;
  EXPECT_THAT(groups.Join(
                  &key,
                  [&ran](base::Deadline) {
                    ran = true;
                    return absl::OkStatus();
                  },
                  base::DeadlineAfter(milliseconds(20))),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_FALSE(ran);
  EXPECT_EQ(groups.waiting(&key), 0);
  gate.Open();
  thread.join();
  // What the one who left leaves behind harms nobody.
  EXPECT_OK(groups.Join(
      &key, [](base::Deadline) { return absl::OkStatus(); }, Soon()));
}

TEST(ProofGroupsTest, LeadersShortDeadlineIsNotTheOthersError) {
  ProofGroups groups;
  const int key = 0;
  Gate first;
  std::thread holder([&] {
    EXPECT_OK(groups.Join(
        &key,
        [&](base::Deadline) {
          first.Pass();
          return absl::OkStatus();
        },
        Soon()));
  });
  first.AwaitArrival();
  // All of one group. Whoever leads first reports that its time is up; the
  // others must end well all the same.
  std::atomic<int> proofs = 0;
  std::atomic<int> ok = 0;
  std::atomic<int> out_of_time = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const absl::Status status = groups.Join(
          &key,
          [&](base::Deadline) -> absl::Status {
            if (proofs++ == 0) return absl::DeadlineExceededError("leader's");
            return absl::OkStatus();
          },
          Soon());
      if (status.ok()) ++ok;
      if (absl::IsDeadlineExceeded(status)) ++out_of_time;
    });
  }
  AwaitWaiting(groups, &key, 4);
  first.Open();
  holder.join();
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(out_of_time, 1);
  EXPECT_EQ(ok, 3);
  EXPECT_GE(groups.proofs(), 3u);
}

TEST(ProofGroupsTest, FailureIsEveryMembers) {
  ProofGroups groups;
  const int key = 0;
  Gate gate;
  std::atomic<int> proofs = 0;
  const auto prove = [&](base::Deadline) -> absl::Status {
    if (proofs++ == 0) {
      gate.Pass();
      return absl::OkStatus();
    }
    return absl::DataLossError("another key's handle");
  };
  std::thread holder([&] { EXPECT_OK(groups.Join(&key, prove, Soon())); });
  gate.AwaitArrival();
  std::vector<std::thread> threads;
  for (int i = 0; i < 5; ++i) {
    threads.emplace_back([&] {
      EXPECT_THAT(groups.Join(&key, prove, Soon()),
                  StatusIs(absl::StatusCode::kDataLoss));
    });
  }
  AwaitWaiting(groups, &key, 5);
  gate.Open();
  holder.join();
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(groups.proofs(), 2u);
}

}  // namespace
}  // namespace kek::core
