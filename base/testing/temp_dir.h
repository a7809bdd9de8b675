// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>

#include "absl/strings/string_view.h"

namespace kek::base::testing {

// A directory of mode 0700 under $TMPDIR (or /tmp) that is removed with all it
// holds.
class TempDir {
 public:
  TempDir() {
    const char* parent = std::getenv("TMPDIR");
    std::string name =
        std::string(parent != nullptr ? parent : "/tmp") + "/kekd-test-XXXXXX";
    if (mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string File(absl::string_view name) const {
    return path_ + "/" + std::string(name);
  }
  // Writes a file of mode 0600 and returns its path.
  std::string Write(absl::string_view name, absl::string_view content) const {
    const std::string file = File(name);
    {
      std::ofstream out(file, std::ios::binary | std::ios::trunc);
      out.write(content.data(), static_cast<std::streamsize>(content.size()));
    }
    std::filesystem::permissions(file, std::filesystem::perms::owner_read |
                                           std::filesystem::perms::owner_write);
    return file;
  }
  static std::string Read(const std::string& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in),
            std::istreambuf_iterator<char>()};
  }

 private:
  std::string path_;
};

}  // namespace kek::base::testing
