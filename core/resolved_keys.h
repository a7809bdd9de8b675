// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "base/sync.h"
#include "cache/cache.h"
#include "catalog/catalog.h"
#include "catalog/records.h"
#include "catalog/resource_name.h"
#include "core/use_counter.h"
#include "core/wrapper.h"

namespace kek::core {

// What of a version outlives changes of its state: the token's key, with its
// proven handle, and the block of reserved uses.
struct VersionRuntime {
  VersionRuntime(ResolvedVersion r, catalog::Catalog& catalog,
                 const catalog::ResourceName& name, UseCounter::Limits limits)
      : resolved(std::move(r)), uses(catalog, name, limits) {}
  const ResolvedVersion resolved;
  mutable UseCounter uses;
};

// When work under the primary of one key last succeeded. Outlives the key's
// snapshots.
class KeyActivity {
 public:
  void Succeeded() const {
    last_.store(std::chrono::steady_clock::now().time_since_epoch().count(),
                std::memory_order_relaxed);
  }
  std::optional<base::Deadline> last() const {
    const auto ticks = last_.load(std::memory_order_relaxed);
    if (ticks == 0) return std::nullopt;
    return base::Deadline(base::Deadline::duration(ticks));
  }

 private:
  mutable std::atomic<base::Deadline::rep> last_{0};
};

struct LoadedVersion {
  catalog::CryptoKeyVersion record;
  std::shared_ptr<const VersionRuntime> runtime;  // null unless ENABLED
};

// A key as it was at one moment. Never changes, except that versions join when
// they are first asked for: any change of the key or a version makes a new
// snapshot.
class ResolvedKey {
 public:
  ResolvedKey(catalog::CryptoKey k, std::shared_ptr<const KeyActivity> a)
      : key(std::move(k)), activity(std::move(a)) {}
  const catalog::CryptoKey key;
  const std::shared_ptr<const KeyActivity> activity;

 private:
  friend class ResolvedKeys;
  mutable base::Mutex mu_;
  mutable absl::flat_hash_map<uint32_t, std::shared_ptr<const LoadedVersion>>
      versions_ ABSL_GUARDED_BY(mu_);
};

// ResolvedKeys models what kekd has at hand of its keys: on a hit neither SQL
// nor a search of the token. Thread-safe.
//
// How a change holds at once: who changes a key commits to the catalog, then
// calls Changed, then answers. Who uses a key notes epoch() before it asks for
// the key, and when its result is ready looks whether epoch() has moved; if so
// it reads the version's state again. Either the change was complete before the
// note, and then the key that is got is not older than the change; or it was
// not, and then the look sees the epoch moved, unless the change has not been
// answered yet, and then the use counts as having come first.
class ResolvedKeys {
 public:
  struct Options {
    size_t keys = 65536;
    UseCounter::Limits uses;
  };
  ResolvedKeys(catalog::Catalog& catalog, Wrapper& wrapper, Options options);

  // NOT_FOUND "CryptoKey projects/... not found.", and as Catalog.
  absl::StatusOr<std::shared_ptr<const ResolvedKey>> Get(
      const catalog::ResourceName& key, base::Deadline deadline);
  // A version of it; not known to the snapshot means that the catalog is asked.
  // NOT_FOUND "CryptoKeyVersion projects/... not found.".
  absl::StatusOr<std::shared_ptr<const LoadedVersion>> GetVersion(
      const ResolvedKey& key, uint32_t version, base::Deadline deadline);

  uint64_t epoch() const { return epoch_.load(); }
  // The key or one of its versions was changed in the catalog (or may have
  // been).
  void Changed(const catalog::ResourceName& key);
  // The key material of a version is gone.
  void Forget(const catalog::Uuid& key_uuid, uint32_t version);

  std::optional<base::Deadline> LastSuccess(const catalog::ResourceName& key);
  cache::Stats GetStats() const { return keys_.GetStats(); }

 private:
  catalog::Catalog& catalog_;
  Wrapper& wrapper_;
  const Options options_;
  std::atomic<uint64_t> epoch_{1};
  cache::Cache<std::string, ResolvedKey> keys_;
  cache::Cache<std::string, VersionRuntime> runtimes_;  // by uuid and number
  cache::Cache<std::string, KeyActivity> activities_;
};

}  // namespace kek::core
