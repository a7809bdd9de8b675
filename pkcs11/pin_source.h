// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/secret_bytes.h"

namespace kek::pkcs11 {

// PinSource models where a token's PIN comes from. It is read at every login,
// so that a changed PIN needs no restart; nothing of it is kept in between.
// Exactly one trailing line end ("\n" or "\r\n") is not part of the PIN. A
// value; thread-safe.
class PinSource {
 public:
  PinSource() = default;  // no PIN: for tokens that need no login

  // $CREDENTIALS_DIRECTORY/name, as systemd's LoadCredential= and
  // LoadCredentialEncrypted= provide it.
  static PinSource Credential(std::string name);
  // A regular file, not a symbolic link, owned by root or this user, not
  // accessible to group or others, at most 4 KiB.
  static PinSource File(std::string path);
  // An inherited descriptor, read to its end once; the value is kept (in locked
  // memory) for later logins.
  static PinSource Descriptor(int fd);
  // An environment variable, read and removed from the environment at once.
  // Only where the config allows it.
  static PinSource Environment(std::string name);

  bool empty() const { return kind_ == Kind::kNone; }
  // FAILED_PRECONDITION says what is wrong with the source (missing, empty,
  // wrong mode, a link) and what to do; never the PIN.
  absl::StatusOr<base::SecretBytes> Read() const;
  // For messages: "file /etc/kekd/pin", "credential hsm-pin".
  std::string Describe() const;

 private:
  enum class Kind { kNone, kCredential, kFile, kDescriptor, kEnvironment };
  PinSource(Kind kind, std::string name)
      : kind_(kind), name_(std::move(name)) {}
  Kind kind_ = Kind::kNone;
  std::string name_;
  // What can be read only once, kept for later logins; shared by copies.
  struct Held;
  std::shared_ptr<Held> held_;
};

}  // namespace kek::pkcs11
