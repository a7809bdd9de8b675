// SPDX-License-Identifier: Apache-2.0
#pragma once

// (gRPC-heavy; include only where front ends are wired.)

#include <memory>
#include <string>

#include <grpcpp/impl/codegen/service_type.h>

#include "catalog/resource_name.h"
#include "core/key_service.h"
#include "core/lifecycle.h"
#include "service/dispatch.h"

namespace kek::service {

struct KubernetesKmsV2Options {
  // When the token or the key does not work.
  enum class OnHsmLoss {
    // Status is an error: kube-apiserver stops writing after three minutes.
    kStopWrites,
    // Status answers, and healthz says what is wrong: kube-apiserver goes on
    // writing under the seed it has.
    kKeepWrites
  };
  catalog::ResourceName key;
  std::string version = "v2";  // what Status answers; "v2" or "v2beta1"
  OnHsmLoss on_hsm_loss = OnHsmLoss::kStopWrites;
  bool require_uid = false;
};

// The Kubernetes KMS plugin API v2 (proto/wire/kubernetes/kms/v2) for one key,
// as a gRPC service to be registered with one server. All references must
// outlive it.
//
// Encrypt and Status make the key_id of the same snapshot of the key's primary
// (service/kubernetes_key_id.h), so that they agree by construction. The key_id
// is authenticated with the ciphertext; Decrypt opens the version that both
// name, whatever is primary now. Encrypt answers no annotations, and Decrypt
// does not look at any: there is nothing in them that could be altered.
//
// Status answers from memory (core::KeyHealth) and never waits for the token. A
// key without an ENABLED primary makes it an error whatever on_hsm_loss says.
//
// Status codes: as core::KeyService; INVALID_ARGUMENT for an empty or too long
// plaintext or ciphertext, and for a key_id that kekd did not give.
std::unique_ptr<grpc::Service> MakeKubernetesKmsV2(
    core::KeyService& keys, core::KeyHealth& health, Dispatch& dispatch,
    KubernetesKmsV2Options options);

}  // namespace kek::service
