// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace kek::cli {

// What a control plane needs to know of one binding.
struct ProviderOptions {
  // Name of the provider in EncryptionConfiguration. It becomes part of every
  // stored value and can never change.
  std::string name;
  std::string socket;  // of the plugin; absolute, or "@name"
  // kekd's admin socket, if there is one: what shares a directory with it is
  // warned of.
  std::string admin_socket;
  absl::Duration timeout = absl::Seconds(3);
  std::vector<std::string> resources = {"secrets"};
  // Adds a v1beta1 provider after the v2 one, for data from before a
  // migration.
  bool v1beta1 = false;
};

// The pieces of text an operator puts in place.
struct ProviderConfig {
  std::string encryption_configuration;  // apiserver.config.k8s.io/v1, YAML
  std::string static_pod;  // args, volumeMounts and volumes of kube-apiserver
  std::string systemd;     // drop-in for a kube-apiserver run by systemd
};

// INVALID_ARGUMENT: a name kube-apiserver refuses (empty, with ':'), a socket
// that is neither absolute nor abstract, no resources.
absl::StatusOr<ProviderConfig> KubernetesProviderConfig(
    const ProviderOptions& options);

}  // namespace kek::cli
