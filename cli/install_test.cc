// SPDX-License-Identifier: Apache-2.0
// kekctl init, with a real SoftHSM.
#include "cli/install.h"

#include <pwd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <cstdio>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "cli/exit_code.h"
#include "cli/testing/run_kekctl.h"

namespace kek::cli {
namespace {

namespace fs = std::filesystem;
using base::testing::StatusIs;
using base::testing::TempDir;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// Everything below a directory: path, mode, size.
std::set<std::string> Tree(const std::string& directory) {
  std::set<std::string> tree;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    struct stat info;
    lstat(entry.path().c_str(), &info);
    tree.insert(absl::StrCat(entry.path().string(), " ", info.st_mode, " ",
                             info.st_uid, " ",
                             S_ISREG(info.st_mode) ? info.st_size : 0));
  }
  return tree;
}

struct stat Stat(const std::string& path) {
  struct stat info = {};
  EXPECT_EQ(lstat(path.c_str(), &info), 0) << path;
  return info;
}

int Shell(const std::string& command, std::string& output) {
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  char buffer[512];
  output.clear();
  while (fgets(buffer, sizeof(buffer), pipe) != nullptr) output += buffer;
  const int result = pclose(pipe);
  return WIFEXITED(result) ? WEXITSTATUS(result) : -1;
}

class InstallTest : public ::testing::Test {
 protected:
  InstallTest() {
    // As root the token belongs to another user, who must get at it.
    if (geteuid() == 0) {
      chmod(dir_.path().c_str(), 0711);
      user_ = "nobody";
      uid_ = getpwnam("nobody")->pw_uid;
    }
    options_.config = dir_.File("etc/kekd.yaml");
    options_.client_config = dir_.File("etc/kekctl.yaml");
    options_.state_dir = dir_.File("lib/state");
    options_.runtime_dir = dir_.File("run");
    options_.user = user_;
    options_.softhsm_conf = dir_.File("etc/softhsm2.conf");
    options_.pin_file = dir_.File("etc/hsm-pin");
    options_.so_pin_file = dir_.File("etc/hsm-so-pin");
  }

  TempDir dir_;
  std::string user_;
  uid_t uid_ = geteuid();
  InstallOptions options_;
};

TEST_F(InstallTest, MakesATokenThatItsPinOpensAndAConfigThatNamesIt) {
  options_.pin_delivery = PinDelivery::kFile;
  options_.token_label = "new token";
  ASSERT_OK_AND_ASSIGN(const InstallReport report, Install(options_));

  const YAML::Node config = YAML::LoadFile(options_.config);
  EXPECT_EQ(config["state_dir"].as<std::string>(), options_.state_dir);
  EXPECT_EQ(config["token"]["uri"].as<std::string>(),
            "pkcs11:token=new%20token");
  EXPECT_EQ(config["token"]["pin"]["file"].as<std::string>(),
            options_.pin_file);
  const YAML::Node binding = config["kubernetes"][0];
  EXPECT_EQ(binding["socket"].as<std::string>(),
            options_.runtime_dir + "/kubernetes/kms.sock");
  EXPECT_EQ(binding["key"].as<std::string>(),
            "projects/kekd/locations/local/keyRings/kubernetes/cryptoKeys/"
            "secrets");

  const std::string pin = TempDir::Read(options_.pin_file);
  EXPECT_EQ(pin.size(), 24u);
  EXPECT_NE(pin, TempDir::Read(options_.so_pin_file));
  std::string output;
  const std::string module = config["token"]["module"].as<std::string>();
  EXPECT_EQ(Shell(absl::StrCat("SOFTHSM2_CONF=", options_.softhsm_conf,
                               " pkcs11-tool --module ", module,
                               " --token-label 'new token' --login --pin ", pin,
                               " --list-objects"),
                  output),
            0)
      << output;

  for (const std::string& line : report.done) {
    EXPECT_THAT(line, Not(HasSubstr(pin)));
  }
  EXPECT_THAT(report.next,
              Contains(HasSubstr("key create kubernetes/secrets")));
}

TEST_F(InstallTest, FilesAndDirectoriesHaveTheirModesAndOwners) {
  ASSERT_OK(Install(options_));
  const std::string tokens = options_.state_dir + "/tokens";
  EXPECT_EQ(Stat(options_.state_dir).st_mode & 07777, 0700u);
  EXPECT_EQ(Stat(options_.state_dir).st_uid, uid_);
  EXPECT_EQ(Stat(tokens).st_mode & 07777, 0700u);
  EXPECT_EQ(Stat(tokens).st_uid, uid_);
  for (const auto& entry : fs::recursive_directory_iterator(tokens)) {
    EXPECT_EQ(Stat(entry.path()).st_uid, uid_) << entry.path();
    EXPECT_EQ(Stat(entry.path()).st_mode & 0077, 0u) << entry.path();
  }
  EXPECT_EQ(Stat(options_.runtime_dir).st_mode & 07777, 0750u);
  EXPECT_EQ(Stat(options_.runtime_dir + "/kubernetes").st_mode & 07777, 0750u);
  EXPECT_EQ(Stat(options_.runtime_dir + "/kubernetes").st_uid, uid_);
  // A systemd credential: for root alone.
  EXPECT_EQ(Stat(options_.pin_file).st_mode & 07777, 0600u);
  EXPECT_EQ(Stat(options_.pin_file).st_uid, geteuid());
  EXPECT_EQ(Stat(options_.so_pin_file).st_mode & 07777, 0600u);
  EXPECT_EQ(Stat(options_.config).st_mode & 07777, 0644u);
  EXPECT_EQ(YAML::LoadFile(options_.config)["token"]["pin"]["credential"]
                .as<std::string>(),
            "hsm-pin");
}

TEST_F(InstallTest, NeverOverwritesAndChangesNothingThen) {
  ASSERT_OK(Install(options_));
  const auto before = Tree(dir_.path());
  const std::string config = TempDir::Read(options_.config);
  const auto again = Install(options_);
  EXPECT_THAT(again, StatusIs(absl::StatusCode::kAlreadyExists,
                              HasSubstr(absl::StrCat(options_.config, ", "))));
  EXPECT_EQ(Tree(dir_.path()), before);
  EXPECT_EQ(TempDir::Read(options_.config), config);
}

TEST_F(InstallTest, ATokenDirectoryInUseIsLeftAlone) {
  options_.token_dir = dir_.File("tokens");
  fs::create_directory(options_.token_dir);
  fs::create_directory(options_.token_dir + "/someones-token");
  const auto before = Tree(dir_.path());
  EXPECT_THAT(Install(options_),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("tokens")));
  EXPECT_EQ(Tree(dir_.path()), before);
}

TEST_F(InstallTest, WhatWasMadeIsTakenAwayWhenALaterStepFails) {
  // softhsm2-util cannot be found.
  const std::string path = getenv("PATH");
  setenv("PATH", dir_.path().c_str(), 1);
  const auto before = Tree(dir_.path());
  const auto failed = Install(options_);
  setenv("PATH", path.c_str(), 1);
  EXPECT_THAT(failed, StatusIs(absl::StatusCode::kNotFound,
                               HasSubstr("softhsm2-util")));
  EXPECT_THAT(HintOf(failed.status()), HasSubstr("softhsm2"));
  EXPECT_EQ(Tree(dir_.path()), before);
}

TEST_F(InstallTest, AnExistingTokenIsOnlyNamed) {
  const std::string module = dir_.Write("vendor.so", "not read");
  options_.module = module;
  EXPECT_THAT(Install(options_), StatusIs(absl::StatusCode::kInvalidArgument,
                                          HasSubstr("only SoftHSM")));
  options_.token_uri = "pkcs11:token=kek-a;serial=42";
  EXPECT_THAT(Install(options_),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("PIN file")));
  options_.pin_file = dir_.Write("pin", "1234");
  ASSERT_OK(Install(options_));
  const YAML::Node token = YAML::LoadFile(options_.config)["token"];
  EXPECT_EQ(token["uri"].as<std::string>(), options_.token_uri);
  EXPECT_EQ(token["module"].as<std::string>(), module);
  EXPECT_EQ(TempDir::Read(options_.pin_file), "1234");
  EXPECT_FALSE(fs::exists(options_.softhsm_conf));
}

TEST_F(InstallTest, NonsenseIsRefusedBeforeAnythingIsMade) {
  const auto before = Tree(dir_.path());
  const auto refused = [&](auto change, absl::StatusCode code) {
    InstallOptions options = options_;
    change(options);
    EXPECT_THAT(Install(options), StatusIs(code));
    EXPECT_EQ(Tree(dir_.path()), before);
  };
  const auto kBad = absl::StatusCode::kInvalidArgument;
  refused([](auto& o) { o.config = "kekd.yaml"; }, kBad);
  refused([](auto& o) { o.state_dir = "/a\"b"; }, kBad);
  refused([](auto& o) { o.token_label = "a/b"; }, kBad);
  refused([](auto& o) { o.token_label = std::string(33, 'a'); }, kBad);
  refused([](auto& o) { o.binding = "A"; }, kBad);
  refused([](auto& o) { o.key = "a b"; }, kBad);
  refused([](auto& o) { o.user = "root"; }, kBad);
  refused([](auto& o) { o.user = "no-such-user"; },
          absl::StatusCode::kNotFound);
  refused([](auto& o) { o.module = "/nonexistent/libsofthsm2.so"; },
          absl::StatusCode::kNotFound);
}

TEST_F(InstallTest, TheCommandPrintsWhatItDid) {
  std::vector<std::string> arguments = {"init",
                                        "--config",
                                        options_.config,
                                        "--state-dir",
                                        options_.state_dir,
                                        "--runtime-dir",
                                        options_.runtime_dir,
                                        "--kekctl-config",
                                        options_.client_config,
                                        "--softhsm-conf",
                                        options_.softhsm_conf,
                                        "--pin-file",
                                        options_.pin_file,
                                        "--so-pin-file",
                                        options_.so_pin_file,
                                        "--key-ring",
                                        "ring",
                                        "--key-name",
                                        "key"};
  if (!user_.empty()) {
    arguments.push_back("--user");
    arguments.push_back(user_);
  }
  const testing::Ran first = testing::Kekctl(arguments);
  EXPECT_EQ(first.code, 0) << first.err;
  EXPECT_THAT(first.out, HasSubstr("wrote " + options_.config));
  EXPECT_THAT(first.out, HasSubstr("kekctl key create ring/key"));
  EXPECT_EQ(
      YAML::LoadFile(options_.client_config)["key_ring"].as<std::string>(),
      "ring");
  const testing::Ran second = testing::Kekctl(arguments);
  EXPECT_EQ(second.code, 73);
  EXPECT_THAT(second.err, HasSubstr("nothing was changed"));
}

}  // namespace
}  // namespace kek::cli
