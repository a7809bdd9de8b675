// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "pkcs11/cryptoki.h"

namespace kek::pkcs11 {

// Mechanism owns a CK_MECHANISM and the memory its parameters point to, for as
// long as the operation lasts: some tokens write into the parameters only when
// C_Encrypt is done. Each kind of mechanism is one factory. Move-only.
class Mechanism {
 public:
  // Without parameters: CKM_AES_KEY_GEN, CKM_AES_KEY_WRAP*, ...
  static Mechanism Plain(CK_MECHANISM_TYPE type);
  // CKM_AES_GCM with a 128-bit tag. An empty iv means no pIv at all (the token
  // makes one and appends it).
  static Mechanism AesGcm(std::span<const uint8_t> iv,
                          std::span<const uint8_t> aad);

  CK_MECHANISM* get() { return &storage_->mechanism; }
  // The IV as it stands now: what was given, or what the token wrote.
  std::span<const uint8_t> iv() const { return storage_->iv; }

 private:
  struct Storage {
    CK_MECHANISM mechanism{};
    CK_GCM_PARAMS gcm{};
    std::vector<uint8_t> iv, aad;
  };
  explicit Mechanism(std::unique_ptr<Storage> storage)
      : storage_(std::move(storage)) {}
  std::unique_ptr<Storage> storage_;  // stays where it is when moved
};

}  // namespace kek::pkcs11
