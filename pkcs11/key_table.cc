// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/key_table.h"

namespace kek::pkcs11 {
namespace {
constexpr auto kMissingIsBelieved = std::chrono::seconds(1);
}  // namespace

KeyTable::EntryUse::~EntryUse() {
  if (entry_ == nullptr) return;
  if (entry_->users.fetch_sub(1) == 1 && entry_->revoked.load()) {
    base::MutexLock lock(table_->mu_);
    table_->drained_.NotifyAll();
  }
}

std::pair<KeyTable::Outcome, std::shared_ptr<KeyTable::Entry>> KeyTable::Lookup(
    std::span<const uint8_t> id) const {
  const Id key = ToId(id);
  base::MutexLock lock(mu_);
  if (duplicates_.contains(key)) return {Outcome::kDuplicate, nullptr};
  if (const auto it = entries_.find(key); it != entries_.end()) {
    return {Outcome::kFound, it->second};
  }
  if (const auto it = missing_until_.find(key);
      it != missing_until_.end() &&
      std::chrono::steady_clock::now() < it->second) {
    return {Outcome::kMissing, nullptr};
  }
  return {Outcome::kUnknown, nullptr};
}

std::optional<KeyTable::EntryUse> KeyTable::Enter(
    const std::shared_ptr<Entry>& entry) {
  entry->users.fetch_add(1);
  EntryUse use(this, entry);
  if (entry->revoked.load()) return std::nullopt;
  return use;
}

uint64_t KeyTable::sweeps() const {
  base::MutexLock lock(mu_);
  return sweeps_;
}

void KeyTable::Replace(const std::vector<FoundObject>& found) {
  base::MutexLock lock(mu_);
  std::map<Id, std::shared_ptr<Entry>> fresh;
  duplicates_.clear();
  for (const FoundObject& object : found) {
    if (object.info.id.empty()) continue;
    Id id = ToId(object.info.id);
    if (fresh.contains(id)) {
      duplicates_.insert(std::move(id));
      continue;
    }
    std::shared_ptr<Entry> entry;
    if (const auto old = entries_.find(id);
        old != entries_.end() && old->second->handle.handle == object.handle) {
      entry = old->second;
    } else {
      entry = std::make_shared<Entry>(KeyHandle{generation_, object.handle});
    }
    fresh.emplace(std::move(id), std::move(entry));
  }
  for (const Id& id : duplicates_) fresh.erase(id);
  for (const auto& [id, entry] : fresh) seen_.insert(id);
  entries_ = std::move(fresh);
  missing_until_.clear();
  ++sweeps_;
}

void KeyTable::Add(std::span<const uint8_t> id, CK_OBJECT_HANDLE handle) {
  base::MutexLock lock(mu_);
  entries_[ToId(id)] = std::make_shared<Entry>(KeyHandle{generation_, handle});
  seen_.insert(ToId(id));
  missing_until_.erase(ToId(id));
}

bool KeyTable::LostAll() const {
  base::MutexLock lock(mu_);
  return !seen_.empty() && entries_.empty() && duplicates_.empty();
}

void KeyTable::RememberMissing(std::span<const uint8_t> id) {
  base::MutexLock lock(mu_);
  if (missing_until_.size() > 10'000) missing_until_.clear();
  missing_until_[ToId(id)] =
      std::chrono::steady_clock::now() + kMissingIsBelieved;
}

void KeyTable::Forget(std::span<const uint8_t> id,
                      const std::shared_ptr<Entry>& entry) {
  base::MutexLock lock(mu_);
  const auto it = entries_.find(ToId(id));
  if (it != entries_.end() && it->second == entry) entries_.erase(it);
}

bool KeyTable::RevokeAndDrain(std::span<const uint8_t> id,
                              base::Deadline deadline) {
  base::MutexLock lock(mu_);
  seen_.erase(ToId(id));
  const auto it = entries_.find(ToId(id));
  if (it == entries_.end()) return true;
  const std::shared_ptr<Entry> entry = it->second;
  entries_.erase(it);
  entry->revoked.store(true);
  while (entry->users.load() != 0) {
    if (!drained_.WaitUntil(mu_, deadline) &&
        std::chrono::steady_clock::now() >= deadline) {
      return entry->users.load() == 0;
    }
  }
  return true;
}

}  // namespace kek::pkcs11
