// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/metrics.h"
#include "base/sync.h"
#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "pkcs11/token.h"
#include "tests/support/fault_rules.h"

namespace kek::fault {

// A key as a catalog would know it.
struct KnownKey {
  pkcs11::KeyIdentity identity;
  pkcs11::Canary canary;
  std::shared_ptr<pkcs11::Key> key;
};

// A private SoftHSM: a directory of tokens and the processes that look after
// it. Its tokens are kek::testing::TestToken's.
class SoftHsm {
 public:
  // A new token with the test PIN; then Use.
  void InitToken(const std::string& label);
  // Makes this the directory that libraries initialised from now on see.
  void Use() const;
  // pkcs11-tool, logged in at this label's token, in a process of its own.
  // Returns whether it succeeded.
  bool Tool(const std::string& label,
            const std::vector<std::string>& arguments) const;

 private:
  base::testing::TempDir dir_;
};

// A fresh token "kek-a" behind the fault module. Every test ends with a look at
// what the fault module accuses the engine of.
class FaultTest : public ::testing::Test {
 protected:
  static constexpr char kPin[] = "1234";
  static constexpr char kLabel[] = "kek-a";

  void SetUp() override;
  void TearDown() override;

  static base::Deadline Soon() {
    return base::DeadlineAfter(std::chrono::seconds(10));
  }

  pkcs11::TokenOptions Options();
  // Opens token_; further arguments as Options() unless changed.
  absl::Status Open(pkcs11::TokenOptions options);
  absl::Status Open() { return Open(Options()); }
  // Opens token_ and waits until it is ready.
  void OpenReady();

  KnownKey MakeKey(const std::string& label = "key");
  static pkcs11::KeyIdentity NewIdentity(const std::string& label);
  // The key as a new Token knows it.
  KnownKey Reopened(const KnownKey& known);

  absl::StatusOr<pkcs11::Sealed> Encrypt(const KnownKey& key,
                                         bool verify = true);
  absl::StatusOr<base::SecretBytes> Decrypt(const KnownKey& key,
                                            const pkcs11::Sealed& sealed);
  // True when sealed opens to the plaintext Encrypt takes.
  bool Opens(const KnownKey& key, const pkcs11::Sealed& sealed);
  // Encrypts until one succeeds; the last failure if none does in time.
  absl::Status EncryptsBefore(const KnownKey& key, base::Deadline deadline);

  // Runs threads of encryption and decryption under key; every failure is
  // reported as a test failure. action runs when at least 20 operations are
  // done, and load goes on for at least 100 more after it.
  void UnderLoad(const KnownKey& key, const std::function<void()>& action);

  // Whether condition becomes true before the deadline.
  static bool Eventually(const std::function<bool()>& condition,
                         base::Deadline deadline = Soon());

  pkcs11::TokenState State() const { return token_->health().state; }
  uint64_t Generation() const { return token_->health().generation; }
  std::vector<std::string> Events();
  // The IVs of every encryption the module was asked for since Forget.
  std::vector<std::string> Ivs() const;
  static std::string Hex(const std::vector<uint8_t>& bytes);
  // Encryptions of test plaintexts (not canaries) that the module was asked to
  // make since Forget.
  int PlaintextEncryptions() const;

  SoftHsm soft_hsm_;
  base::testing::TempDir dir_;
  std::optional<FaultRules> rules_;
  base::Metrics metrics_;
  std::string state_dir_;
  std::string pin_file_;
  std::unique_ptr<pkcs11::Token> token_;
  std::vector<uint8_t> aad_ = {'a', 'a', 'd'};
  // 24 bytes, a size no canary has, so that rules can tell them apart.
  std::vector<uint8_t> plaintext_ = std::vector<uint8_t>(24, 0x5a);
  static constexpr size_t kSealedSize = 24 + 16;

 private:
  base::Mutex mu_;
  std::vector<std::string> events_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kek::fault
