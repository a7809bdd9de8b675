// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/pin_memory.h"

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <unistd.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/secret_bytes.h"
#include "base/status_macros.h"

namespace kek::pkcs11 {
namespace {

constexpr absl::string_view kMagic = "kekd-refused-pin-1";
constexpr size_t kMaxRecord = 1024;

absl::Status FileError(absl::string_view what, const std::string& path) {
  return absl::FailedPreconditionError(absl::StrCat(
      what, " ", path, ", which remembers a refused PIN: ", strerror(errno)));
}

bool WriteAll(int fd, absl::string_view text) {
  while (!text.empty()) {
    const ssize_t n = write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    text.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

void SyncDirectory(const std::string& file) {
  const std::string directory = file.substr(0, file.rfind('/'));
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  fsync(fd);
  close(fd);
}

}  // namespace

PinMemory::PinMemory(std::string directory, std::string token_identity)
    : identity_(std::move(token_identity)) {
  if (directory.empty()) return;
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(identity_.data()),
         identity_.size(), digest);
  path_ = absl::StrCat(directory, "/refused-pin-",
                       absl::BytesToHexString(absl::string_view(
                           reinterpret_cast<const char*>(digest), 8)));
}

std::string PinMemory::HashOf(std::span<const uint8_t> pin,
                              absl::string_view salt) const {
  const std::string salted = absl::StrCat(salt, identity_);
  std::string hash(32, '\0');
  // 32 MiB and about 80 ms: a short PIN falls to patience all the same, which
  // is why the file is the owner's alone.
  if (EVP_PBE_scrypt(reinterpret_cast<const char*>(pin.data()), pin.size(),
                     reinterpret_cast<const unsigned char*>(salted.data()),
                     salted.size(), 1 << 15, 8, 1, 64 << 20,
                     reinterpret_cast<unsigned char*>(hash.data()),
                     hash.size()) != 1) {
    return "";
  }
  return hash;
}

absl::StatusOr<bool> PinMemory::WasRefused(std::span<const uint8_t> pin) const {
  std::string record = record_;
  if (!path_.empty() && record.empty()) {
    const int fd = open(path_.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
      if (errno == ENOENT) return false;
      return FileError("cannot open", path_);
    }
    record.resize(kMaxRecord);
    const ssize_t n = read(fd, record.data(), record.size());
    close(fd);
    if (n < 0) return FileError("cannot read", path_);
    record.resize(static_cast<size_t>(n));
  }
  if (record.empty() && path_.empty()) return false;
  const std::vector<std::string> parts =
      absl::StrSplit(absl::StripSuffix(record, "\n"), ' ');
  if (parts.size() != 3 || parts[0] != kMagic || parts[1].size() != 32 ||
      parts[2].size() != 64) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_,
                     ", which remembers a refused PIN, is damaged; make sure "
                     "that the PIN is right, then remove it"));
  }
  const std::string hash = HashOf(pin, absl::HexStringToBytes(parts[1]));
  if (hash.empty()) return absl::InternalError("scrypt failed");
  return hash == absl::HexStringToBytes(parts[2]);
}

absl::Status PinMemory::Remember(std::span<const uint8_t> pin) {
  std::string salt(16, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(salt.data()),
                 static_cast<int>(salt.size())) != 1) {
    return absl::InternalError("the host's random generator fails");
  }
  const std::string hash = HashOf(pin, salt);
  if (hash.empty()) return absl::InternalError("scrypt failed");
  record_ = absl::StrCat(kMagic, " ", absl::BytesToHexString(salt), " ",
                         absl::BytesToHexString(hash), "\n");
  if (path_.empty()) return absl::OkStatus();
  const std::string temporary = absl::StrCat(path_, ".new");
  unlink(temporary.c_str());
  const int fd =
      open(temporary.c_str(),
           O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd < 0) return FileError("cannot write", temporary);
  const bool written = WriteAll(fd, record_) && fsync(fd) == 0;
  if (close(fd) != 0 || !written ||
      rename(temporary.c_str(), path_.c_str()) != 0) {
    return FileError("cannot write", path_);
  }
  SyncDirectory(path_);
  return absl::OkStatus();
}

void PinMemory::Clear() {
  record_.clear();
  if (!path_.empty() && unlink(path_.c_str()) == 0) SyncDirectory(path_);
}

}  // namespace kek::pkcs11
