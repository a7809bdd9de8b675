// SPDX-License-Identifier: Apache-2.0
#include "tests/fault/fault_test.h"

#include <fcntl.h>
#include <openssl/rand.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "tests/support/test_tokens.h"

extern char** environ;

namespace kek::fault {
namespace {

constexpr char kSoftHsm[] = "/usr/lib/softhsm/libsofthsm2.so";

bool RunProcess(std::vector<std::string> arguments) {
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  pid_t child;
  const int error =
      posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return false;
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

void SoftHsm::Use() const {
  setenv("SOFTHSM2_CONF", dir_.File("softhsm2.conf").c_str(), 1);
}

void SoftHsm::InitToken(const std::string& label) {
  ASSERT_OK(testing::TestToken::SoftHsm(dir_.path(), label));
  Use();
}

bool SoftHsm::Tool(const std::string& label,
                   const std::vector<std::string>& arguments) const {
  Use();
  std::vector<std::string> command = {"pkcs11-tool",   "--module", kSoftHsm,
                                      "--token-label", label,      "--login",
                                      "--pin",         "1234"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return RunProcess(std::move(command));
}

void FaultTest::SetUp() {
  soft_hsm_.InitToken(kLabel);
  state_dir_ = dir_.File("state");
  std::filesystem::create_directory(state_dir_);
  std::filesystem::permissions(state_dir_, std::filesystem::perms::owner_all);
  pin_file_ = dir_.Write("pin", absl::StrCat(kPin, "\n"));
  rules_.emplace();
}

void FaultTest::TearDown() {
  token_.reset();
  EXPECT_THAT(rules_->Violations(), ::testing::IsEmpty());
}

pkcs11::TokenOptions FaultTest::Options() {
  pkcs11::TokenOptions options;
  options.module_path = FaultRules::ModulePath();
  options.uri = absl::StrCat("pkcs11:token=", kLabel);
  options.pin = pkcs11::PinSource::File(pin_file_);
  options.state_dir = state_dir_;
  options.metrics = &metrics_;
  options.reinitialize_min_interval = absl::Milliseconds(100);
  options.on_event = [this](const std::string& event,
                            const std::string& detail) {
    base::MutexLock lock(mu_);
    events_.push_back(absl::StrCat(event, ": ", detail));
  };
  return options;
}

absl::Status FaultTest::Open(pkcs11::TokenOptions options) {
  token_.reset();
  absl::StatusOr<std::unique_ptr<pkcs11::Token>> token =
      pkcs11::Token::Open(std::move(options));
  if (!token.ok()) return token.status();
  token_ = *std::move(token);
  return absl::OkStatus();
}

void FaultTest::OpenReady() {
  ASSERT_OK(Open());
  ASSERT_TRUE(Eventually([&] { return State() == pkcs11::TokenState::kReady; }))
      << token_->health().last_error;
}

pkcs11::KeyIdentity FaultTest::NewIdentity(const std::string& label) {
  pkcs11::KeyIdentity identity;
  identity.id.resize(16);
  RAND_bytes(identity.id.data(), 16);
  identity.label = label;
  return identity;
}

KnownKey FaultTest::MakeKey(const std::string& label) {
  KnownKey known;
  known.identity = NewIdentity(label);
  const absl::StatusOr<pkcs11::KeyAttributes> attributes =
      token_->GenerateKey(known.identity, Soon());
  EXPECT_OK(attributes);
  if (!attributes.ok()) return known;
  absl::StatusOr<pkcs11::Canary> canary =
      token_->MakeCanary(known.identity, aad_, Soon());
  EXPECT_OK(canary);
  if (!canary.ok()) return known;
  known.canary = *std::move(canary);
  return Reopened(known);
}

KnownKey FaultTest::Reopened(const KnownKey& known) {
  return {known.identity, known.canary,
          token_->AddKey(known.identity, known.canary)};
}

absl::StatusOr<pkcs11::Sealed> FaultTest::Encrypt(const KnownKey& key,
                                                  bool verify) {
  if (key.key == nullptr) return absl::InternalError("the test has no key");
  pkcs11::EncryptOptions options;
  options.verify = verify;
  return token_->Encrypt(key.key, aad_, plaintext_, options, Soon());
}

absl::StatusOr<base::SecretBytes> FaultTest::Decrypt(
    const KnownKey& key, const pkcs11::Sealed& sealed) {
  if (key.key == nullptr) return absl::InternalError("the test has no key");
  return token_->Decrypt(key.key, aad_, sealed, Soon());
}

bool FaultTest::Opens(const KnownKey& key, const pkcs11::Sealed& sealed) {
  const absl::StatusOr<base::SecretBytes> opened = Decrypt(key, sealed);
  EXPECT_OK(opened);
  return opened.ok() && base::ConstantTimeEqual(opened->span(), plaintext_);
}

absl::Status FaultTest::EncryptsBefore(const KnownKey& key,
                                       base::Deadline deadline) {
  absl::Status last;
  Eventually(
      [&] {
        last = Encrypt(key).status();
        return last.ok();
      },
      deadline);
  return last;
}

void FaultTest::UnderLoad(const KnownKey& key,
                          const std::function<void()>& action) {
  std::atomic<int> done{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      while (!stop) {
        const absl::StatusOr<pkcs11::Sealed> sealed = Encrypt(key);
        EXPECT_OK(sealed);
        if (sealed.ok()) {
          EXPECT_TRUE(Opens(key, *sealed));
        } else {
          stop = true;
        }
        ++done;
      }
    });
  }
  EXPECT_TRUE(Eventually([&] { return done >= 20 || stop; }));
  action();
  const int before = done;
  EXPECT_TRUE(Eventually([&] { return done >= before + 100 || stop; }));
  stop = true;
  for (std::thread& thread : threads) thread.join();
}

bool FaultTest::Eventually(const std::function<bool()>& condition,
                           base::Deadline deadline) {
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

std::vector<std::string> FaultTest::Events() {
  base::MutexLock lock(mu_);
  return events_;
}

std::vector<std::string> FaultTest::Ivs() const {
  std::vector<std::string> ivs;
  for (const FaultRules::Call& call : rules_->Calls("C_EncryptInit")) {
    ivs.push_back(call.details.at("iv"));
  }
  return ivs;
}

std::string FaultTest::Hex(const std::vector<uint8_t>& bytes) {
  return absl::BytesToHexString(absl::string_view(
      reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

int FaultTest::PlaintextEncryptions() const {
  int encryptions = 0;
  for (const FaultRules::Call& call : rules_->Calls("C_Encrypt")) {
    encryptions += call.details.at("size") == "24" ? 1 : 0;
  }
  return encryptions;
}

}  // namespace kek::fault
