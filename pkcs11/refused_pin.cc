// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/refused_pin.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/secret_bytes.h"

namespace kek::pkcs11 {
namespace {

// "kekd-refused-pin-1 <salt hex> <hash hex>\n"
constexpr absl::string_view kMagic = "kekd-refused-pin-1";
constexpr size_t kSaltBytes = 16;
constexpr size_t kHashBytes = 32;
// RFC 7914: N = 2^14, r = 8, p = 1, about 50 ms and 16 MiB.
constexpr uint64_t kN = 1 << 14;
constexpr uint64_t kR = 8;
constexpr uint64_t kP = 1;
constexpr uint64_t kMaxMemory = 64 << 20;

bool Hash(absl::string_view identity, std::span<const uint8_t> pin,
          absl::string_view salt, std::array<uint8_t, kHashBytes>& hash) {
  base::SecretBytes input(identity.size() + 1 + pin.size());
  std::memcpy(input.mutable_data(), identity.data(), identity.size());
  if (!pin.empty()) {
    std::memcpy(input.mutable_data() + identity.size() + 1, pin.data(),
                pin.size());
  }
  return EVP_PBE_scrypt(
             reinterpret_cast<const char*>(input.data()), input.size(),
             reinterpret_cast<const unsigned char*>(salt.data()), salt.size(),
             kN, kR, kP, kMaxMemory, hash.data(), hash.size()) == 1;
}

absl::string_view Text(const std::array<uint8_t, kHashBytes>& hash) {
  return {reinterpret_cast<const char*>(hash.data()), hash.size()};
}

}  // namespace

RefusedPin::RefusedPin(std::string state_dir, std::string identity)
    : path_(absl::StrCat(state_dir, "/refused-pin")),
      identity_(std::move(identity)) {}

bool RefusedPin::Matches(std::span<const uint8_t> pin) const {
  std::ifstream file(path_);
  std::string line;
  if (!std::getline(file, line)) return false;
  const std::vector<std::string> fields = absl::StrSplit(line, ' ');
  if (fields.size() != 3 || fields[0] != kMagic) return false;
  const std::string salt = absl::HexStringToBytes(fields[1]);
  const std::string want = absl::HexStringToBytes(fields[2]);
  std::array<uint8_t, kHashBytes> hash;
  return salt.size() == kSaltBytes && want.size() == kHashBytes &&
         Hash(identity_, pin, salt, hash) && Text(hash) == want;
}

absl::Status RefusedPin::Remember(std::span<const uint8_t> pin) const {
  std::string salt(kSaltBytes, '\0');
  std::array<uint8_t, kHashBytes> hash;
  if (RAND_bytes(reinterpret_cast<unsigned char*>(salt.data()), kSaltBytes) !=
          1 ||
      !Hash(identity_, pin, salt, hash)) {
    return absl::UnavailableError("cannot hash the refused PIN");
  }
  const std::string line =
      absl::StrCat(kMagic, " ", absl::BytesToHexString(salt), " ",
                   absl::BytesToHexString(Text(hash)), "\n");
  const std::string temporary = absl::StrCat(path_, ".new");
  const int fd =
      open(temporary.c_str(),
           O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  bool written = fd >= 0 &&
                 write(fd, line.data(), line.size()) ==
                     static_cast<ssize_t>(line.size()) &&
                 fsync(fd) == 0;
  if (fd >= 0) written = close(fd) == 0 && written;
  written = written && rename(temporary.c_str(), path_.c_str()) == 0;
  if (!written) {
    return absl::UnavailableError(absl::StrCat(
        "cannot remember the refused PIN in ", path_, ": ", strerror(errno)));
  }
  return absl::OkStatus();
}

void RefusedPin::Forget() const { unlink(path_.c_str()); }

}  // namespace kek::pkcs11
