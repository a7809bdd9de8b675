// SPDX-License-Identifier: Apache-2.0
#include "core/authorizer.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kek::core {
namespace {

struct Role {
  absl::string_view name;
  std::vector<absl::string_view> permissions;
  bool server_only;  // says nothing about a resource
};

constexpr absl::string_view kOperatorRole = "roles/kekd.operator";

// Google's roles with Google's permissions, as far as kekd has the methods.
// An admin manages keys and cannot use them.
const std::vector<Role>& Roles() {
  namespace p = permission;
  static const auto* const roles = new std::vector<Role>{
      {"roles/cloudkms.admin",
       {p::kKeyRingsCreate, p::kKeyRingsGet, p::kKeyRingsList,
        p::kCryptoKeysCreate, p::kCryptoKeysGet, p::kCryptoKeysList,
        p::kCryptoKeysUpdate, p::kVersionsCreate, p::kVersionsGet,
        p::kVersionsList, p::kVersionsUpdate, p::kVersionsDestroy,
        p::kVersionsRestore},
       false},
      {"roles/cloudkms.viewer",
       {p::kKeyRingsGet, p::kKeyRingsList, p::kCryptoKeysGet,
        p::kCryptoKeysList, p::kVersionsGet, p::kVersionsList},
       false},
      {"roles/cloudkms.cryptoKeyEncrypter", {p::kUseToEncrypt}, false},
      {"roles/cloudkms.cryptoKeyDecrypter", {p::kUseToDecrypt}, false},
      {"roles/cloudkms.cryptoKeyEncrypterDecrypter",
       {p::kUseToEncrypt, p::kUseToDecrypt},
       false},
      {kOperatorRole, {p::kServerGet, p::kServerOperate}, true},
  };
  return *roles;
}

const Role* FindRole(absl::string_view name) {
  for (const Role& role : Roles()) {
    if (role.name == name) return &role;
  }
  return nullptr;
}

// Text of a grant that came from a config file: quoted, never more than a
// line's worth.
std::string Quote(absl::string_view text) {
  return absl::StrCat("\"", text.substr(0, 128), "\"");
}

// True when resource is ancestor or lies below it; "keyRings/r" is no ancestor
// of "keyRings/r2".
bool Covers(absl::string_view ancestor, absl::string_view resource) {
  if (ancestor.empty()) return true;
  return absl::StartsWith(resource, ancestor) &&
         (resource.size() == ancestor.size() ||
          resource[ancestor.size()] == '/');
}

bool IsOwnWork(const Caller& caller) {
  return caller.authenticator == Authenticator::kInternal &&
         caller.front_end == FrontEnd::kInternal;
}

}  // namespace

const std::vector<absl::string_view>& PermissionsOf(absl::string_view role) {
  static const auto* const none = new std::vector<absl::string_view>();
  const Role* found = FindRole(role);
  return found == nullptr ? *none : found->permissions;
}

struct Authorizer::Snapshot {
  struct Entry {
    const Role* role;
    std::string resource;  // empty: the whole server
  };
  std::unordered_map<std::string, std::vector<Entry>> by_principal;

  static absl::StatusOr<std::shared_ptr<const Snapshot>> Create(
      std::vector<Grant> grants) {
    auto snapshot = std::make_shared<Snapshot>();
    for (size_t i = 0; i < grants.size(); ++i) {
      Grant& grant = grants[i];
      const std::string which = absl::StrCat("grant ", i + 1, ": ");
      if (grant.principal.empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat(which, "the principal is empty"));
      }
      const Role* role = FindRole(grant.role);
      if (role == nullptr) {
        std::string known;
        for (const Role& r : Roles()) {
          absl::StrAppend(&known, known.empty() ? "" : ", ", r.name);
        }
        return absl::InvalidArgumentError(
            absl::StrCat(which, "unknown role ", Quote(grant.role),
                         "; the roles are ", known));
      }
      if (!grant.resource.empty()) {
        if (role->server_only) {
          return absl::InvalidArgumentError(absl::StrCat(
              which, role->name,
              " is a role on the whole server; leave the resource empty"));
        }
        auto name = catalog::ResourceName::Parse(grant.resource);
        if (!name.ok()) {
          return absl::InvalidArgumentError(
              absl::StrCat(which, "resource ", Quote(grant.resource), ": ",
                           name.status().message()));
        }
      }
      snapshot->by_principal[std::move(grant.principal)].push_back(
          {role, std::move(grant.resource)});
    }
    return snapshot;
  }

  template <typename Matches>
  bool Allows(const Caller& caller, absl::string_view permission,
              Matches matches) const {
    for (const std::string& principal : caller.principals) {
      const auto it = by_principal.find(principal);
      if (it == by_principal.end()) continue;
      for (const Entry& entry : it->second) {
        const auto& granted = entry.role->permissions;
        if (matches(entry.resource) && std::find(granted.begin(), granted.end(),
                                                 permission) != granted.end()) {
          return true;
        }
      }
    }
    return false;
  }
};

absl::StatusOr<std::unique_ptr<Authorizer>> Authorizer::Create(
    std::vector<Grant> grants) {
  ASSIGN_OR_RETURN(auto snapshot, Snapshot::Create(std::move(grants)));
  return std::unique_ptr<Authorizer>(new Authorizer(std::move(snapshot)));
}

Authorizer::Authorizer(std::shared_ptr<const Snapshot> snapshot)
    : snapshot_(std::move(snapshot)) {}

std::shared_ptr<const Authorizer::Snapshot> Authorizer::Current() const {
  base::MutexLock lock(mu_);
  return snapshot_;
}

absl::Status Authorizer::Check(const Caller& caller,
                               absl::string_view permission,
                               const catalog::ResourceName& resource) const {
  if (IsOwnWork(caller)) return absl::OkStatus();
  const bool allowed = Current()->Allows(
      caller, permission, [&resource](absl::string_view granted) {
        return Covers(granted, resource.ToString());
      });
  if (allowed) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("Permission '", permission, "' denied on resource '",
                   resource.ToString(), "' (or it may not exist)."));
}

absl::Status Authorizer::CheckServer(const Caller& caller,
                                     absl::string_view permission) const {
  if (IsOwnWork(caller)) return absl::OkStatus();
  const bool allowed = Current()->Allows(
      caller, permission,
      [](absl::string_view granted) { return granted.empty(); });
  if (allowed) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("Permission '", permission, "' denied on this server."));
}

absl::Status Authorizer::Replace(std::vector<Grant> grants) {
  ASSIGN_OR_RETURN(auto snapshot, Snapshot::Create(std::move(grants)));
  base::MutexLock lock(mu_);
  snapshot_.swap(snapshot);
  return absl::OkStatus();
}

}  // namespace kek::core
