// SPDX-License-Identifier: Apache-2.0
#include "cli/exit_code.h"

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace kek::cli {
namespace {

constexpr char kHintPayload[] = "kek.cli/hint";
constexpr char kExitPayload[] = "kek.cli/exit";

}  // namespace

absl::Status WithHint(absl::Status status, absl::string_view hint) {
  if (!status.ok()) status.SetPayload(kHintPayload, absl::Cord(hint));
  return status;
}

absl::Status WithDefaultHint(absl::Status status, absl::string_view hint) {
  return HintOf(status).empty() ? WithHint(std::move(status), hint) : status;
}

absl::Status WithExit(absl::Status status, ExitCode code) {
  if (!status.ok()) {
    status.SetPayload(kExitPayload,
                      absl::Cord(absl::StrCat(static_cast<int>(code))));
  }
  return status;
}

std::string HintOf(const absl::Status& status) {
  const auto hint = status.GetPayload(kHintPayload);
  return hint.has_value() ? std::string(*hint) : std::string();
}

ExitCode ExitCodeOf(const absl::Status& status) {
  if (const auto exit = status.GetPayload(kExitPayload); exit.has_value()) {
    int code = 0;
    if (absl::SimpleAtoi(std::string(*exit), &code)) {
      return static_cast<ExitCode>(code);
    }
  }
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return ExitCode::kOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return ExitCode::kUsage;
    case absl::StatusCode::kDataLoss:
      return ExitCode::kIntegrity;
    case absl::StatusCode::kNotFound:
      return ExitCode::kNotFound;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kCancelled:
      return ExitCode::kUnavailable;
    case absl::StatusCode::kAlreadyExists:
      return ExitCode::kAlreadyExists;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return ExitCode::kPermissionDenied;
    case absl::StatusCode::kFailedPrecondition:
      return ExitCode::kPrecondition;
    default:
      return ExitCode::kFailed;
  }
}

}  // namespace kek::cli
