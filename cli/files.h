// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/secret_bytes.h"

namespace kek::cli {

// Io models the three streams of one run, by descriptor: bytes go to them at
// once, so that no buffer keeps a plaintext.
struct Io {
  int in = 0;
  int out = 1;
  int err = 2;
};

// Writes all; ExitCode::kIo.
absl::Status WriteAll(int fd, std::span<const uint8_t> bytes,
                      absl::string_view what);
absl::Status WriteAll(int fd, absl::string_view text, absl::string_view what);

// Reads a file, or the input stream for "-", to its end, into memory that is
// wiped. INVALID_ARGUMENT beyond max_size; ExitCode::kIo.
absl::StatusOr<base::SecretBytes> ReadInput(const Io& io,
                                            const std::string& path,
                                            size_t max_size);

enum class Overwrite { kRefuse, kReplace };

// Writes a file of mode 0600 whole or not at all (a temporary file beside it,
// fsync, rename), or to the output stream for "-"; a device or pipe is written
// to as it is. ALREADY_EXISTS unless kReplace; ExitCode::kIo.
absl::Status WriteOutput(const Io& io, const std::string& path,
                         std::span<const uint8_t> bytes, Overwrite overwrite);

}  // namespace kek::cli
