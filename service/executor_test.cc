// SPDX-License-Identifier: Apache-2.0
#include "service/executor.h"

#include <atomic>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "base/testing/matchers.h"
#include "gtest/gtest.h"

namespace kek::service {
namespace {

using ::kek::base::DeadlineAfter;
using ::kek::base::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::chrono::seconds kSoon{20};

// Work that keeps its worker until it is released.
struct Blocker {
  absl::Notification started, release;
  void operator()() {
    started.Notify();
    release.WaitForNotification();
  }
};

TEST(ExecutorTest, RunsInOrderAndDestructorRunsWhatIsQueued) {
  std::vector<int> ran;
  {
    Executor executor({.workers = 1});
    for (int i = 0; i < 4; ++i) {
      ASSERT_OK(executor.Submit(
          DeadlineAfter(kSoon), [&ran, i] { ran.push_back(i); },
          [&ran] { ran.push_back(-1); }));
    }
  }
  EXPECT_THAT(ran, ElementsAre(0, 1, 2, 3));
}

TEST(ExecutorTest, FullQueueRefusesAtOnceAndCallsNothing) {
  base::Metrics metrics;
  std::atomic<int> ran{0};
  Blocker blocker;
  {
    Executor executor({.workers = 1, .queue = 2, .metrics = &metrics});
    ASSERT_OK(executor.Submit(DeadlineAfter(kSoon), std::ref(blocker), [] {}));
    blocker.started.WaitForNotification();
    const auto count = [&ran] { ++ran; };
    ASSERT_OK(executor.Submit(DeadlineAfter(kSoon), count, count));
    ASSERT_OK(executor.Submit(DeadlineAfter(kSoon), count, count));
    EXPECT_THAT(executor.Submit(DeadlineAfter(kSoon), count, count),
                StatusIs(absl::StatusCode::kResourceExhausted,
                         HasSubstr("2 already wait")));
    blocker.release.Notify();
  }
  EXPECT_EQ(ran, 2);
  EXPECT_EQ(metrics
                .GetCounter("kekd_executor_refused_total", "",
                            {{"executor", "ordinary"}})
                ->Value(),
            1);
}

TEST(ExecutorTest, WorkWhoseDeadlinePassedInTheQueueIsNotRun) {
  std::atomic<int> ran{0}, expired{0};
  Blocker blocker;
  {
    Executor executor({.workers = 1});
    ASSERT_OK(executor.Submit(DeadlineAfter(kSoon), std::ref(blocker), [] {}));
    blocker.started.WaitForNotification();
    ASSERT_OK(executor.Submit(
        std::chrono::steady_clock::now(), [&] { ++ran; }, [&] { ++expired; }));
    blocker.release.Notify();
  }
  EXPECT_EQ(ran, 0);
  EXPECT_EQ(expired, 1);
}

TEST(ExecutorTest, CheckPassesOverAFullQueueAndFailsWhenAllWorkersAreStuck) {
  Blocker stuck, waiting;
  Executor executor(
      {.workers = 1, .queue = 1, .stuck_after = std::chrono::seconds(0)});
  const base::Deadline soon = DeadlineAfter(std::chrono::milliseconds(200));
  ASSERT_OK(executor.Submit(soon, std::ref(stuck), [] {}));
  stuck.started.WaitForNotification();
  ASSERT_OK(executor.Submit(DeadlineAfter(kSoon), std::ref(waiting), [] {}));

  EXPECT_THAT(
      executor.Check(DeadlineAfter(std::chrono::milliseconds(300))),
      StatusIs(absl::StatusCode::kDeadlineExceeded,
               HasSubstr("all 1 workers of the ordinary executor are stuck")));

  std::thread checker([&] { EXPECT_OK(executor.Check(DeadlineAfter(kSoon))); });
  stuck.release.Notify();
  waiting.started.WaitForNotification();
  waiting.release.Notify();
  checker.join();
}

TEST(ExecutorTest, WorkersThatAreBusyWithinTheirDeadlinesAreNotStuck) {
  Blocker blocker;
  Executor executor({.workers = 1});
  ASSERT_OK(executor.Submit(DeadlineAfter(kSoon), std::ref(blocker), [] {}));
  blocker.started.WaitForNotification();
  EXPECT_OK(executor.Check(DeadlineAfter(std::chrono::milliseconds(20))));
  blocker.release.Notify();
}

TEST(ExecutorTest, DrainRefusesNewWorkAndWaitsForTheOld) {
  Blocker blocker;
  std::atomic<bool> ran{false};
  Executor executor({.workers = 1});
  ASSERT_OK(executor.Submit(DeadlineAfter(kSoon), std::ref(blocker), [] {}));
  blocker.started.WaitForNotification();
  ASSERT_OK(executor.Submit(
      DeadlineAfter(kSoon), [&] { ran = true; }, [] {}));

  EXPECT_THAT(executor.Drain(DeadlineAfter(std::chrono::milliseconds(10))),
              StatusIs(absl::StatusCode::kDeadlineExceeded,
                       HasSubstr("1 calls still run and 1 wait")));
  EXPECT_THAT(
      executor.Submit(
          DeadlineAfter(kSoon), [] {}, [] {}),
      StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("stopping")));
  blocker.release.Notify();
  EXPECT_OK(executor.Drain(DeadlineAfter(kSoon)));
  EXPECT_TRUE(ran);
}

}  // namespace
}  // namespace kek::service
