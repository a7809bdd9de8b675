// SPDX-License-Identifier: Apache-2.0
#include "catalog/records.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace kek::catalog {

std::string UuidToString(const Uuid& uuid) {
  const std::string hex = absl::BytesToHexString(absl::string_view(
      reinterpret_cast<const char*>(uuid.data()), uuid.size()));
  const absl::string_view h = hex;
  return absl::StrCat(h.substr(0, 8), "-", h.substr(8, 4), "-", h.substr(12, 4),
                      "-", h.substr(16, 4), "-", h.substr(20));
}

absl::string_view VersionStateName(VersionState state) {
  switch (state) {
    case VersionState::kEnabled:
      return "ENABLED";
    case VersionState::kDisabled:
      return "DISABLED";
    case VersionState::kDestroyed:
      return "DESTROYED";
    case VersionState::kDestroyScheduled:
      return "DESTROY_SCHEDULED";
    case VersionState::kPendingGeneration:
      return "PENDING_GENERATION";
    case VersionState::kPendingImport:
      return "PENDING_IMPORT";
    case VersionState::kImportFailed:
      return "IMPORT_FAILED";
    case VersionState::kGenerationFailed:
      return "GENERATION_FAILED";
  }
  return "STATE_UNKNOWN";
}

}  // namespace kek::catalog
