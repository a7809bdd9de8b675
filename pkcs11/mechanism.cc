// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/mechanism.h"

namespace kek::pkcs11 {

Mechanism Mechanism::Plain(CK_MECHANISM_TYPE type) {
  auto storage = std::make_unique<Storage>();
  storage->mechanism.mechanism = type;
  return Mechanism(std::move(storage));
}

Mechanism Mechanism::AesGcm(std::span<const uint8_t> iv,
                            std::span<const uint8_t> aad) {
  auto storage = std::make_unique<Storage>();
  storage->iv.assign(iv.begin(), iv.end());
  storage->aad.assign(aad.begin(), aad.end());
  // SoftHSM 2.6.1 takes the address of the first byte of AAD even if there is
  // none; let there be an address.
  storage->aad.reserve(1);
  CK_GCM_PARAMS& gcm = storage->gcm;
  gcm.pIv = storage->iv.empty() ? nullptr : storage->iv.data();
  gcm.ulIvLen = storage->iv.size();
  gcm.ulIvBits = storage->iv.size() * 8;
  gcm.pAAD = storage->aad.data();
  gcm.ulAADLen = storage->aad.size();
  gcm.ulTagBits = 128;
  storage->mechanism.mechanism = CKM_AES_GCM;
  storage->mechanism.pParameter = &gcm;
  storage->mechanism.ulParameterLen = sizeof gcm;
  return Mechanism(std::move(storage));
}

}  // namespace kek::pkcs11
