// SPDX-License-Identifier: Apache-2.0
#pragma once

// The PKCS#11 types and constants, for the sources of this folder only. p11-kit
// 0.24's header is that of version 2.40; what 3.0 added and we use follows.

#include <p11-kit/pkcs11.h>

#ifndef CKR_AEAD_DECRYPT_FAILED
#define CKR_AEAD_DECRYPT_FAILED (0x42UL)
#endif
#ifndef CKR_TOKEN_RESOURCE_EXCEEDED
#define CKR_TOKEN_RESOURCE_EXCEEDED (0x201UL)
#endif
#ifndef CKM_AES_KEY_WRAP_KWP
#define CKM_AES_KEY_WRAP_KWP (0x210bUL)
#endif
