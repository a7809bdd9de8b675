// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/random_watch.h"

#include <algorithm>

namespace kek::pkcs11 {

bool RandomWatch::Accept(std::span<const uint8_t> data) {
  if (data.size() < 12) return true;
  std::array<uint8_t, 16> block{};
  std::copy_n(data.begin(), std::min(data.size(), block.size()), block.begin());
  if (std::all_of(block.begin(), block.end(),
                  [](uint8_t byte) { return byte == 0; })) {
    return false;
  }
  base::MutexLock lock(mu_);
  const auto end = recent_.begin() + used_;
  if (std::find(recent_.begin(), end, block) != end) return false;
  recent_[next_] = block;
  next_ = (next_ + 1) % recent_.size();
  used_ = std::min(used_ + 1, recent_.size());
  return true;
}

}  // namespace kek::pkcs11
