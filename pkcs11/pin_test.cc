// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <filesystem>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "pkcs11/pin_memory.h"
#include "pkcs11/pin_source.h"

namespace kek::pkcs11 {
namespace {

using ::kek::base::testing::IsOkAndHolds;
using ::kek::base::testing::StatusIs;
using ::kek::base::testing::TempDir;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

absl::StatusOr<std::string> Read(const PinSource& source) {
  absl::StatusOr<base::SecretBytes> pin = source.Read();
  if (!pin.ok()) return pin.status();
  return std::string(pin->span().begin(), pin->span().end());
}

std::span<const uint8_t> Pin(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

TEST(PinSourceTest, ExactlyOneLineEndIsStripped) {
  const TempDir dir;
  const std::pair<const char*, const char*> cases[] = {{"1234", "1234"},
                                                       {"1234\n", "1234"},
                                                       {"1234\r\n", "1234"},
                                                       {"1234\n\n", "1234\n"},
                                                       {" 12 ", " 12 "}};
  for (const auto& [content, pin] : cases) {
    EXPECT_THAT(Read(PinSource::File(dir.Write("pin", content))),
                IsOkAndHolds(pin));
  }
}

TEST(PinSourceTest, FileIsReadAnewEachTime) {
  const TempDir dir;
  const PinSource source = PinSource::File(dir.Write("pin", "1234\n"));
  EXPECT_THAT(Read(source), IsOkAndHolds("1234"));
  dir.Write("pin", "5678\n");
  EXPECT_THAT(Read(source), IsOkAndHolds("5678"));
}

TEST(PinSourceTest, UnsafeFilesAreRefusedWithTheReason) {
  const TempDir dir;
  const auto refused = [](const std::string& path, const char* why) {
    EXPECT_THAT(Read(PinSource::File(path)),
                StatusIs(absl::StatusCode::kFailedPrecondition,
                         AllOf(HasSubstr(path), HasSubstr(why),
                               Not(HasSubstr("1234")))));
  };
  refused(dir.File("missing"), "No such file");
  refused(dir.Write("empty", "\n"), "empty");
  const std::string open_file = dir.Write("open", "1234\n");
  chmod(open_file.c_str(), 0644);
  refused(open_file, "chmod");
  std::filesystem::create_symlink(dir.Write("pin", "1234\n"), dir.File("link"));
  refused(dir.File("link"), "symbolic link");
  std::filesystem::create_directory(dir.File("directory"));
  chmod(dir.File("directory").c_str(), 0700);
  refused(dir.File("directory"), "regular file");
  ASSERT_EQ(mkfifo(dir.File("fifo").c_str(), 0600), 0);
  refused(dir.File("fifo"), "regular file");
  refused(dir.Write("long", std::string(4097, '1')), "4 KiB");
}

TEST(PinSourceTest, CredentialIsFoundInItsDirectory) {
  const TempDir dir;
  dir.Write("hsm-pin", "1234");
  unsetenv("CREDENTIALS_DIRECTORY");
  EXPECT_THAT(Read(PinSource::Credential("hsm-pin")),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("LoadCredential")));
  setenv("CREDENTIALS_DIRECTORY", dir.path().c_str(), 1);
  EXPECT_THAT(Read(PinSource::Credential("hsm-pin")), IsOkAndHolds("1234"));
  EXPECT_THAT(Read(PinSource::Credential("../hsm-pin")),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  unsetenv("CREDENTIALS_DIRECTORY");
}

TEST(PinSourceTest, DescriptorIsReadOnceAndKept) {
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  ASSERT_EQ(write(pipe_ends[1], "1234\n", 5), 5);
  close(pipe_ends[1]);
  const PinSource source = PinSource::Descriptor(pipe_ends[0]);
  EXPECT_THAT(Read(source), IsOkAndHolds("1234"));
  EXPECT_THAT(Read(source), IsOkAndHolds("1234"));
  EXPECT_EQ(fcntl(pipe_ends[0], F_GETFD), -1) << "it is closed";
}

TEST(PinSourceTest, EnvironmentVariableIsTakenAway) {
  setenv("KEKD_TEST_PIN", "1234", 1);
  const PinSource source = PinSource::Environment("KEKD_TEST_PIN");
  EXPECT_EQ(std::getenv("KEKD_TEST_PIN"), nullptr);
  EXPECT_THAT(Read(source), IsOkAndHolds("1234"));
}

TEST(PinMemoryTest, RemembersExactlyOneRefusedPinAcrossProcesses) {
  const TempDir dir;
  PinMemory memory(dir.path(), "maker\nmodel\n1\nkek-a");
  EXPECT_THAT(memory.WasRefused(Pin("1234")), IsOkAndHolds(false));
  ASSERT_OK(memory.Remember(Pin("1234")));
  const PinMemory later(dir.path(), "maker\nmodel\n1\nkek-a");
  EXPECT_THAT(later.WasRefused(Pin("1234")), IsOkAndHolds(true));
  EXPECT_THAT(later.WasRefused(Pin("12345")), IsOkAndHolds(false));
  const PinMemory other(dir.path(), "maker\nmodel\n2\nkek-a");
  EXPECT_THAT(other.WasRefused(Pin("1234")), IsOkAndHolds(false));
  memory.Clear();
  EXPECT_THAT(later.WasRefused(Pin("1234")), IsOkAndHolds(false));
}

TEST(PinMemoryTest, FileIsTheOwnersAloneAndHoldsNoPin) {
  const TempDir dir;
  PinMemory memory(dir.path(), "token");
  ASSERT_OK(memory.Remember(Pin("98765432")));
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    ++files;
    EXPECT_EQ(entry.status().permissions(),
              std::filesystem::perms::owner_read |
                  std::filesystem::perms::owner_write);
    EXPECT_THAT(TempDir::Read(entry.path()), Not(HasSubstr("98765432")));
  }
  EXPECT_EQ(files, 1);
}

TEST(PinMemoryTest, DamagedFileStopsTheLogin) {
  const TempDir dir;
  PinMemory memory(dir.path(), "token");
  ASSERT_OK(memory.Remember(Pin("1234")));
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    dir.Write(entry.path().filename().string(), "kekd-refused-pin-1 00");
  }
  EXPECT_THAT(
      PinMemory(dir.path(), "token").WasRefused(Pin("1234")),
      StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("damaged")));
}

}  // namespace
}  // namespace kek::pkcs11
