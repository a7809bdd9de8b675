// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "base/sync.h"

namespace kek::core {

// ProofGroups models the group commit of proofs: whoever has made a ciphertext
// joins, and is released by one proof of its key that was begun after it
// joined. One proof of a key runs at a time; those who join meanwhile form the
// next group, the first of whom to see the turn come free runs its proof for
// all. So n wraps at the same time cost two proofs, not n, and a wrap alone
// costs one and waits for nobody. Part of Wrapper. Thread-safe; no lock is held
// while a proof runs.
class ProofGroups {
 public:
  // key is the object whose proofs are shared; the caller keeps it alive. prove
  // is run by this thread if it leads its group, with deadline. Returns what
  // the proof that covers this call said: OK, or the same error for all of its
  // group. DEADLINE_EXCEEDED is a caller's own: if the leader's deadline was
  // the shorter one, the others go on to the next group.
  absl::Status Join(const void* key,
                    absl::FunctionRef<absl::Status(base::Deadline)> prove,
                    base::Deadline deadline);

  // How many proofs have been run.
  uint64_t proofs() const;
  // How many wait for the next proof of key.
  int waiting(const void* key) const;

 private:
  struct Group {
    int members = 0;
    bool started = false;
    bool done = false;
    absl::Status status;
    base::CondVar changed;  // done, or the turn may be free
  };
  // The queue of one key: the proof that runs, if any, and the group that waits
  // behind it, if any.
  struct Line {
    bool proving = false;
    std::shared_ptr<Group> next;
  };

  absl::Status Lead(const void* key, const std::shared_ptr<Group>& group,
                    absl::FunctionRef<absl::Status(base::Deadline)> prove,
                    base::Deadline deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ForgetIfIdle(const void* key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable base::Mutex mu_;
  std::unordered_map<const void*, Line> lines_ ABSL_GUARDED_BY(mu_);
  uint64_t proofs_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace kek::core
