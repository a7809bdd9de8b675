// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "base/sync.h"

namespace kek::pkcs11 {

// RandomWatch remembers the last blocks of random bytes and says when a
// generator has stopped being one: all zero, or a block seen before. Not a test
// of quality. Thread-safe.
class RandomWatch {
 public:
  // False: out of order. Looks at the first 16 bytes of data, or all of it if
  // fewer; fewer than 12 bytes are not judged.
  bool Accept(std::span<const uint8_t> data);

 private:
  base::Mutex mu_;
  std::array<std::array<uint8_t, 16>, 64> recent_ ABSL_GUARDED_BY(mu_){};
  size_t used_ ABSL_GUARDED_BY(mu_) = 0;
  size_t next_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace kek::pkcs11
