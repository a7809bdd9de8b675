// SPDX-License-Identifier: Apache-2.0
#pragma once

// (gRPC-heavy; include only where front ends are wired.)

#include <memory>

#include <grpcpp/impl/codegen/service_type.h>

#include "core/key_service.h"
#include "service/dispatch.h"

namespace kek::service {

// google.cloud.kms.v1.KeyManagementService (proto/wire/google/cloud/kms/v1) as
// a gRPC service: KeyRings, CryptoKeys and CryptoKeyVersions, Encrypt and
// Decrypt. It translates fields; rules are core::KeyService's. Methods that are
// not offered answer UNIMPLEMENTED. All references must outlive it.
std::unique_ptr<grpc::Service> MakeCloudKmsV1(core::KeyService& keys,
                                              Dispatch& dispatch);

}  // namespace kek::service
