// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/sync.h"
#include "pkcs11/key_objects.h"

namespace kek::pkcs11 {

// KeyHandle models an object handle within the generation it was found in.
// Outside of that it means nothing: modules number anew, and the same number
// may be another key.
struct KeyHandle {
  uint64_t generation = 0;
  CK_OBJECT_HANDLE handle = CK_INVALID_HANDLE;
  bool operator==(const KeyHandle&) const = default;
};

// KeyTable maps CKA_ID to object handle for one generation of a token, from one
// sweep of it. Thread-safe.
class KeyTable {
 public:
  // One object; operations count themselves in while they use its handle.
  struct Entry {
    explicit Entry(KeyHandle h) : handle(h) {}
    const KeyHandle handle;
    std::atomic<int> users{0};
    std::atomic<bool> revoked{false};
  };
  // The use of an entry. Move-only.
  class EntryUse {
   public:
    EntryUse() = default;
    EntryUse(EntryUse&& other) noexcept
        : table_(other.table_), entry_(std::move(other.entry_)) {}
    EntryUse& operator=(EntryUse&&) = delete;
    ~EntryUse();
    const KeyHandle& handle() const { return entry_->handle; }
    const std::shared_ptr<Entry>& entry() const { return entry_; }

   private:
    friend class KeyTable;
    EntryUse(KeyTable* table, std::shared_ptr<Entry> entry)
        : table_(table), entry_(std::move(entry)) {}
    KeyTable* table_ = nullptr;
    std::shared_ptr<Entry> entry_;
  };
  enum class Outcome { kFound, kMissing, kDuplicate, kUnknown };

  explicit KeyTable(uint64_t generation) : generation_(generation) {}

  // kUnknown: only a sweep can tell.
  std::pair<Outcome, std::shared_ptr<Entry>> Lookup(
      std::span<const uint8_t> id) const;
  // Empty when the entry has been revoked.
  std::optional<EntryUse> Enter(const std::shared_ptr<Entry>& entry);

  uint64_t sweeps() const;
  // Replaces all by what a sweep found.
  void Replace(const std::vector<FoundObject>& found);
  void Add(std::span<const uint8_t> id, CK_OBJECT_HANDLE handle);
  // A look that found nothing, twice; believed for a second.
  void RememberMissing(std::span<const uint8_t> id);
  // Objects were seen in this generation, and none of those that have not been
  // revoked is there any more: the module has lost sight of its token.
  bool LostAll() const;
  // The handle is in doubt: the next Lookup asks for a sweep.
  void Forget(std::span<const uint8_t> id, const std::shared_ptr<Entry>& entry);
  // Nobody begins to use this object's handle any more; waits for those who do.
  // False: the deadline passed.
  bool RevokeAndDrain(std::span<const uint8_t> id, base::Deadline deadline);

 private:
  using Id = std::string;
  static Id ToId(std::span<const uint8_t> id) {
    return {reinterpret_cast<const char*>(id.data()), id.size()};
  }

  const uint64_t generation_;
  mutable base::Mutex mu_;
  base::CondVar drained_;
  uint64_t sweeps_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<Id, std::shared_ptr<Entry>> entries_ ABSL_GUARDED_BY(mu_);
  std::set<Id> seen_ ABSL_GUARDED_BY(mu_);
  std::set<Id> duplicates_ ABSL_GUARDED_BY(mu_);
  std::map<Id, base::Deadline> missing_until_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kek::pkcs11
