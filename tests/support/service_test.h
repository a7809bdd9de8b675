// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/clock.h"
#include "base/metrics.h"
#include "base/sync.h"
#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "catalog/catalog.h"
#include "core/audit_log.h"
#include "core/authorizer.h"
#include "core/key_service.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "pkcs11/token.h"
#include "tests/fault/fault_test.h"
#include "tests/support/fault_rules.h"
#include "tests/support/service_instance.h"

namespace kek::core {

inline std::span<const uint8_t> Bytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}
inline std::string Text(std::span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A whole KeyService on a fresh SoftHSM token behind the fault module, with a
// SQLite catalog and an audit log in a temporary directory, and a clock that
// stands still. Key ring kRing exists. Every test ends with a look at what the
// fault module accuses the engine of.
class ServiceTest : public ::testing::Test {
 protected:
  static constexpr char kLocation[] = "projects/p/locations/l";
  static constexpr char kRing[] = "projects/p/locations/l/keyRings/r";

  void SetUp() override;
  void TearDown() override;

  // What SetUp starts. Options may be changed before Start.
  void Start();
  void Stop();
  void Restart() {
    Stop();
    Start();
  }
  // Until the rules are cleared, every use of the token fails as if it had been
  // pulled out.
  void TakeTokenAway();
  // Another KeyService on the same token and catalog, without a cache of the
  // first: to see what is durable.
  std::unique_ptr<KeyService> Fresh();

  static base::Deadline Soon() {
    return base::DeadlineAfter(std::chrono::seconds(20));
  }
  // May do everything.
  static CallInfo Root();
  static CallInfo As(const std::string& principal);
  static catalog::ResourceName Name(absl::string_view text);
  static catalog::ResourceName Ring() { return Name(kRing); }

  // A key with its first version.
  catalog::ResourceName MakeKey(const std::string& id);
  static CreateCryptoKeyRequest KeyRequest(const std::string& id);

  absl::StatusOr<EncryptResult> Encrypt(const catalog::ResourceName& name,
                                        absl::string_view plaintext,
                                        absl::string_view aad = "");
  absl::StatusOr<DecryptResult> Decrypt(const catalog::ResourceName& key,
                                        std::span<const uint8_t> ciphertext,
                                        absl::string_view aad = "");
  // The plaintext, or the error's text in brackets.
  std::string Opened(const catalog::ResourceName& key,
                     std::span<const uint8_t> ciphertext,
                     absl::string_view aad = "");

  // Lines of the audit log so far that contain every one of the needles.
  std::vector<std::string> AuditLines(
      const std::vector<std::string>& needles) const;
  // How often the token was asked to decrypt something of this size.
  int TokenDecrypts(size_t ciphertext_size) const;

  fault::SoftHsm soft_hsm_;
  base::testing::TempDir dir_;
  std::optional<fault::FaultRules> rules_;
  base::Metrics metrics_;
  base::ManualClock clock_{absl::FromUnixSeconds(1'800'000'000)};
  KeyService::Options options_;
  std::unique_ptr<pkcs11::Token> token_;
  std::unique_ptr<catalog::Catalog> catalog_;
  std::unique_ptr<Authorizer> authorizer_;
  std::unique_ptr<AuditLog> audit_;
  std::unique_ptr<KeyService> service_;
};

}  // namespace kek::core
