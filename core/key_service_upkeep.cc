// SPDX-License-Identifier: Apache-2.0
// KeyService: kekd's own initiative. Finishing interrupted creations, comparing
// catalog and token, and what is due.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "core/key_service_engine.h"

namespace kek::core {

using catalog::CryptoKeyVersion;
using catalog::ResourceName;
using catalog::VersionState;

namespace {

// Of each kind in one round; the rest comes with the next.
constexpr size_t kRound = 1000;
constexpr absl::string_view kLabelPrefix = "kek:";

bool Passed(base::Deadline deadline) {
  return std::chrono::steady_clock::now() >= deadline;
}

// Whether the token should hold this version's object. While a version is being
// made, or once its destruction has begun, both are right.
enum class Expected { kYes, kNo, kEither };
Expected ExpectedOnToken(const CryptoKeyVersion& version) {
  switch (version.state) {
    case VersionState::kEnabled:
    case VersionState::kDisabled:
      return Expected::kYes;
    case VersionState::kDestroyScheduled:
      return version.destroy_event_time.has_value() ? Expected::kEither
                                                    : Expected::kYes;
    case VersionState::kPendingGeneration:
    case VersionState::kPendingImport:
      return Expected::kEither;
    case VersionState::kDestroyed:
    case VersionState::kImportFailed:
    case VersionState::kGenerationFailed:
      return Expected::kNo;
  }
  return Expected::kNo;
}

std::string Describe(const pkcs11::ObjectInfo& object) {
  return absl::StrCat(
      "id ",
      object.id.empty() ? "(none)"
                        : absl::BytesToHexString(absl::string_view(
                              reinterpret_cast<const char*>(object.id.data()),
                              object.id.size())),
      ", label ",
      object.label.empty()
          ? "(none)"
          : absl::StrCat("'", absl::CHexEscape(object.label), "'"));
}

}  // namespace

absl::Status KeyService::ResumePending(base::Deadline deadline) {
  Engine& e = *engine_;
  ASSIGN_OR_RETURN(const std::vector<ResourceName> pending,
                   e.catalog.PendingVersions(kRound));
  absl::Status first_error;
  for (const ResourceName& version : pending) {
    const absl::Status status = e.ResumeOne(version, deadline);
    if (status.ok()) continue;
    base::LogWarning("an interrupted creation could not be finished",
                     {{"version", version.ToString()}, {"error", status}});
    if (first_error.ok()) first_error = status;
    // No other one will fare better.
    if (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) break;
  }
  return first_error;
}

absl::StatusOr<ReconcileReport> KeyService::Reconcile(base::Deadline deadline) {
  Engine& e = *engine_;
  ReconcileReport report;
  report.time = e.Now();

  // The catalog is read before and after the sweep of the token, so that what
  // is made or destroyed meanwhile is not mistaken for a difference: an object
  // is an orphan if neither reading names it, a version is missing if it was
  // expected before the sweep and still is after it.
  using Ids = std::map<std::vector<uint8_t>, ResourceName>;
  Ids expected;
  std::set<std::vector<uint8_t>> known;
  const auto note = [&](const CryptoKeyVersion& version) {
    const Expected on_token = ExpectedOnToken(version);
    if (on_token != Expected::kNo) known.insert(version.object_id);
    return on_token;
  };
  RETURN_IF_ERROR(e.catalog.VisitVersions([&](const CryptoKeyVersion& version) {
    if (note(version) == Expected::kYes) {
      expected.emplace(version.object_id, version.name);
    }
    return absl::OkStatus();
  }));
  ASSIGN_OR_RETURN(const std::vector<pkcs11::ObjectInfo> objects,
                   e.token.ListKeys(deadline));
  RETURN_IF_ERROR(e.catalog.VisitVersions([&](const CryptoKeyVersion& version) {
    if (note(version) != Expected::kYes) expected.erase(version.object_id);
    if (version.state == VersionState::kPendingGeneration) {
      report.pending.push_back(version.name.ToString());
    }
    return absl::OkStatus();
  }));

  for (const pkcs11::ObjectInfo& object : objects) {
    const bool ours = absl::StartsWith(object.label, kLabelPrefix);
    if (!object.usable) {
      // What belongs to others has an id and a label.
      if (ours || object.id.empty() || object.label.empty()) {
        report.half_objects.push_back(Describe(object));
      }
      continue;
    }
    if (ours && !known.contains(object.id)) {
      report.orphans.push_back(Describe(object));
    }
    expected.erase(object.id);
  }
  for (const auto& [id, name] : expected) {
    report.missing.push_back(name.ToString());
  }
  std::sort(report.missing.begin(), report.missing.end());

  if (e.options.metrics != nullptr) {
    const auto set = [&e](absl::string_view kind, size_t count) {
      e.options.metrics
          ->GetGauge("kekd_reconcile_findings",
                     "Differences between catalog and token at the last "
                     "reconcile, by kind.",
                     {{"kind", std::string(kind)}})
          ->Set(static_cast<double>(count));
    };
    set("missing", report.missing.size());
    set("orphan", report.orphans.size());
    set("half_object", report.half_objects.size());
    set("pending", report.pending.size());
  }
  for (const std::string& name : report.missing) {
    base::LogError("reconcile: the key of a version is not on the token",
                   {{"version", name}});
  }
  for (const std::string& object : report.orphans) {
    base::LogWarning("reconcile: a key on the token belongs to no version",
                     {{"object", object}});
  }
  for (const std::string& object : report.half_objects) {
    base::LogWarning("reconcile: an unusable object is on the token",
                     {{"object", object}});
  }
  return report;
}

bool KeyService::Engine::MayTry(const std::string& name) {
  base::MutexLock lock(mu);
  const auto it = retries.find(name);
  return it == retries.end() || Passed(it->second.not_before);
}

void KeyService::Engine::Tried(const std::string& name,
                               const absl::Status& status) {
  base::MutexLock lock(mu);
  if (status.ok() || absl::IsAborted(status)) {
    retries.erase(name);
    return;
  }
  Retry& retry = retries[name];
  const int doublings = std::min(retry.failures++, 6);
  retry.not_before = base::DeadlineAfter(std::min<std::chrono::minutes>(
      std::chrono::minutes(1 << doublings), std::chrono::hours(1)));
}

absl::Status KeyService::Engine::RotateDue(const ResourceName& key,
                                           uint32_t used_up_version,
                                           base::Deadline deadline) {
  const CallInfo call = Internal(deadline);
  const auto due = [&](const catalog::CryptoKey& k) {
    return used_up_version != 0 ? k.primary_version == used_up_version
                                : k.next_rotation_time.has_value() &&
                                      *k.next_rotation_time <= Now();
  };
  // Not worth a record when there is nothing to do.
  ASSIGN_OR_RETURN(const catalog::CryptoKey now, catalog.GetCryptoKey(key));
  if (!due(now)) return absl::AbortedError("no longer due");
  return Run<bool>(call, Method::kRotate, {}, key,
                   [&](AuditRecord& record) -> absl::StatusOr<bool> {
                     RETURN_IF_ERROR(MakeVersion(record, key, Kind::kRotation,
                                                 due, deadline)
                                         .status());
                     record.detail =
                         absl::StrCat(used_up_version != 0 ? "by use count, "
                                                           : "by schedule, ",
                                      record.detail);
                     return true;
                   })
      .status();
}

void KeyService::ShowInMetrics(const ResourceName& key) {
  base::MutexLock lock(engine_->mu);
  engine_->in_metrics.insert(key.ToString());
}

void KeyService::Engine::UpdateMetrics() {
  base::Metrics* const to = options.metrics;
  if (to == nullptr) return;
  const cache::Stats cached = keys.GetStats();
  const auto set = [to](absl::string_view name, absl::string_view help,
                        const base::Metrics::Labels& labels, double value) {
    to->GetGauge(name, help, labels)->Set(value);
  };
  set("kekd_key_cache_entries", "Keys at hand without the catalog.", {},
      static_cast<double>(cached.entries));
  set("kekd_key_cache_hits", "Look-ups of keys that were at hand.", {},
      static_cast<double>(cached.hits));
  set("kekd_key_cache_misses", "Look-ups of keys that were not.", {},
      static_cast<double>(cached.misses));

  std::set<std::string> shown;
  {
    base::MutexLock lock(mu);
    shown = in_metrics;
  }
  for (const std::string& text : shown) {
    const absl::StatusOr<ResourceName> name = ResourceName::Parse(text);
    if (!name.ok()) continue;
    const absl::StatusOr<catalog::CryptoKey> key = catalog.GetCryptoKey(*name);
    const absl::StatusOr<std::vector<CryptoKeyVersion>> versions =
        catalog.ListVersions(*name, {});
    if (!key.ok() || !versions.ok()) continue;
    set("kekd_key_primary_version", "Number of the primary version, or 0.",
        {{"key", text}}, key->primary_version);
    for (const CryptoKeyVersion& version : *versions) {
      const base::Metrics::Labels labels = {
          {"key", text}, {"version", std::string(version.name.id())}};
      constexpr absl::string_view kAge = "kekd_key_version_age_seconds";
      constexpr absl::string_view kUses = "kekd_key_version_uses_reserved";
      if (version.state == VersionState::kDestroyed ||
          version.state == VersionState::kGenerationFailed) {
        to->RemoveGauge(kAge, labels);
        to->RemoveGauge(kUses, labels);
        continue;
      }
      set(kAge, "Time since the version's key was generated.", labels,
          absl::ToDoubleSeconds(
              Now() - version.generate_time.value_or(version.create_time)));
      if (const absl::StatusOr<uint64_t> uses =
              catalog.UsesReserved(version.name);
          uses.ok()) {
        set(kUses, "Encryptions reserved so far, never less than were made.",
            labels, static_cast<double>(*uses));
      }
    }
  }
}

int KeyService::RunDue(base::Deadline deadline) {
  Engine& e = *engine_;
  int done = 0;
  // Asked once a round, and only if there is something to do. While the token
  // is away nothing is attempted: no attempt, no trace of a failed one.
  std::optional<absl::Status> token;
  const auto token_ready = [&] {
    if (!token.has_value()) {
      token = e.TokenReady(deadline);
      if (!token->ok()) {
        base::LogWarning("work is due, but the token does not answer",
                         {{"error", *token}});
      }
    }
    return token->ok();
  };
  const auto attempt = [&](absl::string_view what, const ResourceName& name,
                           absl::FunctionRef<absl::Status()> work) {
    const std::string id = absl::StrCat(what, " ", name.ToString());
    if (Passed(deadline) || !e.MayTry(id) || !token_ready()) return false;
    const absl::Status status = work();
    e.Tried(id, status);
    if (status.ok()) {
      ++done;
      base::LogInfo("done as due",
                    {{"work", what}, {"resource", name.ToString()}});
    } else if (!absl::IsAborted(status)) {
      base::LogError(
          "what is due could not be done",
          {{"work", what}, {"resource", name.ToString()}, {"error", status}});
    }
    return status.ok() || absl::IsAborted(status);
  };

  if (const absl::StatusOr<std::vector<ResourceName>> keys =
          e.catalog.DueRotations(e.Now(), kRound);
      keys.ok()) {
    for (const ResourceName& key : *keys) {
      attempt("scheduled rotation", key,
              [&] { return e.RotateDue(key, 0, deadline); });
    }
  } else {
    base::LogError("due rotations could not be looked up",
                   {{"error", keys.status()}});
  }

  std::map<std::string, uint32_t> used_up;
  {
    base::MutexLock lock(e.mu);
    used_up = e.used_up;
  }
  for (const auto& [text, version] : used_up) {
    const absl::StatusOr<ResourceName> key = ResourceName::Parse(text);
    if (key.ok() && attempt("rotation by use count", *key, [&, v = version] {
          return e.RotateDue(*key, v, deadline);
        })) {
      base::MutexLock lock(e.mu);
      const auto it = e.used_up.find(text);
      if (it != e.used_up.end() && it->second == version) e.used_up.erase(it);
    }
  }

  if (const absl::StatusOr<std::vector<ResourceName>> versions =
          e.catalog.DueDestructions(e.Now(), kRound);
      versions.ok()) {
    for (const ResourceName& version : *versions) {
      attempt("destruction", version,
              [&] { return e.DestroyDue(version, deadline); });
    }
  } else {
    base::LogError("due destructions could not be looked up",
                   {{"error", versions.status()}});
  }
  e.UpdateMetrics();
  return done;
}

}  // namespace kek::core
