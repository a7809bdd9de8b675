// SPDX-License-Identifier: Apache-2.0
//
// kill -9 at every step of what changes keys, and at random: nothing that was
// acknowledged is lost, there is exactly one primary, nothing is ENABLED
// without a proven canary, no object stays behind unreported, and uses are
// never counted too low.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fault/fault_test.h"
#include "tests/support/service_instance.h"

extern char** environ;

namespace kek::core {
namespace {

using base::testing::StatusIs;
using catalog::CryptoKeyVersion;
using catalog::ResourceName;
using catalog::VersionState;
using ::testing::Contains;
using ::testing::IsEmpty;
using ::testing::Not;

// The random tests are short here and long in the slow suite.
bool Slow() { return std::getenv("KEK_SLOW") != nullptr; }

base::Deadline Soon() { return base::DeadlineAfter(std::chrono::seconds(30)); }

class CrashTest : public ::testing::Test {
 protected:
  static constexpr char kRing[] = "projects/p/locations/l/keyRings/r";

  void SetUp() override {
    soft_hsm_.InitToken(ServiceInstance::kTokenLabel);
    ServiceInstance::Prepare(dir_.path());
    Reopen();
    ASSERT_OK(instance_->service->CreateKeyRing(
        Root(), Name("projects/p/locations/l"), "r"));
    ASSERT_OK(Create("k"));
    sealed_ = Encrypt(Key());
    instance_.reset();
  }

  static CallInfo Root() { return ServiceInstance::Root(Soon()); }
  static ResourceName Name(const std::string& text) {
    return *ResourceName::Parse(text);
  }
  static ResourceName Key(const std::string& id = "k") {
    return Name(absl::StrCat(kRing, "/cryptoKeys/", id));
  }

  void Reopen() {
    instance_.reset();
    ServiceInstance::Options options{.directory = dir_.path()};
    options.service.clock = &clock_;
    options.service.max_use_block = 16;
    ASSERT_OK_AND_ASSIGN(instance_, ServiceInstance::Open(options));
  }

  absl::Status Create(const std::string& id) {
    CreateCryptoKeyRequest request{.ring = Name(kRing)};
    request.id = id;
    request.purpose = catalog::Purpose::kEncryptDecrypt;
    return instance_->service->CreateCryptoKey(Root(), request).status();
  }
  std::vector<uint8_t> Encrypt(const ResourceName& name) {
    constexpr absl::string_view kPayload = "payload";
    const absl::StatusOr<EncryptResult> sealed = instance_->service->Encrypt(
        Root(),
        {.name = name,
         .context = EnvelopeContext::kCloudKms,
         .plaintext = {reinterpret_cast<const uint8_t*>(kPayload.data()),
                       kPayload.size()}});
    EXPECT_OK(sealed);
    return sealed.ok() ? sealed->ciphertext : std::vector<uint8_t>();
  }
  std::string Opened(const ResourceName& key,
                     const std::vector<uint8_t>& sealed) {
    const absl::StatusOr<DecryptResult> opened = instance_->service->Decrypt(
        Root(), {.key = key,
                 .context = EnvelopeContext::kCloudKms,
                 .ciphertext = sealed});
    if (!opened.ok()) return opened.status().ToString();
    return {reinterpret_cast<const char*>(opened->plaintext.data()),
            opened->plaintext.size()};
  }
  CryptoKeyVersion Version(const ResourceName& name) {
    absl::StatusOr<CryptoKeyVersion> version =
        instance_->catalog->GetVersion(name);
    EXPECT_OK(version);
    return *std::move(version);
  }
  catalog::CryptoKey KeyRecord(const ResourceName& name) {
    absl::StatusOr<catalog::CryptoKey> key =
        instance_->catalog->GetCryptoKey(name);
    EXPECT_OK(key);
    return *std::move(key);
  }

  // The driver as a child, with what it says.
  class Driver {
   public:
    Driver(const std::string& directory, const std::string& scenario,
           const std::string& failpoint) {
      int ends[2];
      EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
      out_ = ends[0];
      std::vector<std::string> environment;
      for (char** e = environ; *e != nullptr; ++e) environment.push_back(*e);
      environment.push_back(absl::StrCat("KEKD_FAILPOINT=", failpoint));
      std::vector<char*> env;
      for (std::string& e : environment) env.push_back(e.data());
      env.push_back(nullptr);
      std::string program = KEK_CRASH_DRIVER, dir = directory, what = scenario;
      char* argv[] = {program.data(), dir.data(), what.data(), nullptr};
      posix_spawn_file_actions_t actions;
      posix_spawn_file_actions_init(&actions);
      posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
      EXPECT_EQ(
          posix_spawn(&pid_, argv[0], &actions, nullptr, argv, env.data()), 0);
      posix_spawn_file_actions_destroy(&actions);
      close(ends[1]);
    }
    ~Driver() {
      Kill();
      Wait();
      close(out_);
    }

    // Reads until count lines that begin so are there; false at the deadline or
    // when the driver has ended.
    bool WaitForLines(absl::string_view begin, size_t count) {
      const base::Deadline deadline = Soon();
      while (Lines(begin).size() < count) {
        if (!Read(deadline)) return false;
      }
      return true;
    }
    void Kill() {
      if (pid_ > 0) kill(pid_, SIGKILL);
    }
    // Reads to the end; returns how it ended.
    int Wait() {
      if (pid_ <= 0) return status_;
      while (Read(Soon())) {
      }
      EXPECT_EQ(waitpid(pid_, &status_, 0), pid_);
      pid_ = -1;
      return status_;
    }
    // Complete lines that begin so, without that.
    std::vector<std::string> Lines(absl::string_view begin) const {
      std::vector<std::string> found;
      std::vector<absl::string_view> lines = absl::StrSplit(text_, '\n');
      lines.pop_back();  // what follows the last line end
      for (const absl::string_view line : lines) {
        if (absl::StartsWith(line, begin)) {
          found.emplace_back(line.substr(begin.size()));
        }
      }
      return found;
    }
    const std::string& text() const { return text_; }

   private:
    bool Read(base::Deadline deadline) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          deadline - std::chrono::steady_clock::now());
      pollfd waited{.fd = out_, .events = POLLIN};
      if (left.count() <= 0 ||
          poll(&waited, 1, static_cast<int>(left.count())) <= 0) {
        return false;
      }
      char buffer[65536];
      const ssize_t size = read(out_, buffer, sizeof buffer);
      if (size <= 0) return false;
      text_.append(buffer, static_cast<size_t>(size));
      return true;
    }

    pid_t pid_ = -1;
    int out_ = -1;
    int status_ = 0;
    std::string text_;
  };

  // Runs a scenario that is to die at this point.
  void DieAt(const std::string& scenario, const std::string& failpoint) {
    Driver driver(dir_.path(), scenario, failpoint);
    const int status = driver.Wait();
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        << driver.text();
    EXPECT_THAT(driver.Lines("ready"), Not(IsEmpty()));
    Reopen();
  }

  // What must be true at any moment, also before anything was resumed: every
  // key that has a primary has it ENABLED and usable, whatever is ENABLED has a
  // canary and works, and what was sealed before still opens.
  void CheckUsable() {
    ASSERT_OK(
        instance_->catalog->VisitVersions([&](const CryptoKeyVersion& version) {
          if (version.state == VersionState::kEnabled) {
            EXPECT_TRUE(version.canary.has_value()) << version.name.ToString();
            EXPECT_EQ(Opened(version.name.CryptoKey(), Encrypt(version.name)),
                      "payload")
                << version.name.ToString();
          } else if (version.state == VersionState::kPendingGeneration) {
            EXPECT_FALSE(version.canary.has_value());
          }
          return absl::OkStatus();
        }));
    ASSERT_OK(
        instance_->catalog->VisitCryptoKeys([&](const catalog::CryptoKey& key) {
          if (key.primary_version != 0) {
            EXPECT_EQ(Version(key.name.Version(key.primary_version)).state,
                      VersionState::kEnabled)
                << key.name.ToString();
            EXPECT_LT(key.primary_version, key.next_version);
          }
          return absl::OkStatus();
        }));
  }

  // What must be true when kekd has started again: nothing is pending, and
  // catalog and token agree but for half-made objects, which are reported.
  void CheckSettled() {
    CheckUsable();
    ASSERT_OK_AND_ASSIGN(const auto pending,
                         instance_->catalog->PendingVersions(100));
    EXPECT_THAT(pending, IsEmpty());
    ASSERT_OK_AND_ASSIGN(const ReconcileReport report,
                         instance_->service->Reconcile(Soon()));
    EXPECT_THAT(report.missing, IsEmpty());
    EXPECT_THAT(report.orphans, IsEmpty());
    EXPECT_THAT(report.pending, IsEmpty());
    ASSERT_OK_AND_ASSIGN(const auto objects,
                         instance_->token->ListKeys(Soon()));
    size_t usable = 0;
    for (const pkcs11::ObjectInfo& object : objects) {
      if (object.usable) ++usable;
    }
    size_t expected = 0;
    ASSERT_OK(
        instance_->catalog->VisitVersions([&](const CryptoKeyVersion& version) {
          if (version.state != VersionState::kGenerationFailed &&
              version.state != VersionState::kDestroyed) {
            ++expected;
          }
          return absl::OkStatus();
        }));
    EXPECT_EQ(usable, expected);
    EXPECT_EQ(report.half_objects.size(), objects.size() - usable);
  }

  void Resume() {
    ASSERT_OK(instance_->service->ResumePending(Soon()));
    CheckSettled();
  }

  fault::SoftHsm soft_hsm_;
  base::testing::TempDir dir_;
  base::ManualClock clock_{absl::FromUnixSeconds(1'800'000'000)};
  std::unique_ptr<ServiceInstance> instance_;
  std::vector<uint8_t> sealed_;  // "payload" under k's version 1
};

// ---- at each step

TEST_F(CrashTest, CreateKilledAfterTheIntent) {
  DieAt("create", "create.intent");
  EXPECT_EQ(Version(Key("new").Version(1)).state,
            VersionState::kPendingGeneration);
  CheckUsable();
  Resume();
  const CryptoKeyVersion version = Version(Key("new").Version(1));
  EXPECT_EQ(version.state, VersionState::kGenerationFailed);
  EXPECT_FALSE(version.failure_reason.empty());
  EXPECT_EQ(KeyRecord(Key("new")).primary_version, 0u);
  // A retry completes it; the number is not used again.
  ASSERT_OK(Create("new"));
  EXPECT_EQ(KeyRecord(Key("new")).primary_version, 2u);
  CheckSettled();
}

TEST_F(CrashTest, CreateKilledAfterTheGeneration) {
  DieAt("create", "create.generated");
  EXPECT_EQ(Version(Key("new").Version(1)).state,
            VersionState::kPendingGeneration);
  CheckUsable();
  Resume();
  EXPECT_EQ(Version(Key("new").Version(1)).state, VersionState::kEnabled);
  EXPECT_EQ(KeyRecord(Key("new")).primary_version, 1u);
  EXPECT_EQ(KeyRecord(Key("new")).primary_activation, 1u);
  EXPECT_THAT(Create("new"), StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST_F(CrashTest, CreateKilledAfterTheCanary) {
  DieAt("create", "create.canary");
  EXPECT_EQ(Version(Key("new").Version(1)).state,
            VersionState::kPendingGeneration);
  CheckUsable();
  Resume();
  EXPECT_EQ(Version(Key("new").Version(1)).state, VersionState::kEnabled);
  EXPECT_EQ(KeyRecord(Key("new")).primary_version, 1u);
}

TEST_F(CrashTest, CreateKilledAfterTheCommit) {
  DieAt("create", "create.committed");
  EXPECT_EQ(Version(Key("new").Version(1)).state, VersionState::kEnabled);
  CheckSettled();
  Resume();
  EXPECT_EQ(KeyRecord(Key("new")).primary_version, 1u);
  EXPECT_THAT(Create("new"), StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST_F(CrashTest, RotateKilledAfterTheIntent) {
  DieAt("rotate", "rotate.intent");
  EXPECT_EQ(KeyRecord(Key()).primary_version, 1u);
  CheckUsable();
  Resume();
  EXPECT_EQ(Version(Key().Version(2)).state, VersionState::kGenerationFailed);
  EXPECT_EQ(KeyRecord(Key()).primary_version, 1u);
  EXPECT_EQ(KeyRecord(Key()).primary_activation, 1u);
  EXPECT_EQ(Opened(Key(), sealed_), "payload");
}

TEST_F(CrashTest, RotateKilledAfterTheGeneration) {
  DieAt("rotate", "rotate.generated");
  EXPECT_EQ(KeyRecord(Key()).primary_version, 1u);
  CheckUsable();
  Resume();
  EXPECT_EQ(KeyRecord(Key()).primary_version, 2u);
  EXPECT_EQ(KeyRecord(Key()).primary_activation, 2u);
  EXPECT_EQ(Opened(Key(), sealed_), "payload");
}

TEST_F(CrashTest, RotateKilledAfterTheCanary) {
  DieAt("rotate", "rotate.canary");
  EXPECT_EQ(KeyRecord(Key()).primary_version, 1u);
  CheckUsable();
  Resume();
  EXPECT_EQ(KeyRecord(Key()).primary_version, 2u);
  EXPECT_EQ(Opened(Key(), sealed_), "payload");
}

TEST_F(CrashTest, RotateKilledAfterTheCommit) {
  DieAt("rotate", "rotate.committed");
  EXPECT_EQ(KeyRecord(Key()).primary_version, 2u);
  CheckSettled();
  Resume();
  EXPECT_EQ(KeyRecord(Key()).primary_version, 2u);
  EXPECT_EQ(KeyRecord(Key()).primary_activation, 2u);
  EXPECT_EQ(Opened(Key(), sealed_), "payload");
}

class DestroyCrashTest : public CrashTest {
 protected:
  void SetUp() override {
    CrashTest::SetUp();
    // Version 1 is to go; the primary is version 2.
    Reopen();
    ASSERT_OK(instance_->service->Rotate(Root(), Key()));
    instance_.reset();
  }
  // The driver's clock has gone on.
  void Later() { clock_.Advance(absl::Hours(24 * 30)); }
  // Whether version 1's object is on the token.
  bool ObjectExists() {
    const CryptoKeyVersion version = Version(Key().Version(1));
    const auto objects = instance_->token->ListKeys(Soon());
    EXPECT_OK(objects);
    for (const pkcs11::ObjectInfo& object : *objects) {
      if (object.id == version.object_id) return true;
    }
    return false;
  }
  void FinishAndCheck() {
    Later();
    EXPECT_THAT(instance_->service->Restore(Root(), Key().Version(1)),
                StatusIs(absl::StatusCode::kFailedPrecondition));
    instance_->service->RunDue(Soon());
    EXPECT_EQ(Version(Key().Version(1)).state, VersionState::kDestroyed);
    EXPECT_FALSE(ObjectExists());
    CheckSettled();
    EXPECT_THAT(Opened(Key(), sealed_), ::testing::HasSubstr("DESTROYED"));
  }
};

TEST_F(DestroyCrashTest, KilledBeforeTheObjectIsTouched) {
  DieAt("destroy", "destroy.intent");
  EXPECT_EQ(Version(Key().Version(1)).state, VersionState::kDestroyScheduled);
  EXPECT_TRUE(ObjectExists());
  CheckUsable();
  // Begun is begun, even for a clock that was set back.
  EXPECT_THAT(instance_->service->Restore(Root(), Key().Version(1)),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  FinishAndCheck();
}

TEST_F(DestroyCrashTest, KilledWhenTheObjectIsGone) {
  DieAt("destroy", "destroy.destroyed");
  EXPECT_EQ(Version(Key().Version(1)).state, VersionState::kDestroyScheduled);
  EXPECT_FALSE(ObjectExists());
  CheckUsable();
  FinishAndCheck();
}

TEST_F(DestroyCrashTest, KilledAfterTheCommit) {
  DieAt("destroy", "destroy.committed");
  EXPECT_EQ(Version(Key().Version(1)).state, VersionState::kDestroyed);
  CheckSettled();
  FinishAndCheck();
}

// ---- at random

TEST_F(CrashTest, UsesAreNeverCountedTooLow) {
  std::mt19937 random(Slow() ? std::random_device{}() : 20261121);
  const int kills = Slow() ? 500 : 30;
  uint64_t successes = 1;  // SetUp's
  for (int i = 0; i < kills; ++i) {
    Driver driver(dir_.path(), "encrypt", "");
    ASSERT_TRUE(driver.WaitForLines("E ", 1 + random() % 60)) << driver.text();
    driver.Kill();
    driver.Wait();
    successes += driver.Lines("E ").size();
  }
  Reopen();
  ASSERT_OK_AND_ASSIGN(const uint64_t reserved,
                       instance_->catalog->UsesReserved(Key().Version(1)));
  EXPECT_GE(reserved, successes);
  // And no more is wasted than the rest of a block for each kill.
  EXPECT_LE(reserved, successes + 16 * (static_cast<uint64_t>(kills) + 2));
}

TEST_F(CrashTest, WhatWasAcknowledgedUnderLoadIsThere) {
  std::mt19937 random(Slow() ? std::random_device{}() : 20261121);
  const int kills = Slow() ? 100 : 6;
  for (int i = 0; i < kills; ++i) {
    Driver driver(dir_.path(), "mixed", "");
    ASSERT_TRUE(driver.WaitForLines("E ", 1 + random() % 200)) << driver.text();
    driver.Kill();
    driver.Wait();
    EXPECT_THAT(driver.Lines("error"), IsEmpty());
    Reopen();
    ASSERT_OK(instance_->service->ResumePending(Soon()));
    CheckSettled();
    for (const std::string& hex : driver.Lines("E ")) {
      const std::string bytes = absl::HexStringToBytes(hex);
      ASSERT_EQ(Opened(Key(), {bytes.begin(), bytes.end()}), "payload");
    }
    uint32_t newest = 0;
    for (const std::string& number : driver.Lines("R ")) {
      uint32_t version = 0;
      ASSERT_TRUE(absl::SimpleAtoi(number, &version));
      EXPECT_EQ(Version(Key().Version(version)).state, VersionState::kEnabled);
      newest = std::max(newest, version);
    }
    EXPECT_GE(KeyRecord(Key()).primary_version, newest);
    for (const std::string& id : driver.Lines("C ")) {
      EXPECT_EQ(KeyRecord(Key(id)).primary_version, 1u);
    }
    EXPECT_EQ(Opened(Key(), sealed_), "payload");
    instance_.reset();
  }
}

}  // namespace
}  // namespace kek::core
