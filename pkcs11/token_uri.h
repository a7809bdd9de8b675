// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "pkcs11/cryptoki.h"

namespace kek::pkcs11 {

// TokenUri models the part of an RFC 7512 URI that picks a token: the path
// attributes token, manufacturer, serial and model. Immutable.
class TokenUri {
 public:
  // INVALID_ARGUMENT: not a pkcs11: URI, has attributes that do not pick a
  // token (object, slot-id, ...) or any query attribute (a PIN above all), or
  // picks by nothing.
  static absl::StatusOr<TokenUri> Parse(absl::string_view uri);

  bool Matches(const CK_TOKEN_INFO& info) const;

 private:
  explicit TokenUri(std::shared_ptr<void> uri) : uri_(std::move(uri)) {}
  std::shared_ptr<void> uri_;  // P11KitUri
};

// A blank-padded field of a CK_*_INFO as text.
template <size_t N>
std::string PaddedText(const unsigned char (&field)[N]) {
  size_t size = N;
  while (size > 0 && (field[size - 1] == ' ' || field[size - 1] == 0)) --size;
  return std::string(reinterpret_cast<const char*>(field), size);
}

}  // namespace kek::pkcs11
