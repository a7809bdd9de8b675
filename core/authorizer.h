// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "base/sync.h"
#include "catalog/resource_name.h"
#include "core/caller.h"

namespace kek::core {

// Permissions, by Cloud KMS' names (reference: Cloud KMS "Permissions and
// roles").
namespace permission {
inline constexpr absl::string_view kKeyRingsCreate = "cloudkms.keyRings.create";
inline constexpr absl::string_view kKeyRingsGet = "cloudkms.keyRings.get";
inline constexpr absl::string_view kKeyRingsList = "cloudkms.keyRings.list";
inline constexpr absl::string_view kCryptoKeysCreate =
    "cloudkms.cryptoKeys.create";
inline constexpr absl::string_view kCryptoKeysGet = "cloudkms.cryptoKeys.get";
inline constexpr absl::string_view kCryptoKeysList = "cloudkms.cryptoKeys.list";
inline constexpr absl::string_view kCryptoKeysUpdate =
    "cloudkms.cryptoKeys.update";
inline constexpr absl::string_view kVersionsCreate =
    "cloudkms.cryptoKeyVersions.create";
inline constexpr absl::string_view kVersionsGet =
    "cloudkms.cryptoKeyVersions.get";
inline constexpr absl::string_view kVersionsList =
    "cloudkms.cryptoKeyVersions.list";
inline constexpr absl::string_view kVersionsUpdate =
    "cloudkms.cryptoKeyVersions.update";
inline constexpr absl::string_view kVersionsDestroy =
    "cloudkms.cryptoKeyVersions.destroy";
inline constexpr absl::string_view kVersionsRestore =
    "cloudkms.cryptoKeyVersions.restore";
inline constexpr absl::string_view kUseToEncrypt =
    "cloudkms.cryptoKeyVersions.useToEncrypt";
inline constexpr absl::string_view kUseToDecrypt =
    "cloudkms.cryptoKeyVersions.useToDecrypt";
// kekd's own: status, token login, log level.
inline constexpr absl::string_view kServerGet = "kekd.server.get";
inline constexpr absl::string_view kServerOperate = "kekd.server.operate";
}  // namespace permission

// One grant: everyone who has principal has role on resource and all below it.
// An empty resource means the whole server.
struct Grant {
  std::string principal;  // "unix:uid:0", "unix:gid:33", "kubernetes:<binding>"
                          // (any peer its socket admits)
  std::string role;       // "roles/cloudkms.admin",
                          // "roles/cloudkms.cryptoKeyEncrypterDecrypter", ...
  std::string resource;   // a ResourceName's text, or empty
};

// The permissions of a role; empty for an unknown role.
const std::vector<absl::string_view>& PermissionsOf(absl::string_view role);

// Authorizer decides whether a caller may. It reads an immutable snapshot in
// memory, before any key is looked up, so that a stranger causes no work and
// learns nothing. Default deny. kekd's own work (Authenticator::kInternal) is
// always allowed. Thread-safe.
class Authorizer {
 public:
  // INVALID_ARGUMENT names a grant with an unknown role or a malformed
  // resource.
  static absl::StatusOr<std::unique_ptr<Authorizer>> Create(
      std::vector<Grant> grants);

  // OK, or PERMISSION_DENIED in Cloud KMS' words:
  // "Permission 'cloudkms.cryptoKeyVersions.useToEncrypt' denied on resource
  // 'projects/...' (or it may not exist)."
  absl::Status Check(const Caller& caller, absl::string_view permission,
                     const catalog::ResourceName& resource) const;
  // For permissions on the server itself.
  absl::Status CheckServer(const Caller& caller,
                           absl::string_view permission) const;

  // Replaces all grants at once; holds before it returns.
  absl::Status Replace(std::vector<Grant> grants);

 private:
  struct Snapshot;
  explicit Authorizer(std::shared_ptr<const Snapshot> snapshot);
  std::shared_ptr<const Snapshot> Current() const;

  mutable base::Mutex mu_;
  std::shared_ptr<const Snapshot> snapshot_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kek::core
