// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

namespace kek::base {

// CRC32C (Castagnoli, RFC 3720 appendix B.4) of data; 0 for no data. Uses the
// SSE 4.2 instruction where the CPU has it.
uint32_t Crc32c(std::span<const uint8_t> data);

}  // namespace kek::base
