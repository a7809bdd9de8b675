// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/pin_source.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/sync.h"

namespace kek::pkcs11 {
namespace {

constexpr size_t kMaxPin = 4096;

absl::Status Problem(const std::string& source, absl::string_view what) {
  return absl::FailedPreconditionError(
      absl::StrCat("PIN ", source, ": ", what));
}

// Bits of the mode that must not be set.
enum class Access : mode_t {
  kOwnerOnly = 077,
  // systemd shows its access-control entry for the service's user as group
  // bits.
  kCredential = 037
};

absl::StatusOr<base::SecretBytes> ReadToEnd(int fd, const std::string& source) {
  base::SecretBytes buffer(kMaxPin + 1);
  size_t size = 0;
  while (size < buffer.size()) {
    const ssize_t n =
        read(fd, buffer.mutable_data() + size, buffer.size() - size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Problem(source, absl::StrCat("read: ", strerror(errno)));
    if (n == 0) break;
    size += static_cast<size_t>(n);
  }
  if (size > kMaxPin) return Problem(source, "longer than 4 KiB");
  buffer.Truncate(size);
  return buffer;
}

absl::StatusOr<base::SecretBytes> ReadFile(const std::string& path,
                                           const std::string& source,
                                           Access access) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const int fd = open(
      path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (fd < 0) {
    if (errno == ELOOP) {
      return Problem(source,
                     "is a symbolic link; name the file it points to instead");
    }
    return Problem(source, strerror(errno));
  }
  struct stat st {};
  absl::StatusOr<base::SecretBytes> content = absl::InternalError("");
  if (fstat(fd, &st) != 0) {
    content = Problem(source, strerror(errno));
  } else if (!S_ISREG(st.st_mode)) {
    content = Problem(source, "is not a regular file");
  } else if (st.st_uid != 0 && st.st_uid != geteuid()) {
    content = Problem(source, "belongs neither to root nor to this user");
  } else if ((st.st_mode & static_cast<mode_t>(access)) != 0) {
    content = Problem(
        source, "is accessible to group or others; chmod it to 0600 or less");
  } else {
    content = ReadToEnd(fd, source);
  }
  close(fd);
  return content;
}

// Exactly one line end is not part of the PIN.
absl::StatusOr<base::SecretBytes> Strip(base::SecretBytes pin,
                                        const std::string& source) {
  size_t size = pin.size();
  if (size > 0 && pin.data()[size - 1] == '\n') {
    --size;
    if (size > 0 && pin.data()[size - 1] == '\r') --size;
  }
  pin.Truncate(size);
  if (pin.empty()) return Problem(source, "is empty");
  return pin;
}

}  // namespace

struct PinSource::Held {
  ~Held() {
    if (!pin.empty()) munlock(pin.data(), pin.size());
  }
  void Keep(base::SecretBytes value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    pin = std::move(value);
    // Best effort: RLIMIT_MEMLOCK may be small.
    if (!pin.empty() && mlock(pin.data(), pin.size()) != 0) return;
  }
  base::Mutex mu;
  bool read = false;
  absl::Status problem;
  base::SecretBytes pin;
};

PinSource PinSource::Credential(std::string name) {
  return PinSource(Kind::kCredential, std::move(name));
}

PinSource PinSource::File(std::string path) {
  return PinSource(Kind::kFile, std::move(path));
}

PinSource PinSource::Descriptor(int fd) {
  PinSource source(Kind::kDescriptor, absl::StrCat(fd));
  source.held_ = std::make_shared<Held>();
  return source;
}

PinSource PinSource::Environment(std::string name) {
  PinSource source(Kind::kEnvironment, name);
  source.held_ = std::make_shared<Held>();
  base::MutexLock lock(source.held_->mu);
  source.held_->read = true;
  char* value = std::getenv(name.c_str());
  if (value == nullptr) {
    source.held_->problem = Problem(source.Describe(), "is not set");
    return source;
  }
  const size_t size = std::strlen(value);
  source.held_->Keep(base::SecretBytes(
      std::span(reinterpret_cast<const uint8_t*>(value), size)));
  base::Wipe(value, size);  // unsetenv leaves the bytes where they are
  unsetenv(name.c_str());
  return source;
}

std::string PinSource::Describe() const {
  switch (kind_) {
    case Kind::kNone:
      return "none";
    case Kind::kCredential:
      return absl::StrCat("credential ", name_);
    case Kind::kFile:
      return absl::StrCat("file ", name_);
    case Kind::kDescriptor:
      return absl::StrCat("descriptor ", name_);
    case Kind::kEnvironment:
      return absl::StrCat("environment variable ", name_);
  }
  return "";
}

absl::StatusOr<base::SecretBytes> PinSource::Read() const {
  const std::string source = Describe();
  switch (kind_) {
    case Kind::kNone:
      return Problem(source,
                     "no source is configured, and the token needs one");
    case Kind::kCredential: {
      const char* directory = std::getenv("CREDENTIALS_DIRECTORY");
      if (directory == nullptr) {
        return Problem(source,
                       "$CREDENTIALS_DIRECTORY is not set; the unit needs "
                       "LoadCredential= or LoadCredentialEncrypted=");
      }
      if (name_.empty() || name_.find('/') != std::string::npos) {
        return Problem(source, "is no file name");
      }
      ASSIGN_OR_RETURN(base::SecretBytes pin,
                       ReadFile(absl::StrCat(directory, "/", name_), source,
                                Access::kCredential));
      return Strip(std::move(pin), source);
    }
    case Kind::kFile: {
      ASSIGN_OR_RETURN(base::SecretBytes pin,
                       ReadFile(name_, source, Access::kOwnerOnly));
      return Strip(std::move(pin), source);
    }
    case Kind::kDescriptor:
    case Kind::kEnvironment:
      break;
  }
  base::MutexLock lock(held_->mu);
  if (!held_->read) {
    held_->read = true;
    int fd = -1;
    absl::StatusOr<base::SecretBytes> content =
        absl::SimpleAtoi(name_, &fd) ? ReadToEnd(fd, source)
                                     : Problem(source, "is no descriptor");
    if (fd >= 0) close(fd);
    if (content.ok()) {
      held_->Keep(*std::move(content));
    } else {
      held_->problem = content.status();
    }
  }
  RETURN_IF_ERROR(held_->problem);
  return Strip(base::SecretBytes(held_->pin.span()), source);
}

}  // namespace kek::pkcs11
