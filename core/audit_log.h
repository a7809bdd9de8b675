// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/metrics.h"
#include "base/sync.h"
#include "core/caller.h"

namespace kek::core {

// One data or key operation, allowed or denied. Sizes and names only: never
// plaintext, ciphertext, AAD or a PIN.
struct AuditRecord {
  std::string
      method;  // "Encrypt", "Decrypt", "CreateCryptoKey", "TokenLogin", ...
  Caller caller;
  std::string resource;  // the name the caller gave
  std::string version;   // full name of the key version that was used or made;
                         // empty if it did not come so far
  std::string request_id;  // Kubernetes' uid, or the request's own id
  absl::Status status;     // what the caller is told
  bool permitted = true;   // false: denied by policy
  uint64_t input_bytes = 0;
  uint64_t output_bytes = 0;
  uint64_t aad_bytes = 0;
  bool coalesced = false;  // answered by another caller's identical Decrypt
  absl::Duration latency;
  std::string detail;  // of key operations: "state ENABLED -> DISABLED",
                       // attributes of a new key
};

// AuditLog models the durable list of what was done with keys: JSON lines in
// files of a directory of its own, append-only, one record a line, the bytes
// written are the record. Writers share a group commit: one write and one
// fdatasync for all records that wait. "No durable record, no reply":
// KeyService answers only after Append returned OK. docs/audit-format.md has
// the files and fields. (Hash chain, tree and signed checkpoints join later, in
// this same place.)
//
// A failed write or fdatasync is never retried on the same file: a new segment
// is begun, and everything unacknowledged is written again. A file that was
// unlinked, replaced or truncated under us is noticed at the next flush and
// treated the same. While the disk takes nothing, records are refused at once
// and the writer tries again by itself; the log then says how many were
// refused. Thread-safe.
class AuditLog {
 public:
  struct Options {
    std::string directory;                  // created 0700 if missing
    uint64_t segment_bytes = 256ULL << 20;  // begin a new file beyond this size
    uint64_t max_pending_bytes = 16ULL << 20;  // further records are refused
    // After this long without an answer from the disk, callers are refused.
    absl::Duration block_limit = absl::Seconds(2);
    // How long the destructor waits for a disk that hangs.
    absl::Duration close_limit = absl::Seconds(5);
    base::Metrics* metrics = nullptr;
    const base::Clock* clock = nullptr;  // null: the real one
  };
  // UNAVAILABLE or FAILED_PRECONDITION with directory and reason; a torn last
  // line of an earlier run is kept beside the log and reported by a record of
  // its own.
  static absl::StatusOr<std::unique_ptr<AuditLog>> Open(Options options);
  // Writes what waits and a closing record. When the disk hangs for longer than
  // close_limit, the thread is left behind; it touches neither metrics nor
  // clock any more, and keeps the directory locked until the disk answers.
  ~AuditLog();

  // Returns when the record is on disk. UNAVAILABLE (disk full, I/O error; at
  // most 2 s), DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED. After an error the record
  // may still reach the disk later; the caller must not reply with the result
  // it describes.
  absl::Status Append(const AuditRecord& record, base::Deadline deadline);

  // OK while the last flush succeeded; for health and the watchdog. Never
  // blocks.
  absl::Status health() const;
  // Flushes an empty group: proves writer thread and file, writes nothing.
  absl::Status Check(base::Deadline deadline);

 private:
  class Writer;
  explicit AuditLog(std::unique_ptr<Writer> writer);
  std::unique_ptr<Writer> writer_;
};

}  // namespace kek::core
