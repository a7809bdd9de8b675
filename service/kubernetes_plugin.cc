// SPDX-License-Identifier: Apache-2.0
#include "service/kubernetes_plugin.h"

#include "base/status_macros.h"

namespace kek::service {

std::string KubernetesHealthText(const absl::Status& health) {
  switch (health.code()) {
    case absl::StatusCode::kOk:
      return "ok";
    case absl::StatusCode::kUnavailable:
      return "the key cannot be used: the HSM is not available";
    case absl::StatusCode::kDeadlineExceeded:
      return "the key cannot be used: the HSM does not answer in time";
    case absl::StatusCode::kResourceExhausted:
      return "the key cannot be used now: too much work is waiting";
    case absl::StatusCode::kDataLoss:
      return "the key must not be used: the HSM gave a wrong result";
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kNotFound:
      return "the key cannot be used in its present state";
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return "the key cannot be used: the HSM refuses kekd's login";
    default:
      return "the self-test of the key failed";
  }
}

absl::Status NoteKubernetesWork(core::KeyHealth& health,
                                const catalog::ResourceName& key,
                                absl::Status status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
      health.Suspect(key);
      break;
    default:
      break;
  }
  return status;
}

absl::Status AuditRefusal(core::KeyService& keys, const core::CallInfo& call,
                          absl::string_view method,
                          const catalog::ResourceName& key,
                          absl::Status refusal) {
  if (refusal.ok()) return refusal;
  RETURN_IF_ERROR(
      keys.Audit(call, method, key.ToString(), refusal, "malformed request"));
  return refusal;
}

}  // namespace kek::service
