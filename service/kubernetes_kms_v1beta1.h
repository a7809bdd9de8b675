// SPDX-License-Identifier: Apache-2.0
#pragma once

// (gRPC-heavy; include only where front ends are wired.)

#include <memory>

#include <grpcpp/impl/codegen/service_type.h>

#include "catalog/resource_name.h"
#include "core/key_service.h"
#include "core/lifecycle.h"
#include "service/dispatch.h"

namespace kek::service {

// The Kubernetes KMS plugin API v1beta1 (proto/wire/kubernetes/kms/v1beta1) for
// one key, as a gRPC service that may share a server with v2. All references
// must outlive it.
//
// v1beta1 has no key_id: the version is inside the ciphertext (the Envelope),
// so that ciphertexts made before a rotation still open. Ciphertexts of v2 do
// not open here, nor these there. The version of a request is not looked at:
// Version answers "v1beta1", and the caller decides.
//
// Status codes: as core::KeyService; INVALID_ARGUMENT for an empty or too long
// plaintext or ciphertext.
std::unique_ptr<grpc::Service> MakeKubernetesKmsV1Beta1(
    core::KeyService& keys, core::KeyHealth& health, Dispatch& dispatch,
    catalog::ResourceName key);

}  // namespace kek::service
