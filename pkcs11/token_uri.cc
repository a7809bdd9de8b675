// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/token_uri.h"

#include <p11-kit/uri.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kek::pkcs11 {

absl::StatusOr<TokenUri> TokenUri::Parse(const std::string& text) {
  std::shared_ptr<p11_kit_uri> uri(p11_kit_uri_new(), p11_kit_uri_free);
  const int result =
      p11_kit_uri_parse(text.c_str(), P11_KIT_URI_FOR_TOKEN, uri.get());
  if (result != P11_KIT_URI_OK) {
    return absl::InvalidArgumentError(
        absl::StrCat("token URI: ", p11_kit_uri_message(result),
                     "; it looks like pkcs11:token=kek;serial=1234"));
  }
  if (p11_kit_uri_get_pin_value(uri.get()) != nullptr ||
      p11_kit_uri_get_pin_source(uri.get()) != nullptr) {
    return absl::InvalidArgumentError(
        "token URI: pin-value and pin-source are not allowed; configure the "
        "PIN's source instead");
  }
  if (p11_kit_uri_any_unrecognized(uri.get()) != 0 ||
      p11_kit_uri_get_module_name(uri.get()) != nullptr ||
      p11_kit_uri_get_module_path(uri.get()) != nullptr) {
    return absl::InvalidArgumentError(
        "token URI: only token, manufacturer, serial and model are allowed");
  }
  // A URI that names nothing would match every token there is.
  CK_TOKEN_INFO other{};
  if (p11_kit_uri_match_token_info(uri.get(), &other) != 0) {
    return absl::InvalidArgumentError(
        "token URI: it names no token; say token=... or serial=...");
  }
  return TokenUri(std::move(uri));
}

bool TokenUri::Matches(const CK_TOKEN_INFO& info) const {
  return p11_kit_uri_match_token_info(uri_.get(), &info) != 0;
}

}  // namespace kek::pkcs11
