// SPDX-License-Identifier: Apache-2.0
#include "cli/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cli/exit_code.h"

namespace kek::cli {
namespace {

absl::Status IoError(absl::string_view what, int error) {
  return WithExit(
      absl::UnknownError(absl::StrCat(what, ": ", std::strerror(error))),
      ExitCode::kIo);
}

}  // namespace

absl::Status WriteAll(int fd, std::span<const uint8_t> bytes,
                      absl::string_view what) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = write(fd, bytes.data() + done, bytes.size() - done);
    if (n < 0) {
      if (errno == EINTR) continue;
      return IoError(absl::StrCat("cannot write ", what), errno);
    }
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status WriteAll(int fd, absl::string_view text, absl::string_view what) {
  return WriteAll(
      fd, std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size()),
      what);
}

absl::StatusOr<base::SecretBytes> ReadInput(const Io& io,
                                            const std::string& path,
                                            size_t max_size) {
  const bool standard = path == "-";
  const std::string what = standard ? "standard input" : path;
  int fd = io.in;
  if (!standard) {
    fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return IoError(absl::StrCat("cannot open ", what), errno);
  }
  const absl::Cleanup close_it = [&] {
    if (!standard) close(fd);
  };
  base::SecretBytes buffer(std::min<size_t>(max_size + 1, 4096));
  size_t size = 0;
  while (true) {
    if (size == buffer.size()) {
      if (size > max_size) {
        return WithHint(
            absl::InvalidArgumentError(
                absl::StrCat(what, " is larger than ", max_size, " bytes")),
            "kekd wraps keys, not files: encrypt the file under a data key of "
            "its own and give kekd that key");
      }
      base::SecretBytes larger(std::min(max_size + 1, buffer.size() * 4));
      std::copy_n(buffer.data(), size, larger.mutable_data());
      buffer = std::move(larger);
    }
    const ssize_t n =
        read(fd, buffer.mutable_data() + size, buffer.size() - size);
    if (n < 0) {
      if (errno == EINTR) continue;
      return IoError(absl::StrCat("cannot read ", what), errno);
    }
    if (n == 0) break;
    size += static_cast<size_t>(n);
  }
  buffer.Truncate(size);
  return buffer;
}

absl::Status WriteOutput(const Io& io, const std::string& path,
                         std::span<const uint8_t> bytes, Overwrite overwrite) {
  if (path == "-") return WriteAll(io.out, bytes, "standard output");
  // A device or pipe is written to, never replaced by a file.
  struct stat info;
  if (stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode) &&
      !S_ISDIR(info.st_mode)) {
    const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) return IoError(absl::StrCat("cannot open ", path), errno);
    const absl::Cleanup close_it = [fd] { close(fd); };
    return WriteAll(fd, bytes, path);
  }
  std::string temporary = absl::StrCat(path, ".XXXXXX");
  const int fd = mkostemp(temporary.data(), O_CLOEXEC);  // 0600
  if (fd < 0) return IoError(absl::StrCat("cannot create ", path), errno);
  absl::Cleanup remove = [&] { unlink(temporary.c_str()); };
  absl::Status status = WriteAll(fd, bytes, path);
  if (status.ok() && fsync(fd) != 0) {
    status = IoError(absl::StrCat("cannot write ", path), errno);
  }
  if (close(fd) != 0 && status.ok()) {
    status = IoError(absl::StrCat("cannot write ", path), errno);
  }
  RETURN_IF_ERROR(status);
  // link() fails where the name is taken, rename() replaces it.
  if (overwrite == Overwrite::kReplace) {
    if (rename(temporary.c_str(), path.c_str()) != 0) {
      return IoError(absl::StrCat("cannot write ", path), errno);
    }
    std::move(remove).Cancel();
    return absl::OkStatus();
  }
  if (link(temporary.c_str(), path.c_str()) != 0) {
    if (errno == EEXIST) {
      return WithHint(absl::AlreadyExistsError(absl::StrCat(path, " exists")),
                      "give another --out, or --force to replace the file");
    }
    return IoError(absl::StrCat("cannot write ", path), errno);
  }
  return absl::OkStatus();
}

}  // namespace kek::cli
