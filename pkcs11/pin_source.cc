// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/pin_source.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/sync.h"

namespace kek::pkcs11 {
namespace {

constexpr size_t kMaxPinBytes = 4096;

// What a descriptor or an environment variable gave, the only time it could be
// read. Lives as long as the process; the pages are locked where allowed.
class KeptPins {
 public:
  static KeptPins& Instance() {
    static KeptPins* const instance = new KeptPins;
    return *instance;
  }
  bool Find(const std::string& source, base::SecretBytes& pin) {
    base::MutexLock lock(mu_);
    const auto found = pins_.find(source);
    if (found == pins_.end()) return false;
    pin = base::SecretBytes(found->second.span());
    return true;
  }
  void Keep(const std::string& source, std::span<const uint8_t> pin) {
    base::MutexLock lock(mu_);
    base::SecretBytes& kept = pins_[source];
    kept = base::SecretBytes(pin);
    // Best effort: RLIMIT_MEMLOCK may be 0.
    static_cast<void>(mlock(kept.data(), kept.size()));
  }

 private:
  base::Mutex mu_;
  std::map<std::string, base::SecretBytes> pins_ ABSL_GUARDED_BY(mu_);
};

absl::Status Unfit(const std::string& source, absl::string_view why) {
  return absl::FailedPreconditionError(
      absl::StrCat("cannot read the PIN from ", source, ": ", why));
}

absl::StatusOr<base::SecretBytes> ReadAll(int fd, const std::string& source) {
  base::SecretBytes buffer(kMaxPinBytes + 1);
  size_t size = 0;
  while (size < buffer.size()) {
    const ssize_t got =
        read(fd, buffer.mutable_data() + size, buffer.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Unfit(source, strerror(errno));
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  if (size > kMaxPinBytes) return Unfit(source, "it is longer than 4096 bytes");
  buffer.Truncate(size);
  return buffer;
}

absl::StatusOr<base::SecretBytes> StripLineEnd(base::SecretBytes pin,
                                               const std::string& source) {
  size_t size = pin.size();
  if (size > 0 && pin.data()[size - 1] == '\n') {
    --size;
    if (size > 0 && pin.data()[size - 1] == '\r') --size;
  }
  if (size == 0) return Unfit(source, "it is empty");
  pin.Truncate(size);
  return pin;
}

absl::StatusOr<base::SecretBytes> ReadFile(const std::string& path,
                                           const std::string& source) {
  const int fd =
      open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) {
    if (errno == ELOOP) {
      return Unfit(source, "it is a symbolic link; name the file itself");
    }
    return Unfit(source, strerror(errno));
  }
  struct Closer {
    int fd;
    ~Closer() { close(fd); }
  } closer{fd};
  struct stat info;
  if (fstat(fd, &info) != 0) return Unfit(source, strerror(errno));
  if (!S_ISREG(info.st_mode)) return Unfit(source, "it is not a regular file");
  if (info.st_uid != 0 && info.st_uid != geteuid()) {
    return Unfit(source, absl::StrCat("it belongs to user ", info.st_uid,
                                      "; it must be root's or kekd's own"));
  }
  if ((info.st_mode & 077) != 0) {
    return Unfit(source,
                 "others can access it; set its mode to 0600 or 0400");
  }
  return ReadAll(fd, source);
}

}  // namespace

PinSource PinSource::Credential(std::string name) {
  return PinSource(Kind::kCredential, std::move(name));
}
PinSource PinSource::File(std::string path) {
  return PinSource(Kind::kFile, std::move(path));
}
PinSource PinSource::Descriptor(int fd) {
  return PinSource(Kind::kDescriptor, absl::StrCat(fd));
}
PinSource PinSource::Environment(std::string name) {
  return PinSource(Kind::kEnvironment, std::move(name));
}

std::string PinSource::Describe() const {
  switch (kind_) {
    case Kind::kNone:
      return "no source";
    case Kind::kCredential:
      return absl::StrCat("credential ", name_);
    case Kind::kFile:
      return absl::StrCat("file ", name_);
    case Kind::kDescriptor:
      return absl::StrCat("descriptor ", name_);
    case Kind::kEnvironment:
      return absl::StrCat("environment variable ", name_);
  }
  return "no source";
}

absl::StatusOr<base::SecretBytes> PinSource::Read() const {
  const std::string source = Describe();
  switch (kind_) {
    case Kind::kNone:
      return Unfit(source, "the config names none");
    case Kind::kCredential: {
      const char* directory = std::getenv("CREDENTIALS_DIRECTORY");
      if (directory == nullptr || *directory == '\0') {
        return Unfit(source,
                     "CREDENTIALS_DIRECTORY is not set; give the unit "
                     "LoadCredential= or LoadCredentialEncrypted=");
      }
      if (name_.empty() || absl::StrContains(name_, '/')) {
        return Unfit(source, "a credential's name has no slash");
      }
      ASSIGN_OR_RETURN(base::SecretBytes pin,
                       ReadFile(absl::StrCat(directory, "/", name_), source));
      return StripLineEnd(std::move(pin), source);
    }
    case Kind::kFile: {
      ASSIGN_OR_RETURN(base::SecretBytes pin, ReadFile(name_, source));
      return StripLineEnd(std::move(pin), source);
    }
    case Kind::kDescriptor: {
      base::SecretBytes pin;
      if (KeptPins::Instance().Find(source, pin)) return pin;
      int fd = -1;
      if (!absl::SimpleAtoi(name_, &fd) || fd < 0) {
        return Unfit(source, "not a descriptor");
      }
      ASSIGN_OR_RETURN(base::SecretBytes all, ReadAll(fd, source));
      close(fd);
      ASSIGN_OR_RETURN(pin, StripLineEnd(std::move(all), source));
      KeptPins::Instance().Keep(source, pin.span());
      return pin;
    }
    case Kind::kEnvironment: {
      base::SecretBytes pin;
      if (KeptPins::Instance().Find(source, pin)) return pin;
      char* value = std::getenv(name_.c_str());
      if (value == nullptr) return Unfit(source, "it is not set");
      const size_t size = strlen(value);
      base::SecretBytes copy(
          std::span(reinterpret_cast<const uint8_t*>(value), size));
      base::Wipe(value, size);
      unsetenv(name_.c_str());
      ASSIGN_OR_RETURN(pin, StripLineEnd(std::move(copy), source));
      KeptPins::Instance().Keep(source, pin.span());
      return pin;
    }
  }
  return Unfit(source, "unknown kind");
}

}  // namespace kek::pkcs11
