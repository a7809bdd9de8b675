// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "catalog/resource_name.h"

namespace kek::cli {

// NameDefaults models what a short name leaves out. An empty part has no
// default: a short name that needs it is INVALID_ARGUMENT and says how to give
// it.
struct NameDefaults {
  std::string project;
  std::string location;
  std::string key_ring;
};

// Short names of people for catalog::ResourceName:
//   ring                      a KeyRing
//   key, ring/key             a CryptoKey
//   key:3, ring/key:3         a CryptoKeyVersion
// Full names (they begin with "projects/") are taken as they are; there, too,
// ":3" after a CryptoKey names a version. All return INVALID_ARGUMENT for a
// name that is malformed or of another kind.
absl::StatusOr<catalog::ResourceName> ResolveLocation(
    const NameDefaults& defaults);
absl::StatusOr<catalog::ResourceName> ResolveKeyRing(
    absl::string_view name, const NameDefaults& defaults);
absl::StatusOr<catalog::ResourceName> ResolveCryptoKey(
    absl::string_view name, const NameDefaults& defaults);
absl::StatusOr<catalog::ResourceName> ResolveVersion(
    absl::string_view name, const NameDefaults& defaults);
absl::StatusOr<catalog::ResourceName> ResolveKeyOrVersion(
    absl::string_view name, const NameDefaults& defaults);

// The shortest name that the defaults resolve to name again; otherwise the full
// one. For tables and hints.
std::string ShortName(const catalog::ResourceName& name,
                      const NameDefaults& defaults);

}  // namespace kek::cli
