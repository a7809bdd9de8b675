// SPDX-License-Identifier: Apache-2.0
#pragma once

// (gRPC-heavy; include only where front ends are wired.)

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/impl/codegen/service_type.h>

#include "absl/time/time.h"
#include "catalog/resource_name.h"
#include "core/audit_log.h"
#include "core/key_service.h"
#include "core/lifecycle.h"
#include "pkcs11/token.h"
#include "service/dispatch.h"

namespace kek::service {

// What the admin API tells of one Kubernetes binding.
struct AdminBinding {
  std::string name;
  std::string socket;
  catalog::ResourceName key;
  const core::KeyHealth* health;
};

// What the admin API shows and steers. References must outlive the service.
struct AdminContext {
  core::KeyService& keys;
  pkcs11::Token& token;
  const core::AuditLog& audit;
  const core::Lifecycle& lifecycle;
  std::vector<AdminBinding> bindings;
  std::string version;  // kekd's
  absl::Time start_time;
  std::string token_uri;
  std::string token_module;
  std::string audit_directory;
  std::function<std::vector<std::string>()> not_ready;
  std::function<std::string()> config_digest;
};

// kek.admin.v1.Admin (proto/kek/admin.proto) as a gRPC service. Reading takes
// the permission kekd.server.get, the rest kekd.server.operate, and
// RotateCryptoKey what KeyService::Rotate takes. Every call but a permitted
// GetStatus leaves an audit record.
std::unique_ptr<grpc::Service> MakeAdminService(AdminContext context,
                                                Dispatch& dispatch);

// "READY", ...
absl::string_view TokenStateName(pkcs11::TokenState state);

}  // namespace kek::service
