// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "catalog/records.h"
#include "core/key_service.h"

namespace kek::service {

// KubernetesKeyId models the key_id of the Kubernetes KMS v2 API: the public
// name of the key version under which a seed was wrapped. It is stable across
// restarts and hosts, because it is made of what the catalog stores, and never
// used again, because (key, version, activation) is not: a version that becomes
// primary a second time has another activation.
//   kekd-<32 hex digits of the key's UUID>-<version>-<activation>
// Printable ASCII of at most 69 bytes; says nothing that is secret and holds
// whatever the key's name is. A value.
struct KubernetesKeyId {
  catalog::Uuid key_uuid{};
  uint32_t version = 0;
  uint64_t activation = 0;

  static constexpr size_t kMaxSize = 5 + 32 + 1 + 10 + 1 + 20;

  static KubernetesKeyId Of(const core::PrimaryInfo& primary) {
    return {primary.key_uuid, primary.version.version(), primary.activation};
  }
  std::string ToString() const;
  // Total and strict: only what ToString gives is accepted. INVALID_ARGUMENT
  // with one fixed text.
  static absl::StatusOr<KubernetesKeyId> Parse(absl::string_view text);
};

}  // namespace kek::service
