// SPDX-License-Identifier: Apache-2.0
#include "core/key_service_rules.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "core/algorithm.h"

namespace kek::core {

namespace {

constexpr absl::Duration kShortestRotation = absl::Hours(24);
constexpr absl::Duration kLongestRotation = absl::Hours(876000);
constexpr size_t kMostLabels = 64;
constexpr size_t kLongestLabel = 63;

bool LabelText(absl::string_view text) {
  for (const char c : text) {
    const bool fits = absl::ascii_islower(c) || absl::ascii_isdigit(c) ||
                      c == '_' || c == '-' ||
                      static_cast<unsigned char>(c) >= 0x80;
    if (!fits) return false;
  }
  return text.size() <= kLongestLabel;
}

}  // namespace

absl::StatusOr<catalog::AlgorithmId> ChooseAlgorithm(
    catalog::Purpose purpose, catalog::AlgorithmId algorithm) {
  if (algorithm == 0) {
    const Algorithm* chosen = DefaultAlgorithm(purpose);
    if (chosen == nullptr) {
      return absl::InvalidArgumentError(
          "version_template.algorithm is required for this purpose");
    }
    return chosen->id;
  }
  const Algorithm* known = FindAlgorithm(algorithm);
  if (known != nullptr && known->purpose == purpose) return algorithm;
  // ENCRYPT_DECRYPT has one algorithm, and that is known.
  if (known != nullptr || purpose == catalog::Purpose::kEncryptDecrypt) {
    return absl::InvalidArgumentError(
        absl::StrCat("version_template.algorithm ", algorithm,
                     " does not fit the key's purpose"));
  }
  return absl::UnimplementedError(
      absl::StrCat("algorithm ", algorithm, " is not offered"));
}

absl::Status CheckSchedule(catalog::Purpose purpose,
                           std::optional<absl::Duration> period,
                           std::optional<absl::Time> next) {
  if (!period.has_value() && !next.has_value()) return absl::OkStatus();
  if (purpose != catalog::Purpose::kEncryptDecrypt) {
    return absl::InvalidArgumentError(
        "rotation_period and next_rotation_time must be omitted: only keys of "
        "purpose ENCRYPT_DECRYPT rotate");
  }
  if (!period.has_value()) return absl::OkStatus();
  if (*period < kShortestRotation || *period > kLongestRotation) {
    return absl::InvalidArgumentError(
        absl::StrCat("rotation_period is ", absl::FormatDuration(*period),
                     "; it must be between 24 hours and 876000 hours"));
  }
  if (!next.has_value()) {
    return absl::InvalidArgumentError(
        "next_rotation_time must be set with rotation_period");
  }
  return absl::OkStatus();
}

absl::Status CheckLabels(const std::map<std::string, std::string>& labels) {
  if (labels.size() > kMostLabels) {
    return absl::InvalidArgumentError(absl::StrCat(
        labels.size(), " labels; at most ", kMostLabels, " are allowed"));
  }
  for (const auto& [key, value] : labels) {
    const bool begins_well =
        !key.empty() && (absl::ascii_islower(key[0]) ||
                         static_cast<unsigned char>(key[0]) >= 0x80);
    if (!begins_well || !LabelText(key) || !LabelText(value)) {
      return absl::InvalidArgumentError(
          "a label is malformed: keys begin with a lower-case letter, keys and "
          "values have at most 63 bytes of lower-case letters, digits, '_' and "
          "'-'");
    }
  }
  return absl::OkStatus();
}

std::optional<absl::Time> NextRotation(std::optional<absl::Duration> period,
                                       absl::Time due, absl::Time now) {
  if (!period.has_value()) return std::nullopt;
  absl::Duration rest;
  const int64_t passed = absl::IDivDuration(now - due, *period, &rest);
  return due + (passed + 1) * *period;
}

}  // namespace kek::core
