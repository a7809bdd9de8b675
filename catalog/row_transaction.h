// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "catalog/catalog.h"
#include "catalog/records.h"
#include "catalog/resource_name.h"

// Private to catalog/: what all back ends have in common.
namespace kek::catalog {

// When a record asks for attention: the key's next rotation, or the version's
// destruction or pending generation. Back ends keep these beside the row, taken
// from the record in the statement that writes the row, and find by them.
struct Due {
  std::optional<int64_t> rotation_us;     // CryptoKey: next_rotation_time
  std::optional<int64_t> destruction_us;  // version, while DESTROY_SCHEDULED
  std::optional<int64_t> pending_us;      // version, while PENDING_GENERATION:
                                          // create_time
};
Due DueOf(const KeyRing& ring);
Due DueOf(const CryptoKey& key);
Due DueOf(const CryptoKeyVersion& version);

absl::Status NotFound(const ResourceName& name);

// INVALID_ARGUMENT unless name is of that kind: a caller's mistake, which must
// not look like a damaged row.
absl::Status ExpectKind(const ResourceName& name, ResourceName::Kind kind);

// Counters are kept as SQL's 64-bit integers.
inline constexpr uint64_t kMaxUses = INT64_MAX;
// RESOURCE_EXHAUSTED: a counter cannot grow by that much.
absl::Status TooManyUses(const ResourceName& version);

// start_after of a page over children of parent: nullopt for the start.
// INVALID_ARGUMENT: it is no id of such a child.
absl::StatusOr<std::optional<ResourceName>> StartAfter(
    const ResourceName& parent, const Page& page);

// The rules of Transaction over a back end that reads and writes rows.
class RowTransaction : public Transaction {
 public:
  absl::StatusOr<KeyRing> GetKeyRing(const ResourceName& name) override;
  absl::StatusOr<CryptoKey> GetCryptoKey(const ResourceName& name) override;
  absl::StatusOr<CryptoKeyVersion> GetVersion(
      const ResourceName& name) override;
  absl::Status Put(KeyRing& ring) override;
  absl::Status Put(CryptoKey& key) override;
  absl::Status Put(CryptoKeyVersion& version) override;

 protected:
  // The row stored as name's; none: nullopt.
  virtual absl::StatusOr<std::optional<std::vector<uint8_t>>> Read(
      const ResourceName& name) = 0;
  // Inserts the row (is_new) or replaces the one that is there.
  virtual absl::Status Write(const ResourceName& name,
                             const std::vector<uint8_t>& row, const Due& due,
                             bool is_new) = 0;

 private:
  template <typename Record>
  absl::StatusOr<Record> Get(const ResourceName& name);
  template <typename Record>
  absl::Status PutRecord(Record& record);
};

}  // namespace kek::catalog
