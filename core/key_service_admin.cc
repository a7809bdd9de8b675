// SPDX-License-Identifier: Apache-2.0
// KeyService: reading the catalog, and the changes that are one transaction and
// need no token.
#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "base/crc32c.h"
#include "base/status_macros.h"
#include "core/key_service_engine.h"
#include "core/key_service_rules.h"

namespace kek::core {

using catalog::CryptoKeyVersion;
using catalog::ResourceName;
using catalog::VersionState;

namespace {

constexpr size_t kDefaultPage = 100;
constexpr size_t kLargestPage = 1000;

// A page token names the list it belongs to and where the page before ended;
// opaque to callers, and refused elsewhere.
std::string PageToken(absl::string_view list, const ResourceName& parent,
                      absl::string_view last_id) {
  const std::string text =
      absl::StrCat("1\n", list, "\n", parent.ToString(), "\n", last_id);
  const uint32_t checksum = base::Crc32c(
      {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  return absl::WebSafeBase64Escape(absl::StrCat(checksum, "\n", text));
}

absl::StatusOr<catalog::Page> PageOf(const ListPage& page,
                                     absl::string_view list,
                                     const ResourceName& parent) {
  catalog::Page result;
  result.size = page.page_size == 0 ? kDefaultPage
                                    : std::min(page.page_size, kLargestPage);
  ++result.size;  // one more shows whether there is a next page
  if (page.page_token.empty()) return result;
  std::string text;
  if (page.page_token.size() < 2048 &&
      absl::WebSafeBase64Unescape(page.page_token, &text)) {
    const std::vector<absl::string_view> parts = absl::StrSplit(text, '\n');
    // The checksum and all other parts follow from the last one.
    if (parts.size() == 5 &&
        PageToken(list, parent, parts[4]) == page.page_token) {
      result.start_after = std::string(parts[4]);
      return result;
    }
  }
  return absl::InvalidArgumentError(
      "page_token was not given by a list call for this parent");
}

template <typename T>
std::string EndPage(const catalog::Page& page, absl::string_view list,
                    const ResourceName& parent, std::vector<T>& items) {
  if (items.size() < page.size) return "";
  items.pop_back();
  return PageToken(list, parent, items.back().name.id());
}

absl::Status WrongState(const CryptoKeyVersion& version,
                        absl::string_view wanted) {
  return absl::FailedPreconditionError(absl::StrCat(
      version.name.ToString(), " is not ", wanted,
      ", current state is: ", catalog::VersionStateName(version.state), "."));
}

std::string StateChange(VersionState from, VersionState to) {
  return absl::StrCat("state ", catalog::VersionStateName(from), " -> ",
                      catalog::VersionStateName(to));
}

}  // namespace

absl::Status KeyService::Engine::CheckLocation(
    const ResourceName& location) const {
  if (options.locations.empty() ||
      std::find(options.locations.begin(), options.locations.end(),
                location.ToString()) != options.locations.end()) {
    return absl::OkStatus();
  }
  return absl::NotFoundError(
      absl::StrCat("Location ", location.ToString(), " not found."));
}

absl::StatusOr<CryptoKeyView> KeyService::Engine::View(catalog::CryptoKey key) {
  CryptoKeyView view{.key = std::move(key)};
  if (view.key.primary_version != 0) {
    ASSIGN_OR_RETURN(
        CryptoKeyVersion primary,
        catalog.GetVersion(view.key.name.Version(view.key.primary_version)));
    view.primary = Present(std::move(primary));
  }
  return view;
}

absl::Status KeyService::Engine::Change(
    const ResourceName& key,
    absl::FunctionRef<absl::Status(catalog::Transaction&)> change,
    base::Deadline deadline) {
  absl::Status status = catalog.Transact(change, deadline);
  // Also after an error: whether the commit reached the disk is not known for
  // every one of them.
  keys.Changed(key);
  return status;
}

absl::Status KeyService::Engine::AuditReady(base::Deadline deadline) {
  if (audit.health().ok()) return absl::OkStatus();
  return audit.Check(deadline);
}

// ---- key rings

absl::StatusOr<catalog::KeyRing> KeyService::CreateKeyRing(
    const CallInfo& call, const ResourceName& location, absl::string_view id) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(location, ResourceName::Kind::kLocation));
  ASSIGN_OR_RETURN(const ResourceName name, location.Child(id));
  return e.Run<catalog::KeyRing>(
      call, Method::kCreateKeyRing, {permission::kKeyRingsCreate}, location,
      [&](AuditRecord& record) -> absl::StatusOr<catalog::KeyRing> {
        record.resource = name.ToString();
        RETURN_IF_ERROR(e.CheckLocation(location));
        RETURN_IF_ERROR(e.AuditReady(call.deadline));
        catalog::KeyRing ring{.name = name, .create_time = e.Now()};
        RETURN_IF_ERROR(e.catalog.Transact(
            [&ring](catalog::Transaction& transaction) {
              ring.revision = 0;
              return transaction.Put(ring);
            },
            call.deadline));
        return ring;
      });
}

absl::StatusOr<catalog::KeyRing> KeyService::GetKeyRing(
    const CallInfo& call, const ResourceName& name) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(name, ResourceName::Kind::kKeyRing));
  return e.Run<catalog::KeyRing>(
      call, Method::kGetKeyRing, {permission::kKeyRingsGet}, name,
      [&](AuditRecord&) { return e.catalog.GetKeyRing(name); });
}

absl::StatusOr<ListResult<catalog::KeyRing>> KeyService::ListKeyRings(
    const CallInfo& call, const ResourceName& location, const ListPage& page) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(location, ResourceName::Kind::kLocation));
  using Result = ListResult<catalog::KeyRing>;
  return e.Run<Result>(
      call, Method::kListKeyRings, {permission::kKeyRingsList}, location,
      [&](AuditRecord&) -> absl::StatusOr<Result> {
        RETURN_IF_ERROR(e.CheckLocation(location));
        ASSIGN_OR_RETURN(const catalog::Page rows,
                         PageOf(page, "keyRings", location));
        Result result;
        ASSIGN_OR_RETURN(result.items, e.catalog.ListKeyRings(location, rows));
        result.next_page_token =
            EndPage(rows, "keyRings", location, result.items);
        ASSIGN_OR_RETURN(result.total_size, e.catalog.CountChildren(location));
        return result;
      });
}

// ---- keys

absl::StatusOr<CryptoKeyView> KeyService::GetCryptoKey(
    const CallInfo& call, const ResourceName& name) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(name, ResourceName::Kind::kCryptoKey));
  return e.Run<CryptoKeyView>(
      call, Method::kGetCryptoKey, {permission::kCryptoKeysGet}, name,
      [&](AuditRecord&) -> absl::StatusOr<CryptoKeyView> {
        ASSIGN_OR_RETURN(catalog::CryptoKey key, e.catalog.GetCryptoKey(name));
        return e.View(std::move(key));
      });
}

absl::StatusOr<ListResult<CryptoKeyView>> KeyService::ListCryptoKeys(
    const CallInfo& call, const ResourceName& ring, const ListPage& page) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(ring, ResourceName::Kind::kKeyRing));
  using Result = ListResult<CryptoKeyView>;
  return e.Run<Result>(
      call, Method::kListCryptoKeys, {permission::kCryptoKeysList}, ring,
      [&](AuditRecord&) -> absl::StatusOr<Result> {
        RETURN_IF_ERROR(e.catalog.GetKeyRing(ring).status());
        ASSIGN_OR_RETURN(const catalog::Page rows,
                         PageOf(page, "cryptoKeys", ring));
        ASSIGN_OR_RETURN(std::vector<catalog::CryptoKey> keys,
                         e.catalog.ListCryptoKeys(ring, rows));
        Result result;
        result.next_page_token = EndPage(rows, "cryptoKeys", ring, keys);
        for (catalog::CryptoKey& key : keys) {
          ASSIGN_OR_RETURN(CryptoKeyView view, e.View(std::move(key)));
          result.items.push_back(std::move(view));
        }
        ASSIGN_OR_RETURN(result.total_size, e.catalog.CountChildren(ring));
        return result;
      });
}

absl::StatusOr<CryptoKeyView> KeyService::UpdateCryptoKey(
    const CallInfo& call, const UpdateCryptoKeyRequest& request) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(request.name, ResourceName::Kind::kCryptoKey));
  return e.Run<CryptoKeyView>(
      call, Method::kUpdateCryptoKey, {permission::kCryptoKeysUpdate},
      request.name, [&](AuditRecord& record) -> absl::StatusOr<CryptoKeyView> {
        RETURN_IF_ERROR(e.catalog.GetCryptoKey(request.name).status());
        if (!request.labels.has_value() &&
            !request.rotation_period.has_value() &&
            !request.next_rotation_time.has_value() &&
            !request.algorithm.has_value()) {
          return absl::InvalidArgumentError("update_mask names no field");
        }
        RETURN_IF_ERROR(e.AuditReady(call.deadline));
        std::optional<catalog::CryptoKey> updated;
        RETURN_IF_ERROR(e.Change(
            request.name,
            [&](catalog::Transaction& transaction) -> absl::Status {
              ASSIGN_OR_RETURN(catalog::CryptoKey key,
                               transaction.GetCryptoKey(request.name));
              if (request.protection_level.value_or(key.protection_level) !=
                  key.protection_level) {
                return absl::InvalidArgumentError(
                    "version_template.protection_level cannot be updated");
              }
              if (request.labels.has_value()) {
                RETURN_IF_ERROR(CheckLabels(*request.labels));
                key.labels = *request.labels;
              }
              if (request.rotation_period.has_value()) {
                key.rotation_period = *request.rotation_period;
              }
              if (request.next_rotation_time.has_value()) {
                key.next_rotation_time = *request.next_rotation_time;
                if (key.next_rotation_time.has_value()) {
                  key.next_rotation_time = Micros(*key.next_rotation_time);
                }
              }
              if (request.rotation_period.has_value() ||
                  request.next_rotation_time.has_value()) {
                RETURN_IF_ERROR(CheckSchedule(key.purpose, key.rotation_period,
                                              key.next_rotation_time));
              }
              if (request.algorithm.has_value()) {
                ASSIGN_OR_RETURN(
                    key.algorithm,
                    ChooseAlgorithm(key.purpose, *request.algorithm));
              }
              RETURN_IF_ERROR(transaction.Put(key));
              updated = std::move(key);
              return absl::OkStatus();
            },
            call.deadline));
        record.detail = absl::StrCat(
            "updated", request.labels.has_value() ? " labels" : "",
            request.rotation_period.has_value() ? " rotation_period" : "",
            request.next_rotation_time.has_value() ? " next_rotation_time" : "",
            request.algorithm.has_value() ? " version_template.algorithm" : "");
        return e.View(*std::move(updated));
      });
}

absl::StatusOr<CryptoKeyView> KeyService::SetPrimaryVersion(
    const CallInfo& call, const ResourceName& name, uint32_t number) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(name, ResourceName::Kind::kCryptoKey));
  if (number == 0) {
    return absl::InvalidArgumentError(
        "crypto_key_version_id is not the number of a version");
  }
  const ResourceName version_name = name.Version(number);
  return e.Run<CryptoKeyView>(
      call, Method::kSetPrimary, {permission::kCryptoKeysUpdate}, name,
      [&](AuditRecord& record) -> absl::StatusOr<CryptoKeyView> {
        RETURN_IF_ERROR(e.AuditReady(call.deadline));
        std::optional<CryptoKeyView> view;
        RETURN_IF_ERROR(e.Change(
            name,
            [&](catalog::Transaction& transaction) -> absl::Status {
              ASSIGN_OR_RETURN(catalog::CryptoKey key,
                               transaction.GetCryptoKey(name));
              ASSIGN_OR_RETURN(CryptoKeyVersion version,
                               transaction.GetVersion(version_name));
              if (key.purpose != catalog::Purpose::kEncryptDecrypt) {
                return absl::FailedPreconditionError(
                    absl::StrCat("CryptoKey ", name.ToString(),
                                 " has not purpose ENCRYPT_DECRYPT; only such "
                                 "keys have a primary version."));
              }
              RETURN_IF_ERROR(Engine::CheckEnabled(version));
              record.detail =
                  absl::StrCat("primary ", key.primary_version, " -> ", number);
              // Naming the present primary again changes nothing: what was
              // built on (version, activation) stays true.
              if (key.primary_version != number) {
                key.primary_version = number;
                ++key.primary_activation;
                RETURN_IF_ERROR(transaction.Put(key));
              }
              view = CryptoKeyView{.key = std::move(key),
                                   .primary = Present(std::move(version))};
              return absl::OkStatus();
            },
            call.deadline));
        record.version = version_name.ToString();
        return *std::move(view);
      });
}

// ---- versions

absl::StatusOr<CryptoKeyVersion> KeyService::GetVersion(
    const CallInfo& call, const ResourceName& name) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(name, ResourceName::Kind::kCryptoKeyVersion));
  return e.Run<CryptoKeyVersion>(
      call, Method::kGetVersion, {permission::kVersionsGet}, name,
      [&](AuditRecord&) -> absl::StatusOr<CryptoKeyVersion> {
        ASSIGN_OR_RETURN(CryptoKeyVersion version, e.catalog.GetVersion(name));
        return Present(std::move(version));
      });
}

absl::StatusOr<ListResult<CryptoKeyVersion>> KeyService::ListVersions(
    const CallInfo& call, const ResourceName& key, const ListPage& page) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(key, ResourceName::Kind::kCryptoKey));
  using Result = ListResult<CryptoKeyVersion>;
  return e.Run<Result>(
      call, Method::kListVersions, {permission::kVersionsList}, key,
      [&](AuditRecord&) -> absl::StatusOr<Result> {
        RETURN_IF_ERROR(e.catalog.GetCryptoKey(key).status());
        ASSIGN_OR_RETURN(const catalog::Page rows,
                         PageOf(page, "cryptoKeyVersions", key));
        Result result;
        ASSIGN_OR_RETURN(result.items, e.catalog.ListVersions(key, rows));
        result.next_page_token =
            EndPage(rows, "cryptoKeyVersions", key, result.items);
        for (CryptoKeyVersion& version : result.items) {
          version = Present(std::move(version));
        }
        ASSIGN_OR_RETURN(result.total_size, e.catalog.CountChildren(key));
        return result;
      });
}

absl::StatusOr<CryptoKeyVersion> KeyService::Engine::ChangeState(
    const CallInfo& call, const ResourceName& name, AuditRecord& record,
    absl::FunctionRef<absl::Status(const catalog::CryptoKey&,
                                   CryptoKeyVersion&)>
        step) {
  std::optional<CryptoKeyVersion> result;
  RETURN_IF_ERROR(Change(
      name.CryptoKey(),
      [&](catalog::Transaction& transaction) -> absl::Status {
        ASSIGN_OR_RETURN(CryptoKeyVersion version,
                         transaction.GetVersion(name));
        ASSIGN_OR_RETURN(const catalog::CryptoKey key,
                         transaction.GetCryptoKey(name.CryptoKey()));
        const VersionState before = version.state;
        RETURN_IF_ERROR(step(key, version));
        record.detail = StateChange(before, version.state);
        if (version.state != before) {
          RETURN_IF_ERROR(transaction.Put(version));
        }
        result = Present(std::move(version));
        return absl::OkStatus();
      },
      call.deadline));
  record.version = name.ToString();
  return *std::move(result);
}

absl::StatusOr<CryptoKeyVersion> KeyService::Enable(const CallInfo& call,
                                                    const ResourceName& name) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(name, ResourceName::Kind::kCryptoKeyVersion));
  return e.Run<CryptoKeyVersion>(
      call, Method::kEnable, {permission::kVersionsUpdate}, name,
      [&](AuditRecord& record) -> absl::StatusOr<CryptoKeyVersion> {
        RETURN_IF_ERROR(e.AuditReady(call.deadline));
        return e.ChangeState(
            call, name, record,
            [](const catalog::CryptoKey&, CryptoKeyVersion& version) {
              if (version.state != VersionState::kEnabled &&
                  version.state != VersionState::kDisabled) {
                return WrongState(version, "disabled");
              }
              version.state = VersionState::kEnabled;
              return absl::OkStatus();
            });
      });
}

absl::StatusOr<CryptoKeyVersion> KeyService::Disable(const CallInfo& call,
                                                     const ResourceName& name) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(name, ResourceName::Kind::kCryptoKeyVersion));
  return e.Run<CryptoKeyVersion>(
      call, Method::kDisable, {permission::kVersionsUpdate}, name,
      [&](AuditRecord& record) {
        // Not refused when the audit log is in trouble: stopping the use of a
        // key must always be possible. The caller then learns that the record
        // is missing.
        return e.ChangeState(
            call, name, record,
            [](const catalog::CryptoKey&, CryptoKeyVersion& version) {
              if (version.state != VersionState::kEnabled &&
                  version.state != VersionState::kDisabled) {
                return WrongState(version, "enabled");
              }
              version.state = VersionState::kDisabled;
              return absl::OkStatus();
            });
      });
}

absl::StatusOr<CryptoKeyVersion> KeyService::ScheduleDestroy(
    const CallInfo& call, const ResourceName& name) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(name, ResourceName::Kind::kCryptoKeyVersion));
  return e.Run<CryptoKeyVersion>(
      call, Method::kScheduleDestroy, {permission::kVersionsDestroy}, name,
      [&](AuditRecord& record) -> absl::StatusOr<CryptoKeyVersion> {
        RETURN_IF_ERROR(e.AuditReady(call.deadline));
        return e.ChangeState(
            call, name, record,
            [&e](const catalog::CryptoKey& key, CryptoKeyVersion& version) {
              if (version.state != VersionState::kEnabled &&
                  version.state != VersionState::kDisabled) {
                return WrongState(version, "enabled or disabled");
              }
              version.state = VersionState::kDestroyScheduled;
              version.destroy_time = e.Now() + key.destroy_scheduled_duration;
              return absl::OkStatus();
            });
      });
}

absl::StatusOr<CryptoKeyVersion> KeyService::Restore(const CallInfo& call,
                                                     const ResourceName& name) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(name, ResourceName::Kind::kCryptoKeyVersion));
  return e.Run<CryptoKeyVersion>(
      call, Method::kRestore, {permission::kVersionsRestore}, name,
      [&](AuditRecord& record) -> absl::StatusOr<CryptoKeyVersion> {
        RETURN_IF_ERROR(e.AuditReady(call.deadline));
        return e.ChangeState(
            call, name, record,
            [&](const catalog::CryptoKey&,
                CryptoKeyVersion& version) -> absl::Status {
              if (version.state != VersionState::kDestroyScheduled) {
                return WrongState(version, "scheduled for destruction");
              }
              // From destroy_time on there is no way back, whether the object
              // is gone already or not; and none once its destruction has
              // begun, should the clock have been set back since.
              if (version.destroy_event_time.has_value() ||
                  e.Now() >= version.destroy_time.value_or(e.Now())) {
                return absl::FailedPreconditionError(absl::StrCat(
                    name.ToString(),
                    " cannot be restored: its destroy_time has passed."));
              }
              version.state = VersionState::kDisabled;
              version.destroy_time.reset();
              return absl::OkStatus();
            });
      });
}

}  // namespace kek::core
