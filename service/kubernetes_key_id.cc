// SPDX-License-Identifier: Apache-2.0
#include "service/kubernetes_key_id.h"

#include <algorithm>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace kek::service {
namespace {

constexpr absl::string_view kPrefix = "kekd";

std::string Hex(const catalog::Uuid& uuid) {
  return absl::BytesToHexString(absl::string_view(
      reinterpret_cast<const char*>(uuid.data()), uuid.size()));
}

}  // namespace

std::string KubernetesKeyId::ToString() const {
  return absl::StrCat(kPrefix, "-", Hex(key_uuid), "-", version, "-",
                      activation);
}

absl::StatusOr<KubernetesKeyId> KubernetesKeyId::Parse(absl::string_view text) {
  const absl::Status invalid = absl::InvalidArgumentError(
      "key_id is not one that kekd gives: it must be as Encrypt answered it");
  if (text.size() > kMaxSize) return invalid;
  const std::vector<absl::string_view> parts = absl::StrSplit(text, '-');
  if (parts.size() != 4 || parts[1].size() != 32) return invalid;
  KubernetesKeyId id;
  for (const char c : parts[1]) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) return invalid;
  }
  const std::string uuid = absl::HexStringToBytes(parts[1]);
  std::copy(uuid.begin(), uuid.end(), id.key_uuid.begin());
  if (!absl::SimpleAtoi(parts[2], &id.version) ||
      !absl::SimpleAtoi(parts[3], &id.activation)) {
    return invalid;
  }
  // Other prefixes, upper case, signs, spaces and leading zeros end here.
  if (id.version == 0 || id.ToString() != text) return invalid;
  return id;
}

}  // namespace kek::service
