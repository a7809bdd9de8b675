// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "pkcs11/cryptoki.h"

namespace kek::pkcs11 {

// Mechanism owns a CK_MECHANISM and its parameters for one operation. Not
// copyable: the CK_MECHANISM points into the object.
class Mechanism {
 public:
  explicit Mechanism(CK_MECHANISM_TYPE type) : mechanism_{type, nullptr, 0} {}
  Mechanism(const Mechanism&) = delete;
  Mechanism& operator=(const Mechanism&) = delete;

  CK_MECHANISM* get() { return &mechanism_; }

 protected:
  void SetParameter(void* data, size_t size) {
    mechanism_.pParameter = data;
    mechanism_.ulParameterLen = size;
  }

 private:
  CK_MECHANISM mechanism_;
};

// CKM_AES_GCM with a 128-bit tag (PKCS#11 2.40, Current Mechanisms, 2.12).
// iv and aad must outlive the operation; iv is written to by tokens that make
// the IV themselves. An empty iv is passed as none.
class AesGcm : public Mechanism {
 public:
  static constexpr size_t kTagBytes = 16;

  AesGcm(std::span<uint8_t> iv, std::span<const uint8_t> aad)
      : Mechanism(CKM_AES_GCM), params_{} {
    params_.iv_ptr = iv.empty() ? nullptr : iv.data();
    params_.iv_len = iv.size();
    params_.iv_bits = iv.size() * 8;
    // SoftHSM 2.6.1 takes the address of the first byte also of no bytes.
    params_.aad_ptr =
        aad.empty() ? &nothing_ : const_cast<unsigned char*>(aad.data());
    params_.aad_len = aad.size();
    params_.tag_bits = kTagBytes * 8;
    SetParameter(&params_, sizeof params_);
  }

 private:
  CK_GCM_PARAMS params_;
  unsigned char nothing_ = 0;
};

}  // namespace kek::pkcs11
