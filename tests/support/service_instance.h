// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/metrics.h"
#include "base/sync.h"
#include "catalog/catalog.h"
#include "core/audit_log.h"
#include "core/authorizer.h"
#include "core/key_service.h"
#include "pkcs11/token.h"

namespace kek::core {

// A whole KeyService and what it stands on, as tests and the programs they kill
// open it: everything durable is in one directory, the token is "kek-a" of the
// SoftHSM that SOFTHSM2_CONF names.
struct ServiceInstance {
  struct Options {
    std::string directory;  // with pin, state/ and audit/ (Prepare)
    std::string module = "/usr/lib/softhsm/libsofthsm2.so";
    KeyService::Options service;
  };
  static constexpr char kTokenLabel[] = "kek-a";

  // Makes what a directory needs before the first Open.
  static void Prepare(const std::string& directory);
  static absl::StatusOr<std::unique_ptr<ServiceInstance>> Open(
      const Options& options);

  // unix:uid:0 may do everything, and so may unix:uid:7.
  static CallInfo Root(base::Deadline deadline);

  std::unique_ptr<pkcs11::Token> token;
  std::unique_ptr<catalog::Catalog> catalog;
  std::unique_ptr<Authorizer> authorizer;
  std::unique_ptr<AuditLog> audit;
  std::unique_ptr<KeyService> service;
};

}  // namespace kek::core
