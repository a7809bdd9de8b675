// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/token_uri.h"

#include <p11-kit/uri.h>

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace kek::pkcs11 {

absl::StatusOr<TokenUri> TokenUri::Parse(absl::string_view text) {
  if (!absl::StartsWith(text, "pkcs11:")) {
    return absl::InvalidArgumentError(
        "token URI: it does not begin \"pkcs11:\" (RFC 7512)");
  }
  // Query attributes may hold a PIN: refused before anything echoes them.
  if (absl::StrContains(text, '?')) {
    return absl::InvalidArgumentError(
        "token URI: query attributes (after \"?\") are not taken; module and "
        "PIN have settings of their own");
  }
  for (absl::string_view unwanted :
       {"pkcs11:object=", ";object=", "pkcs11:id=", ";id=", "pkcs11:type=",
        ";type=", "slot-id=", "slot-description=", "slot-manufacturer=",
        "library-"}) {
    if (absl::StrContains(text, unwanted)) {
      return absl::InvalidArgumentError(
          absl::StrCat("token URI \"", text.substr(0, 200),
                       "\": only token, manufacturer, serial and model pick a "
                       "token (slots move)"));
    }
  }
  std::shared_ptr<P11KitUri> uri(p11_kit_uri_new(), p11_kit_uri_free);
  const int result = p11_kit_uri_parse(std::string(text).c_str(),
                                       P11_KIT_URI_FOR_TOKEN, uri.get());
  if (result != P11_KIT_URI_OK || p11_kit_uri_any_unrecognized(uri.get())) {
    return absl::InvalidArgumentError(
        absl::StrCat("token URI \"", text.substr(0, 200), "\" is malformed"));
  }
  if (text == "pkcs11:") {
    return absl::InvalidArgumentError(
        "token URI: it names no token; add token=LABEL or serial=NUMBER");
  }
  return TokenUri(std::move(uri));
}

bool TokenUri::Matches(const CK_TOKEN_INFO& info) const {
  return p11_kit_uri_match_token_info(
             static_cast<const P11KitUri*>(uri_.get()), &info) == 1;
}

}  // namespace kek::pkcs11
