// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/session_pool.h"

#include <atomic>
#include <thread>

#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "pkcs11/error_internal.h"
#include "tests/support/test_tokens.h"

namespace kek::pkcs11 {
namespace {

using ::kek::base::testing::StatusIs;
using Freshness = SessionPool::Freshness;

base::Deadline Soon() { return base::DeadlineAfter(std::chrono::seconds(10)); }
base::Deadline AtOnce() {
  return base::DeadlineAfter(std::chrono::milliseconds(20));
}

// Sessions of a real SoftHSM token, without login.
class SessionPoolTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(const kek::testing::TestToken made,
                         kek::testing::TestToken::SoftHsm(dir_.File("token")));
    made.Use();
    ASSERT_OK_AND_ASSIGN(context_.module, Module::Load(made.module_path, ""));
    context_.watch = std::make_shared<CallWatch>(nullptr, absl::Seconds(10));
    ASSERT_OK_AND_ASSIGN(const Module::Exclusive gate,
                         Module::Drain(
                             context_.module, [] { return 0; }, Soon()));
    ASSERT_OK(context_.module->Initialize(gate, 0, *context_.watch));
    CK_ULONG count = 16;
    CK_SLOT_ID slots[16];
    ASSERT_EQ(
        context_.module->functions()->C_GetSlotList(CK_TRUE, slots, &count),
        CKR_OK);
    context_.slot = slots[0];
  }

  std::unique_ptr<SessionPool> MakePool(int max_sessions,
                                        size_t max_waiters = 8) {
    return std::make_unique<SessionPool>(SessionPool::Options{
        .max_sessions = max_sessions,
        .max_waiters = max_waiters,
        .open = [this]() -> absl::StatusOr<std::unique_ptr<Session>> {
          if (opened_ >= token_has_) {
            return FromRv(CKR_SESSION_COUNT, Operation::kOpenSession,
                          "C_OpenSession");
          }
          ++opened_;
          return Session::Open(context_, false);
        }});
  }
  // Waits until a caller queues.
  static void AwaitWaiter(const SessionPool& pool) {
    const base::Deadline deadline = Soon();
    while (pool.waiters() == 0 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    ASSERT_EQ(pool.waiters(), 1);
  }

  base::testing::TempDir dir_;
  SessionContext context_;
  std::atomic<int> opened_{0};
  int token_has_ = 1000;
};

TEST_F(SessionPoolTest, ReturnedSessionIsUsedNext) {
  const auto pool = MakePool(4);
  const Session* first = nullptr;
  {
    ASSERT_OK_AND_ASSIGN(SessionPool::Lease lease, pool->Acquire(Soon()));
    first = &*lease;
    std::move(lease).Return();
  }
  ASSERT_OK_AND_ASSIGN(SessionPool::Lease lease, pool->Acquire(Soon()));
  EXPECT_EQ(&*lease, first);
  EXPECT_EQ(opened_, 1);
}

TEST_F(SessionPoolTest, BrokenSessionIsNotReused) {
  const auto pool = MakePool(4);
  { ASSERT_OK(pool->Acquire(Soon())); }
  EXPECT_EQ(pool->open(), 0);
  ASSERT_OK(pool->Acquire(Soon()));
  EXPECT_EQ(opened_, 2);
}

TEST_F(SessionPoolTest, NewSessionLeavesIdleOnesAlone) {
  const auto pool = MakePool(4);
  {
    ASSERT_OK_AND_ASSIGN(SessionPool::Lease lease, pool->Acquire(Soon()));
    std::move(lease).Return();
  }
  ASSERT_OK_AND_ASSIGN(SessionPool::Lease fresh,
                       pool->Acquire(Soon(), Freshness::kNew));
  EXPECT_EQ(opened_, 2);
  EXPECT_EQ(pool->open(), 2);
  EXPECT_EQ(pool->in_use(), 1);
}

TEST_F(SessionPoolTest, WaiterBeyondTheCapGetsTheReturnedSession) {
  const auto pool = MakePool(1);
  ASSERT_OK_AND_ASSIGN(SessionPool::Lease lease, pool->Acquire(Soon()));
  const Session* session = &*lease;
  const Session* got = nullptr;
  std::thread waiter([&] {
    const absl::StatusOr<SessionPool::Lease> second = pool->Acquire(Soon());
    ASSERT_OK(second);
    got = &**second;
  });
  AwaitWaiter(*pool);
  std::move(lease).Return();
  waiter.join();
  EXPECT_EQ(got, session);
  EXPECT_EQ(opened_, 1);
}

TEST_F(SessionPoolTest, WaiterOpensAnewWhenTheSessionBroke) {
  const auto pool = MakePool(1);
  auto lease = pool->Acquire(Soon());
  ASSERT_OK(lease);
  std::thread waiter([&] { EXPECT_OK(pool->Acquire(Soon())); });
  AwaitWaiter(*pool);
  { const SessionPool::Lease broken = *std::move(lease); }
  waiter.join();
  EXPECT_EQ(opened_, 2);
  EXPECT_EQ(pool->open(), 0);
}

TEST_F(SessionPoolTest, WaitEndsAtTheDeadline) {
  const auto pool = MakePool(1);
  ASSERT_OK_AND_ASSIGN(const SessionPool::Lease lease, pool->Acquire(Soon()));
  EXPECT_THAT(pool->Acquire(AtOnce()),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(pool->waiters(), 0);
}

TEST_F(SessionPoolTest, TooManyWaitersAreTurnedAway) {
  const auto pool = MakePool(1, /*max_waiters=*/0);
  ASSERT_OK_AND_ASSIGN(const SessionPool::Lease lease, pool->Acquire(Soon()));
  EXPECT_THAT(pool->Acquire(Soon()),
              StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(SessionPoolTest, SessionCountClampsThePool) {
  token_has_ = 2;
  const auto pool = MakePool(16);
  auto one = pool->Acquire(Soon());
  auto two = pool->Acquire(Soon());
  ASSERT_OK(one);
  ASSERT_OK(two);
  EXPECT_THAT(pool->Acquire(AtOnce()),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  std::move(*one).Return();
  EXPECT_OK(pool->Acquire(Soon()));
}

TEST_F(SessionPoolTest, NotOneSessionIsResourceExhausted) {
  token_has_ = 0;
  EXPECT_THAT(MakePool(4)->Acquire(Soon()),
              StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(SessionPoolTest, RetiringWakesWaiters) {
  const auto pool = MakePool(1);
  auto lease = pool->Acquire(Soon());
  ASSERT_OK(lease);
  absl::Status answer;
  std::thread waiter([&] { answer = pool->Acquire(Soon()).status(); });
  AwaitWaiter(*pool);
  pool->Retire();
  waiter.join();
  EXPECT_EQ(ClassOf(answer), ErrorClass::kSession);
  std::move(*lease).Return();
  pool->CloseIdle();
  EXPECT_EQ(pool->open(), 0);
}

}  // namespace
}  // namespace kek::pkcs11
