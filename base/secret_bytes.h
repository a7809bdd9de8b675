// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kek::base {

// Overwrites memory in a way the optimiser keeps.
void Wipe(void* data, size_t size) noexcept;
// Wipes a string's whole buffer (its spare capacity too) and empties it. For
// strings that libraries own or demand, such as protobuf bytes fields.
void Wipe(std::string& text) noexcept;

// Compares in time that depends on the sizes only. Different sizes are unequal.
bool ConstantTimeEqual(std::span<const uint8_t> a,
                       std::span<const uint8_t> b) noexcept;

// SecretBytes owns bytes that must not outlive their use: a DEK, a PIN, a
// derived key. The memory is wiped when it is freed, moved from or cleared;
// there is no copy and no printer, so that a secret reaches a log or an error
// only through an explicit span(). Not thread-safe.
class SecretBytes {
 public:
  SecretBytes() = default;
  // size zero bytes.
  explicit SecretBytes(size_t size);
  explicit SecretBytes(std::span<const uint8_t> bytes);
  SecretBytes(SecretBytes&& other) noexcept;
  SecretBytes& operator=(SecretBytes&& other) noexcept;
  // A copy would double the places a secret must be wiped from; where one is
  // really meant, construct from span().
  SecretBytes(const SecretBytes&) = delete;
  SecretBytes& operator=(const SecretBytes&) = delete;
  ~SecretBytes() { Clear(); }

  std::span<const uint8_t> span() const { return {data_, size_}; }
  std::span<uint8_t> mutable_span() { return {data_, size_}; }
  const uint8_t* data() const { return data_; }
  uint8_t* mutable_data() { return data_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

  // Shortens to size bytes and wipes the rest; size must not exceed the present
  // one.
  void Truncate(size_t size) noexcept;
  void Clear() noexcept;

  friend bool operator==(const SecretBytes& a, const SecretBytes& b) {
    return ConstantTimeEqual(a.span(), b.span());
  }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace kek::base
