// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "catalog/resource_name.h"
#include "core/key_service.h"
#include "core/lifecycle.h"

namespace kek::service {

// What both versions of the Kubernetes KMS plugin API share.

// health as Status' healthz says it: exactly "ok", or a fixed sentence per
// code. kube-apiserver logs it and shows it in its own health checks, so it
// names no token, label, path or key.
std::string KubernetesHealthText(const absl::Status& health);

// Lets health look again at once when work under key failed for a reason that
// is not the caller's. Returns status.
absl::Status NoteKubernetesWork(core::KeyHealth& health,
                                const catalog::ResourceName& key,
                                absl::Status status);

// Writes the audit record of a request that is refused before KeyService sees
// it, so that every Encrypt and Decrypt has one. Returns refusal; the audit
// log's error if there is no record; OK, doing nothing, when refusal is OK.
absl::Status AuditRefusal(core::KeyService& keys, const core::CallInfo& call,
                          absl::string_view method,
                          const catalog::ResourceName& key,
                          absl::Status refusal);

}  // namespace kek::service
