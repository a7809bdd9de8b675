// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "base/lane.h"
#include "base/sync.h"
#include "pkcs11/key_table.h"
#include "pkcs11/random_watch.h"
#include "pkcs11/token.h"

namespace kek::pkcs11 {

// See token.h. What Key guards: which handle was proven to be this key, which
// handles made ciphertexts that no proof has covered yet, and whether a proof
// ever failed.
class Key {
 public:
  Key(KeyIdentity i, Canary c)
      : identity(std::move(i)),
        canary(std::move(c)),
        resolution({.name = "resolution of a key"}) {}

  const KeyIdentity identity;
  const Canary canary;
  // One caller at a time resolves or proves this key; the others profit.
  base::Lane resolution;
  // IVs the token made for this key.
  RandomWatch ivs;
  std::atomic<bool> quarantined{false};

  // The proven entry, if it is of this generation.
  std::shared_ptr<KeyTable::Entry> Proven(uint64_t generation) const {
    base::MutexLock lock(mu_);
    if (proven_ == nullptr || proven_->handle.generation != generation) {
      return nullptr;
    }
    return proven_;
  }
  void SetProven(std::shared_ptr<KeyTable::Entry> entry) {
    base::MutexLock lock(mu_);
    opened_at_ = std::chrono::steady_clock::now();
    proven_ = std::move(entry);
  }
  void ForgetProven() {
    base::MutexLock lock(mu_);
    proven_.reset();
  }
  // The canary opened through this handle within the last second.
  bool OpenedLately(const KeyHandle& handle) const {
    base::MutexLock lock(mu_);
    return proven_ != nullptr && proven_->handle == handle &&
           std::chrono::steady_clock::now() - opened_at_ <
               std::chrono::seconds(1);
  }

  // A ciphertext was made through handle and is about to be returned.
  void NoteUse(const KeyHandle& handle) {
    base::MutexLock lock(mu_);
    unproven_[{handle.generation, handle.handle}] = ++uses_;
  }
  uint64_t uses() const {
    base::MutexLock lock(mu_);
    return uses_;
  }
  // The canary opened through handle, and that began after use number
  // `covered`. False: ciphertexts up to there were made through another handle,
  // which nobody can prove any more.
  bool Cover(const KeyHandle& handle, uint64_t covered) {
    base::MutexLock lock(mu_);
    bool all = true;
    for (auto it = unproven_.begin(); it != unproven_.end();) {
      const bool same = it->first.first == handle.generation &&
                        it->first.second == handle.handle;
      all &= same;
      it = it->second <= covered ? unproven_.erase(it) : std::next(it);
    }
    return all;
  }

 private:
  mutable base::Mutex mu_;
  std::shared_ptr<KeyTable::Entry> proven_ ABSL_GUARDED_BY(mu_);
  base::Deadline opened_at_ ABSL_GUARDED_BY(mu_);
  uint64_t uses_ ABSL_GUARDED_BY(mu_) = 0;
  // handle -> number of its last use
  std::map<std::pair<uint64_t, CK_OBJECT_HANDLE>, uint64_t> unproven_
      ABSL_GUARDED_BY(mu_);
};

}  // namespace kek::pkcs11
