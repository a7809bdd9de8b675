// SPDX-License-Identifier: Apache-2.0
#include "core/audit_log.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"

namespace {

// What the next fdatasync calls of this process do. The definition below takes
// the place of libc's, so that the real writer meets a disk that fails or
// hangs.
struct Disk {
  kek::base::Mutex mu;
  kek::base::CondVar changed;
  int fail = 0;       // so many calls answer EIO
  bool hang = false;  // calls wait while this is set
  int hanging = 0;
  int calls = 0;
  int failed_file_synced_again = 0;
  std::set<std::string> failed_files;
};

Disk& TheDisk() {
  static Disk* const disk = new Disk;
  return *disk;
}

}  // namespace

extern "C" int fdatasync(int fd) {
  Disk& disk = TheDisk();
  const std::string file =
      std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd));
  {
    kek::base::MutexLock lock(disk.mu);
    ++disk.calls;
    if (disk.failed_files.count(file) > 0) ++disk.failed_file_synced_again;
    if (disk.fail > 0) {
      --disk.fail;
      disk.failed_files.insert(file);
      errno = EIO;
      return -1;
    }
    ++disk.hanging;
    disk.changed.NotifyAll();
    while (disk.hang) disk.changed.Wait(disk.mu);
    --disk.hanging;
  }
  return static_cast<int>(syscall(SYS_fdatasync, fd));
}

namespace kek::core {
namespace {

using base::testing::StatusIs;
using base::testing::TempDir;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;
using ::testing::Not;
using ::testing::SizeIs;

base::Deadline Soon() { return base::DeadlineAfter(seconds(30)); }

void ResetDisk() {
  Disk& disk = TheDisk();
  base::MutexLock lock(disk.mu);
  disk.fail = 0;
  disk.hang = false;
  disk.calls = 0;
  disk.failed_file_synced_again = 0;
  disk.failed_files.clear();
  disk.changed.NotifyAll();
}
void FailDisk(int times) {
  Disk& disk = TheDisk();
  base::MutexLock lock(disk.mu);
  disk.fail = times;
}
void HangDisk(bool hang) {
  Disk& disk = TheDisk();
  base::MutexLock lock(disk.mu);
  disk.hang = hang;
  disk.changed.NotifyAll();
}
void AwaitHangingCall() {
  Disk& disk = TheDisk();
  base::MutexLock lock(disk.mu);
  while (disk.hanging == 0) {
    ASSERT_TRUE(disk.changed.WaitUntil(disk.mu, Soon()) || disk.hanging > 0);
  }
}

AuditRecord Record(std::string method = "Encrypt", std::string rid = "r-1") {
  AuditRecord record;
  record.method = std::move(method);
  record.caller = {.principals = {"unix:uid:1000", "unix:gid:1000"},
                   .authenticator = Authenticator::kPeerCredentials,
                   .front_end = FrontEnd::kKubernetesV2,
                   .peer = "unix:/run/kekd/kms.sock pid 4711",
                   .binding = "main"};
  record.resource = "projects/p/locations/l/keyRings/r/cryptoKeys/k";
  record.version = record.resource + "/cryptoKeyVersions/1";
  record.request_id = std::move(rid);
  record.input_bytes = 32;
  record.output_bytes = 96;
  record.aad_bytes = 7;
  record.latency = absl::Microseconds(150);
  return record;
}

std::vector<std::string> Segments(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() == ".jsonl") {
      names.push_back(entry.path().string());
    }
  }
  // By first seq, which is what follows the last dash.
  std::sort(names.begin(), names.end(), [](const auto& a, const auto& b) {
    return std::pair(a.substr(a.rfind('-')), a) <
           std::pair(b.substr(b.rfind('-')), b);
  });
  return names;
}

// The value of a string field of a line; "" if it is absent.
std::string Field(const std::string& line, const std::string& name) {
  const std::string key = "\"" + name + "\":\"";
  const size_t at = line.find(key);
  if (at == std::string::npos) return "";
  const size_t begin = at + key.size();
  return line.substr(begin, line.find('"', begin) - begin);
}
uint64_t Seq(const std::string& line) {
  uint64_t seq = 0;
  EXPECT_TRUE(absl::SimpleAtoi(Field(line, "seq"), &seq)) << line;
  return seq;
}

// All lines of the log in order of seq. Repeats (a segment begun after a failed
// one) must be the same bytes. A segment that was given up may end torn.
std::vector<std::string> ReadLog(const std::string& directory) {
  std::map<uint64_t, std::string> by_seq;
  for (const std::string& segment : Segments(directory)) {
    const std::string text = TempDir::Read(segment);
    size_t at = 0;
    for (size_t end; (end = text.find('\n', at)) != std::string::npos;
         at = end + 1) {
      const std::string line = text.substr(at, end - at);
      EXPECT_EQ(line.back(), '}') << segment;
      const auto [it, fresh] = by_seq.emplace(Seq(line), line);
      EXPECT_EQ(it->second, line) << "two lines with one seq";
    }
  }
  std::vector<std::string> lines;
  for (auto& [seq, line] : by_seq) lines.push_back(line);
  return lines;
}

std::vector<std::string> OpsOf(const std::vector<std::string>& lines) {
  std::vector<std::string> ops;
  for (const std::string& line : lines) ops.push_back(Field(line, "op"));
  return ops;
}

void ExpectGapless(const std::vector<std::string>& lines) {
  for (size_t i = 0; i < lines.size(); ++i) {
    ASSERT_EQ(Seq(lines[i]), i + 1);
  }
}

class AuditLogTest : public ::testing::Test {
 protected:
  void SetUp() override { ResetDisk(); }
  void TearDown() override { ResetDisk(); }

  std::string Directory() const { return dir_.File("audit"); }
  AuditLog::Options Options() {
    return {.directory = Directory(), .metrics = &metrics_};
  }
  std::unique_ptr<AuditLog> Open() { return Open(Options()); }
  static std::unique_ptr<AuditLog> Open(AuditLog::Options options) {
    auto log = AuditLog::Open(std::move(options));
    if (!log.ok()) {
      ADD_FAILURE() << log.status();
      return nullptr;
    }
    return *std::move(log);
  }
  double Metric(const char* name) {
    return metrics_.GetCounter(name, "")->Value();
  }

  TempDir dir_;
  base::Metrics metrics_;
};

TEST_F(AuditLogTest, LineHasEveryFieldInFixedOrder) {
  base::ManualClock clock(absl::FromUnixNanos(1795261500123456789));
  AuditLog::Options options = Options();
  options.clock = &clock;
  auto log = Open(options);
  ASSERT_OK(log->Append(Record(), Soon()));
  const std::vector<std::string> lines = ReadLog(Directory());
  ASSERT_THAT(lines, SizeIs(2));
  EXPECT_THAT(
      lines[1],
      MatchesRegex(
          R"re(\{"v":1,"seq":"2","t_wall":"2026-11-21T11:45:00\.123456789Z",)re"
          R"re("t_mono_ns":"[0-9]+","boot_id":"[0-9a-f-]{36}",)re"
          R"re("inst":"[0-9a-f]{32}","kind":"REQ","op":"Encrypt",)re"
          R"re("front":"kubernetes-v2","auth":"peer-credentials",)re"
          R"re("principal":"unix:uid:1000",)re"
          R"re("peer":"unix:/run/kekd/kms\.sock pid 4711","binding":"main",)re"
          R"re("resource":"projects/p/locations/l/keyRings/r/cryptoKeys/k",)re"
          R"re("ver":"projects/p/locations/l/keyRings/r/cryptoKeys/k/)re"
          R"re(cryptoKeyVersions/1","rid":"r-1","result":"OK",)re"
          R"re("permitted":true,"in_len":"32","out_len":"96","aad_len":"7",)re"
          R"re("coalesced":false,"latency_ns":"150000"\})re"));
  // One process, one instance; times of one boot grow.
  EXPECT_EQ(Field(lines[0], "inst"), Field(lines[1], "inst"));
  uint64_t first = 0, second = 0;
  ASSERT_TRUE(absl::SimpleAtoi(Field(lines[0], "t_mono_ns"), &first));
  ASSERT_TRUE(absl::SimpleAtoi(Field(lines[1], "t_mono_ns"), &second));
  EXPECT_LT(first, second);
}

TEST_F(AuditLogTest, FailuresSayWhyAndDeniedCallsSaySo) {
  auto log = Open();
  AuditRecord record = Record();
  record.permitted = false;
  record.status = absl::PermissionDeniedError("Permission 'x' denied");
  record.detail = "state ENABLED -> DISABLED";
  ASSERT_OK(log->Append(record, Soon()));
  const std::string line = ReadLog(Directory()).back();
  EXPECT_EQ(Field(line, "result"), "PERMISSION_DENIED");
  EXPECT_EQ(Field(line, "reason"), "Permission 'x' denied");
  EXPECT_EQ(Field(line, "detail"), "state ENABLED -> DISABLED");
  EXPECT_THAT(line, HasSubstr("\"permitted\":false"));
}

TEST_F(AuditLogTest, HostileFieldsStayOneShortLine) {
  auto log = Open();
  for (const std::string& evil :
       {std::string(100'000, '\n'), std::string(100'000, '\xff'),
        std::string(100'000, 'a'), std::string("\",\"op\":\"Forged\n{}\0x", 18),
        std::string(100'000, '\xbf')}) {
    AuditRecord record = Record(evil, evil);
    record.caller.principals = {evil};
    record.caller.peer = evil;
    record.caller.binding = evil;
    record.resource = evil;
    record.version = evil;
    record.status = absl::InternalError(evil);
    record.detail = evil;
    ASSERT_OK(log->Append(record, Soon()));
  }
  AuditRecord nobody = Record();
  nobody.caller.principals.clear();
  ASSERT_OK(log->Append(nobody, Soon()));
  const std::vector<std::string> lines = ReadLog(Directory());
  ASSERT_THAT(lines, SizeIs(7));
  ExpectGapless(lines);
  for (const std::string& line : lines) {
    EXPECT_LE(line.size(), 8192u);
    for (const char c : line) {
      EXPECT_TRUE(static_cast<uint8_t>(c) >= 0x20 && c != '\x7f');
    }
    EXPECT_NE(Field(line, "op"), "Forged");
  }
}

TEST_F(AuditLogTest, FilesAndDirectoryAreTheOwnersAlone) {
  auto log = Open();
  ASSERT_OK(log->Append(Record(), Soon()));
  struct stat status;
  ASSERT_EQ(stat(Directory().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0700u);
  const auto segments = Segments(Directory());
  ASSERT_THAT(segments, SizeIs(1));
  EXPECT_THAT(segments[0],
              MatchesRegex(
                  ".*/audit-[0-9]{8}T[0-9]{6}\\.[0-9]{6}Z-[0-9]{19}1\\.jsonl"));
  ASSERT_EQ(stat(segments[0].c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0600u);
}

TEST_F(AuditLogTest, BadDirectoriesAreNamedWithTheirReason) {
  const auto open = [](std::string directory) {
    return AuditLog::Open({.directory = std::move(directory)}).status();
  };
  EXPECT_THAT(open("relative"), StatusIs(absl::StatusCode::kFailedPrecondition,
                                         HasSubstr("absolute path")));
  EXPECT_THAT(open(dir_.File("a/b")),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("No such file or directory")));
  EXPECT_THAT(open(dir_.Write("file", "x")),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("Not a directory")));
  std::filesystem::create_directory(dir_.File("open"));
  ASSERT_EQ(chmod(dir_.File("open").c_str(), 0777), 0);
  EXPECT_THAT(open(dir_.File("open")),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("mode 0777 and others may write")));
}

TEST_F(AuditLogTest, DirectoryIsNotShared) {
  auto log = Open();
  EXPECT_THAT(AuditLog::Open(Options()),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("in use by another process")));
  log.reset();
  EXPECT_OK(AuditLog::Open(Options()));
}

TEST_F(AuditLogTest, AppendReturnsOnlyWhenItsLineIsSynced) {
  auto log = Open();
  HangDisk(true);
  std::atomic<bool> returned = false;
  std::thread caller([&] {
    EXPECT_OK(log->Append(Record(), Soon()));
    returned = true;
  });
  AwaitHangingCall();
  // The bytes are in the file already; the reply still waits.
  EXPECT_THAT(ReadLog(Directory()), SizeIs(2));
  EXPECT_FALSE(returned);
  HangDisk(false);
  caller.join();
  EXPECT_TRUE(returned);
}

TEST_F(AuditLogTest, SeqGoesOnAfterARestart) {
  for (int run = 0; run < 3; ++run) {
    auto log = Open();
    ASSERT_OK(log->Append(Record(), Soon()));
  }
  const std::vector<std::string> lines = ReadLog(Directory());
  ExpectGapless(lines);
  EXPECT_THAT(OpsOf(lines), ElementsAre("AuditOpen", "Encrypt", "AuditClose",
                                        "AuditOpen", "Encrypt", "AuditClose",
                                        "AuditOpen", "Encrypt", "AuditClose"));
  EXPECT_THAT(Segments(Directory()), SizeIs(3));
  EXPECT_NE(Field(lines[0], "inst"), Field(lines[3], "inst"));
}

TEST_F(AuditLogTest, SegmentsRotateBySize) {
  AuditLog::Options options = Options();
  options.segment_bytes = 2000;
  auto log = Open(options);
  for (int i = 0; i < 20; ++i) ASSERT_OK(log->Append(Record(), Soon()));
  log.reset();
  const auto segments = Segments(Directory());
  EXPECT_GT(segments.size(), 4u);
  EXPECT_LT(segments.size(), 12u);
  for (const std::string& segment : segments) {
    EXPECT_LT(std::filesystem::file_size(segment), 2000u + 8192u);
  }
  const auto lines = ReadLog(Directory());
  EXPECT_THAT(lines, SizeIs(22));
  ExpectGapless(lines);
}

TEST_F(AuditLogTest, CallersShareFlushes) {
  auto log = Open();
  const double flushes = Metric("kekd_audit_flushes_total");
  const double records = Metric("kekd_audit_records_total");
  // While one flush hangs the others queue up and then go together.
  HangDisk(true);
  std::vector<std::thread> callers;
  callers.emplace_back([&] { EXPECT_OK(log->Append(Record(), Soon())); });
  AwaitHangingCall();
  const double pending_one =
      metrics_.GetGauge("kekd_audit_pending_bytes", "")->Value();
  for (int t = 1; t < 8; ++t) {
    callers.emplace_back([&] { EXPECT_OK(log->Append(Record(), Soon())); });
  }
  const base::Deadline limit = Soon();
  while (metrics_.GetGauge("kekd_audit_pending_bytes", "")->Value() <
         8 * pending_one) {
    ASSERT_LT(std::chrono::steady_clock::now(), limit);
    std::this_thread::yield();
  }
  HangDisk(false);
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(Metric("kekd_audit_records_total") - records, 8);
  EXPECT_EQ(Metric("kekd_audit_flushes_total") - flushes, 2);
}

TEST_F(AuditLogTest, EightThreadsNeedFewerSyncsThanRecords) {
  auto log = Open();
  constexpr int kThreads = 8;
  constexpr int kEach = 200;
  std::vector<std::thread> callers;
  for (int t = 0; t < kThreads; ++t) {
    callers.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        ASSERT_OK(
            log->Append(Record("Encrypt", absl::StrCat(t, ".", i)), Soon()));
      }
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(Metric("kekd_audit_records_total"), kThreads * kEach + 1);
  EXPECT_LT(Metric("kekd_audit_flushes_total"), kThreads * kEach / 2);
  const auto lines = ReadLog(Directory());
  ASSERT_THAT(lines, SizeIs(kThreads * kEach + 1));
  ExpectGapless(lines);
  // Each caller's records are in the order it made them.
  std::map<std::string, int> next;
  for (size_t i = 1; i < lines.size(); ++i) {
    const std::vector<std::string> rid =
        absl::StrSplit(Field(lines[i], "rid"), '.');
    EXPECT_EQ(rid[1], absl::StrCat(next[rid[0]]++));
  }
}

TEST_F(AuditLogTest, FailedSyncGoesToANewSegmentAndTheCallerNeverKnows) {
  auto log = Open();
  ASSERT_OK(log->Append(Record("Encrypt", "a"), Soon()));
  FailDisk(1);
  ASSERT_OK(log->Append(Record("Encrypt", "b"), Soon()));
  ASSERT_OK(log->Append(Record("Encrypt", "c"), Soon()));
  EXPECT_OK(log->health());
  const auto segments = Segments(Directory());
  ASSERT_THAT(segments, SizeIs(2));
  const std::string second = TempDir::Read(segments[1]);
  EXPECT_THAT(second, HasSubstr("\"rid\":\"b\""));
  EXPECT_THAT(second, HasSubstr("acknowledged in it: 1 to 2: "));
  const auto lines = ReadLog(Directory());
  ExpectGapless(lines);
  EXPECT_THAT(OpsOf(lines), ElementsAre("AuditOpen", "Encrypt", "Encrypt",
                                        "AuditSegmentFailed", "Encrypt"));
  EXPECT_EQ(Metric("kekd_audit_failures_total"), 1);
  EXPECT_EQ(TheDisk().failed_file_synced_again, 0);
}

TEST_F(AuditLogTest, OutageRefusesAtOnceRecoversByItselfAndIsRecorded) {
  auto log = Open();
  ASSERT_OK(log->Append(Record("Encrypt", "before"), Soon()));
  FailDisk(1'000'000);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT(log->Append(Record("Encrypt", "late"), Soon()),
              StatusIs(absl::StatusCode::kUnavailable,
                       HasSubstr("Input/output error")));
  for (int i = 0; i < 5; ++i) {
    EXPECT_THAT(log->Append(Record("Encrypt", "refused"), Soon()),
                StatusIs(absl::StatusCode::kUnavailable));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(2));
  EXPECT_THAT(log->health(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(log->Check(Soon()), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(Metric("kekd_audit_refused_total"), 5);

  FailDisk(0);
  const base::Deadline limit = base::DeadlineAfter(seconds(5));
  while (!log->health().ok()) {
    ASSERT_LT(std::chrono::steady_clock::now(), limit);
    std::this_thread::yield();
  }
  ASSERT_OK(log->Append(Record("Encrypt", "after"), Soon()));
  log.reset();
  const auto lines = ReadLog(Directory());
  ExpectGapless(lines);
  std::vector<std::string> rids;
  std::string gap;
  for (const auto& line : lines) {
    if (Field(line, "kind") == "REQ") rids.push_back(Field(line, "rid"));
    if (Field(line, "op") == "AuditGap") gap = Field(line, "detail");
  }
  EXPECT_THAT(rids, ElementsAre("before", "late", "after"));
  EXPECT_THAT(gap, HasSubstr("refused 5 late 1: "));
  EXPECT_THAT(gap, HasSubstr("Input/output error"));
  // Failed segments without an acknowledged record do not litter.
  EXPECT_THAT(Segments(Directory()), SizeIs(2));
  EXPECT_EQ(TheDisk().failed_file_synced_again, 0);
}

TEST_F(AuditLogTest, HungDiskIsUnavailableAfterTheBlockLimit) {
  AuditLog::Options options = Options();
  options.block_limit = absl::Milliseconds(200);
  auto log = Open(options);
  HangDisk(true);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT(log->Append(Record("Encrypt", "late"), Soon()),
              StatusIs(absl::StatusCode::kUnavailable,
                       HasSubstr("the disk has not answered")));
  const auto took = std::chrono::steady_clock::now() - start;
  EXPECT_GE(took, milliseconds(200));
  EXPECT_LT(took, seconds(5));
  // From now on nobody waits.
  EXPECT_THAT(log->health(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(log->Append(Record("Encrypt", "refused"), Soon()),
              StatusIs(absl::StatusCode::kUnavailable));
  HangDisk(false);
  const base::Deadline limit = Soon();
  while (!log->health().ok()) {
    ASSERT_LT(std::chrono::steady_clock::now(), limit);
    std::this_thread::yield();
  }
  ASSERT_OK(log->Append(Record("Encrypt", "after"), Soon()));
  log.reset();
  const auto lines = ReadLog(Directory());
  ExpectGapless(lines);
  EXPECT_THAT(lines, SizeIs(5));
  EXPECT_THAT(OpsOf(lines),
              ::testing::UnorderedElementsAre(
                  "AuditOpen", "Encrypt", "AuditGap", "Encrypt", "AuditClose"));
  for (const auto& line : lines) {
    if (Field(line, "op") == "AuditGap") {
      EXPECT_THAT(line, HasSubstr("refused 1 late 1: "));
    }
  }
}

TEST_F(AuditLogTest, DestructorGivesUpOnAHungDisk) {
  AuditLog::Options options = Options();
  options.close_limit = absl::Milliseconds(100);
  {
    base::Metrics gone_with_the_log;
    base::ManualClock clock(absl::FromUnixSeconds(1'795'261'500));
    options.metrics = &gone_with_the_log;
    options.clock = &clock;
    auto log = Open(options);
    HangDisk(true);
    std::thread caller([&] {
      EXPECT_THAT(log->Append(Record(), base::DeadlineAfter(milliseconds(50))),
                  StatusIs(absl::StatusCode::kDeadlineExceeded));
    });
    AwaitHangingCall();
    caller.join();
    const auto start = std::chrono::steady_clock::now();
    log.reset();
    EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(5));
    // Nobody else may write there while the thread hangs.
    EXPECT_THAT(AuditLog::Open(Options()),
                StatusIs(absl::StatusCode::kFailedPrecondition));
  }
  FailDisk(0);
  HangDisk(false);
  const base::Deadline limit = Soon();
  absl::Status opened;
  do {
    opened = AuditLog::Open(Options()).status();
    std::this_thread::yield();
  } while (!opened.ok() && std::chrono::steady_clock::now() < limit);
  EXPECT_OK(opened);
}

TEST_F(AuditLogTest, CallersDeadlineIsKept) {
  auto log = Open();
  HangDisk(true);
  EXPECT_THAT(log->Append(Record(), base::DeadlineAfter(milliseconds(20))),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  HangDisk(false);
  EXPECT_THAT(log->Append(Record(), base::DeadlineAfter(milliseconds(-1))),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(AuditLogTest, PendingBytesAreBounded) {
  AuditLog::Options options = Options();
  options.max_pending_bytes = 4000;
  auto log = Open(options);
  HangDisk(true);
  std::vector<std::thread> callers;
  callers.emplace_back([&] { EXPECT_OK(log->Append(Record(), Soon())); });
  AwaitHangingCall();
  AuditRecord big = Record();
  big.detail = std::string(4000, 'd');
  EXPECT_THAT(log->Append(big, Soon()),
              StatusIs(absl::StatusCode::kResourceExhausted));
  HangDisk(false);
  callers[0].join();
  EXPECT_OK(log->Append(Record(), Soon()));
}

TEST_F(AuditLogTest, CheckProvesTheWriterAndWritesNothing) {
  auto log = Open();
  const auto size = std::filesystem::file_size(Segments(Directory())[0]);
  const int calls = TheDisk().calls;
  ASSERT_OK(log->Check(Soon()));
  EXPECT_EQ(std::filesystem::file_size(Segments(Directory())[0]), size);
  EXPECT_EQ(TheDisk().calls, calls + 1);
  HangDisk(true);
  EXPECT_THAT(log->Check(base::DeadlineAfter(milliseconds(20))),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  HangDisk(false);
}

// What happens to a file under us, and that the next record is not lost in it.
class AuditLogMeddlingTest : public AuditLogTest {
 protected:
  void ExpectNextRecordInANewSegment(
      const std::function<void(const std::string&)>& meddle,
      const std::string& reason) {
    auto log = Open();
    ASSERT_OK(log->Append(Record("Encrypt", "before"), Soon()));
    const std::string first = Segments(Directory())[0];
    meddle(first);
    ASSERT_OK(log->Append(Record("Encrypt", "after"), Soon()));
    const auto segments = Segments(Directory());
    ASSERT_THAT(segments, Not(IsEmpty()));
    EXPECT_NE(segments.back(), first);
    const std::string text = TempDir::Read(segments.back());
    EXPECT_THAT(text, HasSubstr("\"rid\":\"after\""));
    EXPECT_THAT(text, HasSubstr("\"op\":\"AuditSegmentFailed\""));
    EXPECT_THAT(text, HasSubstr(reason));
    EXPECT_OK(log->health());
  }
};

TEST_F(AuditLogMeddlingTest, DeletedFile) {
  ExpectNextRecordInANewSegment(
      [](const std::string& f) { std::filesystem::remove(f); }, "was deleted");
}
TEST_F(AuditLogMeddlingTest, MovedFile) {
  ExpectNextRecordInANewSegment(
      [](const std::string& f) { std::filesystem::rename(f, f + ".1"); },
      "was moved away or replaced");
}
TEST_F(AuditLogMeddlingTest, ReplacedFile) {
  ExpectNextRecordInANewSegment(
      [](const std::string& f) {
        std::filesystem::rename(f, f + ".1");
        std::filesystem::copy_file(f + ".1", f);
      },
      "was moved away or replaced");
}
TEST_F(AuditLogMeddlingTest, TruncatedFile) {
  ExpectNextRecordInANewSegment(
      [](const std::string& f) { std::filesystem::resize_file(f, 10); },
      "bytes where");
}
TEST_F(AuditLogMeddlingTest, LongerFile) {
  ExpectNextRecordInANewSegment(
      [](const std::string& f) {
        const int fd = open(f.c_str(), O_WRONLY | O_APPEND);
        ASSERT_EQ(write(fd, "x", 1), 1);
        close(fd);
      },
      "bytes where");
}
TEST_F(AuditLogMeddlingTest, DeletedDirectory) {
  ExpectNextRecordInANewSegment(
      [this](const std::string&) { std::filesystem::remove_all(Directory()); },
      "was deleted");
}
TEST_F(AuditLogMeddlingTest, MovedDirectory) {
  ExpectNextRecordInANewSegment(
      [this](const std::string&) {
        std::filesystem::rename(Directory(), Directory() + ".old");
      },
      "was moved away or replaced");
}

TEST_F(AuditLogMeddlingTest, CheckNoticesADeletedFileToo) {
  auto log = Open();
  std::filesystem::remove(Segments(Directory())[0]);
  ASSERT_OK(log->Check(Soon()));
  EXPECT_THAT(OpsOf(ReadLog(Directory())), ElementsAre("AuditSegmentFailed"));
}

TEST_F(AuditLogTest, TornEndIsKeptBesideTheLogAndReported) {
  { auto log = Open(); }
  const std::string segment = Segments(Directory())[0];
  const std::string whole = TempDir::Read(segment);
  const std::string torn = "{\"v\":1,\"seq\":\"3\",\"t_wall\":\"20";
  {
    std::ofstream out(segment, std::ios::app | std::ios::binary);
    out << torn;
  }
  { auto log = Open(); }
  EXPECT_EQ(TempDir::Read(segment), whole);
  EXPECT_EQ(TempDir::Read(segment + ".torn"), torn);
  EXPECT_FALSE(std::filesystem::exists(segment + ".torn.tmp"));
  const auto lines = ReadLog(Directory());
  ExpectGapless(lines);
  ASSERT_THAT(OpsOf(lines), ElementsAre("AuditOpen", "AuditClose", "AuditTorn",
                                        "AuditOpen", "AuditClose"));
  EXPECT_THAT(lines[2],
              HasSubstr(absl::StrCat("bytes ", torn.size(), " sha256 ")));
  EXPECT_EQ(Field(lines[2], "resource"),
            std::filesystem::path(segment).filename().string());
  // Reported once.
  { auto log = Open(); }
  EXPECT_EQ(OpsOf(ReadLog(Directory())).size(), 7u);
}

// Pages of one write may reach the disk out of order: zeros, then good lines.
TEST_F(AuditLogTest, HoleInTheLastWriteIsTornFromTheHoleOn) {
  { auto log = Open(); }
  const std::string segment = Segments(Directory())[0];
  const std::string whole = TempDir::Read(segment);
  const std::string torn = std::string(512, '\0') + "\n" + whole;
  {
    std::ofstream out(segment, std::ios::app | std::ios::binary);
    out << torn;
  }
  { auto log = Open(); }
  EXPECT_EQ(TempDir::Read(segment), whole);
  EXPECT_EQ(TempDir::Read(segment + ".torn"), torn);
}

// A crash between keeping the torn end and reporting it.
TEST_F(AuditLogTest, UnreportedTornFileIsReportedByTheNextRun) {
  { auto log = Open(); }
  const std::string segment = Segments(Directory())[0];
  { std::ofstream(segment + ".torn.tmp") << "{\"v\":1,\"se"; }
  { auto log = Open(); }
  EXPECT_TRUE(std::filesystem::exists(segment + ".torn"));
  EXPECT_FALSE(std::filesystem::exists(segment + ".torn.tmp"));
  EXPECT_EQ(OpsOf(ReadLog(Directory()))[2], "AuditTorn");
}

TEST_F(AuditLogTest, GarbageFarFromTheEndIsNotTakenForATornWrite) {
  { auto log = Open(); }
  const std::string segment = Segments(Directory())[0];
  const std::string whole = TempDir::Read(segment);
  {
    std::ofstream out(segment, std::ios::app | std::ios::binary);
    out << "garbage\n" << std::string(3 << 20, 'x') << "\n";
  }
  const auto size = std::filesystem::file_size(segment);
  EXPECT_THAT(AuditLog::Open(Options()),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("move the file away")));
  EXPECT_EQ(std::filesystem::file_size(segment), size);
}

// The newest segment may repeat only the beginning of what the one before ends
// with; a new run must not use those numbers again.
TEST_F(AuditLogTest, SeqIsNeverReusedAfterASegmentThatRepeatsAnother) {
  {
    auto log = Open();
    for (int i = 0; i < 5; ++i) ASSERT_OK(log->Append(Record(), Soon()));
  }
  const std::string first = Segments(Directory())[0];  // seq 1 to 7
  const std::string text = TempDir::Read(first);
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  std::string name = first;
  name.replace(name.rfind('-') + 1, 20, "00000000000000000003");
  { std::ofstream(name) << lines[2] << "\n"; }
  { auto log = Open(); }
  lines = ReadLog(Directory());
  ExpectGapless(lines);
  EXPECT_THAT(lines, SizeIs(9));
}

// Runs body in a child process and returns its pid. The child never returns.
template <typename Body>
pid_t Fork(Body body) {
  const pid_t pid = fork();
  if (pid == 0) {
    body();
    _exit(0);
  }
  return pid;
}

TEST_F(AuditLogTest, KillMinusNineLosesNoAcknowledgedRecord) {
  constexpr int kRounds = 5;
  std::set<std::string> acknowledged;
  for (int round = 0; round < kRounds; ++round) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const pid_t child = Fork([&] {
      close(ends[0]);
      auto log =
          AuditLog::Open({.directory = Directory(), .segment_bytes = 20'000});
      if (!log.ok()) _exit(3);
      std::vector<std::thread> callers;
      for (int t = 0; t < 8; ++t) {
        callers.emplace_back([&, t] {
          for (int i = 0;; ++i) {
            const std::string id = absl::StrCat(round, ".", t, ".", i);
            if (!(*log)->Append(Record("Encrypt", id), Soon()).ok()) _exit(4);
            const std::string line = id + "\n";
            if (write(ends[1], line.data(), line.size()) < 0) _exit(5);
          }
        });
      }
      for (auto& caller : callers) caller.join();
    });
    ASSERT_GT(child, 0);
    close(ends[1]);
    std::string ledger;
    char buffer[4096];
    // Kill in the middle of the work, then read what else was acknowledged.
    bool killed = false;
    for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) {
      ledger.append(buffer, static_cast<size_t>(n));
      if (!killed && ledger.size() > 1500u * static_cast<size_t>(round + 1)) {
        ASSERT_EQ(kill(child, SIGKILL), 0);
        killed = true;
      }
    }
    close(ends[0]);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(killed && WIFSIGNALED(status)) << status;
    for (absl::string_view id : absl::StrSplit(ledger, '\n')) {
      if (!id.empty()) acknowledged.insert(std::string(id));
    }
  }
  { auto log = Open(); }  // mends what the last kill tore
  const auto lines = ReadLog(Directory());
  ExpectGapless(lines);
  std::map<std::string, int> next;
  std::set<std::string> logged;
  for (const std::string& line : lines) {
    if (Field(line, "kind") != "REQ") continue;
    const std::string rid = Field(line, "rid");
    logged.insert(rid);
    const size_t dot = rid.rfind('.');
    EXPECT_EQ(rid.substr(dot + 1), absl::StrCat(next[rid.substr(0, dot)]++));
  }
  EXPECT_GT(acknowledged.size(), 1000u);
  std::vector<std::string> lost;
  std::set_difference(acknowledged.begin(), acknowledged.end(), logged.begin(),
                      logged.end(), std::back_inserter(lost));
  EXPECT_THAT(lost, IsEmpty());
}

#ifdef KEK_FAILPOINTS
// The child of the next test; failpoints are read when a process begins.
TEST(AuditLogChild, DISABLED_AppendsOnce) {
  const char* directory = std::getenv("KEKD_TEST_AUDIT_DIRECTORY");
  ASSERT_NE(directory, nullptr);
  auto log = AuditLog::Open({.directory = directory});
  if (log.ok()) (void)(*log)->Append(Record(), Soon());
}

TEST_F(AuditLogTest, KilledBetweenWriteAndSyncTheLogOpensAgain) {
  for (const char* point : {"audit-written:2", "audit-durable:2"}) {
    const pid_t child = Fork([&] {
      setenv("KEKD_FAILPOINT", point, 1);
      setenv("KEKD_TEST_AUDIT_DIRECTORY", Directory().c_str(), 1);
      execl("/proc/self/exe", "audit_log_test",
            "--gtest_also_run_disabled_tests", "--gtest_filter=AuditLogChild.*",
            nullptr);
    });
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << point;
  }
  { auto log = Open(); }
  const auto lines = ReadLog(Directory());
  ExpectGapless(lines);
  EXPECT_THAT(OpsOf(lines), ElementsAre("AuditOpen", "Encrypt", "AuditOpen",
                                        "Encrypt", "AuditOpen", "AuditClose"));
}
#endif

// A full disk: a small tmpfs where the test may mount one.
TEST_F(AuditLogTest, FullDiskRefusesAndServesAgainWhenThereIsSpace) {
  const std::string disk = dir_.File("disk");
  ASSERT_TRUE(std::filesystem::create_directory(disk));
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=256k,mode=0700") != 0) {
    GTEST_SKIP() << "needs the right to mount; FileSizeLimit has the same with "
                    "RLIMIT_FSIZE";
  }
  std::shared_ptr<void> unmount(
      nullptr, [&disk](void*) { umount2(disk.c_str(), MNT_DETACH); });
  AuditLog::Options options = Options();
  options.directory = disk + "/audit";
  auto log = Open(options);
  const std::string hog = disk + "/hog";
  { std::ofstream(hog) << std::string(100'000, 'x'); }
  int served = 0;
  absl::Status status;
  for (; served < 10'000 && status.ok(); ++served) {
    status = log->Append(Record("Encrypt", absl::StrCat(served)), Soon());
  }
  --served;
  ASSERT_THAT(status, StatusIs(absl::StatusCode::kUnavailable,
                               HasSubstr("No space left on device")));
  EXPECT_GT(served, 50);
  EXPECT_THAT(log->Append(Record("Encrypt", "refused"), Soon()),
              StatusIs(absl::StatusCode::kUnavailable));
  std::filesystem::remove(hog);
  const base::Deadline limit = base::DeadlineAfter(seconds(5));
  while (!log->health().ok()) {
    ASSERT_LT(std::chrono::steady_clock::now(), limit);
    std::this_thread::yield();
  }
  ASSERT_OK(log->Append(Record("Encrypt", "after"), Soon()));
  log.reset();
  const auto lines = ReadLog(options.directory);
  ExpectGapless(lines);
  std::set<std::string> rids;
  for (const auto& line : lines) rids.insert(Field(line, "rid"));
  for (int i = 0; i < served; ++i) {
    EXPECT_EQ(rids.count(absl::StrCat(i)), 1u) << i;
  }
  EXPECT_EQ(rids.count("after"), 1u);
  EXPECT_EQ(rids.count("refused"), 0u);
  EXPECT_EQ(std::count_if(lines.begin(), lines.end(),
                          [](const std::string& line) {
                            return Field(line, "op") == "AuditGap";
                          }),
            1);
}

// A write that fails half way, without any privilege.
TEST_F(AuditLogTest, FileSizeLimitTearsOneWriteAndLosesNothing) {
  struct sigaction ignore {};
  struct sigaction before {};
  ignore.sa_handler = SIG_IGN;
  ASSERT_EQ(sigaction(SIGXFSZ, &ignore, &before), 0);
  auto log = Open();
  struct rlimit unlimited;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &unlimited), 0);
  const auto size = std::filesystem::file_size(Segments(Directory())[0]);
  struct rlimit limit = unlimited;
  limit.rlim_cur = size + 100;  // less than a line
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const absl::Status status =
      log->Append(Record("Encrypt", "a"), Soon());  // fits no new file either?
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &unlimited), 0);
  ASSERT_EQ(sigaction(SIGXFSZ, &before, nullptr), 0);
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable,
                               HasSubstr("File too large")));
  const base::Deadline soon = base::DeadlineAfter(seconds(5));
  while (!log->health().ok()) {
    ASSERT_LT(std::chrono::steady_clock::now(), soon);
    std::this_thread::yield();
  }
  ASSERT_OK(log->Append(Record("Encrypt", "b"), Soon()));
  log.reset();
  // The first segment ends in a torn line; the second has the line whole.
  const auto segments = Segments(Directory());
  ASSERT_THAT(segments, SizeIs(2));
  EXPECT_EQ(std::filesystem::file_size(segments[0]), size + 100);
  const auto lines = ReadLog(Directory());
  ExpectGapless(lines);
  EXPECT_THAT(OpsOf(lines), ::testing::UnorderedElementsAre(
                                "AuditOpen", "Encrypt", "AuditSegmentFailed",
                                "AuditGap", "Encrypt", "AuditClose"));
}

}  // namespace
}  // namespace kek::core
