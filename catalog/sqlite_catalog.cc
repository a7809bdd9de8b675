// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <system_error>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/failpoint.h"
#include "base/lane.h"
#include "base/status_macros.h"
#include "catalog/catalog.h"
#include "catalog/row.h"
#include "catalog/row_transaction.h"

namespace kek::catalog {
namespace {

using Kind = ResourceName::Kind;

// "kekd": marks the file as a catalog, in SQLite's header.
constexpr uint32_t kApplicationId = 0x6b656b64;

// Schema n is what the first n of these make; a new one is appended and the old
// ones stay as they are. id and number order as names do (BINARY, INTEGER). The
// *_us columns are taken from the row in the statement that writes it, and are
// indexed where they are set. mac is for an authenticator of the row.
constexpr std::array<const char*, 1> kMigrations = {R"sql(
  CREATE TABLE key_rings (
    parent TEXT NOT NULL,
    id TEXT NOT NULL,
    row BLOB NOT NULL,
    mac BLOB,
    UNIQUE (parent, id)
  ) STRICT;
  CREATE TABLE crypto_keys (
    parent TEXT NOT NULL,
    id TEXT NOT NULL,
    row BLOB NOT NULL,
    mac BLOB,
    rotation_us INTEGER,
    UNIQUE (parent, id)
  ) STRICT;
  CREATE INDEX crypto_keys_rotation ON crypto_keys (rotation_us)
    WHERE rotation_us IS NOT NULL;
  CREATE TABLE versions (
    parent TEXT NOT NULL,
    id INTEGER NOT NULL,
    row BLOB NOT NULL,
    mac BLOB,
    destruction_us INTEGER,
    pending_us INTEGER,
    UNIQUE (parent, id)
  ) STRICT;
  CREATE INDEX versions_destruction ON versions (destruction_us)
    WHERE destruction_us IS NOT NULL;
  CREATE INDEX versions_pending ON versions (pending_us)
    WHERE pending_us IS NOT NULL;
  CREATE TABLE uses (
    parent TEXT NOT NULL,
    id INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    PRIMARY KEY (parent, id)
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE checks (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    passed INTEGER NOT NULL
  ) STRICT;
  INSERT INTO checks VALUES (1, 0);
)sql"};
constexpr int kSchemaVersion = static_cast<int>(kMigrations.size());

// The statements each connection holds prepared.
enum StatementId {
  kGetRing,
  kGetKey,
  kGetVersion,
  kInsertRing,
  kInsertKey,
  kInsertVersion,
  kUpdateRing,
  kUpdateKey,
  kUpdateVersion,
  kListRings,
  kListKeys,
  kListVersions,
  kCountRings,
  kCountKeys,
  kCountVersions,
  kVisitRings,
  kVisitKeys,
  kVisitVersions,
  kDueRotations,
  kDueDestructions,
  kPending,
  kGetUses,
  kPutUses,
  kCheckWrite,
  kCheckRead,
  kBegin,
  kCommit,
  kRollback,
  kStatementCount,
};
constexpr std::array<const char*, kStatementCount> kSql = {
    "SELECT row FROM key_rings WHERE parent = ?1 AND id = ?2",
    "SELECT row FROM crypto_keys WHERE parent = ?1 AND id = ?2",
    "SELECT row FROM versions WHERE parent = ?1 AND id = ?2",

    "INSERT INTO key_rings (parent, id, row) VALUES (?1, ?2, ?3)",
    "INSERT INTO crypto_keys (parent, id, row, rotation_us) "
    "VALUES (?1, ?2, ?3, ?4)",
    "INSERT INTO versions (parent, id, row, destruction_us, pending_us) "
    "VALUES (?1, ?2, ?3, ?4, ?5)",

    "UPDATE key_rings SET row = ?3, mac = NULL WHERE parent = ?1 AND id = ?2",
    "UPDATE crypto_keys SET row = ?3, mac = NULL, rotation_us = ?4 "
    "WHERE parent = ?1 AND id = ?2",
    "UPDATE versions SET row = ?3, mac = NULL, destruction_us = ?4, "
    "pending_us = ?5 WHERE parent = ?1 AND id = ?2",

    "SELECT parent, id, row FROM key_rings WHERE parent = ?1 AND id > ?2 "
    "ORDER BY id LIMIT ?3",
    "SELECT parent, id, row FROM crypto_keys WHERE parent = ?1 AND id > ?2 "
    "ORDER BY id LIMIT ?3",
    "SELECT parent, id, row FROM versions WHERE parent = ?1 AND id > ?2 "
    "ORDER BY id LIMIT ?3",

    "SELECT count(*) FROM key_rings WHERE parent = ?1",
    "SELECT count(*) FROM crypto_keys WHERE parent = ?1",
    "SELECT count(*) FROM versions WHERE parent = ?1",

    "SELECT parent, id, row FROM key_rings WHERE (parent, id) > (?1, ?2) "
    "ORDER BY parent, id LIMIT ?3",
    "SELECT parent, id, row FROM crypto_keys WHERE (parent, id) > (?1, ?2) "
    "ORDER BY parent, id LIMIT ?3",
    "SELECT parent, id, row FROM versions WHERE (parent, id) > (?1, ?2) "
    "ORDER BY parent, id LIMIT ?3",

    "SELECT parent, id FROM crypto_keys WHERE rotation_us <= ?1 "
    "ORDER BY rotation_us, parent, id LIMIT ?2",
    "SELECT parent, id FROM versions WHERE destruction_us <= ?1 "
    "ORDER BY destruction_us, parent, id LIMIT ?2",
    "SELECT parent, id FROM versions WHERE pending_us <= ?1 "
    "ORDER BY pending_us, parent, id LIMIT ?2",

    "SELECT reserved FROM uses WHERE parent = ?1 AND id = ?2",
    "INSERT INTO uses (parent, id, reserved) VALUES (?1, ?2, ?3) "
    "ON CONFLICT DO UPDATE SET reserved = excluded.reserved",

    "UPDATE checks SET passed = passed + 1 WHERE id = 1",
    "SELECT passed FROM checks WHERE id = 1",

    "BEGIN IMMEDIATE",
    "COMMIT",
    "ROLLBACK",
};

// The statement of a group of three (rings, keys, versions) for kind.
StatementId ForKind(StatementId first, Kind kind) {
  return static_cast<StatementId>(first + static_cast<int>(kind) - 1);
}

// What a result code means to callers. The catalog page of the operations
// manual lists these texts.
absl::Status Classify(int code, const std::string& detail) {
  switch (code & 0xff) {
    case SQLITE_FULL:
      return absl::UnavailableError(absl::StrCat("disk full: ", detail));
    case SQLITE_IOERR:
      if (code == SQLITE_IOERR_CORRUPTFS) break;
      return absl::UnavailableError(absl::StrCat("I/O error: ", detail));
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PROTOCOL:
      return absl::UnavailableError(
          absl::StrCat("locked by another process: ", detail));
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
    case SQLITE_CANTOPEN:
      return absl::UnavailableError(
          absl::StrCat("no access to its files: ", detail));
    case SQLITE_NOMEM:
      return absl::UnavailableError(absl::StrCat("out of memory: ", detail));
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      break;
    default:
      return absl::InternalError(detail);
  }
  return absl::DataLossError(absl::StrCat("file damaged: ", detail));
}

absl::Status Annotate(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat("catalog ", path, ": ", status.message()));
}

// One SQLite connection and its prepared statements. Used by one thread at a
// time; whoever leases it sees to that.
class Connection {
 public:
  static absl::StatusOr<std::unique_ptr<Connection>> Open(
      const std::string& path) {
    std::unique_ptr<Connection> connection(new Connection(path));
    const int code = sqlite3_open_v2(
        path.c_str(), &connection->db_,
        SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_PRIVATECACHE |
            SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_EXRESCODE,
        nullptr);
    if (code != SQLITE_OK) return connection->Error("open", code);
    sqlite3_db_config(connection->db_, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
    connection->WaitForLocks(std::chrono::seconds(1));
    RETURN_IF_ERROR(connection->Execute(
        "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON"));
    return connection;
  }
  ~Connection() {
    for (sqlite3_stmt* statement : statements_) sqlite3_finalize(statement);
    sqlite3_close(db_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  absl::Status PrepareAll() {
    for (size_t i = 0; i < kStatementCount; ++i) {
      const int code =
          sqlite3_prepare_v3(db_, kSql[i], -1, SQLITE_PREPARE_PERSISTENT,
                             &statements_[i], nullptr);
      if (code != SQLITE_OK) return Error("prepare", code);
    }
    return absl::OkStatus();
  }

  absl::Status Execute(const char* sql) {
    const int code = sqlite3_exec(db_, sql, nullptr, nullptr, nullptr);
    return code == SQLITE_OK ? absl::OkStatus() : Error("execute", code);
  }
  // The first column of the first row, as text; empty if there is none.
  absl::StatusOr<std::string> Ask(const char* sql) {
    sqlite3_stmt* statement = nullptr;
    int code = sqlite3_prepare_v2(db_, sql, -1, &statement, nullptr);
    if (code != SQLITE_OK) return Error("prepare", code);
    std::string answer;
    code = sqlite3_step(statement);
    if (code == SQLITE_ROW) {
      const auto* text =
          reinterpret_cast<const char*>(sqlite3_column_text(statement, 0));
      if (text != nullptr) answer = text;
    }
    sqlite3_finalize(statement);
    if (code != SQLITE_ROW && code != SQLITE_DONE) return Error("ask", code);
    return answer;
  }

  // How long a statement waits for another process's lock.
  void WaitForLocks(std::chrono::nanoseconds limit) {
    const auto ms =
        std::chrono::duration_cast<std::chrono::milliseconds>(limit).count();
    sqlite3_busy_timeout(db_, static_cast<int>(std::clamp<int64_t>(
                                  ms, 0, std::numeric_limits<int>::max())));
  }
  bool InTransaction() const { return sqlite3_get_autocommit(db_) == 0; }

  // Call at once after the call that failed.
  absl::Status Error(const char* what, int code) {
    std::string detail = absl::StrCat(
        what, ": ", db_ != nullptr ? sqlite3_errmsg(db_) : "no memory",
        " (SQLite ", code, ")");
    if (const int number = db_ != nullptr ? sqlite3_system_errno(db_) : 0;
        number != 0 &&
        ((code & 0xff) == SQLITE_IOERR || (code & 0xff) == SQLITE_CANTOPEN)) {
      absl::StrAppend(&detail, ": ", std::system_category().message(number));
    }
    return Annotate(path_, Classify(code, detail));
  }

 private:
  friend class Statement;
  explicit Connection(const std::string& path) : path_(path) {}

  const std::string path_;
  sqlite3* db_ = nullptr;
  std::array<sqlite3_stmt*, kStatementCount> statements_ = {};
};

// One run of a prepared statement; frees it for the next run at its end. What
// is bound must outlive it.
class Statement {
 public:
  Statement(Connection& connection, StatementId id)
      : connection_(connection), statement_(connection.statements_[id]) {}
  ~Statement() {
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
  }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  Statement& Bind(int64_t value) {
    return Bound(sqlite3_bind_int64(statement_, ++bound_, value));
  }
  Statement& Bind(const std::optional<int64_t>& value) {
    if (value.has_value()) return Bind(*value);
    return Bound(sqlite3_bind_null(statement_, ++bound_));
  }
  Statement& Bind(absl::string_view text) {
    return Bound(sqlite3_bind_text64(statement_, ++bound_, text.data(),
                                     text.size(), SQLITE_STATIC, SQLITE_UTF8));
  }
  Statement& Bind(const std::vector<uint8_t>& bytes) {
    return Bound(sqlite3_bind_blob64(statement_, ++bound_, bytes.data(),
                                     bytes.size(), SQLITE_STATIC));
  }
  // parent and id, as the table of name's kind has them.
  Statement& BindName(const ResourceName& name, const std::string& parent) {
    Bind(absl::string_view(parent));
    return name.version() != 0 ? Bind(static_cast<int64_t>(name.version()))
                               : Bind(name.id());
  }

  // True: there is a row.
  absl::StatusOr<bool> Step() {
    if (bind_code_ != SQLITE_OK) return connection_.Error("bind", bind_code_);
    const int code = sqlite3_step(statement_);
    if (code == SQLITE_ROW) return true;
    if (code == SQLITE_DONE) return false;
    return connection_.Error("step", code);
  }
  absl::Status Run() { return Step().status(); }

  int64_t Int(int column) { return sqlite3_column_int64(statement_, column); }
  std::string Text(int column) {
    const auto* text =
        reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
    if (text == nullptr) return {};
    return {text,
            static_cast<size_t>(sqlite3_column_bytes(statement_, column))};
  }
  std::vector<uint8_t> Blob(int column) {
    const auto* bytes =
        static_cast<const uint8_t*>(sqlite3_column_blob(statement_, column));
    return {bytes, bytes + sqlite3_column_bytes(statement_, column)};
  }

 private:
  Statement& Bound(int code) {
    if (bind_code_ == SQLITE_OK) bind_code_ = code;
    return *this;
  }

  Connection& connection_;
  sqlite3_stmt* const statement_;
  int bound_ = 0;
  int bind_code_ = SQLITE_OK;
};

absl::StatusOr<std::optional<std::vector<uint8_t>>> ReadRow(
    Connection& connection, const ResourceName& name) {
  const std::string parent = name.Parent().ToString();
  Statement get(connection, ForKind(kGetRing, name.kind()));
  const absl::StatusOr<bool> found = get.BindName(name, parent).Step();
  if (!found.ok()) {
    return absl::Status(
        found.status().code(),
        absl::StrCat(KindName(name.kind()), " ", name.ToString(), ": ",
                     found.status().message()));
  }
  if (!*found) return std::optional<std::vector<uint8_t>>();
  return std::optional(get.Blob(0));
}

// The names of rows are in two columns; put together and checked here.
absl::StatusOr<ResourceName> NameIn(Statement& row, Kind kind) {
  const auto parent_kind = static_cast<Kind>(static_cast<int>(kind) - 1);
  absl::StatusOr<ResourceName> name =
      ResourceName::Parse(row.Text(0), parent_kind);
  if (name.ok()) name = name->Child(row.Text(1));
  if (!name.ok()) {
    return absl::DataLossError(
        absl::StrCat("the catalog has a row of a ", KindName(kind),
                     " without name: ", name.status().message()));
  }
  return name;
}

struct NamedRow {
  ResourceName name;
  std::vector<uint8_t> row;
};
absl::StatusOr<std::vector<NamedRow>> Collect(Statement& rows, Kind kind) {
  std::vector<NamedRow> found;
  while (true) {
    ASSIGN_OR_RETURN(const bool more, rows.Step());
    if (!more) return found;
    ASSIGN_OR_RETURN(ResourceName name, NameIn(rows, kind));
    found.push_back({std::move(name), rows.Blob(2)});
  }
}

int64_t SqlLimit(size_t limit) {
  return static_cast<int64_t>(
      std::min<uint64_t>(limit, std::numeric_limits<int64_t>::max()));
}

class SqliteTransaction : public RowTransaction {
 public:
  explicit SqliteTransaction(Connection& connection)
      : connection_(connection) {}

  // The first failure of SQLite itself, which may have rolled back by itself:
  // nothing is read or written after it, and the change is not committed, even
  // if its closure made nothing of it.
  const absl::Status& failure() const { return failure_; }

 protected:
  absl::StatusOr<std::optional<std::vector<uint8_t>>> Read(
      const ResourceName& name) override {
    RETURN_IF_ERROR(failure_);
    auto row = ReadRow(connection_, name);
    failure_ = row.status();
    return row;
  }

  absl::Status Write(const ResourceName& name, const std::vector<uint8_t>& row,
                     const Due& due, bool is_new) override {
    RETURN_IF_ERROR(failure_);
    const std::string parent = name.Parent().ToString();
    Statement put(connection_,
                  ForKind(is_new ? kInsertRing : kUpdateRing, name.kind()));
    put.BindName(name, parent).Bind(row);
    if (name.kind() == Kind::kCryptoKey) put.Bind(due.rotation_us);
    if (name.kind() == Kind::kCryptoKeyVersion) {
      put.Bind(due.destruction_us).Bind(due.pending_us);
    }
    failure_ = put.Run();
    return failure_;
  }

 private:
  Connection& connection_;
  absl::Status failure_;
};

// The right to be the only kekd on a catalog: an flock on a file beside it,
// which the kernel gives back however the process ends. (Not on the catalog
// itself: closing any descriptor of that file would drop SQLite's own locks.)
class ProcessLock {
 public:
  static absl::StatusOr<std::unique_ptr<ProcessLock>> Take(
      const std::string& catalog) {
    const std::string path = catalog + ".lock";
    while (true) {
      constexpr int kFlags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW;
      int fd = open(path.c_str(), kFlags | O_EXCL, 0600);
      const bool made = fd >= 0;
      if (!made) fd = open(path.c_str(), kFlags, 0600);
      if (fd < 0) {
        return absl::FailedPreconditionError(absl::StrCat(
            "catalog ", catalog, ": cannot open its lock file ", path, ": ",
            std::system_category().message(errno),
            "; the directory must exist and belong to the user kekd runs as"));
      }
      std::unique_ptr<ProcessLock> lock(new ProcessLock(fd, path, made));
      if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        std::array<char, 32> text = {};
        const ssize_t size = pread(fd, text.data(), text.size() - 1, 0);
        const absl::string_view pid(
            text.data(), static_cast<size_t>(std::max<ssize_t>(size, 0)));
        int64_t number = 0;
        return absl::FailedPreconditionError(absl::StrCat(
            "catalog ", catalog, " is in use by another process",
            absl::SimpleAtoi(pid, &number) ? absl::StrCat(" (", number, ")")
                                           : std::string(),
            "; stop it, or give this kekd a catalog of its own"));
      }
      // Someone may have replaced the file between the two calls.
      struct stat mine = {}, there = {};
      if (fstat(fd, &mine) != 0 || stat(path.c_str(), &there) != 0 ||
          mine.st_ino != there.st_ino || mine.st_dev != there.st_dev) {
        continue;
      }
      // For the message above only; the lock does not depend on it.
      const std::string pid = absl::StrCat(getpid(), "\n");
      const bool noted =
          ftruncate(fd, 0) == 0 && pwrite(fd, pid.data(), pid.size(), 0) > 0;
      static_cast<void>(noted);
      return lock;
    }
  }
  // Removes the lock's file if this lock made it. For a refusal that leaves
  // everything as it was.
  void Discard() {
    if (made_) unlink(path_.c_str());
  }
  ~ProcessLock() { close(fd_); }
  ProcessLock(const ProcessLock&) = delete;
  ProcessLock& operator=(const ProcessLock&) = delete;

 private:
  ProcessLock(int fd, const std::string& path, bool made)
      : fd_(fd), path_(path), made_(made) {}
  const int fd_;
  const std::string path_;
  const bool made_;
};

absl::Status NoCatalog(const std::string& path, absl::string_view why) {
  return absl::FailedPreconditionError(absl::StrCat(
      path, " is no catalog of kekd: ", why, "; nothing was changed"));
}

// Sees to it that path is a file that may be opened as a catalog, before SQLite
// touches it, and makes an empty one of mode 0600 if there is none.
absl::Status PrepareFile(const std::string& path) {
  struct stat info = {};
  struct stat wal = {};
  const bool has_wal =
      stat((path + "-wal").c_str(), &wal) == 0 && wal.st_size > 0;
  const bool exists = lstat(path.c_str(), &info) == 0;
  if (!exists && errno != ENOENT) {
    return absl::FailedPreconditionError(absl::StrCat(
        "catalog ", path, ": ", std::system_category().message(errno)));
  }
  if (exists && !S_ISREG(info.st_mode)) {
    return NoCatalog(path, "it is not a regular file");
  }
  if (has_wal && (!exists || info.st_size == 0)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "catalog ", path, " is missing or empty, but its log ", path,
        "-wal holds changes: restore both from one backup, or move the log "
        "away to begin anew"));
  }
  if (!exists) {
    const int fd = open(
        path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          "catalog ", path,
          ": cannot create it: ", std::system_category().message(errno)));
    }
    close(fd);
    return absl::OkStatus();
  }
  if ((info.st_mode & 077) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("catalog ", path,
                     " can be opened by other users; run: chmod 600 ", path));
  }
  // A rollback journal means that making the file, or moving it to a new
  // schema, was interrupted: SQLite puts that right, and what it then finds is
  // checked.
  if (info.st_size == 0 || access((path + "-journal").c_str(), F_OK) == 0) {
    return absl::OkStatus();
  }
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "catalog ", path,
        ": cannot open it: ", std::system_category().message(errno)));
  }
  // SQLite's file header: a magic, and the application's id at offset 68.
  std::array<char, 72> header = {};
  const ssize_t size = pread(fd, header.data(), header.size(), 0);
  close(fd);
  constexpr absl::string_view kMagic("SQLite format 3\0", 16);
  if (size != static_cast<ssize_t>(header.size()) ||
      absl::string_view(header.data(), kMagic.size()) != kMagic) {
    return NoCatalog(path, "it is not an SQLite file");
  }
  uint32_t id = 0;
  for (size_t i = 68; i < 72; ++i) {
    id = id << 8 | static_cast<uint8_t>(header[i]);
  }
  if (id != kApplicationId) {
    return NoCatalog(path, "it is the SQLite file of another program");
  }
  return absl::OkStatus();
}

// Brings the schema up to kSchemaVersion, each step in a transaction.
absl::Status Migrate(Connection& connection, const std::string& path) {
  ASSIGN_OR_RETURN(const std::string id,
                   connection.Ask("PRAGMA application_id"));
  ASSIGN_OR_RETURN(const std::string version_text,
                   connection.Ask("PRAGMA user_version"));
  ASSIGN_OR_RETURN(const std::string tables,
                   connection.Ask("SELECT count(*) FROM sqlite_schema"));
  int version = 0;
  if (!absl::SimpleAtoi(version_text, &version) || version < 0) {
    return NoCatalog(path, "its schema has no version");
  }
  const bool fresh = id == "0" && version == 0 && tables == "0";
  if (!fresh && id != absl::StrCat(kApplicationId)) {
    return NoCatalog(path, "it is the SQLite file of another program");
  }
  if (version > kSchemaVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "catalog ", path, " was written by a newer kekd (schema ", version,
        "; this one knows up to ", kSchemaVersion,
        "): use that kekd, or restore a backup made before the upgrade"));
  }
  for (; version < kSchemaVersion; ++version) {
    const std::string step = absl::StrCat(
        "BEGIN IMMEDIATE; PRAGMA application_id = ", kApplicationId, ";",
        kMigrations[static_cast<size_t>(version)],
        "PRAGMA user_version = ", version + 1, "; COMMIT");
    absl::Status status = connection.Execute(step.c_str());
    if (!status.ok()) {
      if (connection.InTransaction()) {
        (void)connection.Execute("ROLLBACK");
      }
      return status;
    }
  }
  return absl::OkStatus();
}

// One connection writes, under a lane; some read, each leased to one call at a
// time. In WAL mode they do not wait for each other. SQLite is never called
// while a mutex of ours is held: lanes and leases bound the waits, and a
// statement that hangs in the disk holds up only its own connection.
class SqliteCatalog : public Catalog {
 public:
  SqliteCatalog(std::string path, std::unique_ptr<ProcessLock> lock,
                std::unique_ptr<Connection> writer,
                std::vector<std::unique_ptr<Connection>> readers)
      : path_(std::move(path)),
        lock_(std::move(lock)),
        writer_(std::move(writer)),
        readers_(std::move(readers)),
        writing_({.name = absl::StrCat("writer of catalog ", path_)}),
        reading_({.name = absl::StrCat("readers of catalog ", path_),
                  .capacity = static_cast<int>(readers_.size())}) {
    for (const auto& reader : readers_) idle_.push_back(reader.get());
  }

  absl::StatusOr<KeyRing> GetKeyRing(const ResourceName& name) override {
    return Get<KeyRing>(name);
  }
  absl::StatusOr<CryptoKey> GetCryptoKey(const ResourceName& name) override {
    return Get<CryptoKey>(name);
  }
  absl::StatusOr<CryptoKeyVersion> GetVersion(
      const ResourceName& name) override {
    return Get<CryptoKeyVersion>(name);
  }

  absl::StatusOr<std::vector<KeyRing>> ListKeyRings(
      const ResourceName& location, const Page& page) override {
    return List<KeyRing>(location, page);
  }
  absl::StatusOr<std::vector<CryptoKey>> ListCryptoKeys(
      const ResourceName& ring, const Page& page) override {
    return List<CryptoKey>(ring, page);
  }
  absl::StatusOr<std::vector<CryptoKeyVersion>> ListVersions(
      const ResourceName& key, const Page& page) override {
    return List<CryptoKeyVersion>(key, page);
  }

  absl::StatusOr<uint64_t> CountChildren(const ResourceName& parent) override {
    if (parent.kind() == Kind::kCryptoKeyVersion) return 0;
    ASSIGN_OR_RETURN(Reader reader, Lease(ReadDeadline()));
    const auto kind = static_cast<Kind>(static_cast<int>(parent.kind()) + 1);
    Statement count(*reader, ForKind(kCountRings, kind));
    RETURN_IF_ERROR(
        count.Bind(absl::string_view(parent.ToString())).Step().status());
    return static_cast<uint64_t>(count.Int(0));
  }

  absl::Status VisitVersions(
      absl::FunctionRef<absl::Status(const CryptoKeyVersion&)> visit) override {
    return Visit<CryptoKeyVersion>(visit);
  }
  absl::Status VisitCryptoKeys(
      absl::FunctionRef<absl::Status(const CryptoKey&)> visit) override {
    return Visit<CryptoKey>(visit);
  }

  absl::StatusOr<std::vector<ResourceName>> DueRotations(
      absl::Time now, size_t limit) override {
    return Names(kDueRotations, Kind::kCryptoKey, absl::ToUnixMicros(now),
                 limit);
  }
  absl::StatusOr<std::vector<ResourceName>> DueDestructions(
      absl::Time now, size_t limit) override {
    return Names(kDueDestructions, Kind::kCryptoKeyVersion,
                 absl::ToUnixMicros(now), limit);
  }
  absl::StatusOr<std::vector<ResourceName>> PendingVersions(
      size_t limit) override {
    return Names(kPending, Kind::kCryptoKeyVersion,
                 std::numeric_limits<int64_t>::max(), limit);
  }

  absl::Status Transact(absl::FunctionRef<absl::Status(Transaction&)> change,
                        base::Deadline deadline) override {
    return Write(
        [&] {
          SqliteTransaction transaction(*writer_);
          RETURN_IF_ERROR(change(transaction));
          return transaction.failure();
        },
        deadline);
  }

  absl::StatusOr<uint64_t> ReserveUses(const ResourceName& version,
                                       uint64_t count,
                                       base::Deadline deadline) override {
    RETURN_IF_ERROR(ExpectKind(version, Kind::kCryptoKeyVersion));
    uint64_t total = 0;
    RETURN_IF_ERROR(Write(
        [&]() -> absl::Status {
          ASSIGN_OR_RETURN(const auto row, ReadRow(*writer_, version));
          if (!row.has_value()) return NotFound(version);
          ASSIGN_OR_RETURN(total, Uses(*writer_, version));
          if (count > kMaxUses - total) return TooManyUses(version);
          total += count;
          const std::string parent = version.Parent().ToString();
          Statement put(*writer_, kPutUses);
          return put.BindName(version, parent)
              .Bind(static_cast<int64_t>(total))
              .Run();
        },
        deadline));
    return total;
  }
  absl::StatusOr<uint64_t> UsesReserved(const ResourceName& version) override {
    RETURN_IF_ERROR(ExpectKind(version, Kind::kCryptoKeyVersion));
    ASSIGN_OR_RETURN(Reader reader, Lease(ReadDeadline()));
    return Uses(*reader, version);
  }

  absl::Status Check(base::Deadline deadline) override {
    RETURN_IF_ERROR(Write(
        [&] { return Statement(*writer_, kCheckWrite).Run(); }, deadline));
    ASSIGN_OR_RETURN(Reader reader, Lease(deadline));
    Statement read(*reader, kCheckRead);
    ASSIGN_OR_RETURN(const bool found, read.Step());
    if (found) return absl::OkStatus();
    return Annotate(path_, absl::DataLossError("its check row is gone"));
  }

 private:
  // A reading connection for one call.
  class Reader {
   public:
    Reader(SqliteCatalog& catalog, base::Lane::Hold hold,
           Connection& connection)
        : catalog_(&catalog),
          hold_(std::move(hold)),
          connection_(&connection) {}
    Reader(Reader&& other) noexcept
        : catalog_(other.catalog_),
          hold_(std::move(other.hold_)),
          connection_(std::exchange(other.connection_, nullptr)) {}
    Reader& operator=(Reader&&) = delete;
    // Back among the idle ones before the next caller is let in.
    ~Reader() {
      if (connection_ == nullptr) return;
      base::MutexLock lock(catalog_->mu_);
      catalog_->idle_.push_back(connection_);
    }
    Connection& operator*() const { return *connection_; }

   private:
    SqliteCatalog* catalog_;
    base::Lane::Hold hold_;
    Connection* connection_;
  };

  // Reads have no deadline of their callers; this one bounds the wait for a
  // connection when the disk hangs.
  static base::Deadline ReadDeadline() {
    return base::DeadlineAfter(std::chrono::seconds(5));
  }

  absl::StatusOr<Reader> Lease(base::Deadline deadline) {
    ASSIGN_OR_RETURN(base::Lane::Hold hold, reading_.Enter(deadline));
    base::MutexLock lock(mu_);
    Connection* connection = idle_.back();
    idle_.pop_back();
    return Reader(*this, std::move(hold), *connection);
  }

  // Runs body in a transaction of the writing connection and commits it.
  absl::Status Write(absl::FunctionRef<absl::Status()> body,
                     base::Deadline deadline) {
    ASSIGN_OR_RETURN(const base::Lane::Hold hold, writing_.Enter(deadline));
    writer_->WaitForLocks(deadline - std::chrono::steady_clock::now());
    RETURN_IF_ERROR(Rollback());
    RETURN_IF_ERROR(Statement(*writer_, kBegin).Run());
    absl::Status status = body();
    if (status.ok() && std::chrono::steady_clock::now() >= deadline) {
      status = Annotate(path_, absl::DeadlineExceededError(
                                   "the deadline passed before the change "
                                   "could be committed"));
    }
    if (status.ok()) {
      KEK_FAILPOINT("catalog_before_commit");
      status = Statement(*writer_, kCommit).Run();
      if (status.ok()) KEK_FAILPOINT("catalog_after_commit");
    }
    // The first error is the one that explains; a rollback that fails too is
    // tried again by the next writer.
    if (!status.ok()) (void)Rollback();
    return status;
  }
  absl::Status Rollback() {
    if (!writer_->InTransaction()) return absl::OkStatus();
    return Statement(*writer_, kRollback).Run();
  }

  template <typename Record>
  absl::StatusOr<Record> Get(const ResourceName& name) {
    RETURN_IF_ERROR(ExpectKind(name, kKindOf<Record>));
    std::optional<std::vector<uint8_t>> row;
    {
      ASSIGN_OR_RETURN(Reader reader, Lease(ReadDeadline()));
      ASSIGN_OR_RETURN(row, ReadRow(*reader, name));
    }
    if (!row.has_value()) return NotFound(name);
    return DecodeRowOf<Record>(name, *row);
  }

  template <typename Record>
  absl::StatusOr<std::vector<Record>> List(const ResourceName& parent,
                                           const Page& page) {
    constexpr Kind kKind = kKindOf<Record>;
    RETURN_IF_ERROR(
        ExpectKind(parent, static_cast<Kind>(static_cast<int>(kKind) - 1)));
    ASSIGN_OR_RETURN(const std::optional<ResourceName> after,
                     StartAfter(parent, page));
    std::vector<NamedRow> rows;
    {
      ASSIGN_OR_RETURN(Reader reader, Lease(ReadDeadline()));
      Statement list(*reader, ForKind(kListRings, kKind));
      BindStart(list, kKind, parent.ToString(), after);
      list.Bind(SqlLimit(page.size));
      ASSIGN_OR_RETURN(rows, Collect(list, kKind));
    }
    std::vector<Record> records;
    records.reserve(rows.size());
    for (const NamedRow& row : rows) {
      ASSIGN_OR_RETURN(Record record, DecodeRowOf<Record>(row.name, row.row));
      records.push_back(std::move(record));
    }
    return records;
  }

  template <typename Record>
  absl::Status Visit(absl::FunctionRef<absl::Status(const Record&)> visit) {
    constexpr Kind kKind = kKindOf<Record>;
    constexpr size_t kBatch = 256;
    std::string parent;
    std::optional<ResourceName> after;
    while (true) {
      std::vector<NamedRow> rows;
      {
        ASSIGN_OR_RETURN(Reader reader, Lease(ReadDeadline()));
        Statement walk(*reader, ForKind(kVisitRings, kKind));
        BindStart(walk, kKind, parent, after);
        walk.Bind(SqlLimit(kBatch));
        ASSIGN_OR_RETURN(rows, Collect(walk, kKind));
      }
      for (const NamedRow& row : rows) {
        ASSIGN_OR_RETURN(const Record record,
                         DecodeRowOf<Record>(row.name, row.row));
        RETURN_IF_ERROR(visit(record));
      }
      if (rows.size() < kBatch) return absl::OkStatus();
      after = rows.back().name;
      parent = after->Parent().ToString();
    }
  }

  // Binds parent and an id that every id of kind is greater than, or after's.
  static void BindStart(Statement& statement, Kind kind,
                        const std::string& parent,
                        const std::optional<ResourceName>& after) {
    if (after.has_value()) {
      statement.BindName(*after, parent);
    } else if (kind == Kind::kCryptoKeyVersion) {
      statement.Bind(absl::string_view(parent)).Bind(int64_t{0});
    } else {
      statement.Bind(absl::string_view(parent)).Bind(absl::string_view(""));
    }
  }

  absl::StatusOr<std::vector<ResourceName>> Names(StatementId id, Kind kind,
                                                  int64_t until_us,
                                                  size_t limit) {
    ASSIGN_OR_RETURN(Reader reader, Lease(ReadDeadline()));
    Statement due(*reader, id);
    due.Bind(until_us).Bind(SqlLimit(limit));
    std::vector<ResourceName> names;
    while (true) {
      ASSIGN_OR_RETURN(const bool more, due.Step());
      if (!more) return names;
      ASSIGN_OR_RETURN(ResourceName name, NameIn(due, kind));
      names.push_back(std::move(name));
    }
  }

  static absl::StatusOr<uint64_t> Uses(Connection& connection,
                                       const ResourceName& version) {
    const std::string parent = version.Parent().ToString();
    Statement get(connection, kGetUses);
    ASSIGN_OR_RETURN(const bool found, get.BindName(version, parent).Step());
    if (!found) return 0;
    const int64_t reserved = get.Int(0);
    if (reserved >= 0) return static_cast<uint64_t>(reserved);
    return absl::DataLossError(absl::StrCat(KindName(version.kind()), " ",
                                            version.ToString(),
                                            ": its use counter is negative"));
  }

  // Constant after construction. The order is that of closing, reversed: the
  // lock goes last, and the writer tidies the log up when no reader is left.
  const std::string path_;
  const std::unique_ptr<ProcessLock> lock_;
  const std::unique_ptr<Connection> writer_;  // used by who is in writing_
  const std::vector<std::unique_ptr<Connection>> readers_;

  base::Lane writing_;
  base::Lane reading_;
  base::Mutex mu_;
  // Invariant: at least as many as reading_ has room for further holders.
  std::vector<Connection*> idle_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<Catalog>> OpenSqliteCatalog(
    const SqliteOptions& options) {
  if (options.path.empty() || options.readers < 1) {
    return absl::InvalidArgumentError(
        "a catalog needs a path and at least one reader");
  }
  // One file, one lock, whatever links lead to it.
  std::error_code error;
  const std::string path =
      std::filesystem::weakly_canonical(options.path, error).string();
  if (error) {
    return absl::FailedPreconditionError(
        absl::StrCat("catalog ", options.path, ": ", error.message()));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<ProcessLock> lock, ProcessLock::Take(path));
  if (absl::Status status = PrepareFile(path); !status.ok()) {
    lock->Discard();
    return status;
  }

  ASSIGN_OR_RETURN(std::unique_ptr<Connection> writer, Connection::Open(path));
  // The schema is made before the log is switched on, so that the file itself
  // says what it is from its first moment.
  RETURN_IF_ERROR(writer->Execute("PRAGMA synchronous = FULL"));
  RETURN_IF_ERROR(Migrate(*writer, path));
  ASSIGN_OR_RETURN(const std::string mode,
                   writer->Ask("PRAGMA journal_mode = WAL"));
  if (mode != "wal") {
    return absl::FailedPreconditionError(
        absl::StrCat("catalog ", path,
                     ": its file system cannot hold a write-ahead log (a "
                     "network mount?)"));
  }
  RETURN_IF_ERROR(writer->Execute("PRAGMA journal_size_limit = 67108864"));
  RETURN_IF_ERROR(writer->PrepareAll());

  std::vector<std::unique_ptr<Connection>> readers;
  for (int i = 0; i < options.readers; ++i) {
    ASSIGN_OR_RETURN(std::unique_ptr<Connection> reader,
                     Connection::Open(path));
    RETURN_IF_ERROR(reader->Execute("PRAGMA query_only = ON"));
    RETURN_IF_ERROR(reader->PrepareAll());
    readers.push_back(std::move(reader));
  }
  return std::make_unique<SqliteCatalog>(path, std::move(lock),
                                         std::move(writer), std::move(readers));
}

}  // namespace kek::catalog
