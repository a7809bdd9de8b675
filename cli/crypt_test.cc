// SPDX-License-Identifier: Apache-2.0
// encrypt and decrypt against servers that damage what they carry, and what
// each gRPC code becomes. The server here stands for a broken one; the real one
// is met in tests/integration.
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/crc32c.h"
#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "cli/testing/run_kekctl.h"
#include "google/cloud/kms/v1/service.grpc.pb.h"

namespace kek::cli {
namespace {

namespace kms = google::cloud::kms::v1;
using ::testing::HasSubstr;
using testing::Kekctl;
using testing::Ran;

constexpr char kKey[] = "projects/kekd/locations/local/keyRings/r/cryptoKeys/k";

uint32_t Crc(const std::string& text) {
  return base::Crc32c(
      std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
}

class Server : public kms::KeyManagementService::Service {
 public:
  std::function<void(kms::EncryptResponse&)> on_encrypt;
  std::function<void(kms::DecryptResponse&)> on_decrypt;
  grpc::Status status = grpc::Status::OK;

  grpc::Status Encrypt(grpc::ServerContext*, const kms::EncryptRequest* request,
                       kms::EncryptResponse* response) override {
    if (!status.ok()) return status;
    response->set_name(std::string(kKey) + "/cryptoKeyVersions/1");
    response->set_ciphertext("sealed:" + request->plaintext() + ":" +
                             request->additional_authenticated_data());
    response->mutable_ciphertext_crc32c()->set_value(
        Crc(response->ciphertext()));
    response->set_verified_plaintext_crc32c(
        request->has_plaintext_crc32c() &&
        request->plaintext_crc32c().value() == Crc(request->plaintext()));
    response->set_verified_additional_authenticated_data_crc32c(
        request->has_additional_authenticated_data_crc32c() &&
        request->additional_authenticated_data_crc32c().value() ==
            Crc(request->additional_authenticated_data()));
    if (on_encrypt) on_encrypt(*response);
    return grpc::Status::OK;
  }
  grpc::Status Decrypt(grpc::ServerContext*, const kms::DecryptRequest* request,
                       kms::DecryptResponse* response) override {
    if (!status.ok()) return status;
    const std::string& sealed = request->ciphertext();
    const std::string tail = ":" + request->additional_authenticated_data();
    if (sealed.rfind("sealed:", 0) != 0 || sealed.size() < 7 + tail.size() ||
        sealed.substr(sealed.size() - tail.size()) != tail) {
      return {grpc::INVALID_ARGUMENT,
              "Decryption failed: the ciphertext is invalid."};
    }
    response->set_plaintext(sealed.substr(7, sealed.size() - 7 - tail.size()));
    response->mutable_plaintext_crc32c()->set_value(Crc(response->plaintext()));
    if (on_decrypt) on_decrypt(*response);
    return grpc::Status::OK;
  }
};

class CryptTest : public ::testing::Test {
 protected:
  CryptTest() {
    server_ = grpc::ServerBuilder()
                  .AddListeningPort("unix:" + socket_,
                                    grpc::InsecureServerCredentials())
                  .RegisterService(&service_)
                  .BuildAndStart();
  }
  Ran Run(std::vector<std::string> arguments, absl::string_view input = "") {
    arguments.push_back("--socket");
    arguments.push_back(socket_);
    return Kekctl(std::move(arguments), input);
  }

  base::testing::TempDir dir_;
  std::string socket_ = dir_.File("admin.sock");
  Server service_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(CryptTest, StreamsAndFilesRoundTrip) {
  const std::string secret("dek\0\n\xff", 6);
  const Ran sealed = Run({"encrypt", "r/k"}, secret);
  ASSERT_EQ(sealed.code, 0) << sealed.err;
  const Ran opened = Run({"decrypt", "r/k"}, sealed.out);
  ASSERT_EQ(opened.code, 0) << opened.err;
  EXPECT_EQ(opened.out, secret);

  const std::string in = dir_.Write("in", secret);
  const std::string aad = dir_.Write("aad", "context");
  const std::string out = dir_.File("out"), back = dir_.File("back");
  ASSERT_EQ(Run({"encrypt", "r/k", "--in", in, "--out", out, "--aad-file", aad,
                 "--base64"})
                .code,
            0);
  const Ran decrypted = Run({"decrypt", "r/k", "--in", out, "--out", back,
                             "--aad-file", aad, "--base64"});
  ASSERT_EQ(decrypted.code, 0) << decrypted.err;
  EXPECT_EQ(base::testing::TempDir::Read(back), secret);
  struct stat info;
  ASSERT_EQ(stat(back.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
}

TEST_F(CryptTest, AnExistingOutputIsReplacedOnlyByForce) {
  const std::string out = dir_.Write("out", "precious");
  const Ran refused = Run({"encrypt", "r/k", "--out", out}, "x");
  EXPECT_EQ(refused.code, 73);
  EXPECT_THAT(refused.err, HasSubstr("--force"));
  EXPECT_EQ(base::testing::TempDir::Read(out), "precious");
  EXPECT_EQ(Run({"encrypt", "r/k", "--out", out, "--force"}, "x").code, 0);
  EXPECT_EQ(base::testing::TempDir::Read(out), "sealed:x:");
}

TEST_F(CryptTest, APipeIsWrittenToAndNotReplaced) {
  const std::string fifo = dir_.File("fifo");
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  const int reader = open(fifo.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  ASSERT_GE(reader, 0);
  EXPECT_EQ(Run({"encrypt", "r/k", "--out", fifo, "--force"}, "x").code, 0);
  char buffer[64];
  EXPECT_EQ(std::string(buffer, static_cast<size_t>(std::max<ssize_t>(
                                    0, read(reader, buffer, sizeof(buffer))))),
            "sealed:x:");
  close(reader);
  struct stat info;
  ASSERT_EQ(stat(fifo.c_str(), &info), 0);
  EXPECT_TRUE(S_ISFIFO(info.st_mode));
}

TEST_F(CryptTest, LocalFilesThatCannotBeReadExit74) {
  EXPECT_EQ(Run({"encrypt", "r/k", "--in", dir_.File("missing")}).code, 74);
  EXPECT_EQ(Run({"encrypt", "r/k", "--aad-file", dir_.File("missing")}).code,
            74);
  EXPECT_EQ(
      Run({"encrypt", "r/k", "--out", dir_.File("no/such/directory")}, "x")
          .code,
      74);
  const Ran large = Run({"encrypt", "r/k"}, std::string(300000, 'x'));
  EXPECT_EQ(large.code, 64);
  EXPECT_THAT(large.err, HasSubstr("wraps keys, not files"));
}

TEST_F(CryptTest, DamageOnTheWayExits65AndWritesNothing) {
  const auto damaged = [&](std::function<void(kms::EncryptResponse&)> change) {
    service_.on_encrypt = std::move(change);
    const std::string out = dir_.File("out");
    const Ran ran = Run({"encrypt", "r/k", "--out", out}, "x");
    EXPECT_EQ(ran.code, 65);
    EXPECT_EQ(access(out.c_str(), F_OK), -1);
  };
  damaged([](auto& r) { (*r.mutable_ciphertext())[0] ^= 1; });
  damaged([](auto& r) { r.clear_ciphertext_crc32c(); });
  damaged([](auto& r) { r.set_verified_plaintext_crc32c(false); });
  damaged([](auto& r) {
    r.set_verified_additional_authenticated_data_crc32c(false);
  });
  damaged([](auto& r) {
    r.set_name(
        "projects/kekd/locations/local/keyRings/r/cryptoKeys/other/"
        "cryptoKeyVersions/1");
  });

  service_.on_decrypt = [](auto& r) { (*r.mutable_plaintext())[0] ^= 1; };
  const Ran ran = Run({"decrypt", "r/k"}, "sealed:x:");
  EXPECT_EQ(ran.code, 65);
  EXPECT_EQ(ran.out, "");
}

TEST_F(CryptTest, ACiphertextThatDoesNotOpenExits65) {
  const Ran garbage = Run({"decrypt", "r/k"}, "garbage");
  EXPECT_EQ(garbage.code, 65);
  EXPECT_THAT(garbage.err, HasSubstr("--aad-file"));
  EXPECT_EQ(garbage.out, "");
}

TEST_F(CryptTest, EachCodeOfTheServerHasItsExitCodeAndANextStep) {
  const std::pair<grpc::StatusCode, int> expected[] = {
      {grpc::INVALID_ARGUMENT, 64},  {grpc::NOT_FOUND, 66},
      {grpc::PERMISSION_DENIED, 77}, {grpc::FAILED_PRECONDITION, 80},
      {grpc::UNAVAILABLE, 69},       {grpc::RESOURCE_EXHAUSTED, 69},
      {grpc::DEADLINE_EXCEEDED, 69}, {grpc::DATA_LOSS, 65},
      {grpc::ALREADY_EXISTS, 73},    {grpc::INTERNAL, 1},
      {grpc::UNIMPLEMENTED, 1},
  };
  for (const auto& [code, exit] : expected) {
    service_.status = grpc::Status(code, "what happened");
    const Ran ran = Run({"encrypt", "r/k"}, "x");
    EXPECT_EQ(ran.code, exit) << code;
    EXPECT_THAT(ran.err, HasSubstr("what happened")) << code;
    if (exit != 73) {
      EXPECT_THAT(ran.err, HasSubstr("next: ")) << code;
    }
  }
}

TEST_F(CryptTest, AServerThatClosesTheConnectionOrNeverAnswersExits69) {
  const std::string path = dir_.File("closing.sock");
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path.c_str());
  ASSERT_EQ(
      bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)),
      0);
  ASSERT_EQ(listen(listener, 8), 0);
  const Ran silent =
      Kekctl({"status", "--socket", path, "--deadline", "300ms"});
  EXPECT_EQ(silent.code, 69);
  EXPECT_THAT(silent.err, HasSubstr("no answer"));
  close(listener);
  const Ran gone = Kekctl({"status", "--socket", path});
  EXPECT_EQ(gone.code, 69);
  EXPECT_THAT(gone.err, HasSubstr("its process is not"));
}

}  // namespace
}  // namespace kek::cli
