// SPDX-License-Identifier: Apache-2.0
//
// Wire, Encrypt, Decrypt and v1beta1: statements 1-5, 15-25, 44, 45.
#include <fcntl.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/envelope.h"
#include "service/kubernetes_key_id.h"
#include "tests/integration/kubernetes_test.h"

namespace kek::integration {
namespace {

using base::testing::IsOkAndHolds;
using base::testing::StatusIs;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

class K8sWireTest : public KubernetesTest {};

TEST_F(K8sWireTest, K8s01ServesBothApisAndNothingElse) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Plugin plugin = Connect();
  for (const char* method : {"/v2.KeyManagementService/Status",
                             "/v1beta1.KeyManagementService/Version"}) {
    EXPECT_OK(plugin.Call(method)) << method;
  }
  // An empty message is a bad request of these, so they are there.
  for (const char* method :
       {"/v2.KeyManagementService/Encrypt", "/v2.KeyManagementService/Decrypt",
        "/v1beta1.KeyManagementService/Encrypt",
        "/v1beta1.KeyManagementService/Decrypt"}) {
    EXPECT_THAT(plugin.Call(method),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << method;
  }
  for (const char* method :
       {"/v2.KeyManagementService/Version", "/v2.KeyManagementService/status",
        "/v2alpha1.KeyManagementService/Status",
        "/v1beta1.KeyManagementService/Status", "/nothing.Of/TheKind",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/google.cloud.kms.v1.KeyManagementService/ListKeyRings",
        "/google.cloud.kms.v1.KeyManagementService/Decrypt",
        "/kek.admin.v1.Admin/GetStatus"}) {
    EXPECT_THAT(plugin.Call(method), StatusIs(absl::StatusCode::kUnimplemented))
        << method;
  }
  Plugin admin(kekd_->AdminSocket());
  EXPECT_THAT(admin.Call("/grpc.reflection.v1alpha.ServerReflection/"
                         "ServerReflectionInfo"),
              StatusIs(absl::StatusCode::kUnimplemented));
  EXPECT_THAT(admin.Call("/v2.KeyManagementService/Decrypt"),
              StatusIs(absl::StatusCode::kUnimplemented));
}

TEST_F(K8sWireTest, K8s02AnyAuthorityAndUnknownMetadata) {
  ASSERT_NO_FATAL_FAILURE(Start());
  for (const std::string& authority :
       {std::string("localhost"), std::string("%2Frun%2Fx.sock"),
        std::string("/run/x.sock"), std::string("@name")}) {
    auto stub = v2::KeyManagementService::NewStub(
        ConnectTo(kekd_->Socket(), authority));
    const auto context = Context();
    context->AddMetadata("hasleader", "true");
    context->AddMetadata("x-something-bin", std::string("\0\1\2", 3));
    v2::StatusResponse response;
    EXPECT_OK(
        FromGrpc(stub->Status(context.get(), v2::StatusRequest(), &response)))
        << authority;
    EXPECT_EQ(response.healthz(), "ok") << authority;
  }
}

TEST_F(K8sWireTest, K8s03PathAndAbstractSocket) {
  KekdProcess::Options options;
  const std::string name = absl::StrCat("@kekd-test-", getpid());
  options.bindings = {{.name = "path", .key = "main"},
                      {.name = "abstract",
                       .key = "main",
                       .yaml = {"allow_abstract: true"},
                       .socket = name}};
  ASSERT_NO_FATAL_FAILURE(Start(options));
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       Connect("path").Encrypt(Plaintext(32)));
  EXPECT_THAT(Plugin(name).Decrypt(encrypted), IsOkAndHolds(Plaintext(32)));

  // Not without being allowed.
  options.bindings[1].yaml.clear();
  kekd_->WriteConfig(options);
  const auto [code, text] = kekd_->Run({"--check-config", kekd_->config()});
  EXPECT_NE(code, 0);
  EXPECT_THAT(text, HasSubstr("allow_abstract"));
}

TEST_F(K8sWireTest, K8s04MessageSizes) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Plugin plugin = Connect();
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       plugin.Encrypt(Plaintext(32)));
  // The largest legal request: annotations of 32 KiB beside the rest.
  v2::DecryptRequest request = RequestFor(encrypted);
  (*request.mutable_annotations())["large.example.com"] =
      std::string(32768 - 17, 'a');
  EXPECT_THAT(plugin.Decrypt(request), IsOkAndHolds(Plaintext(32)));

  (*request.mutable_annotations())["large.example.com"] =
      std::string(65536, 'a');
  EXPECT_THAT(plugin.Decrypt(request),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(plugin.Encrypt(std::string(1 << 20, 'a')),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(plugin.Decrypt(encrypted), IsOkAndHolds(Plaintext(32)));
}

TEST_F(K8sWireTest, K8s05GoldenVectorsOfGosEncoder) {
  // Makes the linker keep them all.
  v2::StatusRequest().descriptor();
  v1beta1::VersionRequest().descriptor();
  // The sources may lie where only root can look.
  std::istringstream file;
  const auto read = [&] {
    file.str(base::testing::TempDir::Read(
        std::string(KEK_SOURCE_DIR) +
        "/tests/vectors/kubernetes/messages.json"));
  };
  if (!AsRoot(read)) read();
  std::set<std::string> seen;
  for (std::string line; std::getline(file, line);) {
    google::protobuf::Struct vector;
    ASSERT_TRUE(
        google::protobuf::util::JsonStringToMessage(line, &vector).ok());
    const std::string type = vector.fields().at("type").string_value();
    const std::string wire =
        absl::HexStringToBytes(vector.fields().at("hex").string_value());
    seen.insert(type);

    const auto* descriptor = google::protobuf::DescriptorPool::generated_pool()
                                 ->FindMessageTypeByName(type);
    ASSERT_NE(descriptor, nullptr) << type;
    const google::protobuf::Message* prototype =
        google::protobuf::MessageFactory::generated_factory()->GetPrototype(
            descriptor);
    std::string fields;
    ASSERT_TRUE(google::protobuf::util::MessageToJsonString(
                    vector.fields().at("fields"), &fields)
                    .ok());
    const std::unique_ptr<google::protobuf::Message> expected(prototype->New());
    ASSERT_TRUE(
        google::protobuf::util::JsonStringToMessage(fields, expected.get())
            .ok())
        << type << fields;
    EXPECT_EQ(absl::BytesToHexString(expected->SerializeAsString()),
              absl::BytesToHexString(wire))
        << type;
    const std::unique_ptr<google::protobuf::Message> decoded(prototype->New());
    ASSERT_TRUE(decoded->ParseFromString(wire)) << type;
    EXPECT_EQ(decoded->DebugString(), expected->DebugString()) << type;
  }
  EXPECT_THAT(seen, SizeIs(12));
}

TEST_F(K8sWireTest, K8s15RoundTripOfAllSizes) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Plugin plugin = Connect();
  for (const size_t size : {1, 4, 16, 24, 32, 64, 256, 900}) {
    ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                         plugin.Encrypt(Plaintext(size)));
    EXPECT_THAT(plugin.Decrypt(encrypted), IsOkAndHolds(Plaintext(size)));
    EXPECT_THAT(plugin.DecryptV1(*plugin.EncryptV1(Plaintext(size))),
                IsOkAndHolds(Plaintext(size)));
  }
  EXPECT_THAT(plugin.Encrypt(""), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(plugin.EncryptV1(""),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(K8sWireTest, K8s16CiphertextFitsAndDiffers) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Plugin plugin = Connect();
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse first,
                       plugin.Encrypt(Plaintext(32)));
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse second,
                       plugin.Encrypt(Plaintext(32)));
  EXPECT_LE(first.ciphertext().size(), 128u);
  EXPECT_NE(first.ciphertext(), second.ciphertext());
  EXPECT_EQ(first.key_id(), second.key_id());
  EXPECT_THAT(first.ciphertext(), Not(HasSubstr(Plaintext(32))));

  // Up to the largest input that is taken, the answer is one that
  // kube-apiserver takes.
  constexpr size_t kLargest = 1024 - core::kMaxEnvelopeOverhead;
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse largest,
                       plugin.Encrypt(Plaintext(kLargest)));
  EXPECT_LE(largest.ciphertext().size(), 1024u);
  EXPECT_THAT(plugin.Decrypt(largest), IsOkAndHolds(Plaintext(kLargest)));
  EXPECT_THAT(plugin.Encrypt(Plaintext(kLargest + 1)),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(K8sWireTest, K8s17AnnotationsAreNoneAndForeignOnesDoNoHarm) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Plugin plugin = Connect();
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       plugin.Encrypt(Plaintext(32)));
  // None of ours, so there is none to alter; the key is chosen without them.
  EXPECT_THAT(encrypted.annotations(), IsEmpty());
  v2::DecryptRequest request = RequestFor(encrypted);
  (*request.mutable_annotations())["version.example.com"] = "17";
  (*request.mutable_annotations())["Not A Domain"] = std::string(100, '\xff');
  EXPECT_THAT(plugin.Decrypt(request), IsOkAndHolds(Plaintext(32)));
}

TEST_F(K8sWireTest, K8s18NoAlteredBitGivesPlaintext) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Plugin plugin = Connect();
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       plugin.Encrypt(Plaintext(32)));
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse other,
                       plugin.Encrypt(Plaintext(32)));
  const v2::DecryptRequest good = RequestFor(encrypted);
  const auto refused = StatusIs(absl::StatusCode::kInvalidArgument);

  for (size_t bit = 0; bit < good.ciphertext().size() * 8; ++bit) {
    v2::DecryptRequest request = good;
    (*request.mutable_ciphertext())[bit / 8] ^=
        static_cast<char>(1 << (bit % 8));
    ASSERT_THAT(plugin.Decrypt(request), refused) << "ciphertext bit " << bit;
  }
  for (size_t bit = 0; bit < good.key_id().size() * 8; ++bit) {
    if (bit % 8 == 7) continue;  // no UTF-8, so no string of protobuf
    v2::DecryptRequest request = good;
    (*request.mutable_key_id())[bit / 8] ^= static_cast<char>(1 << (bit % 8));
    ASSERT_THAT(plugin.Decrypt(request), refused) << "key_id bit " << bit;
  }
  for (size_t size = 0; size < good.ciphertext().size(); ++size) {
    v2::DecryptRequest request = good;
    request.mutable_ciphertext()->resize(size);
    ASSERT_THAT(plugin.Decrypt(request), refused) << "size " << size;
  }
  for (const size_t size : {1, 16, 64, 68, 108, 1024, 1025, 4096}) {
    std::mt19937 random(static_cast<unsigned>(size));
    v2::DecryptRequest request = good;
    request.mutable_ciphertext()->resize(size);
    for (char& byte : *request.mutable_ciphertext()) {
      byte = static_cast<char>(random());
    }
    ASSERT_THAT(plugin.Decrypt(request), refused) << "random, size " << size;
    request.set_ciphertext(good.ciphertext());
    request.mutable_ciphertext()->resize(good.ciphertext().size() + size);
    ASSERT_THAT(plugin.Decrypt(request), refused) << "longer by " << size;
  }
  v2::DecryptRequest request = good;
  request.set_key_id("");
  EXPECT_THAT(plugin.Decrypt(request), refused);
  request.set_key_id(std::string(1024, 'k'));
  EXPECT_THAT(plugin.Decrypt(request), refused);

  EXPECT_THAT(plugin.Decrypt(good), IsOkAndHolds(Plaintext(32)));
  EXPECT_THAT(plugin.Decrypt(other), IsOkAndHolds(Plaintext(32)));
}

TEST_F(K8sWireTest, K8s19DecryptOpensTheVersionThatKeyIdNames) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Plugin plugin = Connect();
  Administrator admin = Admin();
  const std::string key = kekd_->KeyName("main");
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse v1,
                       plugin.Encrypt("seed one"));
  ASSERT_OK(admin.Rotate(key));
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse v2,
                       plugin.Encrypt("seed two"));
  EXPECT_NE(v1.key_id(), v2.key_id());
  EXPECT_THAT(plugin.Decrypt(v1), IsOkAndHolds("seed one"));
  EXPECT_THAT(plugin.Decrypt(v2), IsOkAndHolds("seed two"));

  // The two do not mix.
  v2::DecryptRequest mixed = RequestFor(v1);
  mixed.set_key_id(v2.key_id());
  EXPECT_THAT(plugin.Decrypt(mixed),
              StatusIs(absl::StatusCode::kInvalidArgument));

  // A version that may not be used says so, by name; the others go on.
  const std::string version1 = absl::StrCat(key, "/cryptoKeyVersions/1");
  ASSERT_OK(admin.SetState(version1, kms::CryptoKeyVersion::DISABLED));
  EXPECT_THAT(plugin.Decrypt(v1),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr(version1), HasSubstr("DISABLED"))));
  EXPECT_THAT(plugin.Decrypt(v2), IsOkAndHolds("seed two"));
  ASSERT_OK(admin.Destroy(version1));
  EXPECT_THAT(
      plugin.Decrypt(v1),
      StatusIs(absl::StatusCode::kFailedPrecondition,
               AllOf(HasSubstr(version1), HasSubstr("DESTROY_SCHEDULED"))));

  // A version that this kekd does not know.
  ASSERT_OK_AND_ASSIGN(core::Envelope envelope,
                       core::Envelope::Parse({reinterpret_cast<const uint8_t*>(
                                                  v2.ciphertext().data()),
                                              v2.ciphertext().size()}));
  envelope.version = 99;
  const std::vector<uint8_t> bytes = envelope.Serialize();
  ASSERT_OK_AND_ASSIGN(service::KubernetesKeyId id,
                       service::KubernetesKeyId::Parse(v2.key_id()));
  id.version = 99;
  v2::DecryptRequest unknown;
  unknown.set_ciphertext(bytes.data(), bytes.size());
  unknown.set_key_id(id.ToString());
  EXPECT_THAT(
      plugin.Decrypt(unknown),
      StatusIs(absl::StatusCode::kNotFound, HasSubstr("cryptoKeyVersions/99")));
}

TEST_F(K8sWireTest, K8s20FirstVersionOpensAfterAHundredRotations) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Plugin plugin = Connect();
  Administrator admin = Admin();
  const pid_t pid = kekd_->pid();
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse first,
                       plugin.Encrypt("first"));
  std::set<std::string> key_ids = {first.key_id()};
  for (int i = 0; i < 100; ++i) {
    ASSERT_OK(admin.Rotate(kekd_->KeyName("main")));
    ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse next,
                         plugin.Encrypt("next"));
    EXPECT_TRUE(key_ids.insert(next.key_id()).second);
  }
  EXPECT_THAT(plugin.Decrypt(first), IsOkAndHolds("first"));
  EXPECT_EQ(kekd_->pid(), pid);
}

TEST_F(K8sWireTest, K8s21V1BlobsCarryTheirVersionAndAreNotV2s) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Plugin plugin = Connect();
  ASSERT_OK_AND_ASSIGN(const std::string blob, plugin.EncryptV1("dek one"));
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse before,
                       plugin.Encrypt("seed one"));
  ASSERT_OK(Admin().Rotate(kekd_->KeyName("main")));
  EXPECT_THAT(plugin.DecryptV1(blob), IsOkAndHolds("dek one"));

  EXPECT_THAT(plugin.DecryptV1(before.ciphertext()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  v2::DecryptRequest request = RequestFor(before);
  request.set_ciphertext(blob);
  EXPECT_THAT(plugin.Decrypt(request),
              StatusIs(absl::StatusCode::kInvalidArgument));

  // The longest DEK that fits a message, and its blob fits 16 bits.
  ASSERT_OK_AND_ASSIGN(const std::string longest,
                       plugin.EncryptV1(Plaintext(60000)));
  EXPECT_LE(longest.size(), 65535u);
  EXPECT_THAT(plugin.DecryptV1(longest), IsOkAndHolds(Plaintext(60000)));
}

TEST_F(K8sWireTest, K8s22UidIsInEveryAuditRecord) {
  KekdProcess::Options options;
  options.bindings = {
      {.name = "main", .key = "main"},
      {.name = "strict", .key = "main", .yaml = {"require_uid: true"}}};
  ASSERT_NO_FATAL_FAILURE(Start(options));
  Plugin plugin = Connect(), strict = Connect("strict");
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       plugin.Encrypt("seed", "uid-of-encrypt"));
  ASSERT_OK(plugin.Decrypt(RequestFor(encrypted, "uid-of-decrypt")));
  v2::DecryptRequest bad = RequestFor(encrypted, "uid-of-bad-key-id");
  bad.set_key_id("nonsense");
  EXPECT_THAT(plugin.Decrypt(bad),
              StatusIs(absl::StatusCode::kInvalidArgument));
  bad = RequestFor(encrypted, "uid-of-bad-ciphertext");
  bad.mutable_ciphertext()->back() ^= 1;
  EXPECT_THAT(plugin.Decrypt(bad),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(strict.Encrypt("seed", ""),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(strict.Decrypt(RequestFor(encrypted, "")),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(plugin.Encrypt("seed", ""));

  std::map<std::string, std::string> records;  // by uid
  for (const std::string& line : kekd_->AuditLines()) {
    google::protobuf::Struct record;
    ASSERT_TRUE(
        google::protobuf::util::JsonStringToMessage(line, &record).ok());
    const auto& fields = record.fields();
    if (fields.count("rid") == 0) continue;
    records[fields.at("rid").string_value()] = absl::StrCat(
        fields.at("op").string_value(), " ", fields.at("result").string_value(),
        " ", fields.at("front").string_value());
  }
  EXPECT_EQ(records["uid-of-encrypt"], "Encrypt OK kubernetes-v2");
  EXPECT_EQ(records["uid-of-decrypt"], "Decrypt OK kubernetes-v2");
  EXPECT_EQ(records["uid-of-bad-key-id"],
            "Decrypt INVALID_ARGUMENT kubernetes-v2");
  EXPECT_EQ(records["uid-of-bad-ciphertext"],
            "Decrypt INVALID_ARGUMENT kubernetes-v2");
}

// Whether a process comes to use no more time of the processor: all that it was
// given waits for something.
bool Settles(pid_t pid) {
  const auto ticks = [pid] {
    const std::string stat =
        base::testing::TempDir::Read(absl::StrCat("/proc/", pid, "/stat"));
    // proc(5): after the name in parentheses, utime and stime are the 12th and
    // 13th words.
    const std::vector<std::string> words =
        absl::StrSplit(stat.substr(stat.rfind(')') + 2), ' ');
    return words[11] + "+" + words[12];
  };
  std::string last;
  base::Deadline since;
  return Eventually(
      [&] {
        if (std::string now = ticks(); now != last) {
          last = std::move(now);
          since = std::chrono::steady_clock::now();
        }
        return std::chrono::steady_clock::now() - since >=
               std::chrono::milliseconds(150);
      },
      Within(seconds(8)));
}

TEST_F(K8sWireTest, K8s23TwentyEqualDecryptsAreOneOperationOfTheToken) {
  KekdProcess::Options options;
  options.yaml = "http:\n  listen: \"127.0.0.1:0\"\n";
  ASSERT_NO_FATAL_FAILURE(StartFaulty(options));
  const int port = kekd_->HttpPort();
  Plugin plugin = Connect();
  // 56 bytes: a size that nothing else decrypts.
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       plugin.Encrypt(Plaintext(56)));
  const auto decrypts = [&] {
    int count = 0;
    for (const auto& call : rules_->Calls("C_Decrypt")) {
      count += call.details.count("size") != 0 &&
                       call.details.at("size") == std::to_string(56 + 8 + 16)
                   ? 1
                   : 0;
    }
    return count;
  };
  const int before = decrypts();
  rules_->Set({absl::StrCat("C_Decrypt size=", 56 + 8 + 16,
                            " count=1 hang=", rules_->HangFile())});
  std::vector<std::thread> callers;
  std::atomic<int> right{0};
  for (int i = 0; i < 20; ++i) {
    callers.emplace_back([&] {
      Plugin own = Connect();
      const auto opened = own.Decrypt(encrypted, seconds(10));
      right += opened.ok() && *opened == Plaintext(56) ? 1 : 0;
    });
  }
  EXPECT_TRUE(Eventually(
      [&] { return MetricSum(port, "kekd_requests_in_flight") >= 20; },
      Within(seconds(8))));
  EXPECT_TRUE(Settles(kekd_->pid()));
  rules_->Release();
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(right, 20);
  EXPECT_EQ(decrypts() - before, 1);
}

// How often text occurs in what a core image of the process would hold; the
// number of bytes looked at is added to *bytes.
int CountInMemory(pid_t pid, const std::string& text, size_t* bytes) {
  int found = 0;
  const std::string proc = absl::StrCat("/proc/", pid);
  std::ifstream maps(proc + "/maps");
  const int mem = open((proc + "/mem").c_str(), O_RDONLY | O_CLOEXEC);
  for (std::string line; std::getline(maps, line);) {
    const std::vector<std::string> words =
        absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (!absl::StartsWith(words[1], "rw")) continue;
    const std::vector<std::string> range = absl::StrSplit(words[0], '-');
    const uint64_t first = std::stoull(range[0], nullptr, 16);
    std::string content(std::stoull(range[1], nullptr, 16) - first, '\0');
    const ssize_t got =
        pread(mem, content.data(), content.size(), static_cast<off_t>(first));
    if (got <= 0) continue;
    content.resize(static_cast<size_t>(got));
    *bytes += content.size();
    for (size_t at = content.find(text); at != std::string::npos;
         at = content.find(text, at + 1)) {
      ++found;
    }
  }
  close(mem);
  return found;
}

TEST_F(K8sWireTest, K8s24NoPlaintextInLogsMetricsAuditOrMemory) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's shadow is terabytes, and keeps freed memory";
#endif
  KekdProcess::Options options;
  options.yaml = "http:\n  listen: \"127.0.0.1:0\"\nlog:\n  level: debug\n";
  ASSERT_NO_FATAL_FAILURE(Start(options));
  // A DEK with a mark that cannot be there by chance, and that neither a file
  // nor the environment brings into kekd.
  std::string mark(16, '\0');
  for (size_t i = 0; i < mark.size(); ++i) {
    mark[i] = static_cast<char>(0xA5 ^ (i * 29));
  }
  const std::string plaintext = mark + mark;
  {
    Plugin plugin = Connect();
    for (int i = 0; i < 500; ++i) {
      ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                           plugin.Encrypt(plaintext));
      ASSERT_THAT(plugin.Decrypt(encrypted), IsOkAndHolds(plaintext));
      ASSERT_OK_AND_ASSIGN(const std::string blob, plugin.EncryptV1(plaintext));
      ASSERT_THAT(plugin.DecryptV1(blob), IsOkAndHolds(plaintext));
    }
  }
  const auto metrics = HttpGet(kekd_->HttpPort(), "/metrics");
  ASSERT_TRUE(metrics.has_value());
  for (const std::string& text :
       {mark, absl::BytesToHexString(mark),
        absl::Base64Escape(plaintext).substr(0, 20)}) {
    EXPECT_FALSE(absl::StrContains(kekd_->Log(), text));
    EXPECT_FALSE(absl::StrContains(metrics->second, text));
    EXPECT_THAT(kekd_->AuditLines(), Each(Not(HasSubstr(text))));
  }
  EXPECT_FALSE(absl::StrContains(kekd_->Log(), kekd_->pin()));

  // The last frames stay in the buffer of the connection they came by, as long
  // as that is open. After that nothing is left.
  size_t bytes = 0;
  int found = -1;
  std::string limits;
  if (!AsRoot([&] {
        limits = base::testing::TempDir::Read(
            absl::StrCat("/proc/", kekd_->pid(), "/limits"));
        Eventually(
            [&] {
              found = CountInMemory(kekd_->pid(), mark, &bytes);
              return found == 0;
            },
            Within(seconds(5)));
      })) {
    GTEST_SKIP() << "only root may read kekd's memory";
  }
  EXPECT_GT(bytes, 1u << 20);
  EXPECT_EQ(found, 0);
  EXPECT_THAT(limits, ::testing::ContainsRegex("Max core file size +0 +0"));
}

TEST_F(K8sWireTest, K8s25VersionSaysWhatKubeApiserverExpects) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Plugin plugin = Connect();
  for (const char* asked : {"v1beta1", "", "v9"}) {
    ASSERT_OK_AND_ASSIGN(const v1beta1::VersionResponse response,
                         plugin.VersionV1(asked));
    EXPECT_EQ(response.version(), "v1beta1");
    EXPECT_EQ(response.runtime_name(), "kekd");
    EXPECT_THAT(response.runtime_version(),
                ::testing::MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+"));
  }
  // Other versions are tolerated in Encrypt and Decrypt too.
  ASSERT_OK_AND_ASSIGN(const std::string blob, plugin.EncryptV1("dek", "v9"));
  EXPECT_THAT(plugin.DecryptV1(blob, ""), IsOkAndHolds("dek"));
}

TEST_F(K8sWireTest, K8s44TwoKeysTwoSocketsOneProcess) {
  KekdProcess::Options options;
  options.bindings = {{.name = "a", .key = "a"}, {.name = "b", .key = "b"}};
  ASSERT_NO_FATAL_FAILURE(Start(options));
  Plugin a = Connect("a"), b = Connect("b");
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse of_a, a.Encrypt("of a"));
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse of_b, b.Encrypt("of b"));
  ASSERT_OK_AND_ASSIGN(const std::string v1_of_a, a.EncryptV1("v1 of a"));
  EXPECT_NE(of_a.key_id(), of_b.key_id());
  EXPECT_THAT(b.Decrypt(of_a), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(a.Decrypt(of_b), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(b.DecryptV1(v1_of_a),
              StatusIs(absl::StatusCode::kInvalidArgument));

  // One key on both APIs, and an administrator's Decrypt opens neither's.
  EXPECT_THAT(a.DecryptV1(v1_of_a), IsOkAndHolds("v1 of a"));
  kms::DecryptRequest request;
  request.set_name(kekd_->KeyName("a"));
  request.set_ciphertext(of_a.ciphertext());
  request.set_additional_authenticated_data(of_a.key_id());
  kms::DecryptResponse response;
  Administrator admin = Admin();
  EXPECT_THAT(
      FromGrpc(admin.keys().Decrypt(Context().get(), request, &response)),
      Not(base::testing::IsOk()));
  EXPECT_EQ(response.plaintext(), "");

  // What befalls one is not the other's.
  ASSERT_OK(
      admin.SetState(absl::StrCat(kekd_->KeyName("a"), "/cryptoKeyVersions/1"),
                     kms::CryptoKeyVersion::DISABLED));
  EXPECT_THAT(a.Encrypt("of a"),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(a.Status(), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(b.Decrypt(of_b), IsOkAndHolds("of b"));
  ASSERT_OK_AND_ASSIGN(const v2::StatusResponse status, b.Status());
  EXPECT_EQ(status.healthz(), "ok");
}

TEST_F(K8sWireTest, K8s45PreflightOfAnOperator) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Plugin plugin = Connect();
  ASSERT_OK_AND_ASSIGN(const v2::StatusResponse status, plugin.Status());
  ASSERT_EQ(status.healthz(), "ok");
  std::string seed(32, '\0');
  std::random_device random;
  for (char& byte : seed) byte = static_cast<char>(random());
  ASSERT_OK_AND_ASSIGN(const v2::EncryptResponse encrypted,
                       plugin.Encrypt(seed));
  EXPECT_NE(encrypted.ciphertext(), seed);
  EXPECT_EQ(encrypted.key_id(), status.key_id());
  EXPECT_THAT(plugin.Decrypt(encrypted), IsOkAndHolds(seed));
}

}  // namespace
}  // namespace kek::integration
