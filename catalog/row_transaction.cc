// SPDX-License-Identifier: Apache-2.0
#include "catalog/row_transaction.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "catalog/row.h"

namespace kek::catalog {

Due DueOf(const KeyRing&) { return {}; }

Due DueOf(const CryptoKey& key) {
  Due due;
  if (key.next_rotation_time.has_value()) {
    due.rotation_us = absl::ToUnixMicros(*key.next_rotation_time);
  }
  return due;
}

Due DueOf(const CryptoKeyVersion& version) {
  Due due;
  if (version.state == VersionState::kDestroyScheduled &&
      version.destroy_time.has_value()) {
    due.destruction_us = absl::ToUnixMicros(*version.destroy_time);
  }
  if (version.state == VersionState::kPendingGeneration) {
    due.pending_us = absl::ToUnixMicros(version.create_time);
  }
  return due;
}

absl::Status NotFound(const ResourceName& name) {
  return absl::NotFoundError(
      absl::StrCat(KindName(name.kind()), " ", name.ToString(), " not found."));
}

absl::Status ExpectKind(const ResourceName& name, ResourceName::Kind kind) {
  if (name.kind() == kind) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name.ToString(), " names a ",
                                                 KindName(name.kind()),
                                                 ", not a ", KindName(kind)));
}

absl::Status TooManyUses(const ResourceName& version) {
  return absl::ResourceExhaustedError(
      absl::StrCat(KindName(version.kind()), " ", version.ToString(),
                   ": its use counter cannot count further"));
}

absl::StatusOr<std::optional<ResourceName>> StartAfter(
    const ResourceName& parent, const Page& page) {
  if (page.start_after.empty()) return std::optional<ResourceName>();
  ASSIGN_OR_RETURN(ResourceName name, parent.Child(page.start_after));
  return std::optional<ResourceName>(std::move(name));
}

template <typename Record>
absl::StatusOr<Record> RowTransaction::Get(const ResourceName& name) {
  RETURN_IF_ERROR(ExpectKind(name, kKindOf<Record>));
  ASSIGN_OR_RETURN(const std::optional<std::vector<uint8_t>> row, Read(name));
  if (!row.has_value()) return NotFound(name);
  return DecodeRowOf<Record>(name, *row);
}

template <typename Record>
absl::Status RowTransaction::PutRecord(Record& record) {
  // Encoded first: it also checks that the name is of the record's kind.
  Record next = record;
  next.revision = record.revision + 1;
  ASSIGN_OR_RETURN(const std::vector<uint8_t> row, EncodeRow(next));

  ASSIGN_OR_RETURN(const std::optional<std::vector<uint8_t>> stored,
                   Read(record.name));
  if (stored.has_value()) {
    if (record.revision == 0) {
      return absl::AlreadyExistsError(absl::StrCat(KindName(record.name.kind()),
                                                   " ", record.name.ToString(),
                                                   " already exists."));
    }
    ASSIGN_OR_RETURN(const Record old,
                     DecodeRowOf<Record>(record.name, *stored));
    if (old.revision != record.revision) {
      return absl::AbortedError(absl::StrCat(
          KindName(record.name.kind()), " ", record.name.ToString(),
          " was changed by another call meanwhile (revision ", old.revision,
          ", expected ", record.revision, ")"));
    }
  } else {
    if (record.revision != 0) return NotFound(record.name);
    const ResourceName parent = record.name.Parent();
    if (parent.kind() != ResourceName::Kind::kLocation) {
      ASSIGN_OR_RETURN(const std::optional<std::vector<uint8_t>> parent_row,
                       Read(parent));
      if (!parent_row.has_value()) return NotFound(parent);
    }
  }
  RETURN_IF_ERROR(
      Write(record.name, row, DueOf(next), /*is_new=*/!stored.has_value()));
  record.revision = next.revision;
  return absl::OkStatus();
}

absl::StatusOr<KeyRing> RowTransaction::GetKeyRing(const ResourceName& name) {
  return Get<KeyRing>(name);
}
absl::StatusOr<CryptoKey> RowTransaction::GetCryptoKey(
    const ResourceName& name) {
  return Get<CryptoKey>(name);
}
absl::StatusOr<CryptoKeyVersion> RowTransaction::GetVersion(
    const ResourceName& name) {
  return Get<CryptoKeyVersion>(name);
}
absl::Status RowTransaction::Put(KeyRing& ring) { return PutRecord(ring); }
absl::Status RowTransaction::Put(CryptoKey& key) { return PutRecord(key); }
absl::Status RowTransaction::Put(CryptoKeyVersion& version) {
  return PutRecord(version);
}

}  // namespace kek::catalog
