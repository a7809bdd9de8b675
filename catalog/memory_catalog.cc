// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/lane.h"
#include "base/status_macros.h"
#include "catalog/catalog.h"
#include "catalog/row.h"
#include "catalog/row_transaction.h"

namespace kek::catalog {
namespace {

struct Row {
  std::vector<uint8_t> bytes;
  Due due;
};

// Name order, and a place to start from that needs no name: an empty child.
struct Slot {
  std::string parent;
  uint32_t version = 0;
  std::string id;
  friend auto operator<=>(const Slot&, const Slot&) = default;
};
Slot SlotOf(const ResourceName& name) {
  const uint32_t version = name.version();
  return {name.Parent().ToString(), version,
          version == 0 ? std::string(name.id()) : std::string()};
}

using Table = std::map<Slot, std::pair<ResourceName, Row>>;

// Writers pass one at a time through the lane and work on a copy-on-write layer
// of their own, so that the mutex is held only to look a row up and to merge.
class MemoryCatalog : public Catalog {
 public:
  MemoryCatalog() : writer_({.name = "catalog's writer"}) {}

  absl::StatusOr<KeyRing> GetKeyRing(const ResourceName& name) override {
    return Get<KeyRing>(name);
  }
  absl::StatusOr<CryptoKey> GetCryptoKey(const ResourceName& name) override {
    return Get<CryptoKey>(name);
  }
  absl::StatusOr<CryptoKeyVersion> GetVersion(
      const ResourceName& name) override {
    return Get<CryptoKeyVersion>(name);
  }

  absl::StatusOr<std::vector<KeyRing>> ListKeyRings(
      const ResourceName& location, const Page& page) override {
    return List<KeyRing>(location, page);
  }
  absl::StatusOr<std::vector<CryptoKey>> ListCryptoKeys(
      const ResourceName& ring, const Page& page) override {
    return List<CryptoKey>(ring, page);
  }
  absl::StatusOr<std::vector<CryptoKeyVersion>> ListVersions(
      const ResourceName& key, const Page& page) override {
    return List<CryptoKeyVersion>(key, page);
  }

  absl::StatusOr<uint64_t> CountChildren(const ResourceName& parent) override {
    if (parent.kind() == ResourceName::Kind::kCryptoKeyVersion) return 0;
    const auto child_kind =
        static_cast<ResourceName::Kind>(static_cast<int>(parent.kind()) + 1);
    base::MutexLock lock(mu_);
    const Table& table = tables_[Index(child_kind)];
    const auto begin = table.lower_bound({parent.ToString()});
    return static_cast<uint64_t>(
        std::count_if(begin, table.end(), [&](const auto& entry) {
          return entry.first.parent == parent.ToString();
        }));
  }

  absl::Status VisitVersions(
      absl::FunctionRef<absl::Status(const CryptoKeyVersion&)> visit) override {
    return Visit<CryptoKeyVersion>(visit);
  }
  absl::Status VisitCryptoKeys(
      absl::FunctionRef<absl::Status(const CryptoKey&)> visit) override {
    return Visit<CryptoKey>(visit);
  }

  absl::StatusOr<std::vector<ResourceName>> DueRotations(
      absl::Time now, size_t limit) override {
    return FindDue(ResourceName::Kind::kCryptoKey, &Due::rotation_us,
                   absl::ToUnixMicros(now), limit);
  }
  absl::StatusOr<std::vector<ResourceName>> DueDestructions(
      absl::Time now, size_t limit) override {
    return FindDue(ResourceName::Kind::kCryptoKeyVersion, &Due::destruction_us,
                   absl::ToUnixMicros(now), limit);
  }
  absl::StatusOr<std::vector<ResourceName>> PendingVersions(
      size_t limit) override {
    return FindDue(ResourceName::Kind::kCryptoKeyVersion, &Due::pending_us,
                   std::numeric_limits<int64_t>::max(), limit);
  }

  absl::Status Transact(absl::FunctionRef<absl::Status(Transaction&)> change,
                        base::Deadline deadline) override {
    ASSIGN_OR_RETURN(const base::Lane::Hold hold, writer_.Enter(deadline));
    Layer layer(*this);
    RETURN_IF_ERROR(change(layer));
    if (std::chrono::steady_clock::now() >= deadline) {
      return absl::DeadlineExceededError(
          "catalog: the deadline passed before the change could be committed");
    }
    layer.Commit();
    return absl::OkStatus();
  }

  absl::StatusOr<uint64_t> ReserveUses(const ResourceName& version,
                                       uint64_t count,
                                       base::Deadline deadline) override {
    RETURN_IF_ERROR(ExpectKind(version, ResourceName::Kind::kCryptoKeyVersion));
    ASSIGN_OR_RETURN(const base::Lane::Hold hold, writer_.Enter(deadline));
    base::MutexLock lock(mu_);
    if (!tables_[Index(version.kind())].contains(SlotOf(version))) {
      return NotFound(version);
    }
    uint64_t& total = uses_[SlotOf(version)];
    if (count > kMaxUses - total) return TooManyUses(version);
    return total += count;
  }
  absl::StatusOr<uint64_t> UsesReserved(const ResourceName& version) override {
    RETURN_IF_ERROR(ExpectKind(version, ResourceName::Kind::kCryptoKeyVersion));
    base::MutexLock lock(mu_);
    const auto it = uses_.find(SlotOf(version));
    return it == uses_.end() ? 0 : it->second;
  }

  absl::Status Check(base::Deadline deadline) override {
    return writer_.Enter(deadline).status();
  }

 private:
  class Layer : public RowTransaction {
   public:
    explicit Layer(MemoryCatalog& catalog) : catalog_(catalog) {}

    void Commit() {
      base::MutexLock lock(catalog_.mu_);
      for (size_t i = 0; i < 3; ++i) {
        for (auto& [slot, entry] : written_[i]) {
          catalog_.tables_[i].insert_or_assign(slot, std::move(entry));
        }
      }
    }

   protected:
    absl::StatusOr<std::optional<std::vector<uint8_t>>> Read(
        const ResourceName& name) override {
      const Table& mine = written_[Index(name.kind())];
      const auto it = mine.find(SlotOf(name));
      if (it != mine.end()) return std::optional(it->second.second.bytes);
      return catalog_.Find(name);
    }
    absl::Status Write(const ResourceName& name,
                       const std::vector<uint8_t>& row, const Due& due,
                       bool) override {
      written_[Index(name.kind())].insert_or_assign(
          SlotOf(name), std::make_pair(name, Row{row, due}));
      return absl::OkStatus();
    }

   private:
    MemoryCatalog& catalog_;
    Table written_[3];
  };

  static size_t Index(ResourceName::Kind kind) {
    return static_cast<size_t>(kind) - 1;  // no location is stored
  }

  std::optional<std::vector<uint8_t>> Find(const ResourceName& name) {
    base::MutexLock lock(mu_);
    const Table& table = tables_[Index(name.kind())];
    const auto it = table.find(SlotOf(name));
    if (it == table.end()) return std::nullopt;
    return it->second.second.bytes;
  }

  template <typename Record>
  absl::StatusOr<Record> Get(const ResourceName& name) {
    RETURN_IF_ERROR(ExpectKind(name, kKindOf<Record>));
    const std::optional<std::vector<uint8_t>> row = Find(name);
    if (!row.has_value()) return NotFound(name);
    return DecodeRowOf<Record>(name, *row);
  }

  // At most limit entries after start, in name order, while in_range.
  std::vector<std::pair<ResourceName, Row>> Scan(
      ResourceName::Kind kind, const Slot& start, size_t limit,
      absl::FunctionRef<bool(const Slot&)> in_range) {
    std::vector<std::pair<ResourceName, Row>> found;
    base::MutexLock lock(mu_);
    const Table& table = tables_[Index(kind)];
    for (auto it = table.upper_bound(start);
         it != table.end() && found.size() < limit && in_range(it->first);
         ++it) {
      found.push_back(it->second);
    }
    return found;
  }

  template <typename Record>
  absl::StatusOr<std::vector<Record>> List(const ResourceName& parent,
                                           const Page& page) {
    RETURN_IF_ERROR(
        ExpectKind(parent, static_cast<ResourceName::Kind>(
                               static_cast<int>(kKindOf<Record>) - 1)));
    ASSIGN_OR_RETURN(const std::optional<ResourceName> after,
                     StartAfter(parent, page));
    std::vector<Record> records;
    for (const auto& [name, row] :
         Scan(kKindOf<Record>,
              after.has_value() ? SlotOf(*after) : Slot{parent.ToString()},
              page.size, [&](const Slot& slot) {
                return slot.parent == parent.ToString();
              })) {
      ASSIGN_OR_RETURN(Record record, DecodeRowOf<Record>(name, row.bytes));
      records.push_back(std::move(record));
    }
    return records;
  }

  template <typename Record>
  absl::Status Visit(absl::FunctionRef<absl::Status(const Record&)> visit) {
    constexpr size_t kBatch = 256;
    Slot start;
    while (true) {
      const auto batch = Scan(kKindOf<Record>, start, kBatch,
                              [](const Slot&) { return true; });
      for (const auto& [name, row] : batch) {
        ASSIGN_OR_RETURN(const Record record,
                         DecodeRowOf<Record>(name, row.bytes));
        RETURN_IF_ERROR(visit(record));
      }
      if (batch.size() < kBatch) return absl::OkStatus();
      start = SlotOf(batch.back().first);
    }
  }

  // By looking at everything: this is the back end of tests.
  std::vector<ResourceName> FindDue(ResourceName::Kind kind,
                                    std::optional<int64_t> Due::*field,
                                    int64_t now_us, size_t limit) {
    std::vector<std::pair<int64_t, ResourceName>> due;
    {
      base::MutexLock lock(mu_);
      for (const auto& [slot, entry] : tables_[Index(kind)]) {
        const std::optional<int64_t>& at = entry.second.due.*field;
        if (at.has_value() && *at <= now_us) due.emplace_back(*at, entry.first);
      }
    }
    std::sort(due.begin(), due.end());
    std::vector<ResourceName> names;
    for (size_t i = 0; i < due.size() && i < limit; ++i) {
      names.push_back(std::move(due[i].second));
    }
    return names;
  }

  base::Lane writer_;
  base::Mutex mu_;
  Table tables_[3] ABSL_GUARDED_BY(mu_);  // rings, keys, versions
  std::map<Slot, uint64_t> uses_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

std::unique_ptr<Catalog> MakeMemoryCatalog() {
  return std::make_unique<MemoryCatalog>();
}

}  // namespace kek::catalog
