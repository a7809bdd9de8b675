// SPDX-License-Identifier: Apache-2.0
//
// google.cloud.kms.v1 on the admin socket of the real kekd.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/crc32c.h"
#include "base/testing/matchers.h"
#include "gmock/gmock.h"
#include "google/cloud/kms/v1/service.grpc.pb.h"
#include "gtest/gtest.h"
#include "tests/support/kekd_process.h"

namespace kek::integration {
namespace {

namespace kms = google::cloud::kms::v1;
using base::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;

const auto kInvalid = absl::StatusCode::kInvalidArgument;
const auto kNotFound = absl::StatusCode::kNotFound;
const auto kPrecondition = absl::StatusCode::kFailedPrecondition;

uint32_t CrcOf(const std::string& text) {
  return base::Crc32c(
      {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

class CloudKmsTest : public ::testing::Test {
 protected:
  CloudKmsTest() : kekd_(KekdProcess::Options{.bindings = {}}) {}

  void SetUp() override {
    ASSERT_OK(kekd_.StartWithKeys());  // the ring "ring" is there
    Connect();
  }
  void Connect() {
    stub_ = kms::KeyManagementService::NewStub(ConnectTo(kekd_.AdminSocket()));
  }

  // Calls a method of the stub.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(
      grpc::Status (kms::KeyManagementService::Stub::*method)(
          grpc::ClientContext*, const Request&, Response*),
      const Request& request) {
    Response response;
    const grpc::Status status =
        (stub_.get()->*method)(Context().get(), request, &response);
    if (!status.ok()) {
      return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                          status.error_message());
    }
    return response;
  }
#define KMS_METHOD(Name, Request)                                 \
  auto Name(const kms::Request& request) {                        \
    return Call(&kms::KeyManagementService::Stub::Name, request); \
  }
  KMS_METHOD(CreateKeyRing, CreateKeyRingRequest)
  KMS_METHOD(GetKeyRing, GetKeyRingRequest)
  KMS_METHOD(ListKeyRings, ListKeyRingsRequest)
  KMS_METHOD(CreateCryptoKey, CreateCryptoKeyRequest)
  KMS_METHOD(GetCryptoKey, GetCryptoKeyRequest)
  KMS_METHOD(ListCryptoKeys, ListCryptoKeysRequest)
  KMS_METHOD(UpdateCryptoKey, UpdateCryptoKeyRequest)
  KMS_METHOD(UpdateCryptoKeyPrimaryVersion,
             UpdateCryptoKeyPrimaryVersionRequest)
  KMS_METHOD(CreateCryptoKeyVersion, CreateCryptoKeyVersionRequest)
  KMS_METHOD(GetCryptoKeyVersion, GetCryptoKeyVersionRequest)
  KMS_METHOD(ListCryptoKeyVersions, ListCryptoKeyVersionsRequest)
  KMS_METHOD(UpdateCryptoKeyVersion, UpdateCryptoKeyVersionRequest)
  KMS_METHOD(DestroyCryptoKeyVersion, DestroyCryptoKeyVersionRequest)
  KMS_METHOD(RestoreCryptoKeyVersion, RestoreCryptoKeyVersionRequest)
  KMS_METHOD(Encrypt, EncryptRequest)
  KMS_METHOD(Decrypt, DecryptRequest)
  KMS_METHOD(MacSign, MacSignRequest)
  KMS_METHOD(GenerateRandomBytes, GenerateRandomBytesRequest)
#undef KMS_METHOD

  static kms::CreateCryptoKeyRequest KeyRequest(const std::string& id) {
    kms::CreateCryptoKeyRequest request;
    request.set_parent(KekdProcess::kRing);
    request.set_crypto_key_id(id);
    request.mutable_crypto_key()->set_purpose(kms::CryptoKey::ENCRYPT_DECRYPT);
    return request;
  }
  // Makes a key and returns its name.
  std::string MakeKey(const std::string& id) {
    EXPECT_OK(CreateCryptoKey(KeyRequest(id)));
    return kekd_.KeyName(id);
  }
  std::string AddVersion(const std::string& key) {
    kms::CreateCryptoKeyVersionRequest request;
    request.set_parent(key);
    const auto version = CreateCryptoKeyVersion(request);
    EXPECT_OK(version);
    return version.ok() ? version->name() : "";
  }
  absl::StatusOr<kms::CryptoKeyVersion> SetState(
      const std::string& version,
      kms::CryptoKeyVersion::CryptoKeyVersionState state) {
    kms::UpdateCryptoKeyVersionRequest request;
    request.mutable_crypto_key_version()->set_name(version);
    request.mutable_crypto_key_version()->set_state(state);
    request.mutable_update_mask()->add_paths("state");
    return UpdateCryptoKeyVersion(request);
  }
  kms::EncryptRequest EncryptOf(const std::string& name,
                                const std::string& plaintext,
                                const std::string& aad = "") {
    kms::EncryptRequest request;
    request.set_name(name);
    request.set_plaintext(plaintext);
    request.set_additional_authenticated_data(aad);
    return request;
  }
  kms::DecryptRequest DecryptOf(const std::string& key,
                                const std::string& ciphertext,
                                const std::string& aad = "") {
    kms::DecryptRequest request;
    request.set_name(key);
    request.set_ciphertext(ciphertext);
    request.set_additional_authenticated_data(aad);
    return request;
  }

  KekdProcess kekd_;
  std::unique_ptr<kms::KeyManagementService::Stub> stub_;
};

TEST_F(CloudKmsTest, RingIsWhatCreateSaid) {
  kms::CreateKeyRingRequest request;
  request.set_parent(KekdProcess::kLocation);
  request.set_key_ring_id(std::string(63, 'x'));
  ASSERT_OK_AND_ASSIGN(const kms::KeyRing made, CreateKeyRing(request));
  EXPECT_EQ(made.name(), absl::StrCat(KekdProcess::kLocation, "/keyRings/",
                                      std::string(63, 'x')));
  EXPECT_TRUE(made.has_create_time());
  kms::GetKeyRingRequest get;
  get.set_name(made.name());
  ASSERT_OK_AND_ASSIGN(const kms::KeyRing got, GetKeyRing(get));
  EXPECT_EQ(got.SerializeAsString(), made.SerializeAsString());
  EXPECT_THAT(
      CreateKeyRing(request),
      StatusIs(absl::StatusCode::kAlreadyExists,
               AllOf(HasSubstr(made.name()), HasSubstr("already exists"))));
  for (const std::string& id :
       {std::string("&bar"), std::string(), std::string(64, 'x'),
        std::string("a/b"), std::string("a.b")}) {
    request.set_key_ring_id(id);
    EXPECT_THAT(CreateKeyRing(request), StatusIs(kInvalid)) << id;
  }
  request.set_key_ring_id("fine");
  request.set_parent("locations/foo");
  EXPECT_THAT(CreateKeyRing(request), StatusIs(kInvalid));
  get.set_name(absl::StrCat(KekdProcess::kLocation, "/keyRings/missing"));
  EXPECT_THAT(GetKeyRing(get), StatusIs(kNotFound, HasSubstr(get.name())));
  get.set_name("malformed name");
  EXPECT_THAT(GetKeyRing(get), StatusIs(kInvalid));
}

TEST_F(CloudKmsTest, KeyHasCloudKmsDefaults) {
  ASSERT_OK_AND_ASSIGN(const kms::CryptoKey made,
                       CreateCryptoKey(KeyRequest("key")));
  EXPECT_EQ(made.name(), kekd_.KeyName("key"));
  EXPECT_EQ(made.purpose(), kms::CryptoKey::ENCRYPT_DECRYPT);
  EXPECT_EQ(made.version_template().protection_level(), kms::SOFTWARE);
  EXPECT_EQ(made.version_template().algorithm(),
            kms::CryptoKeyVersion::GOOGLE_SYMMETRIC_ENCRYPTION);
  EXPECT_EQ(made.destroy_scheduled_duration().seconds(), 2592000);
  EXPECT_EQ(made.primary().name(),
            absl::StrCat(made.name(), "/cryptoKeyVersions/1"));
  EXPECT_EQ(made.primary().state(), kms::CryptoKeyVersion::ENABLED);
  EXPECT_TRUE(made.primary().has_generate_time());
  kms::GetCryptoKeyRequest get;
  get.set_name(made.name());
  ASSERT_OK_AND_ASSIGN(const kms::CryptoKey got, GetCryptoKey(get));
  EXPECT_EQ(got.SerializeAsString(), made.SerializeAsString());

  kms::CreateCryptoKeyRequest request = KeyRequest("no-purpose");
  request.mutable_crypto_key()->clear_purpose();
  EXPECT_THAT(CreateCryptoKey(request), StatusIs(kInvalid));
  request = KeyRequest("external");
  request.mutable_crypto_key()
      ->mutable_version_template()
      ->set_protection_level(kms::EXTERNAL);
  EXPECT_THAT(CreateCryptoKey(request),
              StatusIs(absl::StatusCode::kUnimplemented));
  request = KeyRequest("wrong-algorithm");
  request.mutable_crypto_key()->mutable_version_template()->set_algorithm(
      kms::CryptoKeyVersion::HMAC_SHA256);
  EXPECT_THAT(CreateCryptoKey(request), StatusIs(kInvalid));

  request = KeyRequest("later");
  request.set_skip_initial_version_creation(true);
  ASSERT_OK_AND_ASSIGN(const kms::CryptoKey later, CreateCryptoKey(request));
  EXPECT_FALSE(later.has_primary());
  EXPECT_THAT(Encrypt(EncryptOf(later.name(), "x")), StatusIs(kPrecondition));
}

TEST_F(CloudKmsTest, ListsAreOrderedAndPaged) {
  for (const char* id : {"c", "a", "b"}) MakeKey(id);
  kms::ListCryptoKeysRequest request;
  request.set_parent(KekdProcess::kRing);
  request.set_page_size(1);
  std::vector<std::string> names;
  do {
    ASSERT_OK_AND_ASSIGN(const kms::ListCryptoKeysResponse page,
                         ListCryptoKeys(request));
    EXPECT_EQ(page.total_size(), 3);
    ASSERT_EQ(page.crypto_keys_size(), 1);
    names.push_back(page.crypto_keys(0).name());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_THAT(names, ElementsAre(kekd_.KeyName("a"), kekd_.KeyName("b"),
                                 kekd_.KeyName("c")));

  request.set_page_token("nonsense");
  EXPECT_THAT(ListCryptoKeys(request), StatusIs(kInvalid));
  request.clear_page_token();
  request.set_page_size(-1);
  EXPECT_THAT(ListCryptoKeys(request), StatusIs(kInvalid));
  request.set_page_size(0);
  request.set_order_by("name");
  EXPECT_OK(ListCryptoKeys(request));
  request.set_order_by("create_time");
  EXPECT_THAT(ListCryptoKeys(request), StatusIs(kInvalid));
  request.clear_order_by();
  request.set_filter("labels.a=b");
  EXPECT_THAT(ListCryptoKeys(request), StatusIs(kInvalid));

  const std::string key = kekd_.KeyName("a");
  for (int i = 2; i <= 11; ++i) AddVersion(key);
  kms::ListCryptoKeyVersionsRequest versions;
  versions.set_parent(key);
  ASSERT_OK_AND_ASSIGN(const kms::ListCryptoKeyVersionsResponse all,
                       ListCryptoKeyVersions(versions));
  ASSERT_EQ(all.crypto_key_versions_size(), 11);
  for (int i = 0; i < 11; ++i) {
    EXPECT_EQ(all.crypto_key_versions(i).name(),
              absl::StrCat(key, "/cryptoKeyVersions/", i + 1));
  }
}

TEST_F(CloudKmsTest, UpdateChangesWhatTheMaskNames) {
  const std::string key = MakeKey("key");
  kms::UpdateCryptoKeyRequest request;
  request.mutable_crypto_key()->set_name(key);
  (*request.mutable_crypto_key()->mutable_labels())["team"] = "alpha";
  request.mutable_crypto_key()->mutable_rotation_period()->set_seconds(86400);
  EXPECT_THAT(UpdateCryptoKey(request), StatusIs(kInvalid));
  request.mutable_update_mask()->add_paths("labels");
  ASSERT_OK_AND_ASSIGN(kms::CryptoKey updated, UpdateCryptoKey(request));
  EXPECT_EQ(updated.labels().at("team"), "alpha");
  EXPECT_FALSE(updated.has_rotation_period());

  // A schedule is set and, with both fields unset, cleared.
  request.mutable_update_mask()->clear_paths();
  request.mutable_update_mask()->add_paths("rotation_period");
  request.mutable_update_mask()->add_paths("next_rotation_time");
  EXPECT_THAT(UpdateCryptoKey(request), StatusIs(kInvalid));
  request.mutable_crypto_key()->mutable_next_rotation_time()->set_seconds(
      absl::ToUnixSeconds(absl::Now() + absl::Hours(48)));
  ASSERT_OK_AND_ASSIGN(updated, UpdateCryptoKey(request));
  EXPECT_EQ(updated.rotation_period().seconds(), 86400);
  EXPECT_EQ(updated.labels().at("team"), "alpha");
  request.mutable_crypto_key()->clear_rotation_schedule();
  request.mutable_crypto_key()->clear_next_rotation_time();
  ASSERT_OK_AND_ASSIGN(updated, UpdateCryptoKey(request));
  EXPECT_FALSE(updated.has_rotation_period());
  EXPECT_FALSE(updated.has_next_rotation_time());

  for (const char* path :
       {"name", "purpose", "create_time", "destroy_scheduled_duration",
        "import_only", "primary", "version_template.protection_level", ""}) {
    request.mutable_update_mask()->clear_paths();
    request.mutable_update_mask()->add_paths(path);
    EXPECT_THAT(UpdateCryptoKey(request), StatusIs(kInvalid)) << path;
  }
  // The template as a whole: its level may be repeated, not changed.
  request.mutable_update_mask()->clear_paths();
  request.mutable_update_mask()->add_paths("version_template");
  request.mutable_crypto_key()->mutable_version_template()->set_algorithm(
      kms::CryptoKeyVersion::GOOGLE_SYMMETRIC_ENCRYPTION);
  request.mutable_crypto_key()
      ->mutable_version_template()
      ->set_protection_level(kms::SOFTWARE);
  EXPECT_OK(UpdateCryptoKey(request));
  request.mutable_crypto_key()
      ->mutable_version_template()
      ->set_protection_level(kms::HSM);
  EXPECT_THAT(UpdateCryptoKey(request), StatusIs(kInvalid));
  request.mutable_crypto_key()->set_name(kekd_.KeyName("missing"));
  EXPECT_THAT(UpdateCryptoKey(request), StatusIs(kNotFound));
}

TEST_F(CloudKmsTest, VersionsGoThroughTheirStates) {
  const std::string key = MakeKey("key");
  const std::string first = absl::StrCat(key, "/cryptoKeyVersions/1");
  const std::string second = AddVersion(key);
  EXPECT_EQ(second, absl::StrCat(key, "/cryptoKeyVersions/2"));
  kms::GetCryptoKeyRequest get;
  get.set_name(key);
  EXPECT_EQ(GetCryptoKey(get)->primary().name(), first);

  ASSERT_OK_AND_ASSIGN(kms::CryptoKeyVersion version,
                       SetState(first, kms::CryptoKeyVersion::DISABLED));
  EXPECT_EQ(version.state(), kms::CryptoKeyVersion::DISABLED);
  EXPECT_EQ(GetCryptoKey(get)->primary().state(),
            kms::CryptoKeyVersion::DISABLED);
  EXPECT_THAT(
      Encrypt(EncryptOf(key, "x")),
      StatusIs(
          kPrecondition,
          absl::StrCat(first, " is not enabled, current state is: DISABLED.")));
  for (const auto state : {kms::CryptoKeyVersion::DESTROYED,
                           kms::CryptoKeyVersion::DESTROY_SCHEDULED,
                           kms::CryptoKeyVersion::PENDING_IMPORT}) {
    EXPECT_THAT(SetState(second, state), StatusIs(kInvalid));
  }
  ASSERT_OK(SetState(first, kms::CryptoKeyVersion::ENABLED));
  EXPECT_OK(Encrypt(EncryptOf(key, "x")));

  kms::UpdateCryptoKeyPrimaryVersionRequest primary;
  primary.set_name(key);
  primary.set_crypto_key_version_id("2");
  ASSERT_OK_AND_ASSIGN(const kms::CryptoKey with_second,
                       UpdateCryptoKeyPrimaryVersion(primary));
  EXPECT_EQ(with_second.primary().name(), second);
  EXPECT_EQ(Encrypt(EncryptOf(key, "x"))->name(), second);
  primary.set_crypto_key_version_id("3");
  EXPECT_THAT(UpdateCryptoKeyPrimaryVersion(primary), StatusIs(kNotFound));
  primary.set_crypto_key_version_id("one");
  EXPECT_THAT(UpdateCryptoKeyPrimaryVersion(primary), StatusIs(kInvalid));

  kms::DestroyCryptoKeyVersionRequest destroy;
  destroy.set_name(first);
  ASSERT_OK_AND_ASSIGN(version, DestroyCryptoKeyVersion(destroy));
  EXPECT_EQ(version.state(), kms::CryptoKeyVersion::DESTROY_SCHEDULED);
  EXPECT_NEAR(static_cast<double>(version.destroy_time().seconds()),
              static_cast<double>(
                  absl::ToUnixSeconds(absl::Now() + absl::Hours(24 * 30))),
              60);
  EXPECT_THAT(DestroyCryptoKeyVersion(destroy), StatusIs(kPrecondition));
  EXPECT_THAT(SetState(first, kms::CryptoKeyVersion::ENABLED),
              StatusIs(kPrecondition));
  kms::RestoreCryptoKeyVersionRequest restore;
  restore.set_name(first);
  ASSERT_OK_AND_ASSIGN(version, RestoreCryptoKeyVersion(restore));
  EXPECT_EQ(version.state(), kms::CryptoKeyVersion::DISABLED);
  EXPECT_FALSE(version.has_destroy_time());
  EXPECT_THAT(RestoreCryptoKeyVersion(restore), StatusIs(kPrecondition));
  destroy.set_name(absl::StrCat(key, "/cryptoKeyVersions/9"));
  EXPECT_THAT(DestroyCryptoKeyVersion(destroy), StatusIs(kNotFound));
}

TEST_F(CloudKmsTest, EncryptAndDecryptRoundTripWithChecksums) {
  const std::string key = MakeKey("key");
  kms::EncryptRequest request = EncryptOf(key, "plaintext", "context");
  ASSERT_OK_AND_ASSIGN(kms::EncryptResponse encrypted, Encrypt(request));
  EXPECT_EQ(encrypted.name(), absl::StrCat(key, "/cryptoKeyVersions/1"));
  EXPECT_EQ(encrypted.ciphertext_crc32c().value(),
            CrcOf(encrypted.ciphertext()));
  EXPECT_FALSE(encrypted.verified_plaintext_crc32c());
  EXPECT_FALSE(encrypted.verified_additional_authenticated_data_crc32c());
  EXPECT_EQ(encrypted.protection_level(), kms::SOFTWARE);

  request.mutable_plaintext_crc32c()->set_value(CrcOf("plaintext"));
  request.mutable_additional_authenticated_data_crc32c()->set_value(
      CrcOf("context"));
  ASSERT_OK_AND_ASSIGN(encrypted, Encrypt(request));
  EXPECT_TRUE(encrypted.verified_plaintext_crc32c());
  EXPECT_TRUE(encrypted.verified_additional_authenticated_data_crc32c());

  kms::DecryptRequest decrypt =
      DecryptOf(key, encrypted.ciphertext(), "context");
  decrypt.mutable_ciphertext_crc32c()->set_value(CrcOf(encrypted.ciphertext()));
  ASSERT_OK_AND_ASSIGN(const kms::DecryptResponse opened, Decrypt(decrypt));
  EXPECT_EQ(opened.plaintext(), "plaintext");
  EXPECT_EQ(opened.plaintext_crc32c().value(), CrcOf("plaintext"));
  EXPECT_TRUE(opened.used_primary());
  EXPECT_EQ(opened.protection_level(), kms::SOFTWARE);

  // The checksum of nothing is 0 and right.
  request = EncryptOf(key, "", "");
  request.mutable_plaintext_crc32c()->set_value(0);
  request.mutable_additional_authenticated_data_crc32c()->set_value(0);
  ASSERT_OK_AND_ASSIGN(encrypted, Encrypt(request));
  EXPECT_TRUE(encrypted.verified_plaintext_crc32c());
  EXPECT_TRUE(encrypted.verified_additional_authenticated_data_crc32c());
  ASSERT_OK_AND_ASSIGN(const kms::DecryptResponse nothing,
                       Decrypt(DecryptOf(key, encrypted.ciphertext())));
  EXPECT_EQ(nothing.plaintext(), "");
  EXPECT_TRUE(nothing.has_plaintext_crc32c());

  for (const int64_t wrong :
       {int64_t{0}, int64_t{-1}, int64_t{1} << 32,
        int64_t{CrcOf("plaintext")} + (int64_t{1} << 32)}) {
    request = EncryptOf(key, "plaintext", "context");
    request.mutable_plaintext_crc32c()->set_value(wrong);
    EXPECT_THAT(Encrypt(request),
                StatusIs(kInvalid,
                         "The checksum in field plaintext_crc32c did not match "
                         "the data in field plaintext."));
    request.clear_plaintext_crc32c();
    request.mutable_additional_authenticated_data_crc32c()->set_value(wrong);
    EXPECT_THAT(
        Encrypt(request),
        StatusIs(kInvalid, MatchesRegex("The checksum in field .* did not "
                                        "match the data in field .*\\.")));
    decrypt.mutable_ciphertext_crc32c()->set_value(wrong);
    EXPECT_THAT(Decrypt(decrypt),
                StatusIs(kInvalid, HasSubstr("ciphertext_crc32c")));
  }
}

TEST_F(CloudKmsTest, OldAndNamedVersionsAreUsed) {
  const std::string key = MakeKey("key");
  const std::string second = AddVersion(key);
  ASSERT_OK_AND_ASSIGN(const kms::EncryptResponse by_version,
                       Encrypt(EncryptOf(second, "by version")));
  EXPECT_EQ(by_version.name(), second);
  ASSERT_OK_AND_ASSIGN(const kms::DecryptResponse opened,
                       Decrypt(DecryptOf(key, by_version.ciphertext())));
  EXPECT_EQ(opened.plaintext(), "by version");
  EXPECT_FALSE(opened.used_primary());
  EXPECT_THAT(Decrypt(DecryptOf(second, by_version.ciphertext())),
              StatusIs(kInvalid));
}

TEST_F(CloudKmsTest, WhatDoesNotOpenSaysWhyInCloudKmsWords) {
  const std::string key = MakeKey("key"), other = MakeKey("other");
  ASSERT_OK_AND_ASSIGN(const kms::EncryptResponse encrypted,
                       Encrypt(EncryptOf(key, "plaintext", "context")));
  const std::string invalid = "Decryption failed: the ciphertext is invalid.";
  EXPECT_THAT(Decrypt(DecryptOf(key, encrypted.ciphertext(), "other")),
              StatusIs(kInvalid, invalid));
  EXPECT_THAT(Decrypt(DecryptOf(key, encrypted.ciphertext())),
              StatusIs(kInvalid, invalid));
  for (const std::string& junk :
       {std::string(), std::string("junk"), std::string(1000, '\0'),
        encrypted.ciphertext().substr(0, 40), encrypted.ciphertext() + "x"}) {
    EXPECT_THAT(Decrypt(DecryptOf(key, junk, "context")),
                StatusIs(kInvalid, invalid));
  }
  std::string flipped = encrypted.ciphertext();
  flipped.back() ^= 1;
  EXPECT_THAT(Decrypt(DecryptOf(key, flipped, "context")),
              StatusIs(kInvalid, invalid));
  EXPECT_THAT(Decrypt(DecryptOf(other, encrypted.ciphertext(), "context")),
              StatusIs(kInvalid,
                       "Decryption failed: verify that 'name' refers to the "
                       "correct CryptoKey."));
}

TEST_F(CloudKmsTest, PayloadIsLookedAtLast) {
  kms::EncryptRequest request = EncryptOf(kekd_.KeyName("missing"), "");
  request.mutable_plaintext_crc32c()->set_value(17);
  EXPECT_THAT(Encrypt(request), StatusIs(kNotFound));
  const std::string key = MakeKey("key");
  ASSERT_OK(SetState(absl::StrCat(key, "/cryptoKeyVersions/1"),
                     kms::CryptoKeyVersion::DISABLED));
  request.set_name(key);
  EXPECT_THAT(Encrypt(request), StatusIs(kPrecondition));
  request.set_name("malformed");
  EXPECT_THAT(Encrypt(request), StatusIs(kInvalid));
}

TEST_F(CloudKmsTest, LimitsDependOnTheProtectionLevel) {
  const std::string software = MakeKey("software");
  kms::CreateCryptoKeyRequest create = KeyRequest("hsm");
  create.mutable_crypto_key()->mutable_version_template()->set_protection_level(
      kms::HSM);
  ASSERT_OK_AND_ASSIGN(const kms::CryptoKey hsm, CreateCryptoKey(create));
  EXPECT_EQ(hsm.version_template().protection_level(), kms::HSM);
  EXPECT_EQ(hsm.primary().protection_level(), kms::HSM);

  const std::string most(65536, 'p');
  ASSERT_OK_AND_ASSIGN(const kms::EncryptResponse largest,
                       Encrypt(EncryptOf(software, most, most)));
  ASSERT_OK_AND_ASSIGN(
      const kms::DecryptResponse opened,
      Decrypt(DecryptOf(software, largest.ciphertext(), most)));
  EXPECT_EQ(opened.plaintext(), most);
  EXPECT_THAT(Encrypt(EncryptOf(software, most + "p")), StatusIs(kInvalid));
  EXPECT_THAT(Encrypt(EncryptOf(software, "p", most + "a")),
              StatusIs(kInvalid));
  EXPECT_OK(Encrypt(
      EncryptOf(hsm.name(), std::string(8000, 'p'), std::string(192, 'a'))));
  EXPECT_THAT(Encrypt(EncryptOf(hsm.name(), std::string(8000, 'p'),
                                std::string(193, 'a'))),
              StatusIs(kInvalid));
}

TEST_F(CloudKmsTest, OtherMethodsAreUnimplemented) {
  kms::MacSignRequest sign;
  sign.set_name(absl::StrCat(MakeKey("key"), "/cryptoKeyVersions/1"));
  EXPECT_THAT(MacSign(sign), StatusIs(absl::StatusCode::kUnimplemented));
  kms::GenerateRandomBytesRequest random;
  random.set_location(KekdProcess::kLocation);
  EXPECT_THAT(GenerateRandomBytes(random),
              StatusIs(absl::StatusCode::kUnimplemented));
}

TEST_F(CloudKmsTest, EverythingIsThereAfterARestart) {
  const std::string key = MakeKey("key");
  const std::string second = AddVersion(key);
  ASSERT_OK(SetState(second, kms::CryptoKeyVersion::DISABLED));
  ASSERT_OK_AND_ASSIGN(const kms::EncryptResponse encrypted,
                       Encrypt(EncryptOf(key, "plaintext")));
  kms::GetCryptoKeyRequest get_key;
  get_key.set_name(key);
  kms::ListCryptoKeyVersionsRequest list;
  list.set_parent(key);
  const auto key_before = GetCryptoKey(get_key);
  const auto versions_before = ListCryptoKeyVersions(list);
  ASSERT_OK(key_before);
  ASSERT_OK(versions_before);
  kekd_.Kill();
  ASSERT_OK(kekd_.Start());
  Connect();
  ASSERT_OK_AND_ASSIGN(const kms::CryptoKey key_after, GetCryptoKey(get_key));
  ASSERT_OK_AND_ASSIGN(const kms::ListCryptoKeyVersionsResponse versions_after,
                       ListCryptoKeyVersions(list));
  EXPECT_EQ(key_after.DebugString(), key_before->DebugString());
  EXPECT_EQ(versions_after.DebugString(), versions_before->DebugString());
  EXPECT_EQ(Decrypt(DecryptOf(key, encrypted.ciphertext()))->plaintext(),
            "plaintext");
  EXPECT_EQ(AddVersion(key), absl::StrCat(key, "/cryptoKeyVersions/3"));
}

}  // namespace
}  // namespace kek::integration
