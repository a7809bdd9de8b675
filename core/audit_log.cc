// SPDX-License-Identifier: Apache-2.0
#include "core/audit_log.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <deque>
#include <fstream>
#include <span>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <openssl/evp.h>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace kek::core {
namespace {

using base::Deadline;
using SteadyClock = std::chrono::steady_clock;

// A group takes no more records beyond this size; it bounds what one write and
// one fdatasync carry, and so what a crash can tear.
constexpr size_t kMaxGroupBytes = 1 << 20;
// How much of the end of a segment is looked at when the log is opened, and how
// far from its end a torn write of an earlier run can begin at most.
constexpr uint64_t kTailBytes = 4 << 20;
constexpr uint64_t kMaxTornBytes = 2 << 20;
constexpr std::chrono::milliseconds kFirstRetry{50};
constexpr std::chrono::milliseconds kLastRetry{1000};

constexpr absl::string_view kSegmentSuffix = ".jsonl";
constexpr absl::string_view kTornSuffix = ".torn";
constexpr absl::string_view kUnreportedTornSuffix = ".torn.tmp";

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~UniqueFd() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

std::string ErrnoText(int error) {
  return std::error_code(error, std::generic_category()).message();
}

bool SameFile(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

// ---- lines

// Caps in bytes of the escaped value; their sum keeps a line below 8 KiB.
constexpr size_t kMethodCap = 64;
constexpr size_t kPrincipalCap = 256;
constexpr size_t kPeerCap = 256;
constexpr size_t kBindingCap = 128;
constexpr size_t kNameCap = 512;
constexpr size_t kRequestIdCap = 256;
constexpr size_t kReasonCap = 1024;
constexpr size_t kDetailCap = 4096;

// value cut to size bytes, not inside a UTF-8 sequence, with an ellipsis.
std::string Cut(absl::string_view value, size_t size) {
  while (size > 0 && (static_cast<uint8_t>(value[size]) & 0xC0) == 0x80) --size;
  return absl::StrCat(value.substr(0, size), "\xE2\x80\xA6");
}

void AppendCapped(absl::string_view value, size_t cap, std::string& out) {
  const size_t start = out.size();
  if (value.size() <= cap) {
    base::AppendJsonString(value, out);
    if (out.size() - start <= cap + 2) return;
    out.resize(start);
  }
  const size_t room = cap - 3;  // for the ellipsis
  base::AppendJsonString(Cut(value, std::min(room, value.size() - 1)), out);
  if (out.size() - start <= cap + 2) return;
  out.resize(start);
  // No byte takes more than six when escaped.
  base::AppendJsonString(Cut(value, std::min(room / 6, value.size() - 1)), out);
}

void AppendField(absl::string_view name, absl::string_view value, size_t cap,
                 std::string& out) {
  absl::StrAppend(&out, ",\"", name, "\":");
  AppendCapped(value, cap, out);
}
void AppendOptional(absl::string_view name, absl::string_view value, size_t cap,
                    std::string& out) {
  if (!value.empty()) AppendField(name, value, cap, out);
}
void AppendNumber(absl::string_view name, uint64_t value, std::string& out) {
  absl::StrAppend(&out, ",\"", name, "\":\"", value, "\"");
}
void AppendBool(absl::string_view name, bool value, std::string& out) {
  absl::StrAppend(&out, ",\"", name, "\":", value ? "true" : "false");
}

absl::string_view AuthenticatorName(Authenticator authenticator) {
  switch (authenticator) {
    case Authenticator::kPeerCredentials:
      return "peer-credentials";
    case Authenticator::kInternal:
      return "internal";
  }
  return "unknown";
}

absl::string_view FrontEndName(FrontEnd front_end) {
  switch (front_end) {
    case FrontEnd::kInternal:
      return "internal";
    case FrontEnd::kAdmin:
      return "admin";
    case FrontEnd::kCloudKms:
      return "cloud-kms";
    case FrontEnd::kKubernetesV1Beta1:
      return "kubernetes-v1beta1";
    case FrontEnd::kKubernetesV2:
      return "kubernetes-v2";
  }
  return "unknown";
}

// Who writes: what every line of one process repeats.
struct Instance {
  std::string boot_id;
  std::string id;
};

Instance ThisInstance() {
  Instance instance;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> instance.boot_id;
  std::string random(16, '\0');
  if (getrandom(random.data(), random.size(), 0) !=
      static_cast<ssize_t>(random.size())) {
    // Still unique on this host: no two processes have the same pid and start.
    random = absl::StrFormat(
        "%08x%08x", getpid(),
        SteadyClock::now().time_since_epoch().count() & 0xFFFFFFFF);
  }
  instance.id = absl::BytesToHexString(random.substr(0, 16));
  return instance;
}

// Everything of a line after its seq; the writer adds what comes before when it
// knows the place in the log.
std::string FormatBody(absl::string_view kind, const AuditRecord& record,
                       absl::Time wall, const Instance& instance) {
  std::string out;
  out.reserve(768);
  absl::StrAppend(
      &out, "\"t_wall\":\"",
      absl::FormatTime("%Y-%m-%dT%H:%M:%E9SZ", wall, absl::UTCTimeZone()),
      "\"");
  AppendNumber("t_mono_ns",
               static_cast<uint64_t>(
                   std::chrono::duration_cast<std::chrono::nanoseconds>(
                       SteadyClock::now().time_since_epoch())
                       .count()),
               out);
  AppendField("boot_id", instance.boot_id, 64, out);
  AppendField("inst", instance.id, 64, out);
  AppendField("kind", kind, 8, out);
  AppendField("op", record.method, kMethodCap, out);
  const Caller& caller = record.caller;
  AppendField("front", FrontEndName(caller.front_end), 32, out);
  AppendField("auth", AuthenticatorName(caller.authenticator), 32, out);
  AppendField("principal",
              caller.principals.empty() ? absl::string_view() : caller.name(),
              kPrincipalCap, out);
  AppendOptional("peer", caller.peer, kPeerCap, out);
  AppendOptional("binding", caller.binding, kBindingCap, out);
  AppendField("resource", record.resource, kNameCap, out);
  AppendOptional("ver", record.version, kNameCap, out);
  AppendOptional("rid", record.request_id, kRequestIdCap, out);
  AppendField("result", absl::StatusCodeToString(record.status.code()), 32,
              out);
  AppendBool("permitted", record.permitted, out);
  AppendOptional("reason", record.status.message(), kReasonCap, out);
  AppendNumber("in_len", record.input_bytes, out);
  AppendNumber("out_len", record.output_bytes, out);
  AppendNumber("aad_len", record.aad_bytes, out);
  AppendBool("coalesced", record.coalesced, out);
  AppendNumber("latency_ns",
               static_cast<uint64_t>(std::max<int64_t>(
                   0, absl::ToInt64Nanoseconds(record.latency))),
               out);
  AppendOptional("detail", record.detail, kDetailCap, out);
  return out;
}

constexpr absl::string_view kLineStart = "{\"v\":1,\"seq\":\"";
// What a line has beside its body.
constexpr size_t kLineOverhead = kLineStart.size() + 20 + 4;

void AppendLine(uint64_t seq, absl::string_view body, std::string& out) {
  absl::StrAppend(&out, kLineStart, seq, "\",", body, "}\n");
}

// The seq of a line of any format version; nothing if it is not one.
std::optional<uint64_t> SeqOfLine(absl::string_view line) {
  if (line.size() < 2 || line.back() != '}') return std::nullopt;
  for (const char c : line) {
    if (static_cast<uint8_t>(c) < 0x20) return std::nullopt;
  }
  if (!absl::ConsumePrefix(&line, "{\"v\":")) return std::nullopt;
  while (!line.empty() && absl::ascii_isdigit(line[0])) line.remove_prefix(1);
  if (!absl::ConsumePrefix(&line, ",\"seq\":\"")) return std::nullopt;
  const size_t end = line.find('"');
  uint64_t seq = 0;
  if (end == absl::string_view::npos ||
      !absl::SimpleAtoi(line.substr(0, end), &seq)) {
    return std::nullopt;
  }
  return seq;
}

// ---- files

// The end of a segment as an earlier run left it.
struct Tail {
  uint64_t good_size = 0;  // bytes of whole lines
  std::string torn;        // what follows them
  std::optional<uint64_t> last_seq;
};

// A write of an earlier run that a crash tore, and that no record has told of.
struct Torn {
  std::string segment;
  std::string file;  // where it is kept, relative to the directory
  size_t bytes = 0;
  std::string sha256;
};

// The log's directory and the segment that is written: everything that touches
// the disk. Runs on the writer's thread alone (Open before there is one). No
// file is written or synced again after a write or fdatasync of it failed.
class Segments {
 public:
  static absl::StatusOr<std::unique_ptr<Segments>> Open(
      const std::string& directory) {
    std::unique_ptr<Segments> segments(new Segments(directory));
    RETURN_IF_ERROR(segments->OpenDirectory());
    RETURN_IF_ERROR(segments->Recover());
    return segments;
  }

  // The highest seq of an earlier run; 0 if there was none.
  uint64_t recovered_seq() const { return recovered_seq_; }
  const std::vector<Torn>& torn() const { return torn_; }
  bool has_segment() const { return file_.valid(); }
  uint64_t size() const { return size_; }

  // Begins a segment, durable itself, that becomes the current one. On failure
  // the current one stays.
  absl::Status Begin(uint64_t first_seq, absl::Time start) {
    RETURN_IF_ERROR(FollowDirectory());
    std::string name;
    UniqueFd file;
    for (int tries = 0; tries < 1000; ++tries) {
      name = absl::StrFormat(
          "audit-%s-%020d%s",
          absl::FormatTime("%Y%m%dT%H%M%E6SZ", start, absl::UTCTimeZone()),
          first_seq, kSegmentSuffix);
      file = UniqueFd(openat(
          directory_.get(), name.c_str(),
          O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC | O_NOFOLLOW,
          0600));
      if (file.valid() || errno != EEXIST) break;
      start += absl::Microseconds(1);
    }
    if (!file.valid()) return Failed("create", name, errno);
    struct stat status;
    if (fstat(file.get(), &status) != 0) return Failed("stat", name, errno);
    if (fsync(directory_.get()) != 0) {
      const int error = errno;
      unlinkat(directory_.get(), name.c_str(), 0);
      return Failed("sync the directory of", name, error);
    }
    file_ = std::move(file);
    name_ = std::move(name);
    identity_ = status;
    size_ = 0;
    first_seq_ = first_seq;
    last_durable_seq_ = 0;
    return absl::OkStatus();
  }

  // Appends lines, of which last_seq is the last, and returns when they are
  // durable in the file that the directory shows under our name. After an error
  // only Abandon is possible.
  absl::Status Write(absl::string_view text, uint64_t last_seq) {
    while (!text.empty()) {
      const ssize_t n = write(file_.get(), text.data(), text.size());
      if (n < 0) {
        if (errno == EINTR) continue;
        return Failed("write", name_, errno);
      }
      size_ += static_cast<uint64_t>(n);
      text.remove_prefix(static_cast<size_t>(n));
    }
    KEK_FAILPOINT("audit-written");
    if (fdatasync(file_.get()) != 0) return Failed("sync", name_, errno);
    RETURN_IF_ERROR(CheckIdentity());
    KEK_FAILPOINT("audit-durable");
    last_durable_seq_ = last_seq;
    return absl::OkStatus();
  }
  // The same for what is there already, without writing anything.
  absl::Status Sync() {
    if (fdatasync(file_.get()) != 0) return Failed("sync", name_, errno);
    return CheckIdentity();
  }

  // Gives the current segment up. Returns what a record should say of it; empty
  // when nothing in it was ever acknowledged, in which case it is removed.
  std::string Abandon() {
    std::string lost;
    if (last_durable_seq_ > 0) {
      lost = absl::StrCat("segment ", name_,
                          " given up; acknowledged in it: ", first_seq_, " to ",
                          last_durable_seq_);
    } else {
      struct stat now;
      if (fstatat(directory_.get(), name_.c_str(), &now, AT_SYMLINK_NOFOLLOW) ==
              0 &&
          SameFile(now, identity_)) {
        unlinkat(directory_.get(), name_.c_str(), 0);
      }
    }
    file_ = UniqueFd();
    size_ = 0;
    return lost;
  }

  // Notes that records now tell of the torn writes.
  absl::Status TornReported() {
    if (torn_.empty()) return absl::OkStatus();
    for (const Torn& torn : torn_) {
      const std::string to = absl::StrCat(torn.segment, kTornSuffix);
      if (renameat(directory_.get(), torn.file.c_str(), directory_.get(),
                   to.c_str()) != 0) {
        return Failed("rename", torn.file, errno);
      }
    }
    torn_.clear();
    if (fsync(directory_.get()) != 0) return Failed("sync", ".", errno);
    return absl::OkStatus();
  }

 private:
  explicit Segments(std::string path) : path_(std::move(path)) {}

  absl::Status Failed(absl::string_view what, absl::string_view name,
                      int error) const {
    return absl::UnavailableError(absl::StrCat("audit log ", path_, ": cannot ",
                                               what, " ", name, ": ",
                                               ErrnoText(error)));
  }
  absl::Status Wrong(absl::string_view why) const {
    return absl::FailedPreconditionError(
        absl::StrCat("audit log ", path_, ": ", why));
  }

  absl::Status OpenDirectory() {
    if (path_.empty() || path_[0] != '/') {
      return Wrong("the directory must be an absolute path");
    }
    if (mkdir(path_.c_str(), 0700) == 0) {
      const std::string parent = path_.substr(0, path_.find_last_of('/') + 1);
      const UniqueFd fd(
          open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      if (!fd.valid() || fsync(fd.get()) != 0) {
        return Failed("sync", parent, errno);
      }
    } else if (errno != EEXIST) {
      return Wrong(
          absl::StrCat("cannot create the directory: ", ErrnoText(errno)));
    }
    UniqueFd fd(open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd.valid()) {
      return Wrong(
          absl::StrCat("cannot open the directory: ", ErrnoText(errno)));
    }
    struct stat status;
    if (fstat(fd.get(), &status) != 0) return Failed("stat", ".", errno);
    if (status.st_uid != geteuid()) {
      return Wrong(absl::StrCat("the directory belongs to uid ", status.st_uid,
                                ", not to uid ", geteuid(), "; chown it"));
    }
    if ((status.st_mode & 0022) != 0) {
      return Wrong(absl::StrFormat(
          "the directory has mode %04o and others may write to it; chmod 0700",
          status.st_mode & 07777));
    }
    if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) {
        return Wrong("in use by another process; each kekd needs its own");
      }
      return Failed("lock", ".", errno);
    }
    if (fsync(fd.get()) != 0) return Failed("sync", ".", errno);
    directory_ = std::move(fd);
    return absl::OkStatus();
  }

  // The directory may have been moved away or removed: the log lives at its
  // path.
  absl::Status FollowDirectory() {
    struct stat ours;
    struct stat there;
    if (fstat(directory_.get(), &ours) == 0 &&
        stat(path_.c_str(), &there) == 0 && SameFile(ours, there)) {
      return absl::OkStatus();
    }
    const absl::Status opened = OpenDirectory();
    // A caller meets this while serving, where it is trouble that may pass.
    return opened.ok() ? opened : absl::UnavailableError(opened.message());
  }

  absl::Status CheckIdentity() const {
    struct stat ours;
    if (fstat(file_.get(), &ours) != 0) return Failed("stat", name_, errno);
    if (ours.st_nlink == 0) {
      return absl::UnavailableError(
          absl::StrCat("audit log ", path_, ": ", name_, " was deleted"));
    }
    if (static_cast<uint64_t>(ours.st_size) != size_) {
      return absl::UnavailableError(
          absl::StrCat("audit log ", path_, ": ", name_, " has ", ours.st_size,
                       " bytes where ", size_, " were written"));
    }
    struct stat there;
    if (stat(absl::StrCat(path_, "/", name_).c_str(), &there) != 0 ||
        !SameFile(ours, there)) {
      return absl::UnavailableError(absl::StrCat(
          "audit log ", path_, ": ", name_, " was moved away or replaced"));
    }
    return absl::OkStatus();
  }

  static std::optional<uint64_t> FirstSeqOfName(absl::string_view name) {
    if (!absl::ConsumePrefix(&name, "audit-") ||
        !absl::ConsumeSuffix(&name, kSegmentSuffix)) {
      return std::nullopt;
    }
    const size_t dash = name.rfind('-');
    uint64_t seq = 0;
    if (dash == absl::string_view::npos ||
        !absl::SimpleAtoi(name.substr(dash + 1), &seq)) {
      return std::nullopt;
    }
    return seq;
  }

  absl::StatusOr<std::vector<std::string>> ListDirectory() const {
    const int fd =
        openat(directory_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR* dir = fd < 0 ? nullptr : fdopendir(fd);
    if (dir == nullptr) {
      const int error = errno;
      if (fd >= 0) close(fd);
      return Failed("list", ".", error);
    }
    std::vector<std::string> names;
    // readdir of a stream of our own is thread-safe in glibc.
    while (const dirent* entry = readdir(dir)) names.push_back(entry->d_name);
    closedir(dir);
    return names;
  }

  absl::StatusOr<std::string> ReadFrom(const std::string& name, uint64_t from,
                                       uint64_t size) const {
    const UniqueFd fd(openat(directory_.get(), name.c_str(),
                             O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (!fd.valid()) return Failed("open", name, errno);
    std::string out(size, '\0');
    size_t have = 0;
    while (have < out.size()) {
      const ssize_t n = pread(fd.get(), out.data() + have, out.size() - have,
                              static_cast<off_t>(from + have));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return Failed("read", name, errno);
      if (n == 0) break;
      have += static_cast<size_t>(n);
    }
    out.resize(have);
    return out;
  }

  absl::StatusOr<Tail> ReadTail(const std::string& name) const {
    struct stat status;
    if (fstatat(directory_.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) !=
        0) {
      return Failed("stat", name, errno);
    }
    if (!S_ISREG(status.st_mode)) {
      return Wrong(absl::StrCat(name, " is not a regular file"));
    }
    const auto size = static_cast<uint64_t>(status.st_size);
    const uint64_t from = size > kTailBytes ? size - kTailBytes : 0;
    ASSIGN_OR_RETURN(const std::string text, ReadFrom(name, from, size - from));
    size_t at = 0;
    if (from > 0) {  // the window begins inside a line
      at = text.find('\n');
      if (at == std::string::npos) {
        return Wrong(absl::StrCat(name, " is no segment of an audit log"));
      }
      ++at;
    }
    Tail tail;
    while (at < text.size()) {
      const size_t end = text.find('\n', at);
      if (end == std::string::npos) break;
      const auto seq = SeqOfLine(absl::string_view(text).substr(at, end - at));
      if (!seq.has_value()) break;
      tail.last_seq = seq;
      at = end + 1;
    }
    tail.good_size = from + at;
    tail.torn = text.substr(at);
    return tail;
  }

  // Finds where an earlier run stopped; moves a torn write out of the way.
  absl::Status Recover() {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory());
    std::vector<std::pair<uint64_t, std::string>> segments;
    for (const std::string& name : names) {
      if (const auto seq = FirstSeqOfName(name))
        segments.push_back({*seq, name});
    }
    std::sort(segments.begin(), segments.end());
    std::vector<std::string> unreported;
    for (const std::string& name : names) {
      absl::string_view segment = name;
      if (absl::ConsumeSuffix(&segment, kUnreportedTornSuffix)) {
        unreported.emplace_back(segment);
      }
    }
    // A segment that was begun after trouble with the one before repeats the
    // end of that one, so the highest seq need not be in the newest. Go back
    // until a segment ends below the beginning of the next.
    uint64_t next_first_seq = UINT64_MAX;
    for (auto it = segments.rbegin(); it != segments.rend(); ++it) {
      const auto& [first_seq, name] = *it;
      ASSIGN_OR_RETURN(const Tail tail, ReadTail(name));
      if (it == segments.rbegin() && !tail.torn.empty()) {
        if (tail.torn.size() > kMaxTornBytes) {
          return Wrong(
              absl::StrCat(name, " holds something else than records at byte ",
                           tail.good_size,
                           ", too far from its end to be left by a crash; "
                           "move the file away and keep it"));
        }
        RETURN_IF_ERROR(KeepTorn(name, tail));
        if (std::find(unreported.begin(), unreported.end(), name) ==
            unreported.end()) {
          unreported.push_back(name);
        }
      }
      if (first_seq > 0) {
        recovered_seq_ = std::max(recovered_seq_, first_seq - 1);
      }
      if (tail.last_seq.has_value()) {
        recovered_seq_ = std::max(recovered_seq_, *tail.last_seq);
        if (*tail.last_seq < next_first_seq && it != segments.rbegin()) break;
      }
      next_first_seq = first_seq;
    }
    for (const std::string& segment : unreported) {
      RETURN_IF_ERROR(NoteTorn(segment));
    }
    return absl::OkStatus();
  }

  // Copies the torn end of a segment beside it, durably, then cuts it off.
  absl::Status KeepTorn(const std::string& name, const Tail& tail) {
    const std::string copy = absl::StrCat(name, kUnreportedTornSuffix);
    {
      const UniqueFd fd(
          openat(directory_.get(), copy.c_str(),
                 O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
      if (!fd.valid()) return Failed("create", copy, errno);
      absl::string_view rest = tail.torn;
      while (!rest.empty()) {
        const ssize_t n = write(fd.get(), rest.data(), rest.size());
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return Failed("write", copy, errno);
        rest.remove_prefix(static_cast<size_t>(n));
      }
      if (fsync(fd.get()) != 0) return Failed("sync", copy, errno);
    }
    if (fsync(directory_.get()) != 0) return Failed("sync", ".", errno);
    const UniqueFd fd(openat(directory_.get(), name.c_str(),
                             O_WRONLY | O_CLOEXEC | O_NOFOLLOW));
    if (!fd.valid()) return Failed("open", name, errno);
    if (ftruncate(fd.get(), static_cast<off_t>(tail.good_size)) != 0 ||
        fsync(fd.get()) != 0) {
      return Failed("cut the torn end off", name, errno);
    }
    return absl::OkStatus();
  }

  absl::Status NoteTorn(const std::string& segment) {
    Torn torn{.segment = segment,
              .file = absl::StrCat(segment, kUnreportedTornSuffix)};
    struct stat status;
    if (fstatat(directory_.get(), torn.file.c_str(), &status,
                AT_SYMLINK_NOFOLLOW) != 0) {
      return Failed("stat", torn.file, errno);
    }
    ASSIGN_OR_RETURN(
        const std::string bytes,
        ReadFrom(torn.file, 0,
                 std::min<uint64_t>(static_cast<uint64_t>(status.st_size),
                                    kTailBytes)));
    std::array<uint8_t, EVP_MAX_MD_SIZE> digest;
    unsigned int size = 0;
    if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size,
                   EVP_sha256(), nullptr) != 1) {
      return absl::UnavailableError("libcrypto: SHA-256 failed");
    }
    torn.bytes = bytes.size();
    torn.sha256 = absl::BytesToHexString(
        {reinterpret_cast<const char*>(digest.data()), size});
    torn_.push_back(std::move(torn));
    return absl::OkStatus();
  }

  const std::string path_;
  UniqueFd directory_;  // holds the lock
  uint64_t recovered_seq_ = 0;
  std::vector<Torn> torn_;
  // The current segment.
  UniqueFd file_;
  std::string name_;
  struct stat identity_ {};
  uint64_t size_ = 0;
  uint64_t first_seq_ = 0;
  uint64_t last_durable_seq_ = 0;  // 0: nothing acknowledged yet
};

// ---- the writer

// Records that share one write and one fdatasync. It is settled once: when it
// is durable, or when the disk took it from neither the old nor a new segment.
// In the second case it stays in the queue and is written as soon as it can be.
struct Group {
  explicit Group(bool takes_records) : open(takes_records) {}
  // Guarded by Log::mu_.
  std::vector<std::string> bodies;
  size_t bytes = 0;
  bool open;  // may take more records
  int record_waiters = 0;
  bool settled = false;
  absl::Status status;
  base::CondVar settled_cv;
  // The writer's alone, once open is false.
  std::string text;  // the lines as they are or will be on disk
  uint64_t first_seq = 0;
  uint64_t last_seq = 0;
  uint64_t records = 0;
};

// Records that did not get in, until a record tells of them.
struct Gap {
  absl::Time since;
  uint64_t refused = 0;  // never accepted
  uint64_t late = 0;     // written after their caller had been told UNAVAILABLE
  std::string reason;
  bool empty() const { return refused == 0 && late == 0; }
};

}  // namespace

class AuditLog::Writer {
 public:
  // Shared by the callers and the thread, which a hung disk may keep longer
  // than the AuditLog lives.
  class Log {
   public:
    Log(Options options, std::unique_ptr<Segments> segments)
        : options_(std::move(options)),
          clock_(options_.clock != nullptr ? *options_.clock
                                           : base::Clock::Real()),
          block_limit_(std::chrono::nanoseconds(
              absl::ToInt64Nanoseconds(options_.block_limit))),
          instance_(ThisInstance()),
          own_metrics_(options_.metrics == nullptr
                           ? std::make_unique<base::Metrics>()
                           : nullptr),
          segments_(std::move(segments)),
          next_seq_(segments_->recovered_seq() + 1) {
      base::Metrics& metrics =
          own_metrics_ != nullptr ? *own_metrics_ : *options_.metrics;
      records_ = metrics.GetCounter("kekd_audit_records_total",
                                    "Audit records made durable.");
      flushes_ = metrics.GetCounter(
          "kekd_audit_flushes_total",
          "Group commits of the audit log: one write and one fdatasync each.");
      failures_ = metrics.GetCounter(
          "kekd_audit_failures_total",
          "Segments of the audit log given up after a failed write or sync.");
      refused_ = metrics.GetCounter(
          "kekd_audit_refused_total",
          "Audit records refused because the log could not take them.");
      flush_seconds_ = metrics.GetLatency(
          "kekd_audit_flush_seconds", "Time of one group commit in seconds.");
      pending_ =
          metrics.GetGauge("kekd_audit_pending_bytes",
                           "Bytes of audit records that wait for the disk.");
      healthy_ = metrics.GetGauge(
          "kekd_audit_healthy", "1 while the audit log takes records, else 0.");
      healthy_->Set(1);
    }

    std::string Format(absl::string_view kind,
                       const AuditRecord& record) const {
      return FormatBody(kind, record, clock_.Now(), instance_);
    }
    std::string FormatSystem(absl::string_view op, std::string resource,
                             std::string detail) const {
      AuditRecord record;
      record.method = std::string(op);
      record.caller.principals = {"kekd:audit"};
      record.resource = std::move(resource);
      record.detail = std::move(detail);
      return Format("SYS", record);
    }

    // Queues body (an empty one asks for a flush only) and waits until it is
    // durable.
    absl::Status Commit(std::string body, Deadline deadline) {
      base::MutexLock lock(mu_);
      const auto now = SteadyClock::now();
      const bool is_record = !body.empty();
      if (absl::Status unwell = HealthAt(now); !unwell.ok()) {
        if (is_record) Refuse(unwell);
        return unwell;
      }
      if (now >= deadline) {
        return absl::DeadlineExceededError(
            "the deadline passed before the audit record was queued");
      }
      if (is_record &&
          pending_bytes_ + body.size() > options_.max_pending_bytes) {
        absl::Status full = absl::ResourceExhaustedError(
            absl::StrCat("audit log ", options_.directory, ": ", pending_bytes_,
                         " bytes of records already wait"));
        Refuse(full);
        return full;
      }
      const std::shared_ptr<Group> group = Queue(std::move(body));
      const Deadline limit = std::min(deadline, now + block_limit_);
      if (is_record) ++group->record_waiters;
      while (!group->settled) {
        if (group->settled_cv.WaitUntil(mu_, limit) || group->settled) continue;
        if (is_record) --group->record_waiters;
        if (limit == deadline) {
          return absl::DeadlineExceededError(
              "the deadline passed before the audit record was on disk");
        }
        absl::Status blocked = Blocked(block_limit_);
        if (is_record) {
          NoteGap(blocked);
          ++gap_.late;
        }
        blocked_ = flush_started_.has_value();
        healthy_->Set(0);
        return blocked;
      }
      return group->status;
    }

    // For records of the log's own that nobody waits for.
    void Enqueue(std::string body) {
      base::MutexLock lock(mu_);
      Queue(std::move(body));
    }

    absl::Status health() const {
      base::MutexLock lock(mu_);
      return HealthAt(SteadyClock::now());
    }

    void Run() {
      bool last_try = false;
      while (true) {
        std::shared_ptr<Group> group;
        absl::Time now;
        {
          base::MutexLock lock(mu_);
          while (!Due()) {
            if (stop_) {  // and nothing is queued
              finished_ = true;
              finished_cv_.NotifyAll();
              return;
            }
            if (queue_.empty()) {
              work_.Wait(mu_);
            } else {
              work_.WaitUntil(mu_, retry_at_);
            }
          }
          // An outage gets one more try when the log is closed.
          if (stop_ && !outage_.ok()) {
            if (last_try) {
              finished_ = true;
              finished_cv_.NotifyAll();
              return;
            }
            last_try = true;
          }
          group = queue_.front();
          group->open = false;
          flush_started_ = SteadyClock::now();
          now = clock_.Now();
          flushes_->Increment();
        }
        const absl::Status status = Flush(*group, now);
        if (status.ok()) ReportTorn();
        bool news = false;
        {
          base::MutexLock lock(mu_);
          if (abandoned_) return;
          flush_seconds_->Observe(std::chrono::duration<double>(
                                      SteadyClock::now() - *flush_started_)
                                      .count());
          flush_started_.reset();
          blocked_ = false;
          news = status.ok() != outage_.ok();
          if (status.ok()) {
            Done(*group);
          } else {
            Outage(status);
          }
        }
        if (!news) continue;
        if (status.ok()) {
          base::LogInfo("audit log takes records again",
                        {{"directory", options_.directory}});
        } else {
          base::LogError("audit log takes no records", {{"status", status}});
        }
      }
    }

    // Lets Run finish what is queued. False when it has not by the deadline;
    // from then on it touches nothing that is not its own.
    bool Stop(Deadline deadline) {
      std::string closing = FormatSystem("AuditClose", options_.directory, "");
      base::MutexLock lock(mu_);
      Queue(std::move(closing));
      stop_ = true;
      work_.NotifyAll();
      while (!finished_) {
        if (!finished_cv_.WaitUntil(mu_, deadline) && !finished_) {
          abandoned_ = true;
          return false;
        }
      }
      return true;
    }

    const Options& options() const { return options_; }

   private:
    absl::Status Blocked(SteadyClock::duration since) const {
      return absl::UnavailableError(absl::StrCat(
          "audit log ", options_.directory,
          ": the disk has not answered for more than ",
          absl::FormatDuration(absl::Milliseconds(
              std::chrono::duration_cast<std::chrono::milliseconds>(since)
                  .count()))));
    }

    absl::Status HealthAt(SteadyClock::time_point now) const
        ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      if (!outage_.ok()) return outage_;
      if (flush_started_.has_value() &&
          (blocked_ || now - *flush_started_ > block_limit_)) {
        return Blocked(block_limit_);
      }
      return absl::OkStatus();
    }

    // The front of the queue should be written now.
    bool Due() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return !queue_.empty() &&
             (outage_.ok() || stop_ || SteadyClock::now() >= retry_at_);
    }

    void Done(Group& group) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      outage_ = absl::OkStatus();
      retry_delay_ = kFirstRetry;
      healthy_->Set(1);
      records_->Increment(static_cast<double>(group.records));
      pending_bytes_ -= group.bytes;
      pending_->Set(static_cast<double>(pending_bytes_));
      Settle(group, absl::OkStatus());
      queue_.pop_front();
      RecordGap();
    }

    // The front group, and what came behind it, stay queued for the next try.
    void Outage(const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      outage_ = why;
      healthy_->Set(0);
      retry_at_ = SteadyClock::now() + retry_delay_;
      retry_delay_ =
          std::min<SteadyClock::duration>(retry_delay_ * 2, kLastRetry);
      for (const auto& waiting : queue_) {
        waiting->open = false;
        if (waiting->settled) continue;
        if (waiting->record_waiters > 0) {
          NoteGap(why);
          gap_.late += static_cast<uint64_t>(waiting->record_waiters);
        }
        Settle(*waiting, why);
      }
    }

    void NoteGap(const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      if (!gap_.empty()) return;
      gap_.since = clock_.Now();
      gap_.reason = std::string(why.message());
    }
    void Refuse(const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      NoteGap(why);
      ++gap_.refused;
      refused_->Increment();
    }
    void RecordGap() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      if (gap_.empty()) return;
      Queue(FormatSystem(
          "AuditGap", options_.directory,
          absl::StrCat("since ",
                       absl::FormatTime("%Y-%m-%dT%H:%M:%E9SZ", gap_.since,
                                        absl::UTCTimeZone()),
                       " refused ", gap_.refused, " late ", gap_.late, ": ",
                       gap_.reason)));
      gap_ = {};
    }

    std::shared_ptr<Group> Queue(std::string body)
        ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      if (queue_.empty() || !queue_.back()->open ||
          queue_.back()->bytes >= kMaxGroupBytes) {
        queue_.push_back(std::make_shared<Group>(true));
      }
      const std::shared_ptr<Group>& group = queue_.back();
      if (!body.empty()) {
        const size_t size = body.size() + kLineOverhead;
        group->bytes += size;
        pending_bytes_ += size;
        pending_->Set(static_cast<double>(pending_bytes_));
        group->bodies.push_back(std::move(body));
      }
      work_.NotifyOne();
      return group;
    }

    void Settle(Group& group, const absl::Status& status)
        ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      if (group.settled) return;
      group.settled = true;
      group.status = status;
      group.settled_cv.NotifyAll();
    }

    // Writer thread; no lock held. Makes group durable in the current segment
    // or, if that fails, in a new one.
    absl::Status Flush(Group& group, absl::Time now) {
      if (group.first_seq == 0) {
        group.first_seq = next_seq_;
        group.text.reserve(group.bytes);
        for (const std::string& body : group.bodies) AddLine(group, body);
        group.bodies = {};
      }
      if (segments_->has_segment() &&
          segments_->size() >= options_.segment_bytes) {
        const absl::Status begun = segments_->Begin(group.first_seq, now);
        if (!begun.ok()) {
          base::LogWarning("audit log stays in its old segment",
                           {{"status", begun}});
        }
      }
      if (segments_->has_segment()) {
        absl::Status written = Write(group);
        if (written.ok()) return written;
        base::LogError("audit log segment given up", {{"status", written}});
        const std::string lost = segments_->Abandon();
        base::MutexLock lock(mu_);
        if (abandoned_) return written;
        failures_->Increment();
        now = clock_.Now();
        if (!lost.empty()) {
          AddLine(group,
                  FormatSystem("AuditSegmentFailed", options_.directory,
                               absl::StrCat(lost, ": ", written.message())));
        }
      }
      RETURN_IF_ERROR(segments_->Begin(group.first_seq, now));
      absl::Status written = Write(group);
      if (!written.ok()) {
        segments_->Abandon();
        base::MutexLock lock(mu_);
        if (!abandoned_) failures_->Increment();
      }
      return written;
    }

    void AddLine(Group& group, absl::string_view body) {
      group.last_seq = next_seq_++;
      ++group.records;
      AppendLine(group.last_seq, body, group.text);
    }
    absl::Status Write(const Group& group) {
      return group.text.empty() ? segments_->Sync()
                                : segments_->Write(group.text, group.last_seq);
    }
    // The first group tells of what earlier runs left torn.
    void ReportTorn() {
      const absl::Status reported = segments_->TornReported();
      if (!reported.ok()) {
        base::LogWarning("audit log: a torn write will be reported again",
                         {{"status", reported}});
      }
    }

    const Options options_;
    const base::Clock& clock_;
    const SteadyClock::duration block_limit_;
    const Instance instance_;
    const std::unique_ptr<base::Metrics> own_metrics_;
    base::Metrics::Counter* records_;
    base::Metrics::Counter* flushes_;
    base::Metrics::Counter* failures_;
    base::Metrics::Counter* refused_;
    base::Metrics::Histogram* flush_seconds_;
    base::Metrics::Gauge* pending_;
    base::Metrics::Gauge* healthy_;

    // The writer thread's.
    const std::unique_ptr<Segments> segments_;
    uint64_t next_seq_;

    mutable base::Mutex mu_;
    base::CondVar work_;
    base::CondVar finished_cv_;
    // In the order of the log; the front is being written while flush_started_
    // is set, and leaves when it is durable.
    std::deque<std::shared_ptr<Group>> queue_ ABSL_GUARDED_BY(mu_);
    uint64_t pending_bytes_ ABSL_GUARDED_BY(mu_) = 0;
    std::optional<SteadyClock::time_point> flush_started_ ABSL_GUARDED_BY(mu_);
    // The present flush has already cost a caller its block limit.
    bool blocked_ ABSL_GUARDED_BY(mu_) = false;
    absl::Status outage_ ABSL_GUARDED_BY(mu_);  // of the last flush
    SteadyClock::time_point retry_at_ ABSL_GUARDED_BY(mu_);
    Gap gap_ ABSL_GUARDED_BY(mu_);
    SteadyClock::duration retry_delay_ ABSL_GUARDED_BY(mu_) = kFirstRetry;
    bool stop_ ABSL_GUARDED_BY(mu_) = false;
    bool abandoned_ ABSL_GUARDED_BY(mu_) = false;
    bool finished_ ABSL_GUARDED_BY(mu_) = false;
  };

  explicit Writer(std::shared_ptr<Log> log)
      : log_(std::move(log)), thread_([log = log_] { log->Run(); }) {}
  ~Writer() {
    if (log_->Stop(base::DeadlineAfter(std::chrono::nanoseconds(
            absl::ToInt64Nanoseconds(log_->options().close_limit))))) {
      thread_.join();
    } else {
      base::LogError("audit log left behind: its disk hangs",
                     {{"directory", log_->options().directory}});
      thread_.detach();
    }
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  Log& log() { return *log_; }

 private:
  const std::shared_ptr<Log> log_;
  std::thread thread_;
};

absl::StatusOr<std::unique_ptr<AuditLog>> AuditLog::Open(Options options) {
  ASSIGN_OR_RETURN(std::unique_ptr<Segments> segments,
                   Segments::Open(options.directory));
  const std::vector<Torn> torn = segments->torn();
  const uint64_t recovered_seq = segments->recovered_seq();
  const std::string directory = options.directory;
  auto log =
      std::make_shared<Writer::Log>(std::move(options), std::move(segments));
  for (const Torn& t : torn) {
    base::LogWarning("audit log: an earlier run left a torn write",
                     {{"segment", t.segment}, {"bytes", t.bytes}});
    log->Enqueue(
        log->FormatSystem("AuditTorn", t.segment,
                          absl::StrCat("bytes ", t.bytes, " sha256 ", t.sha256,
                                       " kept in ", t.segment, kTornSuffix)));
  }
  auto writer = std::make_unique<Writer>(log);
  RETURN_IF_ERROR(
      log->Commit(log->FormatSystem("AuditOpen", directory,
                                    absl::StrCat("after seq ", recovered_seq)),
                  SteadyClock::now() + std::chrono::seconds(10)));
  return std::unique_ptr<AuditLog>(new AuditLog(std::move(writer)));
}

AuditLog::AuditLog(std::unique_ptr<Writer> writer)
    : writer_(std::move(writer)) {}
AuditLog::~AuditLog() = default;

absl::Status AuditLog::Append(const AuditRecord& record,
                              base::Deadline deadline) {
  Writer::Log& log = writer_->log();
  return log.Commit(log.Format("REQ", record), deadline);
}

absl::Status AuditLog::health() const { return writer_->log().health(); }

absl::Status AuditLog::Check(base::Deadline deadline) {
  return writer_->log().Commit({}, deadline);
}

}  // namespace kek::core
