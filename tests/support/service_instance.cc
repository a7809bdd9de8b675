// SPDX-License-Identifier: Apache-2.0
#include "tests/support/service_instance.h"

#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kek::core {

namespace fs = std::filesystem;

void ServiceInstance::Prepare(const std::string& directory) {
  for (const char* name : {"state", "audit"}) {
    const std::string path = absl::StrCat(directory, "/", name);
    fs::create_directory(path);
    fs::permissions(path, fs::perms::owner_all);
  }
  const std::string pin = absl::StrCat(directory, "/pin");
  std::ofstream(pin) << "1234\n";
  fs::permissions(pin, fs::perms::owner_read | fs::perms::owner_write);
}

absl::StatusOr<std::unique_ptr<ServiceInstance>> ServiceInstance::Open(
    const Options& options) {
  auto instance = std::make_unique<ServiceInstance>();
  pkcs11::TokenOptions token;
  token.module_path = options.module;
  token.uri = absl::StrCat("pkcs11:token=", kTokenLabel);
  token.pin = pkcs11::PinSource::File(absl::StrCat(options.directory, "/pin"));
  token.state_dir = absl::StrCat(options.directory, "/state");
  token.metrics = options.service.metrics;
  token.reinitialize_min_interval = absl::Milliseconds(100);
  ASSIGN_OR_RETURN(instance->token, pkcs11::Token::Open(std::move(token)));
  RETURN_IF_ERROR(
      instance->token->Probe(base::DeadlineAfter(std::chrono::seconds(20))));
  ASSIGN_OR_RETURN(
      instance->catalog,
      catalog::OpenSqliteCatalog(
          {.path = absl::StrCat(options.directory, "/catalog.db")}));
  std::vector<Grant> grants;
  for (const char* role :
       {"roles/cloudkms.admin", "roles/cloudkms.cryptoKeyEncrypterDecrypter"}) {
    for (const char* principal : {"unix:uid:0", "unix:uid:7"}) {
      grants.push_back({.principal = principal, .role = role});
    }
  }
  ASSIGN_OR_RETURN(instance->authorizer, Authorizer::Create(std::move(grants)));
  ASSIGN_OR_RETURN(
      instance->audit,
      AuditLog::Open({.directory = absl::StrCat(options.directory, "/audit"),
                      .metrics = options.service.metrics}));
  instance->service = std::make_unique<KeyService>(
      *instance->catalog, *instance->token, *instance->authorizer,
      *instance->audit, options.service);
  return instance;
}

CallInfo ServiceInstance::Root(base::Deadline deadline) {
  CallInfo call;
  call.caller.principals = {"unix:uid:0"};
  call.caller.authenticator = Authenticator::kPeerCredentials;
  call.caller.front_end = FrontEnd::kCloudKms;
  call.request_id = "request-1";
  call.deadline = deadline;
  return call;
}

}  // namespace kek::core
