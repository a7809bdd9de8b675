// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/testing/temp_dir.h"
#include "cli/kekctl.h"

namespace kek::cli::testing {

struct Ran {
  int code = -1;
  std::string out, err;
};

// Runs kekctl in this process, with no environment and no config files.
inline Ran Kekctl(std::vector<std::string> arguments,
                  absl::string_view input = "") {
  const base::testing::TempDir dir;
  Io io;
  io.in = open(dir.Write("in", input).c_str(), O_RDONLY | O_CLOEXEC);
  io.out = open(dir.File("out").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  io.err = open(dir.File("err").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  if (io.in < 0 || io.out < 0 || io.err < 0) std::abort();
  Ran ran;
  ran.code = RunKekctl(
      std::move(arguments), io, [](const std::string&) { return std::nullopt; },
      "/nonexistent");
  close(io.in);
  close(io.out);
  close(io.err);
  ran.out = base::testing::TempDir::Read(dir.File("out"));
  ran.err = base::testing::TempDir::Read(dir.File("err"));
  return ran;
}

}  // namespace kek::cli::testing
