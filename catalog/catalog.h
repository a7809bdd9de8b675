// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sync.h"
#include "catalog/records.h"
#include "catalog/resource_name.h"

namespace kek::catalog {

struct Page {
  size_t size = 1000;  // at most this many
  std::string
      start_after;  // the last id of the page before; empty: from the start
};

// Reads and writes inside one transaction. Sees its own writes. Put inserts
// (revision 0) or replaces (revision as read) and updates the record's revision
// in place.
//
//   NOT_FOUND: Get: no such record; Put: it or its parent is missing. The text
//     is Cloud KMS's ("CryptoKey projects/... not found.").
//   ALREADY_EXISTS: Put with revision 0 of a name that exists ("KeyRing
//     projects/... already exists.").
//   ABORTED: Put with a revision that is not the stored one: someone else wrote
//     in between.
//   INVALID_ARGUMENT: a name of the wrong kind, or a record no row can hold.
class Transaction {
 public:
  virtual ~Transaction() = default;
  virtual absl::StatusOr<KeyRing> GetKeyRing(const ResourceName& name) = 0;
  virtual absl::StatusOr<CryptoKey> GetCryptoKey(const ResourceName& name) = 0;
  virtual absl::StatusOr<CryptoKeyVersion> GetVersion(
      const ResourceName& name) = 0;
  virtual absl::Status Put(KeyRing& ring) = 0;
  virtual absl::Status Put(CryptoKey& key) = 0;
  virtual absl::Status Put(CryptoKeyVersion& version) = 0;
};

// Catalog models the durable list of what kekd knows: key rings, keys, versions
// and use counters. It never holds key material (WRAPPED versions will hold
// blobs that only the token opens) and never deletes a row.
//
// Every row is one canonical, versioned byte string (docs/catalog-format.md)
// with room for a MAC; the bytes stored are the bytes that were checked.
// Thread-safe. Reads do not wait for writers.
//
// Status, all methods: UNAVAILABLE (disk full, I/O error, locked by another
// process), DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED (too many callers wait),
// DATA_LOSS (a row that cannot be read back as written; the text names it),
// FAILED_PRECONDITION (a row a newer kekd wrote), INVALID_ARGUMENT (a name of
// the wrong kind, a start_after that is no id). A record that does not exist is
// NOT_FOUND with Cloud KMS's text.
class Catalog {
 public:
  virtual ~Catalog() = default;

  virtual absl::StatusOr<KeyRing> GetKeyRing(const ResourceName& name) = 0;
  virtual absl::StatusOr<CryptoKey> GetCryptoKey(const ResourceName& name) = 0;
  virtual absl::StatusOr<CryptoKeyVersion> GetVersion(
      const ResourceName& name) = 0;

  // Children of parent in ascending order of id (versions by number). Empty for
  // a parent that does not exist.
  virtual absl::StatusOr<std::vector<KeyRing>> ListKeyRings(
      const ResourceName& location, const Page& page) = 0;
  virtual absl::StatusOr<std::vector<CryptoKey>> ListCryptoKeys(
      const ResourceName& ring, const Page& page) = 0;
  virtual absl::StatusOr<std::vector<CryptoKeyVersion>> ListVersions(
      const ResourceName& key, const Page& page) = 0;
  // How many children of that kind parent has.
  virtual absl::StatusOr<uint64_t> CountChildren(
      const ResourceName& parent) = 0;
  // Walks every version of the catalog in name order in bounded memory; stops
  // at the first error visit returns. Not one snapshot: what is written
  // meanwhile may or may not be seen. visit may call the catalog.
  virtual absl::Status VisitVersions(
      absl::FunctionRef<absl::Status(const CryptoKeyVersion&)> visit) = 0;
  virtual absl::Status VisitCryptoKeys(
      absl::FunctionRef<absl::Status(const CryptoKey&)> visit) = 0;

  // What is due, found by index: keys whose next_rotation_time is at or before
  // now, versions DESTROY_SCHEDULED whose destroy_time is; versions
  // PENDING_GENERATION. At most limit names, earliest first.
  virtual absl::StatusOr<std::vector<ResourceName>> DueRotations(
      absl::Time now, size_t limit) = 0;
  virtual absl::StatusOr<std::vector<ResourceName>> DueDestructions(
      absl::Time now, size_t limit) = 0;
  virtual absl::StatusOr<std::vector<ResourceName>> PendingVersions(
      size_t limit) = 0;

  // Runs change in one transaction and makes it durable before it returns OK.
  // An error from change rolls everything back and is returned. change may be
  // run again from the start (a back end may have to retry), so it must not do
  // anything but read and Put, and must Put copies of records from outside: if
  // the transaction fails or is run again, the revisions that Put wrote into
  // them were never stored.
  virtual absl::Status Transact(
      absl::FunctionRef<absl::Status(Transaction&)> change,
      base::Deadline deadline) = 0;

  // Reserves count uses of a version durably, before any of them happens, and
  // returns how many have been reserved in total, this block included: the
  // caller may use numbers (total - count, total]. A crash wastes what was left
  // of a block; it never counts too few.
  virtual absl::StatusOr<uint64_t> ReserveUses(const ResourceName& version,
                                               uint64_t count,
                                               base::Deadline deadline) = 0;
  // Reserved so far, 0 for a version never used.
  virtual absl::StatusOr<uint64_t> UsesReserved(
      const ResourceName& version) = 0;

  // Cheap proof that reads and writes work, for the watchdog.
  virtual absl::Status Check(base::Deadline deadline) = 0;
};

// Keeps everything in memory; for tests and as the second implementation that
// keeps the interface honest.
std::unique_ptr<Catalog> MakeMemoryCatalog();

struct SqliteOptions {
  std::string path;
  int readers = 4;  // connections for reading
};
// Opens or creates the catalog file (mode 0600; WAL, synchronous=FULL) and
// takes it for this process alone. FAILED_PRECONDITION: written by a newer
// kekd, another process has it, or it is no catalog; the text says which and
// what to do.
absl::StatusOr<std::unique_ptr<Catalog>> OpenSqliteCatalog(
    const SqliteOptions& options);

}  // namespace kek::catalog
