// SPDX-License-Identifier: Apache-2.0
#include "base/secret_bytes.h"

#include <cstring>
#include <utility>

#include <openssl/crypto.h>

namespace kek::base {

void Wipe(void* data, size_t size) noexcept {
  if (size != 0) OPENSSL_cleanse(data, size);
}

void Wipe(std::string& text) noexcept {
  // The bytes beyond size() may hold what the string held before; data() of
  // capacity() bytes is ours to overwrite once the string has that size.
  text.resize(text.capacity());
  Wipe(text.data(), text.size());
  text.clear();
}

bool ConstantTimeEqual(std::span<const uint8_t> a,
                       std::span<const uint8_t> b) noexcept {
  if (a.size() != b.size()) return false;
  return a.empty() || CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

SecretBytes::SecretBytes(size_t size)
    : data_(size == 0 ? nullptr : new uint8_t[size]()),
      size_(size),
      capacity_(size) {}

SecretBytes::SecretBytes(std::span<const uint8_t> bytes)
    : SecretBytes(bytes.size()) {
  if (data_ != nullptr) std::memcpy(data_, bytes.data(), bytes.size());
}

SecretBytes::SecretBytes(SecretBytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      capacity_(std::exchange(other.capacity_, 0)) {}

SecretBytes& SecretBytes::operator=(SecretBytes&& other) noexcept {
  if (this != &other) {
    Clear();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    capacity_ = std::exchange(other.capacity_, 0);
  }
  return *this;
}

void SecretBytes::Truncate(size_t size) noexcept {
  if (size >= size_) return;
  Wipe(data_ + size, size_ - size);
  size_ = size;
}

void SecretBytes::Clear() noexcept {
  Wipe(data_, capacity_);
  delete[] data_;
  data_ = nullptr;
  size_ = capacity_ = 0;
}

}  // namespace kek::base
