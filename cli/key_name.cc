// SPDX-License-Identifier: Apache-2.0
#include "cli/key_name.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "cli/exit_code.h"

namespace kek::cli {
namespace {

using catalog::ResourceName;
using Kind = ResourceName::Kind;

bool IsFull(absl::string_view name) {
  return absl::StartsWith(name, "projects/");
}

// "a/b:3" -> {"a/b", "3"}. Colons before the last slash belong to a project or
// location.
std::pair<absl::string_view, std::optional<absl::string_view>> SplitVersion(
    absl::string_view name) {
  const size_t colon = name.rfind(':');
  const size_t slash = name.rfind('/');
  if (colon == absl::string_view::npos ||
      (slash != absl::string_view::npos && colon < slash)) {
    return {name, std::nullopt};
  }
  return {name.substr(0, colon), name.substr(colon + 1)};
}

std::string Shown(absl::string_view name) {
  return absl::StrCat("'", name.substr(0, 128), "'");
}

absl::StatusOr<ResourceName> Ring(absl::string_view id,
                                  const NameDefaults& defaults) {
  ASSIGN_OR_RETURN(const ResourceName location, ResolveLocation(defaults));
  return location.Child(id);
}

}  // namespace

absl::StatusOr<ResourceName> ResolveLocation(const NameDefaults& defaults) {
  if (defaults.project.empty()) {
    return WithHint(absl::InvalidArgumentError(
                        "the name leaves out the project, and there is no "
                        "default for it"),
                    "give --project, set KEKCTL_PROJECT, or put `project:` "
                    "into kekctl.yaml");
  }
  if (defaults.location.empty()) {
    return WithHint(absl::InvalidArgumentError(
                        "the name leaves out the location, and there is no "
                        "default for it"),
                    "give --location, set KEKCTL_LOCATION, or put `location:` "
                    "into kekctl.yaml");
  }
  return ResourceName::Parse(absl::StrCat("projects/", defaults.project,
                                          "/locations/", defaults.location),
                             Kind::kLocation);
}

absl::StatusOr<ResourceName> ResolveKeyRing(absl::string_view name,
                                            const NameDefaults& defaults) {
  if (IsFull(name)) return ResourceName::Parse(name, Kind::kKeyRing);
  return Ring(name, defaults);
}

absl::StatusOr<ResourceName> ResolveKeyOrVersion(absl::string_view name,
                                                 const NameDefaults& defaults) {
  const auto [base, version] = SplitVersion(name);
  std::optional<ResourceName> key;
  if (IsFull(base)) {
    ASSIGN_OR_RETURN(key, ResourceName::Parse(base));
    if (key->kind() == Kind::kCryptoKeyVersion && !version.has_value()) {
      return *key;
    }
    if (key->kind() != Kind::kCryptoKey) {
      return absl::InvalidArgumentError(
          absl::StrCat(Shown(name), " is a ", catalog::KindName(key->kind()),
                       "; a CryptoKey is needed"));
    }
  } else {
    const std::vector<absl::string_view> parts = absl::StrSplit(base, '/');
    if (parts.size() > 2) {
      return WithHint(absl::InvalidArgumentError(absl::StrCat(
                          Shown(name), " is not the name of a key")),
                      "write key, ring/key, ring/key:3, or the full name "
                      "projects/*/locations/*/keyRings/*/cryptoKeys/*");
    }
    if (parts.size() == 1 && defaults.key_ring.empty()) {
      return WithHint(
          absl::InvalidArgumentError(absl::StrCat(
              Shown(name), " names no key ring, and there is no default")),
          absl::StrCat("write ring/", parts[0].substr(0, 64),
                       ", give --key-ring, set KEKCTL_KEY_RING, or put "
                       "`key_ring:` into kekctl.yaml"));
    }
    ASSIGN_OR_RETURN(
        const ResourceName ring,
        Ring(
            parts.size() == 1 ? absl::string_view(defaults.key_ring) : parts[0],
            defaults));
    ASSIGN_OR_RETURN(key, ring.Child(parts.back()));
  }
  if (!version.has_value()) return *key;
  return key->Child(*version);
}

absl::StatusOr<ResourceName> ResolveCryptoKey(absl::string_view name,
                                              const NameDefaults& defaults) {
  ASSIGN_OR_RETURN(ResourceName resolved, ResolveKeyOrVersion(name, defaults));
  if (resolved.kind() == Kind::kCryptoKeyVersion) {
    return WithHint(
        absl::InvalidArgumentError(absl::StrCat(
            Shown(name), " is one version; this works on a whole key")),
        absl::StrCat("leave the version out: ",
                     ShortName(resolved.CryptoKey(), defaults)));
  }
  return resolved;
}

absl::StatusOr<ResourceName> ResolveVersion(absl::string_view name,
                                            const NameDefaults& defaults) {
  ASSIGN_OR_RETURN(ResourceName resolved, ResolveKeyOrVersion(name, defaults));
  if (resolved.kind() != Kind::kCryptoKeyVersion) {
    const std::string key = ShortName(resolved, defaults);
    return WithHint(
        absl::InvalidArgumentError(absl::StrCat(
            Shown(name), " is a key; this works on one of its versions")),
        absl::StrCat("name the version, for example ", key,
                     ":1; `kekctl key describe ", key, "` lists them"));
  }
  return resolved;
}

std::string ShortName(const ResourceName& name, const NameDefaults& defaults) {
  const absl::StatusOr<ResourceName> location = ResolveLocation(defaults);
  if (!location.ok() || name.kind() == Kind::kLocation) return name.ToString();
  if (name.kind() == Kind::kKeyRing) {
    return name.Parent() == *location ? std::string(name.id())
                                      : name.ToString();
  }
  const ResourceName key = name.CryptoKey();
  const ResourceName ring = key.Parent();
  if (!(ring.Parent() == *location)) return name.ToString();
  std::string text = ring.id() == defaults.key_ring
                         ? std::string(key.id())
                         : absl::StrCat(ring.id(), "/", key.id());
  if (name.kind() == Kind::kCryptoKeyVersion) {
    absl::StrAppend(&text, ":", name.version());
  }
  return text;
}

}  // namespace kek::cli
