// SPDX-License-Identifier: Apache-2.0
//
// PINs: one try each, from a source that is kept well.
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "pkcs11/error.h"
#include "tests/fault/fault_test.h"

namespace kek::fault {
namespace {

using base::testing::StatusIs;
using base::testing::TempDir;
using pkcs11::TokenState;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class LoginFaultTest : public FaultTest {
 protected:
  std::vector<std::filesystem::path> StateFiles() const {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(state_dir_)) {
      files.push_back(entry.path());
    }
    return files;
  }
};

TEST_F(LoginFaultTest, Fault09WrongPinIsTriedOnceAcrossFiveStarts) {
  dir_.Write("pin", "98765\n");
  for (int start = 0; start < 5; ++start) {
    const absl::Status status = Open();
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kPermissionDenied));
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("98765")));
    token_.reset();
  }
  EXPECT_EQ(rules_->Count("C_Login"), 1);

  // What is remembered does not tell the PIN, and only to us.
  const std::vector<std::filesystem::path> files = StateFiles();
  ASSERT_EQ(files.size(), 1u);
  EXPECT_EQ(
      std::filesystem::status(files[0]).permissions(),
      std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  EXPECT_THAT(TempDir::Read(files[0]), Not(HasSubstr("98765")));

  // The same PIN written again is not a change; another PIN is.
  dir_.Write("pin", "98765");
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kPermissionDenied));
  EXPECT_EQ(rules_->Count("C_Login"), 1);
  dir_.Write("pin", "1234\n");
  ASSERT_NO_FATAL_FAILURE(OpenReady());
  EXPECT_EQ(rules_->Count("C_Login"), 2);
  EXPECT_THAT(StateFiles(), IsEmpty()) << "forgotten after a success";
}

TEST_F(LoginFaultTest, Fault09PinRefusedAtRunTimeIsNotTriedAgain) {
  ASSERT_NO_FATAL_FAILURE(OpenReady());
  const KnownKey key = MakeKey();
  rules_->Forget();
  rules_->Set({"C_Login count=-1 rv=CKR_PIN_INCORRECT", "C_Encrypt logout=1"});
  EXPECT_TRUE(Eventually([&] {
    EXPECT_FALSE(Encrypt(key).ok());
    return State() == TokenState::kPinRefused;
  }));
  for (int i = 0; i < 20; ++i) {
    EXPECT_THAT(Encrypt(key), StatusIs(absl::StatusCode::kFailedPrecondition));
  }
  EXPECT_FALSE(token_->Probe(Soon()).ok());
  EXPECT_EQ(rules_->Count("C_Login"), 1);
  EXPECT_THAT(Events(), ::testing::Contains(HasSubstr("pin-refused")));

  // An operator asks for one more try, and gets exactly one.
  EXPECT_THAT(token_->RetryLogin(Soon()),
              StatusIs(absl::StatusCode::kPermissionDenied));
  EXPECT_EQ(rules_->Count("C_Login"), 2);
  EXPECT_FALSE(Encrypt(key).ok());
  EXPECT_EQ(rules_->Count("C_Login"), 2);
  rules_->Clear();
  EXPECT_OK(token_->RetryLogin(Soon()));
  EXPECT_EQ(rules_->Count("C_Login"), 3);
  EXPECT_OK(EncryptsBefore(key, Soon()));
  EXPECT_EQ(State(), TokenState::kReady);
}

TEST_F(LoginFaultTest, Fault12AlreadyLoggedInWithPublicStateIsNotTrusted) {
  rules_->Set({"C_Login count=-1 rv=CKR_USER_ALREADY_LOGGED_IN"});
  ASSERT_OK(Open());
  EXPECT_TRUE(rules_->WaitForCalls("C_Login", 1, Soon()));
  EXPECT_THAT(token_->GenerateKey(NewIdentity("key"), Soon()),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_NE(State(), TokenState::kReady);
  EXPECT_EQ(rules_->Count("C_GenerateKey"), 0);
  // Logins that fail are repeated rarely; an operator need not wait for it.
  rules_->Clear();
  EXPECT_OK(token_->Relogin(Soon()));
  EXPECT_EQ(State(), TokenState::kReady);
}

TEST_F(LoginFaultTest, Fault12AlreadyLoggedInWithUserStateIsAccepted) {
  rules_->Set({"C_Login post=1 rv=CKR_USER_ALREADY_LOGGED_IN"});
  ASSERT_NO_FATAL_FAILURE(OpenReady());
  EXPECT_OK(Encrypt(MakeKey()));
  EXPECT_EQ(rules_->Count("C_Login"), 1);
}

// ---- fault 87: the PIN file
// --------------------------------------------------

TEST_F(LoginFaultTest, Fault87OneLineEndIsNotPartOfThePin) {
  for (const char* content : {"1234", "1234\n", "1234\r\n"}) {
    SCOPED_TRACE(content);
    dir_.Write("pin", content);
    ASSERT_NO_FATAL_FAILURE(OpenReady());
  }
}

TEST_F(LoginFaultTest, Fault87OnlyOneLineEndIsStripped) {
  dir_.Write("pin", "1234\n\n");
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kPermissionDenied));
}

TEST_F(LoginFaultTest, Fault87UnfitPinFilesAreRefusedWithoutATry) {
  const std::string link = dir_.File("link");
  std::filesystem::create_symlink(pin_file_, link);
  const std::string open_to_all = dir_.Write("open", "1234\n");
  ASSERT_EQ(chmod(open_to_all.c_str(), 0644), 0);
  const std::string open_to_group = dir_.Write("group", "1234\n");
  ASSERT_EQ(chmod(open_to_group.c_str(), 0640), 0);
  for (const std::string& file :
       {dir_.File("missing"), link, open_to_all, open_to_group, dir_.path(),
        dir_.Write("empty", ""), dir_.Write("newline", "\n"),
        dir_.Write("large", std::string(4097, '1'))}) {
    pkcs11::TokenOptions options = Options();
    options.pin = pkcs11::PinSource::File(file);
    const absl::Status status = Open(std::move(options));
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kFailedPrecondition,
                                 HasSubstr(file)));
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("1234")));
  }
  EXPECT_EQ(rules_->Count("C_Login"), 0);
}

TEST_F(LoginFaultTest, Fault87PinFileOfAnotherUserIsRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to give a file away";
  const std::string file = dir_.Write("foreign", "1234\n");
  ASSERT_EQ(chown(file.c_str(), 65534, 65534), 0);
  pkcs11::TokenOptions options = Options();
  options.pin = pkcs11::PinSource::File(file);
  EXPECT_THAT(Open(std::move(options)),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(rules_->Count("C_Login"), 0);
}

TEST_F(LoginFaultTest, Fault87PinFileIsReadAgainAtEveryLogin) {
  ASSERT_NO_FATAL_FAILURE(OpenReady());
  const KnownKey key = MakeKey();
  rules_->Forget();
  dir_.Write("pin", "98765\n");
  rules_->Set({"C_Encrypt logout=1"});
  EXPECT_TRUE(Eventually([&] {
    EXPECT_FALSE(Encrypt(key).ok());
    return State() == TokenState::kPinRefused;
  }));
  EXPECT_EQ(rules_->Count("C_Login"), 1) << "with the PIN of the file";
  dir_.Write("pin", "1234\n");
  EXPECT_OK(EncryptsBefore(key, Soon()));
  EXPECT_EQ(rules_->Count("C_Login"), 2);
}

TEST_F(LoginFaultTest, Fault87MissingPinFileAtReloginIsWaitedFor) {
  ASSERT_NO_FATAL_FAILURE(OpenReady());
  const KnownKey key = MakeKey();
  std::filesystem::remove(pin_file_);
  rules_->Forget();
  rules_->Set({"C_Encrypt logout=1"});
  EXPECT_FALSE(Encrypt(key).ok());
  EXPECT_EQ(rules_->Count("C_Login"), 0);
  dir_.Write("pin", "1234\n");
  EXPECT_OK(EncryptsBefore(key, Soon()));
}

TEST_F(LoginFaultTest, Fault87ThePinIsNeverLogged) {
  ::testing::internal::CaptureStderr();
  dir_.Write("pin", "secret-98765\n");
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kPermissionDenied));
  dir_.Write("pin", "1234\n");
  ASSERT_NO_FATAL_FAILURE(OpenReady());
  const KnownKey key = MakeKey();
  rules_->Set({"C_Encrypt logout=1"});
  EXPECT_OK(EncryptsBefore(key, Soon()));
  token_.reset();
  std::string said = ::testing::internal::GetCapturedStderr();
  for (const std::string& event : Events()) said += event;
  said += metrics_.Expose();
  EXPECT_THAT(said, Not(HasSubstr("secret-98765")));
}

}  // namespace
}  // namespace kek::fault
