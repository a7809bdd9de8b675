// SPDX-License-Identifier: Apache-2.0
#pragma once

// Private to pkcs11/: the PKCS#11 types, and what p11-kit 0.24's 2.40 header
// lacks (numbers: OASIS PKCS#11 3.0, Current Mechanisms and Base).

#include <p11-kit/pkcs11.h>

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"

namespace kek::pkcs11 {

inline constexpr CK_MECHANISM_TYPE kMechanismAesKeyWrap = 0x2109;
inline constexpr CK_MECHANISM_TYPE kMechanismAesKeyWrapPad = 0x210A;
inline constexpr CK_MECHANISM_TYPE kMechanismAesKeyWrapKwp = 0x210B;
inline constexpr CK_RV kRvAeadDecryptFailed = 0x42;


}  // namespace kek::pkcs11
