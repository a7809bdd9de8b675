// SPDX-License-Identifier: Apache-2.0
#include "core/resolved_keys.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kek::core {

namespace {

std::string RuntimeKey(const catalog::Uuid& uuid, uint32_t version) {
  std::string key(reinterpret_cast<const char*>(uuid.data()), uuid.size());
  key.append(reinterpret_cast<const char*>(&version), sizeof version);
  return key;
}

}  // namespace

ResolvedKeys::ResolvedKeys(catalog::Catalog& catalog, Wrapper& wrapper,
                           Options options)
    : catalog_(catalog),
      wrapper_(wrapper),
      options_(options),
      keys_({.max_charge = options.keys}),
      // Old versions are opened too, and a runtime is worth more than a row.
      runtimes_({.max_charge = 4 * options.keys}),
      activities_({.max_charge = 2 * options.keys}) {}

absl::StatusOr<std::shared_ptr<const ResolvedKey>> ResolvedKeys::Get(
    const catalog::ResourceName& name, base::Deadline deadline) {
  return keys_.GetOrLoad(
      name.ToString(),
      [&]() -> absl::StatusOr<std::shared_ptr<const ResolvedKey>> {
        ASSIGN_OR_RETURN(catalog::CryptoKey key, catalog_.GetCryptoKey(name));
        ASSIGN_OR_RETURN(
            std::shared_ptr<const KeyActivity> activity,
            activities_.GetOrLoad(
                name.ToString(),
                []() -> absl::StatusOr<std::shared_ptr<const KeyActivity>> {
                  return std::make_shared<const KeyActivity>();
                },
                deadline));
        return std::make_shared<const ResolvedKey>(std::move(key),
                                                   std::move(activity));
      },
      deadline);
}

absl::StatusOr<std::shared_ptr<const LoadedVersion>> ResolvedKeys::GetVersion(
    const ResolvedKey& key, uint32_t version, base::Deadline deadline) {
  {
    base::MutexLock lock(key.mu_);
    const auto it = key.versions_.find(version);
    if (it != key.versions_.end()) return it->second;
  }
  const catalog::ResourceName name = key.key.name.Version(version);
  ASSIGN_OR_RETURN(catalog::CryptoKeyVersion record, catalog_.GetVersion(name));
  auto loaded = std::make_shared<LoadedVersion>(
      LoadedVersion{std::move(record), nullptr});
  if (loaded->record.state == catalog::VersionState::kEnabled) {
    // The invariant of the whole service: what is ENABLED has a canary, for
    // without one the token's key could not be proven.
    if (!loaded->record.canary.has_value()) {
      return absl::DataLossError(absl::StrCat(
          name.ToString(), " is ENABLED in the catalog but has no canary"));
    }
    ASSIGN_OR_RETURN(
        loaded->runtime,
        runtimes_.GetOrLoad(
            RuntimeKey(key.key.uuid, version),
            [&]() -> absl::StatusOr<std::shared_ptr<const VersionRuntime>> {
              return std::make_shared<const VersionRuntime>(
                  wrapper_.Resolve(loaded->record), catalog_, name,
                  options_.uses);
            },
            deadline));
  }
  // A thread that read before a change and stores after it stores into a
  // snapshot that Changed has already dropped.
  base::MutexLock lock(key.mu_);
  return key.versions_.try_emplace(version, std::move(loaded)).first->second;
}

void ResolvedKeys::Changed(const catalog::ResourceName& key) {
  keys_.Invalidate(key.ToString());
  epoch_.fetch_add(1);
}

void ResolvedKeys::Forget(const catalog::Uuid& key_uuid, uint32_t version) {
  runtimes_.Invalidate(RuntimeKey(key_uuid, version));
}

std::optional<base::Deadline> ResolvedKeys::LastSuccess(
    const catalog::ResourceName& key) {
  const std::shared_ptr<const KeyActivity> activity =
      activities_.Peek(key.ToString());
  return activity == nullptr ? std::nullopt : activity->last();
}

}  // namespace kek::core
