// SPDX-License-Identifier: Apache-2.0
#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "catalog/catalog_test_suite.h"
#include "catalog/row.h"

// SQLite's calls to make data durable come through here: counted, and failed
// when a test says so.
namespace {
std::atomic<int> syncs = 0;
std::atomic<bool> syncs_fail = false;

int Sync(long call, int fd) {
  ++syncs;
  if (syncs_fail) {
    errno = EIO;
    return -1;
  }
  return static_cast<int>(syscall(call, fd));
}
}  // namespace
extern "C" int fdatasync(int fd) { return Sync(SYS_fdatasync, fd); }
extern "C" int fsync(int fd) { return Sync(SYS_fsync, fd); }

namespace kek::catalog {
namespace {

using base::testing::IsOkAndHolds;
using base::testing::StatusIs;
using base::testing::TempDir;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

INSTANTIATE_TEST_SUITE_P(Sqlite, CatalogTest,
                         ::testing::Values(BackEnd{
                             "Sqlite",
                             [](const std::string& dir) {
                               return OpenSqliteCatalog(
                                   {.path = dir + "/catalog.db"});
                             }}),
                         [](const auto& info) { return info.param.name; });

class SqliteCatalogTest : public ::testing::Test {
 protected:
  std::string path() const { return dir_.File("catalog.db"); }
  absl::StatusOr<std::unique_ptr<Catalog>> Open() {
    return OpenSqliteCatalog({.path = path()});
  }
  // Opens, runs and closes: what must survive that.
  void MakeCatalogWithKey() {
    ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
    StoreParents(*catalog);
  }
  // Edits the file behind the catalog's back.
  void Sql(const std::string& sql) {
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open(path().c_str(), &db), SQLITE_OK);
    char* message = nullptr;
    EXPECT_EQ(sqlite3_exec(db, sql.c_str(), nullptr, nullptr, &message),
              SQLITE_OK)
        << message;
    sqlite3_free(message);
    sqlite3_close(db);
  }

  // Puts a row of bytes in the place of key id's.
  void ReplaceRow(const std::string& id, const std::vector<uint8_t>& row) {
    Sql(absl::StrCat(
        "UPDATE crypto_keys SET row = x'",
        absl::BytesToHexString(absl::string_view(
            reinterpret_cast<const char*>(row.data()), row.size())),
        "' WHERE id = '", id, "'"));
  }

  TempDir dir_;
};

TEST_F(SqliteCatalogTest, WhatWasWrittenIsThereAfterReopening) {
  KeyRing ring = FullRing(RingName());
  CryptoKey key = FullKey(KeyName());
  CryptoKeyVersion version = FullVersion(KeyName().Version(1));
  for (int round = 0; round < 3; ++round) {
    ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
    ASSERT_OK(Store(*catalog, ring));
    ASSERT_OK(Store(*catalog, key));
    ASSERT_OK(Store(*catalog, version));
    ASSERT_OK(catalog->ReserveUses(version.name, 5, Soon()));
  }
  ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
  EXPECT_EQ(version.revision, 3u);
  EXPECT_EQ(Show(*catalog->GetKeyRing(ring.name)), Show(ring));
  EXPECT_EQ(Show(*catalog->GetCryptoKey(key.name)), Show(key));
  EXPECT_EQ(Show(*catalog->GetVersion(version.name)), Show(version));
  EXPECT_THAT(catalog->UsesReserved(version.name), IsOkAndHolds(15u));
}

TEST_F(SqliteCatalogTest, FilesAreForTheOwnerOnly) {
  ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
  StoreParents(*catalog);
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir_.path())) {
    struct stat info = {};
    ASSERT_EQ(stat(entry.path().c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u) << entry.path();
    ++files;
  }
  EXPECT_EQ(files, 4);  // the catalog, its log, the log's index, the lock
}

TEST_F(SqliteCatalogTest, CatalogThatOthersCanOpenIsRefused) {
  MakeCatalogWithKey();
  ASSERT_EQ(chmod(path().c_str(), 0640), 0);
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kFailedPrecondition,
                               HasSubstr("chmod 600")));
  ASSERT_EQ(chmod(path().c_str(), 0600), 0);
  EXPECT_OK(Open());
}

TEST_F(SqliteCatalogTest, SecondOpeningIsRefusedHereAndInAnotherProcess) {
  ASSERT_OK_AND_ASSIGN(auto catalog, Open());
  const auto refused =
      StatusIs(absl::StatusCode::kFailedPrecondition,
               AllOf(HasSubstr("in use by another process"),
                     HasSubstr(absl::StrCat("(", getpid(), ")"))));
  EXPECT_THAT(Open(), refused);
  // By another path to the same file, too.
  const std::string link = dir_.File("link.db");
  std::filesystem::create_symlink(path(), link);
  EXPECT_THAT(OpenSqliteCatalog({.path = link}), refused);

  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) _exit(static_cast<int>(Open().status().code()));
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status),
            static_cast<int>(absl::StatusCode::kFailedPrecondition));

  // The refusals disturbed nothing, and the lock ends with the catalog.
  StoreParents(*catalog);
  catalog.reset();
  EXPECT_OK(Open());
}

TEST_F(SqliteCatalogTest, NewerSchemaIsRefusedAndLeftAlone) {
  MakeCatalogWithKey();
  Sql("PRAGMA user_version = 99");
  EXPECT_THAT(Open(),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("newer kekd"), HasSubstr("schema 99"))));
  Sql("PRAGMA user_version = 1");
  ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
  EXPECT_OK(catalog->GetCryptoKey(KeyName()));
}

TEST_F(SqliteCatalogTest, RowOfANewerFormatIsRefusedByName) {
  MakeCatalogWithKey();
  std::vector<uint8_t> row = *EncodeRow(FullKey(KeyName()));
  row[0] = kRowFormat + 1;
  ReplaceRow("k", row);
  ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
  EXPECT_THAT(catalog->GetCryptoKey(KeyName()),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr(KeyName().ToString()),
                             HasSubstr("newer kekd"))));
}

TEST_F(SqliteCatalogTest, ForeignFilesAreRefusedAndLeftAlone) {
  const auto expect_refused = [&](const std::string& why) {
    const std::string before = TempDir::Read(path());
    EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kFailedPrecondition,
                                 HasSubstr(why)));
    EXPECT_EQ(TempDir::Read(path()), before);
    int files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(dir_.path())) {
      EXPECT_EQ(entry.path(), path());
      ++files;
    }
    EXPECT_EQ(files, 1);
    std::filesystem::remove_all(path());
  };
  dir_.Write("catalog.db", "kind: Config\nthis is somebody's notes\n");
  expect_refused("not an SQLite file");
  Sql("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)");
  ASSERT_EQ(chmod(path().c_str(), 0600), 0);
  expect_refused("of another program");
  std::filesystem::create_directory(path());
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kFailedPrecondition,
                               HasSubstr("not a regular file")));
}

TEST_F(SqliteCatalogTest, MissingDirectoryIsNamed) {
  EXPECT_THAT(
      OpenSqliteCatalog({.path = dir_.File("absent/catalog.db")}),
      StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("absent")));
}

// Opening an empty file beside a full log would throw the log away.
TEST_F(SqliteCatalogTest, LogWithoutItsCatalogIsNotThrownAway) {
  MakeCatalogWithKey();
  std::filesystem::remove(path());
  dir_.Write("catalog.db-wal", "changes that were acknowledged");
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kFailedPrecondition,
                               HasSubstr("-wal holds changes")));
  EXPECT_EQ(TempDir::Read(path() + "-wal"), "changes that were acknowledged");
}

TEST_F(SqliteCatalogTest, DamagedRowIsNamedAndOthersAreServed) {
  {
    ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
    StoreParents(*catalog);
    for (const char* id : {"bad", "moved", "short"}) {
      CryptoKey key = FullKey(*RingName().Child(id));
      ASSERT_OK(Store(*catalog, key));
    }
  }
  std::vector<uint8_t> row = *EncodeRow(FullKey(*RingName().Child("bad")));
  row[100] ^= 0x04;
  ReplaceRow("bad", row);
  ReplaceRow("moved", *EncodeRow(FullKey(KeyName())));
  ReplaceRow("short", {});
  ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
  for (const char* id : {"bad", "moved", "short"}) {
    const ResourceName name = *RingName().Child(id);
    EXPECT_THAT(catalog->GetCryptoKey(name),
                StatusIs(absl::StatusCode::kDataLoss,
                         HasSubstr(name.ToString() + ":")));
    CryptoKey key = FullKey(name);
    key.revision = 1;
    EXPECT_THAT(Store(*catalog, key), StatusIs(absl::StatusCode::kDataLoss));
  }
  EXPECT_THAT(catalog->ListCryptoKeys(RingName(), {}),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("bad")));
  EXPECT_OK(catalog->GetCryptoKey(KeyName()));
}

// Damage of the file anywhere: the catalog may refuse, but what it serves is
// what was written.
TEST_F(SqliteCatalogTest, DamagedFileNeverServesAWrongRow) {
  std::string good_key;
  {
    ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
    StoreParents(*catalog);
    for (uint32_t number = 1; number <= 20; ++number) {
      CryptoKeyVersion version = FullVersion(KeyName().Version(number));
      ASSERT_OK(Store(*catalog, version));
    }
    good_key = Show(*catalog->GetCryptoKey(KeyName()));
  }
  const std::string good = TempDir::Read(path());
  std::mt19937 random(4);
  int refused = 0;
  for (int round = 0; round < 200; ++round) {
    std::string bad = good;
    for (uint32_t flips = 1 + random() % 64; flips > 0; --flips) {
      bad[random() % bad.size()] ^= static_cast<char>(1 << random() % 8);
    }
    if (round % 10 == 0) bad.resize(random() % bad.size());
    if (round % 10 == 1) {
      const size_t page = random() % (bad.size() / 4096);
      bad.replace(page * 4096, 4096, 4096, '\0');
    }
    for (const char* suffix : {"-wal", "-shm"}) {
      std::filesystem::remove(path() + suffix);
    }
    dir_.Write("catalog.db", bad);
    const auto catalog = Open();
    if (!catalog.ok()) {
      EXPECT_THAT(catalog,
                  AnyOf(StatusIs(absl::StatusCode::kDataLoss),
                        StatusIs(absl::StatusCode::kUnavailable),
                        StatusIs(absl::StatusCode::kInternal),
                        StatusIs(absl::StatusCode::kFailedPrecondition)));
      ++refused;
      continue;
    }
    const auto key = (*catalog)->GetCryptoKey(KeyName());
    if (key.ok()) {
      EXPECT_EQ(Show(*key), good_key);
    } else {
      ++refused;
    }
    for (uint32_t number = 1; number <= 20; ++number) {
      const auto version = (*catalog)->GetVersion(KeyName().Version(number));
      CryptoKeyVersion expected = FullVersion(KeyName().Version(number));
      expected.revision = 1;
      if (version.ok()) {
        EXPECT_EQ(Show(*version), Show(expected));
      } else {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 100);  // the damage was real
}

// Every connection that is opened while it lives may have so many pages.
class PageLimit {
 public:
  explicit PageLimit(int pages) {
    pages_ = pages;
    sqlite3_auto_extension(reinterpret_cast<void (*)()>(&Apply));
  }
  ~PageLimit() { sqlite3_reset_auto_extension(); }

 private:
  static int Apply(sqlite3* db, char**, const void*) {
    return sqlite3_exec(
        db, absl::StrCat("PRAGMA max_page_count = ", pages_).c_str(), nullptr,
        nullptr, nullptr);
  }
  static int pages_;
};
int PageLimit::pages_ = 0;

// Stores versions until the catalog refuses; returns that status and how many
// were stored.
absl::Status FillUp(Catalog& catalog, uint32_t first, uint32_t& next) {
  for (next = first; next < first + 5000; ++next) {
    CryptoKeyVersion version = FullVersion(KeyName().Version(next));
    if (absl::Status s = Store(catalog, version); !s.ok()) return s;
  }
  return absl::OkStatus();
}

TEST_F(SqliteCatalogTest, FullDiskRefusesWritesServesReadsAndRecovers) {
  MakeCatalogWithKey();
  uint32_t next = 0;
  {
    const PageLimit limit(24);
    ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
    EXPECT_THAT(FillUp(*catalog, 1, next),
                StatusIs(absl::StatusCode::kUnavailable,
                         AllOf(HasSubstr("disk full"), HasSubstr(path()))));
    EXPECT_GT(next, 1u);
    // A closure that shrugs the failure off does not get half of its work
    // committed.
    EXPECT_THAT(
        catalog->Transact(
            [&](Transaction& t) {
              auto key = t.GetCryptoKey(KeyName());
              EXPECT_OK(key);
              key->primary_version = 99;
              EXPECT_OK(t.Put(*key));
              CryptoKeyVersion big = FullVersion(KeyName().Version(9000));
              big.attributes.assign(500000, 'x');
              EXPECT_THAT(t.Put(big), StatusIs(absl::StatusCode::kUnavailable));
              EXPECT_THAT(t.Put(*key),
                          StatusIs(absl::StatusCode::kUnavailable));
              return absl::OkStatus();
            },
            Soon()),
        StatusIs(absl::StatusCode::kUnavailable));
    EXPECT_EQ(catalog->GetCryptoKey(KeyName())->primary_version, 3u);
    EXPECT_OK(catalog->GetVersion(KeyName().Version(next - 1)));
    EXPECT_THAT(catalog->GetVersion(KeyName().Version(next)),
                StatusIs(absl::StatusCode::kNotFound));
  }
  ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
  CryptoKeyVersion version = FullVersion(KeyName().Version(next));
  EXPECT_OK(Store(*catalog, version));
  EXPECT_THAT(catalog->CountChildren(KeyName()), IsOkAndHolds(next));
}

TEST_F(SqliteCatalogTest,
       FailingWritesAreUnavailableAndTheSameCatalogRecovers) {
  ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
  StoreParents(*catalog);
  CryptoKeyVersion counted = FullVersion(KeyName().Version(70000));
  ASSERT_OK(Store(*catalog, counted));
  ASSERT_OK(catalog->ReserveUses(counted.name, 10, Soon()));

  // Files may not grow: writes fail as they do on a full or broken disk.
  auto* const old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  rlimit limit = old_limit;
  limit.rlim_cur = 128 * 1024;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  uint32_t next = 0;
  const absl::Status full = FillUp(*catalog, 1, next);
  // These need less room; they go on until theirs is gone, too.
  uint64_t reserved = 10;
  absl::StatusOr<uint64_t> uses = reserved;
  while (uses.ok() && reserved < 10000) {
    reserved = *uses;
    uses = catalog->ReserveUses(counted.name, 10, Soon());
  }
  const absl::Status check = catalog->Check(Soon());
  const auto read = catalog->GetVersion(counted.name);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  std::signal(SIGXFSZ, old_handler);

  EXPECT_THAT(full, StatusIs(absl::StatusCode::kUnavailable,
                             AllOf(HasSubstr("I/O error"), HasSubstr(path()))));
  EXPECT_THAT(uses, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(check, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_OK(read);

  // The same object works again, and nothing acknowledged is gone.
  EXPECT_OK(catalog->Check(Soon()));
  EXPECT_THAT(catalog->ReserveUses(counted.name, 10, Soon()),
              IsOkAndHolds(reserved + 10));
  CryptoKeyVersion version = FullVersion(KeyName().Version(next));
  EXPECT_OK(Store(*catalog, version));
  EXPECT_THAT(catalog->CountChildren(KeyName()), IsOkAndHolds(next + 1));
}

// A kill does not show whether a commit would survive a power cut; this does.
TEST_F(SqliteCatalogTest, EveryCommitIsSyncedBeforeItIsAcknowledged) {
  ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
  StoreParents(*catalog);
  for (uint32_t number = 1; number <= 5; ++number) {
    int before = syncs;
    CryptoKeyVersion version = FullVersion(KeyName().Version(number));
    ASSERT_OK(Store(*catalog, version));
    EXPECT_GT(syncs, before);
    before = syncs;
    ASSERT_OK(catalog->ReserveUses(version.name, 1, Soon()));
    EXPECT_GT(syncs, before);
  }
}

TEST_F(SqliteCatalogTest, CommitThatCannotBeSyncedIsNotAcknowledged) {
  {
    ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
    StoreParents(*catalog);
    CryptoKeyVersion version = FullVersion(KeyName().Version(1));
    syncs_fail = true;
    const absl::Status stored = Store(*catalog, version);
    const absl::Status check = catalog->Check(Soon());
    const auto read = catalog->GetVersion(version.name);
    syncs_fail = false;
    EXPECT_THAT(stored, StatusIs(absl::StatusCode::kUnavailable,
                                 HasSubstr("I/O error")));
    EXPECT_THAT(check, StatusIs(absl::StatusCode::kUnavailable));
    EXPECT_THAT(read, StatusIs(absl::StatusCode::kNotFound));
    EXPECT_EQ(version.revision, 0u);
    // The disk is well again.
    version.attributes = "second try";
    ASSERT_OK(Store(*catalog, version));
  }
  ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
  EXPECT_EQ(catalog->GetVersion(KeyName().Version(1))->attributes,
            "second try");
  EXPECT_THAT(catalog->CountChildren(KeyName()), IsOkAndHolds(1u));
}

TEST_F(SqliteCatalogTest, WriterHeldUpByAnotherProgramIsUnavailable) {
  ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
  StoreParents(*catalog);
  sqlite3* other = nullptr;
  ASSERT_EQ(sqlite3_open(path().c_str(), &other), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(other, "BEGIN IMMEDIATE", nullptr, nullptr, nullptr),
            SQLITE_OK);
  CryptoKeyVersion version = FullVersion(KeyName().Version(1));
  EXPECT_THAT(
      catalog->Transact([&](Transaction& t) { return t.Put(version); },
                        base::DeadlineAfter(std::chrono::milliseconds(50))),
      StatusIs(absl::StatusCode::kUnavailable,
               HasSubstr("locked by another process")));
  EXPECT_OK(catalog->GetCryptoKey(KeyName()));
  sqlite3_close(other);
  version.revision = 0;
  EXPECT_OK(Store(*catalog, version));
}

TEST_F(SqliteCatalogTest, MoreReadersThanConnections) {
  ASSERT_OK_AND_ASSIGN(const auto catalog,
                       OpenSqliteCatalog({.path = path(), .readers = 2}));
  StoreParents(*catalog);
  std::atomic<int> failed = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        if (!catalog->GetCryptoKey(KeyName()).ok()) ++failed;
        if (!catalog->CountChildren(RingName()).ok()) ++failed;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 0);
}

// The columns that due queries use are indexed: the plan names the index, and
// no table is scanned.
TEST_F(SqliteCatalogTest, QueriesUseTheirIndexes) {
  MakeCatalogWithKey();
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(path().c_str(), &db), SQLITE_OK);
  for (const char* sql :
       {"SELECT parent, id FROM crypto_keys WHERE rotation_us <= ?1 "
        "ORDER BY rotation_us, parent, id LIMIT ?2",
        "SELECT parent, id FROM versions WHERE destruction_us <= ?1 "
        "ORDER BY destruction_us, parent, id LIMIT ?2",
        "SELECT parent, id FROM versions WHERE pending_us <= ?1 "
        "ORDER BY pending_us, parent, id LIMIT ?2",
        "SELECT parent, id, row FROM versions WHERE parent = ?1 AND id > ?2 "
        "ORDER BY id LIMIT ?3",
        "SELECT parent, id, row FROM versions WHERE (parent, id) > (?1, ?2) "
        "ORDER BY parent, id LIMIT ?3"}) {
    sqlite3_stmt* plan = nullptr;
    ASSERT_EQ(
        sqlite3_prepare_v2(db, absl::StrCat("EXPLAIN QUERY PLAN ", sql).c_str(),
                           -1, &plan, nullptr),
        SQLITE_OK);
    std::string text;
    while (sqlite3_step(plan) == SQLITE_ROW) {
      absl::StrAppend(
          &text, reinterpret_cast<const char*>(sqlite3_column_text(plan, 3)),
          "; ");
    }
    sqlite3_finalize(plan);
    EXPECT_THAT(text, HasSubstr("SEARCH")) << sql;
    EXPECT_THAT(text, ::testing::Not(HasSubstr("SCAN"))) << sql;
  }
  sqlite3_close(db);
}

// A process writes as fast as it can and says through a pipe what was
// acknowledged; it is killed at a random moment. Nothing it acknowledged may be
// missing afterwards, and nothing half done may be there.
TEST_F(SqliteCatalogTest, Kill9LosesNothingAcknowledged) {
  {
    ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
    KeyRing ring = FullRing(RingName());
    ASSERT_OK(Store(*catalog, ring));
    CryptoKey key = FullKey(KeyName());
    key.primary_version = 0;
    key.next_version = 1;
    ASSERT_OK(Store(*catalog, key));
  }
  struct Acknowledged {
    uint32_t version;
    uint32_t padding;
    uint64_t uses;
  };
  std::mt19937 random(std::random_device{}());
  uint32_t last_version = 0;
  uint64_t last_uses = 0;
  for (int round = 0; round < 40; ++round) {
    int fds[2];
    ASSERT_EQ(pipe(fds), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      close(fds[0]);
      auto catalog = Open();
      if (!catalog.ok()) _exit(3);
      while (true) {
        // As a rotation does: the version, and the key that points to it.
        Acknowledged acknowledged = {};
        const absl::Status status = (*catalog)->Transact(
            [&](Transaction& t) -> absl::Status {
              auto key = t.GetCryptoKey(KeyName());
              if (!key.ok()) return key.status();
              acknowledged.version = key->next_version++;
              key->primary_version = acknowledged.version;
              CryptoKeyVersion version =
                  FullVersion(KeyName().Version(acknowledged.version));
              if (absl::Status s = t.Put(version); !s.ok()) return s;
              return t.Put(*key);
            },
            Soon());
        if (!status.ok()) _exit(4);
        const auto uses =
            (*catalog)->ReserveUses(KeyName().Version(1), 10, Soon());
        if (!uses.ok()) _exit(5);
        acknowledged.uses = *uses;
        if (write(fds[1], &acknowledged, sizeof acknowledged) !=
            sizeof acknowledged) {
          _exit(6);
        }
      }
    }
    close(fds[1]);
    // Let a few through, then strike somewhere inside the next one.
    const uint32_t enough = 1 + random() % 12;
    Acknowledged got = {};
    for (uint32_t i = 0; i < enough; ++i) {
      ASSERT_EQ(read(fds[0], &got, sizeof got),
                static_cast<ssize_t>(sizeof got));
      last_version = got.version;
      last_uses = got.uses;
    }
    const auto strike = std::chrono::steady_clock::now() +
                        std::chrono::microseconds(random() % 1500);
    while (std::chrono::steady_clock::now() < strike) {
    }
    ASSERT_EQ(kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);
    // What it managed to acknowledge before the blow counts, too.
    while (read(fds[0], &got, sizeof got) == static_cast<ssize_t>(sizeof got)) {
      last_version = got.version;
      last_uses = got.uses;
    }
    close(fds[0]);

    ASSERT_OK_AND_ASSIGN(const auto catalog, Open());
    ASSERT_OK_AND_ASSIGN(const CryptoKey key, catalog->GetCryptoKey(KeyName()));
    // At most the one that was under way lies beyond.
    EXPECT_GE(key.primary_version, last_version);
    EXPECT_LE(key.primary_version, last_version + 1);
    EXPECT_EQ(key.next_version, key.primary_version + 1);
    EXPECT_EQ(key.revision, key.primary_version + 1);
    EXPECT_THAT(catalog->CountChildren(KeyName()),
                IsOkAndHolds(key.primary_version));
    EXPECT_OK(catalog->GetVersion(KeyName().Version(key.primary_version)));
    ASSERT_OK_AND_ASSIGN(const uint64_t uses,
                         catalog->UsesReserved(KeyName().Version(1)));
    EXPECT_GE(uses, last_uses);
    EXPECT_LE(uses, last_uses + 10);
    last_version = key.primary_version;
    last_uses = uses;
  }
}

// Killed while it makes the file or its schema, a kekd can be started again.
TEST_F(SqliteCatalogTest, Kill9WhileTheCatalogIsMadeIsNoObstacle) {
  std::mt19937 random(std::random_device{}());
  for (int round = 0; round < 20; ++round) {
    const TempDir dir;
    const std::string path = dir.File("catalog.db");
    int fds[2];
    ASSERT_EQ(pipe(fds), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      if (write(fds[1], "x", 1) != 1) _exit(1);
      const auto catalog = OpenSqliteCatalog({.path = path});
      while (true) pause();
    }
    char started = 0;
    ASSERT_EQ(read(fds[0], &started, 1), 1);
    const auto strike = std::chrono::steady_clock::now() +
                        std::chrono::microseconds(random() % 4000);
    while (std::chrono::steady_clock::now() < strike) {
    }
    ASSERT_EQ(kill(child, SIGKILL), 0);
    ASSERT_EQ(waitpid(child, nullptr, 0), child);
    close(fds[0]);
    close(fds[1]);
    ASSERT_OK_AND_ASSIGN(const auto catalog, OpenSqliteCatalog({.path = path}));
    StoreParents(*catalog);
    EXPECT_OK(catalog->Check(Soon()));
  }
}

}  // namespace
}  // namespace kek::catalog
