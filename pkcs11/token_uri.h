// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "pkcs11/cryptoki.h"

struct p11_kit_uri;

namespace kek::pkcs11 {

// TokenUri models an RFC 7512 URI that names a token: path attributes token,
// manufacturer, serial and model, nothing else. A slot number is no name (it
// changes between runs), and a PIN does not belong into a URI. Immutable.
class TokenUri {
 public:
  // INVALID_ARGUMENT says which part is not allowed; never the URI's pin-value.
  static absl::StatusOr<TokenUri> Parse(const std::string& uri);
  bool Matches(const CK_TOKEN_INFO& info) const;

 private:
  explicit TokenUri(std::shared_ptr<p11_kit_uri> uri) : uri_(std::move(uri)) {}
  std::shared_ptr<p11_kit_uri> uri_;
};

}  // namespace kek::pkcs11
