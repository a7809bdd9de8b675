// SPDX-License-Identifier: Apache-2.0
// What kekctl prints: tables, JSON, the pieces for kube-apiserver, completion.
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/timestamp.pb.h>
#include <yaml-cpp/yaml.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "cli/encryption_config.h"
#include "cli/output.h"
#include "cli/testing/run_kekctl.h"
#include "google/cloud/kms/v1/resources.pb.h"

namespace kek::cli {
namespace {

using base::testing::StatusIs;
using ::testing::HasSubstr;
using testing::Kekctl;
using ::testing::Not;
using testing::Ran;

TEST(TableTest, ColumnsAreAlignedAndControlCharactersHarmless) {
  Table table({"KEY", "STATE"});
  table.Add({"a", "ENABLED"});
  table.Add({"long-name", "x\x1b[2Jy\n"});
  EXPECT_EQ(table.ToString(),
            "KEY        STATE\n"
            "a          ENABLED\n"
            "long-name  x?[2Jy?\n");
}

TEST(FieldsTest, EmptyValuesAreLeftOut) {
  EXPECT_EQ(FieldsText({{"Name", "x"}, {"Nothing", ""}, {"State", "y"}}),
            "Name:   x\nState:  y\n");
}

TEST(JsonTest, MessagesAreAsTheApiDefinesThem) {
  google::cloud::kms::v1::CryptoKey key;
  key.set_name("k");
  key.set_purpose(google::cloud::kms::v1::CryptoKey::ENCRYPT_DECRYPT);
  key.mutable_create_time()->set_seconds(1763717400);
  key.mutable_rotation_period()->set_seconds(86400);
  ASSERT_OK_AND_ASSIGN(const std::string json, MessagesJson({&key, &key}));
  const YAML::Node parsed = YAML::Load(json);  // JSON is YAML
  ASSERT_EQ(parsed.size(), 2u);
  EXPECT_EQ(parsed[1]["purpose"].as<std::string>(), "ENCRYPT_DECRYPT");
  EXPECT_EQ(parsed[1]["createTime"].as<std::string>(), "2025-11-21T09:30:00Z");
  EXPECT_EQ(parsed[1]["rotationPeriod"].as<std::string>(), "86400s");
  EXPECT_EQ(*MessagesJson({}), "[]\n");
  EXPECT_EQ(JsonString("a\"\\\n\x01z"), "\"a\\\"\\\\\\n\\u0001z\"");
}

TEST(TextTest, TimesAndDurations) {
  google::protobuf::Timestamp time;
  EXPECT_EQ(TimeText(time), "");
  time.set_seconds(1763717400);
  EXPECT_EQ(TimeText(time), "2025-11-21 09:30:00Z");
  google::protobuf::Duration duration;
  EXPECT_EQ(DurationText(duration), "");
  duration.set_seconds(86400 * 30);
  EXPECT_EQ(DurationText(duration), "30d");
  duration.set_seconds(5400);
  EXPECT_EQ(DurationText(duration), "1h30m");
}

TEST(EncryptionConfigTest, IsWhatKubeApiserverReads) {
  ASSERT_OK_AND_ASSIGN(
      const ProviderConfig config,
      KubernetesProviderConfig({.name = "kekd",
                                .socket = "/run/kekd/kubernetes/kms.sock",
                                .resources = {"secrets", "*.example.com"},
                                .v1beta1 = true}));
  const YAML::Node root = YAML::Load(config.encryption_configuration);
  EXPECT_EQ(root["kind"].as<std::string>(), "EncryptionConfiguration");
  const YAML::Node resource = root["resources"][0];
  EXPECT_EQ(resource["resources"][1].as<std::string>(), "*.example.com");
  const YAML::Node providers = resource["providers"];
  ASSERT_EQ(providers.size(), 3u);
  const YAML::Node v2 = providers[0]["kms"];
  EXPECT_EQ(v2["apiVersion"].as<std::string>(), "v2");
  EXPECT_EQ(v2["name"].as<std::string>(), "kekd");
  EXPECT_EQ(v2["endpoint"].as<std::string>(),
            "unix:///run/kekd/kubernetes/kms.sock");
  EXPECT_EQ(v2["timeout"].as<std::string>(), "3s");
  EXPECT_FALSE(v2["cachesize"]) << "kube-apiserver refuses it for v2";
  const YAML::Node v1 = providers[1]["kms"];
  EXPECT_EQ(v1["apiVersion"].as<std::string>(), "v1");
  EXPECT_NE(v1["name"].as<std::string>(), "kekd");
  EXPECT_TRUE(providers[2]["identity"].IsMap());

  const YAML::Node pod = YAML::Load(config.static_pod)["spec"];
  std::string mounted;
  for (const auto& mount : pod["containers"][0]["volumeMounts"]) {
    if (mount["name"].as<std::string>() == "kekd-socket") {
      mounted = mount["mountPath"].as<std::string>();
    }
  }
  EXPECT_EQ(mounted, "/run/kekd/kubernetes");
  EXPECT_EQ(pod["volumes"][1]["hostPath"]["path"].as<std::string>(), mounted);
}

TEST(EncryptionConfigTest, ADirectoryWithTheAdminSocketInItIsWarnedOf) {
  ProviderOptions options = {.name = "a", .socket = "/run/kekd/a.sock"};
  options.admin_socket = "/run/kekd/admin.sock";
  EXPECT_THAT(KubernetesProviderConfig(options)->static_pod,
              HasSubstr("WARNING"));
  options.socket = "/run/kekd/a/kms.sock";
  EXPECT_THAT(KubernetesProviderConfig(options)->static_pod,
              Not(HasSubstr("WARNING")));
}

TEST(EncryptionConfigTest, AbstractSocketsHaveNoDirectory) {
  ASSERT_OK_AND_ASSIGN(
      const ProviderConfig config,
      KubernetesProviderConfig({.name = "kekd", .socket = "@kekd"}));
  EXPECT_THAT(config.encryption_configuration,
              HasSubstr("endpoint: \"unix:///@kekd\""));
  EXPECT_THAT(config.static_pod, Not(HasSubstr("kekd-socket")));
}

TEST(EncryptionConfigTest, WhatKubeApiserverRefusesIsRefusedHere) {
  const auto invalid = StatusIs(absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(KubernetesProviderConfig({.name = "a:b", .socket = "/x"}),
              invalid);
  EXPECT_THAT(KubernetesProviderConfig({.name = "", .socket = "/x"}), invalid);
  EXPECT_THAT(KubernetesProviderConfig({.name = "a", .socket = "x"}), invalid);
  EXPECT_THAT(KubernetesProviderConfig({.name = "a", .socket = "/x\"\ny"}),
              invalid);
  EXPECT_THAT(
      KubernetesProviderConfig({.name = "a", .socket = "/x", .resources = {}}),
      invalid);
}

TEST(KekctlTest, UsageErrorsExit64AndNameTheHelp) {
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{},
                                             {"nonsense"},
                                             {"key"},
                                             {"key", "create"},
                                             {"key", "list", "--nonsense"},
                                             {"completion", "tcsh"},
                                             {"key", "disable", "r/k"},
                                             {"key", "rotate", "r/k:1"},
                                             {"token", "login"},
                                             {"--output", "xml", "status"}}) {
    const Ran ran = Kekctl(arguments);
    EXPECT_EQ(ran.code, 64);
    EXPECT_EQ(ran.out, "");
    EXPECT_THAT(ran.err, HasSubstr("next: "));
  }
}

TEST(KekctlTest, WithoutKekdItSaysSoAndExits69) {
  const Ran ran =
      Kekctl({"--socket", "/nonexistent/admin.sock", "key", "list"});
  EXPECT_EQ(ran.code, 69);
  EXPECT_THAT(ran.err, HasSubstr("/nonexistent/admin.sock"));
  EXPECT_THAT(ran.err, HasSubstr("is kekd running"));
  const Ran json = Kekctl({"key", "list", "--socket", "/nonexistent/admin.sock",
                           "--output", "json"});
  EXPECT_EQ(json.code, 69);
  const YAML::Node error = YAML::Load(json.err)["error"];
  EXPECT_EQ(error["code"].as<std::string>(), "UNAVAILABLE");
  EXPECT_EQ(error["exitCode"].as<int>(), 69);
}

TEST(KekctlTest, HelpOfACommandShowsItsWholeName) {
  const Ran ran = Kekctl({"key", "create", "--help"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_THAT(ran.out, HasSubstr("kekctl key create"));
  EXPECT_THAT(ran.out, HasSubstr("--create-ring"));
  EXPECT_THAT(Kekctl({"--version"}).out, HasSubstr("kekctl "));
}

TEST(KekctlTest, KubernetesConfigNeedsNoKekdWhenToldTheSocket) {
  const Ran ran =
      Kekctl({"kubernetes", "config", "--plugin-socket", "/run/x/kms.sock",
              "--part", "encryption-configuration", "--resources",
              "secrets,configmaps", "prod"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const YAML::Node resource = YAML::Load(ran.out)["resources"][0];
  EXPECT_EQ(resource["resources"].size(), 2u);
  EXPECT_EQ(resource["providers"][0]["kms"]["name"].as<std::string>(), "prod");
}

TEST(KekctlTest, KubernetesConfigReadsTheBindingsOfAConfigFile) {
  const base::testing::TempDir dir;
  const std::string file =
      dir.Write("kekd.yaml",
                "kubernetes:\n  - {name: a, socket: /run/a.sock, key: k}\n"
                "  - {name: b, socket: /run/b.sock, key: k}\n");
  const Ran b = Kekctl(
      {"kubernetes", "config", "b", "--kekd-config", file, "--output", "json"});
  ASSERT_EQ(b.code, 0) << b.err;
  EXPECT_EQ(YAML::Load(b.out)["socket"].as<std::string>(), "/run/b.sock");
  const Ran none = Kekctl({"kubernetes", "config", "--kekd-config", file});
  EXPECT_EQ(none.code, 64);
  EXPECT_THAT(none.err, HasSubstr("a, b"));
  EXPECT_EQ(Kekctl({"kubernetes", "config", "c", "--kekd-config", file}).code,
            66);
}

// What bash offers for a command line, asked of bash itself.
std::string Completed(const std::string& script,
                      const std::vector<std::string>& words) {
  std::string command = "source '" + script + "'\nCOMP_WORDS=(";
  for (const std::string& word : words) command += " '" + word + "'";
  command += ")\nCOMP_CWORD=" + std::to_string(words.size() - 1) +
             "\n_kekctl\necho \"${COMPREPLY[*]}\"\n";
  const base::testing::TempDir dir;
  FILE* pipe =
      popen(("bash -eu " + dir.Write("ask", command) + " 2>&1").c_str(), "r");
  std::string out;
  char buffer[512];
  while (fgets(buffer, sizeof(buffer), pipe) != nullptr) out += buffer;
  pclose(pipe);
  return out;
}

TEST(CompletionTest, BashCompletesCommandsAndFlags) {
  const base::testing::TempDir dir;
  const Ran ran = Kekctl({"completion", "bash"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const std::string script = dir.Write("kekctl", ran.out);
  EXPECT_EQ(Completed(script, {"kekctl", "enc"}), "encrypt\n");
  EXPECT_EQ(Completed(script, {"kekctl", "key", "re"}), "restore\n");
  EXPECT_EQ(Completed(script, {"kekctl", "--socket", "/x", "token", ""}),
            "login relogin\n");
  EXPECT_EQ(Completed(script, {"kekctl", "key", "create", "k", "--create"}),
            "--create-ring\n");
  EXPECT_EQ(Completed(script, {"kekctl", "status", "--output", "j"}), "json\n");
  EXPECT_EQ(Completed(script, {"kekctl", "key", "create", "--pro"}),
            "--project --protection-level\n");
}

TEST(CompletionTest, ZshAndFishKnowTheSameCommands) {
  for (const char* shell : {"zsh", "fish"}) {
    const Ran ran = Kekctl({"completion", shell});
    ASSERT_EQ(ran.code, 0) << ran.err;
    for (const char* word : {"keyring", "set-primary", "relogin", "log-level",
                             "create-ring", "aad-file", "v1beta1"}) {
      EXPECT_THAT(ran.out, HasSubstr(word)) << shell;
    }
    // Checked by the shell itself where it is installed.
    const std::string probe =
        std::string("command -v ") + shell + " >/dev/null";
    if (std::system(probe.c_str()) == 0) {
      const base::testing::TempDir dir;
      const std::string file = dir.Write("script", ran.out);
      EXPECT_EQ(std::system((std::string(shell) + " -n " + file).c_str()), 0);
    }
  }
}

}  // namespace
}  // namespace kek::cli
