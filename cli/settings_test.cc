// SPDX-License-Identifier: Apache-2.0
#include "cli/settings.h"

#include <map>
#include <string>

#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "cli/exit_code.h"

namespace kek::cli {
namespace {

using ::testing::HasSubstr;

class SettingsTest : public ::testing::Test {
 protected:
  absl::StatusOr<Settings> Load(const SettingsSource& flags = {},
                                std::optional<std::string> named = {}) {
    return LoadSettings(
        flags, named,
        [this](const std::string& name) -> std::optional<std::string> {
          const auto it = environment_.find(name);
          if (it == environment_.end()) return std::nullopt;
          return it->second;
        },
        dir_.File("system.yaml"));
  }

  base::testing::TempDir dir_;
  std::map<std::string, std::string> environment_;
};

TEST_F(SettingsTest, WithoutAnythingTheBuiltInsHold) {
  ASSERT_OK_AND_ASSIGN(const Settings settings, Load());
  EXPECT_EQ(settings.socket, "/run/kekd/admin.sock");
  EXPECT_EQ(settings.names.project, "kekd");
  EXPECT_EQ(settings.names.location, "local");
  EXPECT_EQ(settings.names.key_ring, "");
  EXPECT_EQ(settings.output, OutputFormat::kTable);
  EXPECT_EQ(settings.deadline, absl::Seconds(10));
}

TEST_F(SettingsTest, FlagsBeatEnvironmentBeatsUserBeatsSystem) {
  dir_.Write("system.yaml",
             "socket: /system\nproject: system\nlocation: system\n"
             "key_ring: system\ndeadline: 1s\n");
  environment_["XDG_CONFIG_HOME"] = dir_.path();
  dir_.Write("kekctl.yaml", "project: user\nlocation: user\nkey_ring: user\n");
  environment_["KEKCTL_LOCATION"] = "environment";
  environment_["KEKCTL_KEY_RING"] = "environment";
  ASSERT_OK_AND_ASSIGN(const Settings settings,
                       Load({.key_ring = "flag", .output = "json"}));
  EXPECT_EQ(settings.socket, "/system");
  EXPECT_EQ(settings.names.project, "user");
  EXPECT_EQ(settings.names.location, "environment");
  EXPECT_EQ(settings.names.key_ring, "flag");
  EXPECT_EQ(settings.output, OutputFormat::kJson);
  EXPECT_EQ(settings.deadline, absl::Seconds(1));
}

TEST_F(SettingsTest, ANamedFileIsTheOnlyOneAndMustExist) {
  dir_.Write("system.yaml", "socket: /system\nproject: system\n");
  const std::string named = dir_.Write("named.yaml", "project: named\n");
  ASSERT_OK_AND_ASSIGN(const Settings settings, Load({}, named));
  EXPECT_EQ(settings.names.project, "named");
  EXPECT_EQ(settings.socket, "/run/kekd/admin.sock");

  environment_["KEKCTL_CONFIG"] = dir_.File("missing.yaml");
  const auto missing = Load();
  EXPECT_EQ(ExitCodeOf(missing.status()), ExitCode::kConfig);
  EXPECT_THAT(missing.status().message(), HasSubstr("missing.yaml"));
}

TEST_F(SettingsTest, AWrongFileOrVariableIsAConfigErrorAWrongFlagAUsageError) {
  for (const char* text :
       {"sokcet: /x\n", "- a\n", "socket: [a]\n", "socket: {a\n",
        "output: xml\n", "deadline: soon\n", "deadline: 0s\n"}) {
    const std::string file = dir_.Write("bad.yaml", text);
    const auto settings = Load({}, file);
    EXPECT_EQ(ExitCodeOf(settings.status()), ExitCode::kConfig) << text;
    EXPECT_THAT(settings.status().message(), HasSubstr("bad.yaml")) << text;
  }
  EXPECT_EQ(ExitCodeOf(Load({.output = "xml"}).status()), ExitCode::kUsage);
  environment_["KEKCTL_DEADLINE"] = "-3s";
  EXPECT_EQ(ExitCodeOf(Load().status()), ExitCode::kConfig);
}

TEST(ParseDurationTest, DaysAndTheUsualUnits) {
  EXPECT_EQ(*ParseDuration("90d"), absl::Hours(24 * 90));
  EXPECT_EQ(*ParseDuration("1h30m"), absl::Minutes(90));
  EXPECT_EQ(*ParseDuration("250ms"), absl::Milliseconds(250));
  for (const char* bad : {"", "d", "0d", "0", "-1d", "1", "1w", "inf",
                          "99999999999999999999d", "1000001d"}) {
    EXPECT_THAT(ParseDuration(bad),
                base::testing::StatusIs(absl::StatusCode::kInvalidArgument))
        << bad;
  }
}

TEST(ExitCodeTest, EachKindOfFailureHasItsNumber) {
  const std::pair<absl::StatusCode, int> expected[] = {
      {absl::StatusCode::kOk, 0},
      {absl::StatusCode::kInvalidArgument, 64},
      {absl::StatusCode::kDataLoss, 65},
      {absl::StatusCode::kNotFound, 66},
      {absl::StatusCode::kUnavailable, 69},
      {absl::StatusCode::kDeadlineExceeded, 69},
      {absl::StatusCode::kResourceExhausted, 69},
      {absl::StatusCode::kAborted, 69},
      {absl::StatusCode::kAlreadyExists, 73},
      {absl::StatusCode::kPermissionDenied, 77},
      {absl::StatusCode::kFailedPrecondition, 80},
      {absl::StatusCode::kInternal, 1},
      {absl::StatusCode::kUnimplemented, 1},
      {absl::StatusCode::kUnknown, 1},
  };
  for (const auto& [code, exit] : expected) {
    EXPECT_EQ(static_cast<int>(ExitCodeOf(absl::Status(code, ""))), exit);
  }
  const absl::Status status =
      WithHint(WithExit(absl::InvalidArgumentError("x"), ExitCode::kIntegrity),
               "do this");
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kIntegrity);
  EXPECT_EQ(HintOf(WithDefaultHint(status, "do that")), "do this");
}

}  // namespace
}  // namespace kek::cli
