// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

// Matchers for absl::Status and StatusOr (abseil's own came after Debian 12's
// release).
namespace kek::base::testing {

inline const absl::Status& StatusOf(const absl::Status& status) {
  return status;
}
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& value) {
  return value.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << StatusOf(arg).ToString(
      absl::StatusToStringMode::kWithNoExtraData);
  return StatusOf(arg).ok();
}
MATCHER_P(StatusIs, code, "") {
  *result_listener << StatusOf(arg).ToString(
      absl::StatusToStringMode::kWithNoExtraData);
  return StatusOf(arg).code() == code;
}
MATCHER_P2(StatusIs, code, message_matcher, "") {
  *result_listener << StatusOf(arg).ToString(
      absl::StatusToStringMode::kWithNoExtraData);
  return StatusOf(arg).code() == code &&
         ::testing::ExplainMatchResult(message_matcher,
                                       std::string(StatusOf(arg).message()),
                                       result_listener);
}
MATCHER_P(IsOkAndHolds, value_matcher, "") {
  if (!arg.ok()) {
    *result_listener << arg.status();
    return false;
  }
  return ::testing::ExplainMatchResult(value_matcher, *arg, result_listener);
}

}  // namespace kek::base::testing

#define KEK_TEST_CONCAT_INNER(a, b) a##b
#define KEK_TEST_CONCAT(a, b) KEK_TEST_CONCAT_INNER(a, b)
#define ASSERT_OK(expr) ASSERT_THAT((expr), ::kek::base::testing::IsOk())
#define EXPECT_OK(expr) EXPECT_THAT((expr), ::kek::base::testing::IsOk())
#define ASSERT_OK_AND_ASSIGN(lhs, expr)                                       \
  ASSERT_OK_AND_ASSIGN_INNER(KEK_TEST_CONCAT(kek_test_value_, __LINE__), lhs, \
                             expr)
#define ASSERT_OK_AND_ASSIGN_INNER(tmp, lhs, expr) \
  auto tmp = (expr);                               \
  ASSERT_TRUE(tmp.ok()) << tmp.status().ToString(  \
      absl::StatusToStringMode::kWithNoExtraData); \
  lhs = *std::move(tmp)
