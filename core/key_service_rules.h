// SPDX-License-Identifier: Apache-2.0
#pragma once

// Private to core/key_service*.cc: what the fields of a CryptoKey may be.

#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "catalog/records.h"

namespace kek::core {

// The algorithm of a key's versions; 0 asks for the purpose's default.
// INVALID_ARGUMENT: none was named and there is no default, or it is another
// purpose's; UNIMPLEMENTED: not offered.
absl::StatusOr<catalog::AlgorithmId> ChooseAlgorithm(
    catalog::Purpose purpose, catalog::AlgorithmId algorithm);

// Rotation: 24 h to 876,000 h; a period needs a next time, a time alone is a
// single rotation; only keys of ENCRYPT_DECRYPT rotate. INVALID_ARGUMENT.
absl::Status CheckSchedule(catalog::Purpose purpose,
                           std::optional<absl::Duration> period,
                           std::optional<absl::Time> next);

// At most 64 labels; keys of 1 to 63 bytes that begin with a letter, values to
// 63; lower-case letters, digits, '_', '-' and whatever is not ASCII.
// INVALID_ARGUMENT.
absl::Status CheckLabels(const std::map<std::string, std::string>& labels);

// When the rotation after one at now is due: the first multiple of the period
// after now, so that kekd catches up with one rotation however long it was
// down; none without a period.
std::optional<absl::Time> NextRotation(std::optional<absl::Duration> period,
                                       absl::Time due, absl::Time now);

}  // namespace kek::core
