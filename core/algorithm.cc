// SPDX-License-Identifier: Apache-2.0
#include "core/algorithm.h"

#include <array>

namespace kek::core {
namespace {

constexpr std::array<Algorithm, 1> kAlgorithms = {{
    {.id = kGoogleSymmetricEncryption,
     .name = "GOOGLE_SYMMETRIC_ENCRYPTION",
     .purpose = catalog::Purpose::kEncryptDecrypt,
     .is_default = true},
}};

}  // namespace

const Algorithm* FindAlgorithm(catalog::AlgorithmId id) {
  for (const Algorithm& algorithm : kAlgorithms) {
    if (algorithm.id == id) return &algorithm;
  }
  return nullptr;
}

const Algorithm* DefaultAlgorithm(catalog::Purpose purpose) {
  for (const Algorithm& algorithm : kAlgorithms) {
    if (algorithm.purpose == purpose && algorithm.is_default) return &algorithm;
  }
  return nullptr;
}

EncryptLimits LimitsOf(catalog::ProtectionLevel level) {
  constexpr size_t kKiB = 1024;
  if (level == catalog::ProtectionLevel::kHsm) {
    return {.plaintext = 8 * kKiB, .aad = 8 * kKiB, .together = 8 * kKiB};
  }
  return {.plaintext = 64 * kKiB, .aad = 64 * kKiB, .together = 128 * kKiB};
}

}  // namespace kek::core
