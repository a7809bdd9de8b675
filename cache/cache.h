// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/node_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/hash/hash.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sync.h"
#include "cache/single_flight.h"

namespace kek::cache {

// What a cache did since it was made, and what it holds now. For metrics.
struct Stats {
  uint64_t hits = 0;
  uint64_t misses = 0;       // calls that found no value, waiters included
  uint64_t loads = 0;        // loaders run
  uint64_t evictions = 0;    // dropped to make room
  uint64_t expirations = 0;  // dropped because of age
  uint64_t entries = 0;
  uint64_t charge = 0;
};

// Cache models a bounded memory of things that are costly to get: it keeps what
// was used last, forgets what is too old, and runs one loader per key at a
// time.
//
// K needs absl::Hash and ==. Values are shared_ptr<const V>: a value that is
// dropped (evicted, expired, invalidated) lives until the last caller lets go
// of it and is destroyed outside every lock; secrets are wiped by V's own
// destructor, so V holds them in base::SecretBytes. The cache makes no copy.
//
// Thread-safe. A hit costs one shard's mutex and no allocation. No lock is held
// while a loader runs. An expired value is never returned; its memory is freed
// when its key is next asked for, or when it falls off the end of its shard.
template <typename K, typename V>
class Cache {
 public:
  using Value = std::shared_ptr<const V>;

  struct Options {
    // Bound of the sum of charges, split evenly between the shards. A value
    // whose charge is above a shard's part is returned but not kept.
    size_t max_charge = 1024;
    // What an entry costs against max_charge; unset: 1 each. Asked once per
    // value, with no lock held.
    std::function<size_t(const K&, const V&)> charge;
    // Age at which a value is no longer returned, from the moment its loader
    // was started. Unset: never.
    std::optional<std::chrono::nanoseconds> ttl;
    // Rounded down to a power of two; fewer while a shard's part would be less
    // than 64. One shard makes the least recently used order exact.
    size_t shards = 16;
    // For tests; unset: the steady clock.
    std::function<base::Deadline()> now;
  };

  explicit Cache(Options options)
      : options_(std::move(options)),
        shard_count_(ShardCount(options_)),
        shards_(std::make_unique<Shard[]>(shard_count_)),
        shard_capacity_(options_.max_charge / shard_count_) {}
  // No call may be under way.
  ~Cache() = default;
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  // The value of key, or else that of load(), which is then kept. load runs on
  // this thread unless another caller's load of this key is under way; then its
  // result is awaited until deadline (DEADLINE_EXCEEDED). An error of load goes
  // to everyone who waits for it and is not kept. load must not throw, must
  // return a value or an error (never a null value), and must not ask this
  // cache for the same key; its own deadline is its own business, and better
  // not that of one caller when others wait for the result.
  absl::StatusOr<Value> GetOrLoad(
      const K& key, absl::FunctionRef<absl::StatusOr<Value>()> load,
      base::Deadline deadline) {
    Shard& shard = ShardOf(key);
    if (Value value = Find(shard, key, kCount); value != nullptr) return value;

    base::Deadline started{};
    bool fresh = false;
    size_t charge = 0;
    std::vector<Value> dropped;  // declared here to be freed after the locks
    const auto load_once = [&]() -> absl::StatusOr<Value> {
      // A flight that landed between the look above and this one has left its
      // value.
      if (Value value = Find(shard, key, kDoNotCount); value != nullptr) {
        return value;
      }
      started = Now();
      fresh = true;
      {
        base::MutexLock lock(shard.mu);
        ++shard.loads;
      }
      absl::StatusOr<Value> value = load();
      if (value.ok()) {
        if (*value == nullptr) {
          return absl::InternalError("a cache's loader returned no value");
        }
        charge = options_.charge ? options_.charge(key, **value) : 1;
      }
      return value;
    };
    const auto keep = [&](const Value& value) {
      if (fresh) Insert(shard, key, value, charge, started, dropped);
    };
    return shard.flights.Do(key, load_once, keep, deadline);
  }

  // The value of key if it is here, else null. Counts as neither hit nor use.
  Value Peek(const K& key) {
    Shard& shard = ShardOf(key);
    base::MutexLock lock(shard.mu);
    const auto it = shard.map.find(key);
    if (it == shard.map.end() || Expired(it->second)) return nullptr;
    return it->second.value;
  }

  // After these return, no call that begins later gets a value whose load began
  // before: what is kept is dropped, and a load under way is not kept. (Its
  // result still goes to the callers that were waiting for it.) pred runs under
  // a lock: keep it short, and do not call the cache from it.
  void Invalidate(const K& key) {
    Shard& shard = ShardOf(key);
    Value dropped;  // freed after the locks
    shard.flights.Forget(key, [&] {
      base::MutexLock lock(shard.mu);
      const auto it = shard.map.find(key);
      if (it != shard.map.end()) dropped = Remove(shard, it);
    });
  }
  void InvalidateIf(absl::FunctionRef<bool(const K&)> pred) {
    for (size_t i = 0; i < shard_count_; ++i) {
      Shard& shard = shards_[i];
      std::vector<Value> dropped;  // freed after the locks
      shard.flights.ForgetIf(pred, [&] {
        base::MutexLock lock(shard.mu);
        for (auto it = shard.map.begin(); it != shard.map.end();) {
          const auto next = std::next(it);
          if (pred(it->first)) dropped.push_back(Remove(shard, it));
          it = next;
        }
      });
    }
  }
  void Clear() {
    InvalidateIf([](const K&) { return true; });
  }

  Stats GetStats() const {
    Stats sum;
    for (size_t i = 0; i < shard_count_; ++i) {
      Shard& shard = shards_[i];
      base::MutexLock lock(shard.mu);
      sum.hits += shard.hits;
      sum.misses += shard.misses;
      sum.loads += shard.loads;
      sum.evictions += shard.evictions;
      sum.expirations += shard.expirations;
      sum.entries += shard.map.size();
      sum.charge += shard.charge;
    }
    return sum;
  }

 private:
  // Each shard is a cache of its own. Its map owns the entries; a ring of
  // pointers through all of them keeps the order of use: lru.next is the least
  // recently used, lru.prev the most. Invariants, whenever shard.mu is free:
  //   - an entry is in the ring exactly if it is in the map;
  //   - charge is the sum of the entries' charges and at most the capacity;
  //   - a value here was loaded by a flight that began after the last
  //     invalidation of its key.
  // The last one holds because the flights' lock covers both the landing of a
  // flight with its insertion (SingleFlight's commit) and the forgetting of
  // flights with the removal of entries: whichever comes first, the old value
  // is gone when the invalidation returns, and a flight that begins after it
  // finds no old value to share. Lock order: flights' lock, then shard.mu.
  struct Link {
    Link* prev = this;
    Link* next = this;
    Link() = default;
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;
    void Unlink() {
      prev->next = next;
      next->prev = prev;
      prev = next = this;
    }
    void LinkBefore(Link& other) {
      prev = other.prev;
      next = &other;
      prev->next = this;
      next->prev = this;
    }
  };
  struct Entry : Link {
    const K* key = nullptr;  // in the map's node
    Value value;
    size_t charge = 0;
    base::Deadline expires = base::Deadline::max();
  };
  using Map = absl::node_hash_map<K, Entry>;

  struct alignas(64) Shard {
    base::Mutex mu;
    Map map ABSL_GUARDED_BY(mu);
    Link lru ABSL_GUARDED_BY(mu);
    size_t charge ABSL_GUARDED_BY(mu) = 0;
    uint64_t hits ABSL_GUARDED_BY(mu) = 0;
    uint64_t misses ABSL_GUARDED_BY(mu) = 0;
    uint64_t loads ABSL_GUARDED_BY(mu) = 0;
    uint64_t evictions ABSL_GUARDED_BY(mu) = 0;
    uint64_t expirations ABSL_GUARDED_BY(mu) = 0;
    SingleFlight<K, V> flights;  // has its own lock
  };

  static size_t ShardCount(const Options& options) {
    constexpr size_t kLeastPart = 64;
    const size_t wanted =
        std::min(options.shards, options.max_charge / kLeastPart);
    return std::bit_floor(std::max<size_t>(wanted, 1));
  }

  Shard& ShardOf(const K& key) const {
    // The map uses the low bits.
    const uint64_t hash = absl::Hash<K>()(key);
    return shards_[(hash >> 40) & (shard_count_ - 1)];
  }

  base::Deadline Now() const {
    return options_.now ? options_.now() : std::chrono::steady_clock::now();
  }
  bool Expired(const Entry& entry) const {
    return entry.expires != base::Deadline::max() && Now() >= entry.expires;
  }

  enum Counting { kCount, kDoNotCount };
  Value Find(Shard& shard, const K& key, Counting counting) {
    Value expired;  // freed after the lock
    base::MutexLock lock(shard.mu);
    const auto it = shard.map.find(key);
    if (it != shard.map.end()) {
      Entry& entry = it->second;
      if (!Expired(entry)) {
        entry.Unlink();
        entry.LinkBefore(shard.lru);
        if (counting == kCount) ++shard.hits;
        return entry.value;
      }
      ++shard.expirations;
      expired = Remove(shard, it);
    }
    if (counting == kCount) ++shard.misses;
    return nullptr;
  }

  Value Remove(Shard& shard, typename Map::iterator it)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    Entry& entry = it->second;
    Value value = std::move(entry.value);
    entry.Unlink();
    shard.charge -= entry.charge;
    shard.map.erase(it);
    return value;
  }

  void Insert(Shard& shard, const K& key, const Value& value, size_t charge,
              base::Deadline loaded, std::vector<Value>& dropped) {
    if (charge > shard_capacity_) return;
    base::MutexLock lock(shard.mu);
    const auto [it, inserted] = shard.map.try_emplace(key);
    Entry& entry = it->second;
    if (!inserted) {
      dropped.push_back(std::move(entry.value));
      shard.charge -= entry.charge;
      entry.Unlink();
    }
    entry.key = &it->first;
    entry.value = value;
    entry.charge = charge;
    entry.expires =
        options_.ttl.has_value()
            ? loaded + std::chrono::duration_cast<base::Deadline::duration>(
                           *options_.ttl)
            : base::Deadline::max();
    entry.LinkBefore(shard.lru);
    shard.charge += charge;
    while (shard.charge > shard_capacity_) {
      const auto& oldest = static_cast<const Entry&>(*shard.lru.next);
      ++shard.evictions;
      dropped.push_back(Remove(shard, shard.map.find(*oldest.key)));
    }
  }

  // Constant after construction.
  const Options options_;
  const size_t shard_count_;
  const std::unique_ptr<Shard[]> shards_;
  const size_t shard_capacity_;
};

}  // namespace kek::cache
