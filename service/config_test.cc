// SPDX-License-Identifier: Apache-2.0
#include "service/config.h"

#include <unistd.h>

#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "gtest/gtest.h"

namespace kek::service {
namespace {

using ::kek::base::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

constexpr char kMinimal[] = R"(token:
  module: /usr/lib/softhsm/libsofthsm2.so
  uri: pkcs11:token=t
  pin: {file: /etc/kekd/pin}
kubernetes:
  - name: secrets
    socket: /run/kekd/k.sock
    key: projects/p/locations/l/keyRings/r/cryptoKeys/k
)";

absl::StatusOr<Config> Parse(absl::string_view yaml) {
  return ParseConfig(yaml, "kekd.yaml");
}

TEST(ConfigTest, MinimalFileGetsEveryDefault) {
  ASSERT_OK_AND_ASSIGN(const Config config, Parse(kMinimal));

  const auto& s = config.settings;
  EXPECT_EQ(s.state_dir(), "/var/lib/kekd");
  EXPECT_EQ(s.catalog().path(), "/var/lib/kekd/catalog.db");
  EXPECT_EQ(s.audit().directory(), "/var/lib/kekd/audit");
  EXPECT_EQ(s.audit().segment_bytes(), 256u << 20);
  EXPECT_EQ(s.token().max_sessions(), 16);
  EXPECT_EQ(s.token().call_deadline().seconds(), 10);
  EXPECT_EQ(s.token().iv_mode(), config::v1::Token::host_xor_token);
  EXPECT_EQ(s.admin().socket(), "/run/kekd/admin.sock");
  EXPECT_EQ(s.admin().mode(), "0600");
  EXPECT_EQ(s.kubernetes(0).version(), "v2");
  EXPECT_EQ(s.kubernetes(0).health_period().seconds(), 20);
  EXPECT_EQ(s.kubernetes(0).on_hsm_loss(),
            config::v1::KubernetesBinding::stop_writes);
  EXPECT_EQ(s.http().listen(), "");
  EXPECT_EQ(s.log().format(), "text");
  EXPECT_EQ(s.log().level(), "info");
  EXPECT_EQ(s.executor().workers(), 48);
  EXPECT_EQ(s.executor().queue(), 1024);
  EXPECT_EQ(s.executor().default_deadline().seconds(), 10);
  EXPECT_EQ(s.executor().stop_grace().seconds(), 10);
  EXPECT_EQ(s.keys().default_destroy_scheduled_duration().seconds(),
            30 * 24 * 3600);
  EXPECT_EQ(s.keys().rotate_after_uses(), uint64_t{1} << 31);
  EXPECT_TRUE(s.keys().verify_after_encrypt());
  EXPECT_THAT(config.admin.uids, ElementsAre(0, geteuid()));
  EXPECT_THAT(config.admin.gids, IsEmpty());
  EXPECT_EQ(config.kubernetes.at(0).mode, 0600u);
}

TEST(ConfigTest, ValuesOfEveryKindAreRead) {
  ASSERT_OK_AND_ASSIGN(
      const Config config,
      Parse(absl::StrReplaceAll(
          kMinimal,
          {{"  pin: {file: /etc/kekd/pin}\n",
            "  pin:\n    file_descriptor: 7\n  iv_mode: token_append\n"
            "  read_write_sessions: true\n  max_sessions: 20\n"
            "  call_deadline: 1500ms\n"},
           {"    socket: /run/kekd/k.sock\n",
            "    socket: \"@kekd\"\n    allow_abstract: true\n"
            "    mode: 0660\n    owner: 65534\n    group: root\n"
            "    allowed_users: [root, 1234]\n    allowed_groups:\n"
            "      - root\n    on_hsm_loss: keep_writes\n"
            "    version: v2beta1\n    health_period: 1m30s\n"}})));

  const auto& s = config.settings;
  EXPECT_EQ(s.token().pin().file_descriptor(), 7);
  EXPECT_EQ(s.token().iv_mode(), config::v1::Token::token_append);
  EXPECT_TRUE(s.token().read_write_sessions());
  EXPECT_EQ(s.executor().workers(), 60);
  EXPECT_EQ(s.token().call_deadline().seconds(), 1);
  EXPECT_EQ(s.token().call_deadline().nanos(), 500000000);
  EXPECT_EQ(s.kubernetes(0).health_period().seconds(), 90);
  EXPECT_EQ(s.kubernetes(0).on_hsm_loss(),
            config::v1::KubernetesBinding::keep_writes);
  const SocketAccess& access = config.kubernetes.at(0);
  EXPECT_EQ(access.mode, 0660u);
  EXPECT_EQ(access.owner, 65534u);
  EXPECT_EQ(access.group, 0u);
  EXPECT_THAT(access.uids, ElementsAre(0, 1234));
  EXPECT_THAT(access.gids, ElementsAre(0));
}

struct BadConfig {
  const char* name;
  const char* from;  // in kMinimal
  const char* to;
  const char* message;  // the whole message
};

void PrintTo(const BadConfig& bad, std::ostream* out) { *out << bad.name; }

class BadConfigTest : public ::testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigTest, K8s41OneLineNamesPlaceAndCause) {
  const BadConfig& bad = GetParam();
  const std::string yaml = absl::StrReplaceAll(kMinimal, {{bad.from, bad.to}});
  ASSERT_NE(yaml, kMinimal);
  EXPECT_THAT(Parse(yaml),
              StatusIs(absl::StatusCode::kInvalidArgument, bad.message));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadConfigTest,
    ::testing::Values(
        BadConfig{"NoYaml", "token:\n", "token: [\n",
                  "kekd.yaml:3: end of sequence flow not found"},
        BadConfig{"UnknownField", "  uri:", "  ury:",
                  "kekd.yaml:3: token has no field \"ury\"; there are: module, "
                  "init_args, uri, pin, iv_mode, max_sessions, "
                  "read_write_sessions, allow_host_only_iv, attributes, "
                  "call_deadline, insecure_module_ok"},
        BadConfig{"UnknownTopField", "token:\n", "tokens:\n",
                  "kekd.yaml:1: unknown field \"tokens\"; there are: "
                  "state_dir, token, catalog, audit, admin, kubernetes, http, "
                  "log, executor, keys"},
        BadConfig{"Twice", "  uri:", "  module: /a\n  uri:",
                  "kekd.yaml:3: token.module is set twice"},
        BadConfig{"ScalarForMessage", "  pin: {file: /etc/kekd/pin}",
                  "  pin: 1234",
                  "kekd.yaml:4: token.pin must be a list of \"name: value\""},
        BadConfig{"MessageForScalar", "  uri: pkcs11:token=t", "  uri: {a: b}",
                  "kekd.yaml:3: token.uri must be one value"},
        BadConfig{"NoValue", "  uri: pkcs11:token=t",
                  "  uri:", "kekd.yaml:3: token.uri has no value"},
        BadConfig{"MapForList", "  - name: secrets\n", "    name: secrets\n",
                  "kekd.yaml:6: kubernetes must be a list: [a, b], or one "
                  "\"- \" line each"},
        BadConfig{"TwoDocuments", "kubernetes:\n", "---\nkubernetes:\n",
                  "kekd.yaml: holds more than one document (---)"},
        BadConfig{"Number", "  uri:", "  max_sessions: many\n  uri:",
                  "kekd.yaml:3: token.max_sessions: \"many\" is not a number"},
        BadConfig{"NegativeSize", "kubernetes:\n",
                  "audit: {segment_bytes: -1}\nkubernetes:\n",
                  "kekd.yaml:5: audit.segment_bytes: \"-1\" is not a number "
                  "that is not negative"},
        BadConfig{"Bool", "  uri:", "  read_write_sessions: yes\n  uri:",
                  "kekd.yaml:3: token.read_write_sessions: \"yes\" is not true "
                  "or false"},
        BadConfig{"Enum", "  uri:", "  iv_mode: random\n  uri:",
                  "kekd.yaml:3: token.iv_mode: \"random\" is not one of "
                  "host_xor_token, token_random, token_writeback, "
                  "token_append"},
        BadConfig{"Duration", "  uri:", "  call_deadline: 10\n  uri:",
                  "kekd.yaml:3: token.call_deadline must be a length of time, "
                  "such as 500ms, 20s, 5m or 24h"},
        BadConfig{"NegativeDuration", "  uri:", "  call_deadline: -10s\n  uri:",
                  "kekd.yaml:3: token.call_deadline must be a length of time, "
                  "such as 500ms, 20s, 5m or 24h"},
        BadConfig{"RelativeModule", "module: /usr/lib", "module: usr/lib",
                  "kekd.yaml:2: token.module must be an absolute path, and is "
                  "\"usr/lib/softhsm/libsofthsm2.so\""},
        BadConfig{"NoModule", "  module: /usr/lib/softhsm/libsofthsm2.so\n", "",
                  "kekd.yaml:1: token.module is missing"},
        BadConfig{"PinInUri", "pkcs11:token=t", "pkcs11:token=t?pin-value=1",
                  "kekd.yaml:3: token.uri must not carry the PIN; use "
                  "token.pin"},
        BadConfig{"NoPin", "  pin: {file: /etc/kekd/pin}\n", "",
                  "kekd.yaml:1: token.pin must name exactly one source "
                  "(credential, file, file_descriptor or environment), and "
                  "names 0"},
        BadConfig{"TwoPins", "{file: /etc/kekd/pin}",
                  "{file: /etc/kekd/pin, credential: hsm-pin}",
                  "kekd.yaml:4: token.pin must name exactly one source "
                  "(credential, file, file_descriptor or environment), and "
                  "names 2"},
        BadConfig{"EnvironmentPin", "{file: /etc/kekd/pin}",
                  "{environment: PIN}",
                  "kekd.yaml:4: token.pin.environment can be read by others "
                  "through /proc for a moment; if that is acceptable, set "
                  "allow_environment: true"},
        BadConfig{"WorldMode", "    key:", "    mode: \"0666\"\n    key:",
                  "kekd.yaml:8: kubernetes[0].mode \"0666\" lets every user on "
                  "the host in; use owner and group"},
        BadConfig{"DecimalMode", "    key:", "    mode: 0680\n    key:",
                  "kekd.yaml:8: kubernetes[0].mode must be an octal mode such "
                  "as \"0660\", and is \"0680\""},
        BadConfig{"NoSuchUser", "    key:", "    owner: nosuchuser\n    key:",
                  "kekd.yaml:8: kubernetes[0].owner names a user that does not "
                  "exist: \"nosuchuser\""},
        BadConfig{"NoSuchAllowedGroup", "    key:",
                  "    allowed_groups: [root, nosuchgroup]\n    key:",
                  "kekd.yaml:8: kubernetes[0].allowed_groups[1] names a group "
                  "that does not exist: \"nosuchgroup\""},
        BadConfig{"BindingName", "name: secrets", "name: Secrets",
                  "kekd.yaml:6: kubernetes[0].name must be 1 to 63 of a-z, 0-9 "
                  "and -, and is \"Secrets\""},
        BadConfig{"TwiceTheName", "kubernetes:\n",
                  "kubernetes:\n  - {name: secrets, socket: /a, key: "
                  "projects/p/locations/l/keyRings/r/cryptoKeys/k}\n",
                  "kekd.yaml:7: kubernetes[1].name is \"secrets\", as another "
                  "binding's is"},
        BadConfig{"TwiceTheSocket", "kubernetes:\n",
                  "kubernetes:\n  - {name: a, socket: /run/kekd/k.sock, key: "
                  "projects/p/locations/l/keyRings/r/cryptoKeys/k}\n",
                  "kekd.yaml:8: kubernetes[1].socket is \"/run/kekd/k.sock\", "
                  "which is already the socket of kubernetes[0].socket"},
        BadConfig{"Abstract", "socket: /run/kekd/k.sock", "socket: \"@k\"",
                  "kekd.yaml:7: kubernetes[0].socket is an abstract socket, "
                  "which no file permission protects; if that is acceptable, "
                  "set allow_abstract: true"},
        BadConfig{"NoKey",
                  "    key: projects/p/locations/l/keyRings/r/cryptoKeys/k\n",
                  "", "kekd.yaml:6: kubernetes[0].key is missing"},
        BadConfig{"Version", "    key:", "    version: v1\n    key:",
                  "kekd.yaml:8: kubernetes[0].version must be v2, or v2beta1 "
                  "for kube-apiserver 1.27 and 1.28, and is \"v1\""},
        BadConfig{"HealthPeriod", "    key:", "    health_period: 5s\n    key:",
                  "kekd.yaml:8: kubernetes[0].health_period must lie between "
                  "20s and 1h, and is 5s"},
        BadConfig{"PublicHttp", "kubernetes:\n",
                  "http: {listen: 0.0.0.0:9464}\nkubernetes:\n",
                  "kekd.yaml:5: http.listen must be on 127.0.0.1 or [::1], "
                  "because what it serves is not authenticated, and is on "
                  "\"0.0.0.0\""},
        BadConfig{"HttpPort", "kubernetes:\n",
                  "http: {listen: 127.0.0.1}\nkubernetes:\n",
                  "kekd.yaml:5: http.listen must be an address and a port, "
                  "such as 127.0.0.1:9464, and is \"127.0.0.1\""},
        BadConfig{"LogLevel", "kubernetes:\n",
                  "log: {level: loud}\nkubernetes:\n",
                  "kekd.yaml:5: log.level must be debug, info, warning or "
                  "error, and is \"loud\""},
        BadConfig{"FewWorkers", "kubernetes:\n",
                  "executor: {workers: 16}\nkubernetes:\n",
                  "kekd.yaml:5: executor.workers must be more than "
                  "token.max_sessions (16) and at most 4096"},
        BadConfig{"Uses", "kubernetes:\n",
                  "keys: {rotate_after_uses: 4294967296}\nkubernetes:\n",
                  "kekd.yaml:5: keys.rotate_after_uses must be at most "
                  "2147483648 (2^31): random 96-bit IVs bear no more than 2^32 "
                  "under one key"}),
    [](const auto& info) { return info.param.name; });

TEST(ConfigTest, MalformedKeyAndLocationAreNamed) {
  EXPECT_THAT(
      Parse(absl::StrReplaceAll(kMinimal, {{"keyRings/r", "keyring/r"}})),
      StatusIs(absl::StatusCode::kInvalidArgument,
               StartsWith("kekd.yaml:8: kubernetes[0].key is no key: ")));
  EXPECT_THAT(Parse(absl::StrCat(kMinimal, "keys: {locations: [here]}\n")),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       StartsWith("kekd.yaml:9: keys.locations[0] is no "
                                  "location: ")));
}

TEST(ConfigTest, EmptyFileSaysWhatIsMissingFirst) {
  EXPECT_THAT(Parse(""), StatusIs(absl::StatusCode::kInvalidArgument,
                                  "kekd.yaml: token.module is missing"));
}

TEST(ConfigTest, FileIsReadAndDigested) {
  base::testing::TempDir dir;
  const std::string file = dir.Write("kekd.yaml", kMinimal);
  ASSERT_OK_AND_ASSIGN(const Config config, LoadConfig(file));
  EXPECT_EQ(config.file, file);
  EXPECT_EQ(config.digest.size(), 64u);
  dir.Write("kekd.yaml", absl::StrCat(kMinimal, "\n"));
  EXPECT_NE(LoadConfig(file)->digest, config.digest);
  EXPECT_THAT(LoadConfig(dir.File("none.yaml")),
              StatusIs(absl::StatusCode::kNotFound,
                       AllOf(HasSubstr("none.yaml"), HasSubstr("No such"))));
  EXPECT_THAT(LoadConfig(dir.path()), StatusIs(absl::StatusCode::kUnavailable,
                                               EndsWith("Is a directory")));
  dir.Write("big.yaml", std::string((1 << 20) + 1, '#'));
  EXPECT_THAT(LoadConfig(dir.File("big.yaml")),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("longer than 1 MiB")));
}

TEST(ConfigTest, SampleLoadsAndShowsTheDefaults) {
  const char* source = std::getenv("KEK_SOURCE_DIR");
  ASSERT_NE(source, nullptr);
  const std::string file = absl::StrCat(source, "/deploy/kekd.yaml");
  ASSERT_OK(LoadConfig(file));

  // Also with every commented setting put in force, which proves that they
  // exist: all lines "# name: value", but for the alternatives of one choice.
  const std::string text = base::testing::TempDir::Read(file);
  std::string all;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    absl::string_view setting = absl::StripLeadingAsciiWhitespace(line);
    const size_t indent = line.size() - setting.size();
    if (absl::ConsumePrefix(&setting, "# ") && indent > 0) {
      const size_t colon = setting.find(": ");
      const absl::string_view name = setting.substr(0, colon);
      const bool is_setting = colon != absl::string_view::npos &&
                              std::all_of(name.begin(), name.end(), [](char c) {
                                return absl::ascii_islower(c) || c == '_';
                              });
      const bool alternative = name == "file" || name == "file_descriptor" ||
                               name == "environment" || name == "owner" ||
                               name == "group" || name == "allowed_users";
      if (is_setting && !alternative) {
        absl::StrAppend(&all, std::string(indent, ' '), setting, "\n");
        continue;
      }
    }
    absl::StrAppend(&all, line, "\n");
  }
  ASSERT_OK_AND_ASSIGN(const Config spelled_out, ParseConfig(all, file));
  ASSERT_OK_AND_ASSIGN(Config plain, LoadConfig(file));
  // The examples that are no defaults.
  plain.settings.mutable_keys()->add_locations("projects/kekd/locations/local");
  EXPECT_THAT(NeedRestart(plain, spelled_out), IsEmpty());
}

TEST(ConfigTest, ReloadAppliesOrNamesWhatNeedsARestart) {
  ASSERT_OK_AND_ASSIGN(const Config running, Parse(kMinimal));
  ASSERT_OK_AND_ASSIGN(
      const Config applied,
      Parse(absl::StrReplaceAll(
          kMinimal,
          {{"    key:", "    allowed_users: [1234]\n    key:"},
           {"kubernetes:\n",
            "log: {level: debug, format: json}\nexecutor: {stop_grace: 1s}\n"
            "admin: {allowed_groups: [7]}\nkubernetes:\n"}})));
  EXPECT_THAT(NeedRestart(running, applied), IsEmpty());

  ASSERT_OK_AND_ASSIGN(
      const Config restart,
      Parse(absl::StrReplaceAll(
          kMinimal, {{"token=t", "token=u"},
                     {"/run/kekd/k.sock", "/run/kekd/l.sock"},
                     {"kubernetes:\n",
                      "state_dir: /srv/kekd\nadmin: {mode: \"0660\"}\n"
                      "kubernetes:\n"}})));
  EXPECT_THAT(NeedRestart(running, restart),
              ElementsAre("state_dir", "token.uri", "catalog.path",
                          "audit.directory", "admin.mode", "kubernetes"));
}

}  // namespace
}  // namespace kek::service
