// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kek::pkcs11 {

// Where the IV of an AES-GCM encryption comes from.
enum class IvMode {
  kHostXorToken,    // 12 bytes: host random XOR token random; survives the
                    // failure of either source (default)
  kTokenRandom,     // 12 bytes from C_GenerateRandom alone
  kTokenWriteback,  // pIv of 12 zero bytes, which the token overwrites (AWS
                    // CloudHSM, nShield, Google kmsp11)
  kTokenAppend,     // no pIv; the token appends 16 bytes of IV after the tag
                    // (Thales Luna in FIPS mode)
};

// How strictly the attributes read back from a key are judged.
enum class AttributePolicy {
  kStrict,    // every hard attribute must be readable and right (default)
  kObserved,  // LOCAL, ALWAYS_SENSITIVE, NEVER_EXTRACTABLE and
              // KEY_GEN_MECHANISM are recorded, not judged. For modules that
              // report them wrongly (NSS softokn 3.87 says CKA_LOCAL=false of a
              // key it generated)
};

// TokenProfile models what one HSM with one firmware does where PKCS#11 leaves
// room. Values come from the operator's config (the defaults suit
// SoftHSM 2.6.1) and are checked by a behavioural probe at start. A plain
// value.
struct TokenProfile {
  IvMode iv_mode = IvMode::kHostXorToken;
  // Upper bound of sessions kekd opens for cryptography; shrinks by itself when
  // the token says CKR_SESSION_COUNT.
  int max_sessions = 16;
  // Sessions are read-only by default; AWS CloudHSM's SDK 5 has only read-write
  // ones.
  bool read_write_sessions = false;
  bool login_required = true;
  // Allow encryption with the host's random numbers alone while the token's
  // generator fails.
  bool allow_host_only_iv = false;
  AttributePolicy attributes = AttributePolicy::kStrict;
  // CK_RVs, beyond those every token uses, that C_Decrypt may return for a
  // wrong tag (learned by the probe).
  std::vector<uint64_t> ambiguous_decrypt_rvs;
  // Tests only: serve with a module that fails the start-up probe's security
  // checks (NSS softokn lets non-extractable keys out).
  bool insecure_module_ok = false;
};

}  // namespace kek::pkcs11
