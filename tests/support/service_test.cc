// SPDX-License-Identifier: Apache-2.0
#include "tests/support/service_test.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace kek::core {

void ServiceTest::SetUp() {
  soft_hsm_.InitToken(ServiceInstance::kTokenLabel);
  ServiceInstance::Prepare(dir_.path());
  rules_.emplace();
  options_.metrics = &metrics_;
  options_.clock = &clock_;
  Start();
  if (HasFatalFailure()) return;
  ASSERT_OK(service_->CreateKeyRing(Root(), Name(kLocation), "r"));
}

void ServiceTest::TearDown() {
  Stop();
  EXPECT_THAT(rules_->Violations(), ::testing::IsEmpty());
}

void ServiceTest::Start() {
  ASSERT_OK_AND_ASSIGN(
      const std::unique_ptr<ServiceInstance> instance,
      ServiceInstance::Open({.directory = dir_.path(),
                             .module = fault::FaultRules::ModulePath(),
                             .service = options_}));
  token_ = std::move(instance->token);
  catalog_ = std::move(instance->catalog);
  authorizer_ = std::move(instance->authorizer);
  audit_ = std::move(instance->audit);
  service_ = std::move(instance->service);
}

void ServiceTest::TakeTokenAway() {
  std::vector<std::string> rules;
  for (const char* function :
       {"C_*crypt", "C_*cryptInit", "C_OpenSession", "C_Generate*",
        "C_FindObjects*", "C_DestroyObject", "C_GetSessionInfo",
        "C_GetTokenInfo"}) {
    rules.push_back(absl::StrCat(function, " count=-1 rv=CKR_DEVICE_REMOVED"));
  }
  rules_->Set(rules);
}

void ServiceTest::Stop() {
  service_.reset();
  audit_.reset();
  catalog_.reset();
  token_.reset();
}

std::unique_ptr<KeyService> ServiceTest::Fresh() {
  return std::make_unique<KeyService>(*catalog_, *token_, *authorizer_, *audit_,
                                      options_);
}

CallInfo ServiceTest::As(const std::string& principal) {
  CallInfo call = ServiceInstance::Root(Soon());
  call.caller.principals = {principal};
  return call;
}

CallInfo ServiceTest::Root() { return As("unix:uid:0"); }

catalog::ResourceName ServiceTest::Name(absl::string_view text) {
  absl::StatusOr<catalog::ResourceName> name =
      catalog::ResourceName::Parse(text);
  EXPECT_OK(name);
  return *std::move(name);
}

CreateCryptoKeyRequest ServiceTest::KeyRequest(const std::string& id) {
  CreateCryptoKeyRequest request{.ring = Ring()};
  request.id = id;
  request.purpose = catalog::Purpose::kEncryptDecrypt;
  return request;
}

catalog::ResourceName ServiceTest::MakeKey(const std::string& id) {
  const absl::StatusOr<CryptoKeyView> made =
      service_->CreateCryptoKey(Root(), KeyRequest(id));
  EXPECT_OK(made);
  return Name(absl::StrCat(kRing, "/cryptoKeys/", id));
}

absl::StatusOr<EncryptResult> ServiceTest::Encrypt(
    const catalog::ResourceName& name, absl::string_view plaintext,
    absl::string_view aad) {
  return service_->Encrypt(Root(), {.name = name,
                                    .context = EnvelopeContext::kCloudKms,
                                    .plaintext = Bytes(plaintext),
                                    .aad = Bytes(aad)});
}

absl::StatusOr<DecryptResult> ServiceTest::Decrypt(
    const catalog::ResourceName& key, std::span<const uint8_t> ciphertext,
    absl::string_view aad) {
  return service_->Decrypt(Root(), {.key = key,
                                    .context = EnvelopeContext::kCloudKms,
                                    .ciphertext = ciphertext,
                                    .aad = Bytes(aad)});
}

std::string ServiceTest::Opened(const catalog::ResourceName& key,
                                std::span<const uint8_t> ciphertext,
                                absl::string_view aad) {
  const absl::StatusOr<DecryptResult> result = Decrypt(key, ciphertext, aad);
  return result.ok() ? Text(result->plaintext.span())
                     : absl::StrCat("[", result.status().message(), "]");
}

std::vector<std::string> ServiceTest::AuditLines(
    const std::vector<std::string>& needles) const {
  std::set<std::string> files;
  for (const auto& entry :
       std::filesystem::directory_iterator(dir_.File("audit"))) {
    if (entry.is_regular_file()) files.insert(entry.path());
  }
  std::vector<std::string> found;
  for (const std::string& file : files) {
    const std::string text = base::testing::TempDir::Read(file);
    for (const absl::string_view line : absl::StrSplit(text, '\n')) {
      if (std::all_of(needles.begin(), needles.end(),
                      [&](const std::string& needle) {
                        return absl::StrContains(line, needle);
                      })) {
        if (!line.empty()) found.emplace_back(line);
      }
    }
  }
  return found;
}

int ServiceTest::TokenDecrypts(size_t ciphertext_size) const {
  int count = 0;
  for (const fault::FaultRules::Call& call : rules_->Calls("C_Decrypt")) {
    const auto size = call.details.find("size");
    if (size != call.details.end() &&
        size->second == absl::StrCat(ciphertext_size)) {
      ++count;
    }
  }
  return count;
}

}  // namespace kek::core
