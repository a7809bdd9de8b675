// SPDX-License-Identifier: Apache-2.0
//
// What must not grow: sessions, objects and descriptors over very many
// operations, good ones and bad ones. KEK_SLOW makes it a million.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "pkcs11/token.h"
#include "tests/support/test_tokens.h"

namespace kek::pkcs11 {
namespace {

using base::testing::StatusIs;

struct Counts {
  int sessions;
  size_t objects;
  size_t descriptors;
  friend bool operator==(const Counts&, const Counts&) = default;
};

class EnduranceTest : public ::testing::Test {
 protected:
  static base::Deadline Soon() {
    return base::DeadlineAfter(std::chrono::seconds(30));
  }

  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(fixture_,
                         kek::testing::TestToken::SoftHsm(dir_.File("hsm")));
    fixture_.Use();
    std::filesystem::create_directory(dir_.File("state"));
    ASSERT_OK_AND_ASSIGN(token_,
                         Token::Open(fixture_.Options(dir_.File("state"))));
    const KeyIdentity identity{std::vector<uint8_t>(16, 7), "endurance"};
    ASSERT_OK(token_->GenerateKey(identity, Soon()));
    ASSERT_OK_AND_ASSIGN(const Canary canary,
                         token_->MakeCanary(identity, aad_, Soon()));
    key_ = token_->AddKey(identity, canary);
  }

  Counts Count() {
    const absl::StatusOr<std::vector<ObjectInfo>> objects =
        token_->ListKeys(Soon());
    EXPECT_OK(objects);
    const std::filesystem::directory_iterator open("/proc/self/fd");
    return {token_->health().sessions_open, objects.ok() ? objects->size() : 0,
            static_cast<size_t>(std::distance(begin(open), end(open)))};
  }

  // operations by two threads: encryptions, decryptions, and one decryption in
  // eight of bytes that do not open.
  void Run(int operations) {
    std::atomic<int> left{operations};
    std::array<std::thread, 2> threads;
    for (std::thread& thread : threads) {
      thread = std::thread([&] {
        while (left.fetch_sub(2) > 0) {
          absl::StatusOr<Sealed> sealed =
              token_->Encrypt(key_, aad_, dek_, {.verify = false}, Soon());
          ASSERT_TRUE(sealed.ok()) << sealed.status();
          if (left % 8 == 0) {
            sealed->ciphertext.back() ^= 1;
            ASSERT_EQ(
                token_->Decrypt(key_, aad_, *sealed, Soon()).status().code(),
                absl::StatusCode::kInvalidArgument);
          } else {
            const absl::StatusOr<base::SecretBytes> opened =
                token_->Decrypt(key_, aad_, *sealed, Soon());
            ASSERT_TRUE(opened.ok()) << opened.status();
            ASSERT_TRUE(base::ConstantTimeEqual(opened->span(), dek_));
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  base::testing::TempDir dir_;
  kek::testing::TestToken fixture_;
  std::unique_ptr<Token> token_;
  std::shared_ptr<Key> key_;
  const std::vector<uint8_t> aad_ = {'a', 'a', 'd'};
  const std::vector<uint8_t> dek_ = std::vector<uint8_t>(32, 0x5a);
};

TEST_F(EnduranceTest, K8s38NothingGrowsOverVeryManyOperations) {
  Run(2000);  // until the pool has the sessions that two threads need
  const Counts before = Count();
  Run(std::getenv("KEK_SLOW") != nullptr ? 1000000 : 20000);
  const Counts after = Count();
  // Two threads and one canary at a time never need more.
  EXPECT_LE(after.sessions, std::max(before.sessions, 4));
  EXPECT_EQ(after.objects, before.objects);
  EXPECT_EQ(after.descriptors, before.descriptors);
  EXPECT_EQ(token_->health().sessions_in_use, 0);
  EXPECT_EQ(token_->health().state, TokenState::kReady);
}

}  // namespace
}  // namespace kek::pkcs11
