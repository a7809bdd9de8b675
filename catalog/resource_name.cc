// SPDX-License-Identifier: Apache-2.0
#include "catalog/resource_name.h"

#include <array>
#include <cstddef>
#include <tuple>

#include "absl/base/attributes.h"
#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kek::catalog {
namespace {

constexpr size_t kMaxId = 63;
constexpr size_t kMaxEcho = 128;

// One level of the hierarchy: "collection/id".
struct Level {
  absl::string_view collection;
  absl::string_view id_name;  // as errors say it
  enum { kPlace, kId, kNumber } syntax;
};
constexpr std::array<Level, 5> kLevels = {{
    {"projects", "project", Level::kPlace},
    {"locations", "location", Level::kPlace},
    {"keyRings", "KeyRing id", Level::kId},
    {"cryptoKeys", "CryptoKey id", Level::kId},
    {"cryptoKeyVersions", "CryptoKeyVersion", Level::kNumber},
}};
constexpr size_t kLocationLevels = 2;

size_t LevelsOf(ResourceName::Kind kind) {
  return kLocationLevels + static_cast<size_t>(kind);
}

// Input as an error may show it: shortened, and nothing but printable ASCII.
std::string Echo(absl::string_view text) {
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kMaxEcho)),
                      text.size() > kMaxEcho ? "..." : "", "\"");
}

// Checks one id; a version's number goes to version.
absl::Status CheckId(const Level& level, absl::string_view id,
                     uint32_t& version) {
  if (level.syntax == Level::kNumber) {
    const bool digits = !id.empty() && id.size() <= 10 &&
                        id.find_first_not_of("0123456789") == id.npos;
    if (!digits || id.front() == '0' || !absl::SimpleAtoi(id, &version)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "invalid resource name: ", level.id_name, " ", Echo(id),
          " must be a decimal number from 1 to 4294967295 without leading "
          "zeros"));
    }
    return absl::OkStatus();
  }
  const bool place = level.syntax == Level::kPlace;
  bool good = !id.empty() && id.size() <= kMaxId;
  for (const char c : id) {
    good = good && (absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                    c == '_' || c == '-' || (place && (c == '.' || c == ':')));
  }
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "invalid resource name: ", level.id_name, " ", Echo(id), " must match ",
      place ? "[a-zA-Z0-9._:-]{1,63}" : "[a-zA-Z0-9_-]{1,63}"));
}

// Splits off the text before the next '/'.
absl::string_view NextSegment(absl::string_view& rest, bool& more) {
  const size_t slash = rest.find('/');
  const absl::string_view segment = rest.substr(0, slash);
  more = slash != rest.npos;
  rest.remove_prefix(more ? slash + 1 : rest.size());
  return segment;
}

// The text before "/collection/id".
absl::string_view ParentText(absl::string_view text) {
  const size_t id = text.rfind('/');
  return text.substr(0, text.rfind('/', id - 1));
}

}  // namespace

absl::StatusOr<ResourceName> ResourceName::Parse(absl::string_view name) {
  absl::string_view rest = name;
  uint32_t version = 0;
  bool more = true;
  size_t levels = 0;
  for (; more && levels < kLevels.size(); ++levels) {
    const Level& level = kLevels[levels];
    const absl::string_view collection = NextSegment(rest, more);
    if (collection != level.collection) {
      return absl::InvalidArgumentError(
          absl::StrCat("invalid resource name: ", Echo(collection), " where \"",
                       level.collection, "\" is expected"));
    }
    if (!more) {
      return absl::InvalidArgumentError(absl::StrCat(
          "invalid resource name: it ends after \"", collection, "\""));
    }
    RETURN_IF_ERROR(CheckId(level, NextSegment(rest, more), version));
  }
  if (more) {
    return absl::InvalidArgumentError(
        absl::StrCat("invalid resource name: ", Echo(rest),
                     " after the CryptoKeyVersion's number"));
  }
  if (levels < kLocationLevels) {
    return absl::InvalidArgumentError(
        "invalid resource name: it ends before \"locations\"");
  }
  return ResourceName(static_cast<Kind>(levels - kLocationLevels),
                      std::string(name), version);
}

absl::StatusOr<ResourceName> ResourceName::Parse(absl::string_view name,
                                                 Kind kind) {
  ASSIGN_OR_RETURN(ResourceName parsed, Parse(name));
  if (parsed.kind_ != kind) {
    return absl::InvalidArgumentError(
        absl::StrCat("invalid resource name: ", Echo(name), " names a ",
                     KindName(parsed.kind_), ", not a ", KindName(kind)));
  }
  return parsed;
}

absl::StatusOr<ResourceName> ResourceName::Child(absl::string_view id) const {
  if (kind_ == Kind::kCryptoKeyVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("a CryptoKeyVersion has no children: ", text_));
  }
  const Level& level = kLevels[LevelsOf(kind_)];
  uint32_t version = 0;
  RETURN_IF_ERROR(CheckId(level, id, version));
  return ResourceName(static_cast<Kind>(static_cast<int>(kind_) + 1),
                      absl::StrCat(text_, "/", level.collection, "/", id),
                      version);
}

ResourceName ResourceName::Version(uint32_t version) const {
  ABSL_ASSERT(kind_ == Kind::kCryptoKey && version > 0);
  return {Kind::kCryptoKeyVersion,
          absl::StrCat(text_, "/cryptoKeyVersions/", version), version};
}

ResourceName ResourceName::CryptoKey() const {
  return kind_ == Kind::kCryptoKeyVersion ? Parent() : *this;
}

ResourceName ResourceName::Parent() const {
  ABSL_ASSERT(kind_ != Kind::kLocation);
  return {static_cast<Kind>(static_cast<int>(kind_) - 1),
          std::string(ParentText(text_)), 0};
}

absl::string_view ResourceName::id() const {
  return absl::string_view(text_).substr(text_.rfind('/') + 1);
}

bool operator<(const ResourceName& a, const ResourceName& b) {
  const auto key = [](const ResourceName& n) {
    return std::make_tuple(ParentText(n.text_), n.kind_, n.version_,
                           n.version_ == 0 ? n.id() : absl::string_view());
  };
  return key(a) < key(b);
}

absl::string_view KindName(ResourceName::Kind kind) {
  switch (kind) {
    case ResourceName::Kind::kLocation:
      return "Location";
    case ResourceName::Kind::kKeyRing:
      return "KeyRing";
    case ResourceName::Kind::kCryptoKey:
      return "CryptoKey";
    case ResourceName::Kind::kCryptoKeyVersion:
      return "CryptoKeyVersion";
  }
  return "resource";
}

}  // namespace kek::catalog
