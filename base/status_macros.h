// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// RETURN_IF_ERROR(expr): returns the Status of expr from the enclosing function
// unless it is OK.
#define RETURN_IF_ERROR(expr)                                   \
  do {                                                          \
    if (absl::Status kek_status_ = (expr); !kek_status_.ok()) { \
      return kek_status_;                                       \
    }                                                           \
  } while (false)

#define KEK_STATUS_CONCAT_INNER(a, b) a##b
#define KEK_STATUS_CONCAT(a, b) KEK_STATUS_CONCAT_INNER(a, b)

// ASSIGN_OR_RETURN(lhs, expr): assigns the value of a StatusOr to lhs (a
// declaration or a variable), or returns its Status from the enclosing
// function.
#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_INNER(KEK_STATUS_CONCAT(kek_statusor_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_INNER(tmp, lhs, expr)   \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return std::move(tmp).status(); \
  lhs = *std::move(tmp)
