// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/sync.h"

namespace kek::cli {

// What a check found, step by step; a step that failed is the last one.
struct CheckStep {
  std::string name;    // "Status", "Encrypt", ...
  std::string detail;  // what was seen, or what is wrong; no plaintext
  absl::Duration time;
  bool passed = false;
};
struct CheckReport {
  std::vector<CheckStep> steps;
  std::string key_id;   // v2
  std::string version;  // what the plugin says its API or runtime is
  // OK; DATA_LOSS: the plugin breaks the contract that kube-apiserver relies
  // on; UNAVAILABLE or DEADLINE_EXCEEDED: it did not become healthy; or the
  // plugin's own error.
  absl::Status result;
};

// Checks a KMS plugin of any make as a control plane does before it trusts it:
// Status until healthy, Encrypt of 32 random bytes, Decrypt of the result, and
// that key_id, version, sizes and annotations keep the rules of kube-apiserver
// (k8s.io/apiserver .../kmsv2/envelope.go). A rotation during the check is no
// failure. Connects anew until the deadline, so that it may be started before
// the plugin.
CheckReport CheckKmsV2(const std::string& socket, base::Deadline deadline);

// The same for a v1beta1 plugin: Version, Encrypt, Decrypt.
CheckReport CheckKmsV1Beta1(const std::string& socket, base::Deadline deadline);

}  // namespace kek::cli
