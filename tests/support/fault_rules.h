// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/sync.h"
#include "base/testing/temp_dir.h"

namespace kek::fault {

// FaultRules models the fault module as a test sees it: it points the module's
// environment at a directory of its own, writes the rules and reads the log of
// calls. Make it before the Token that is to use ModulePath(), destroy it after
// that. One at a time in a process.
class FaultRules {
 public:
  // One line of the log.
  struct Call {
    std::string function;
    uint64_t rv = 0;
    // "session", "opened", "key", "swapped", "iv", "size", "object", "found"
    std::map<std::string, std::string> details;
  };

  // target: the real module; empty: SoftHSM.
  explicit FaultRules(const std::string& target = "");
  ~FaultRules();
  FaultRules(const FaultRules&) = delete;
  FaultRules& operator=(const FaultRules&) = delete;

  static std::string ModulePath();

  // Replaces all rules; every call of the module that begins after this obeys.
  // Aborts on a rule that is not understood (fault_module_rules.h).
  void Set(const std::vector<std::string>& rules);
  void Clear() { Set({}); }

  // A path for hang=. Release lets everything that hangs on it go on, also what
  // will come to hang on it.
  std::string HangFile(absl::string_view name = "release") const;
  void Release(absl::string_view name = "release");

  // The calls since the last Forget, in the order they ended. Counts take the
  // module's function name, with '*' and '?' as in file names.
  std::vector<Call> Calls(absl::string_view function = "*") const;
  int Count(absl::string_view function) const;
  void Forget();
  // True when at least count calls have ended, before the deadline.
  bool WaitForCalls(absl::string_view function, int count,
                    base::Deadline deadline) const;
  // True when at least count calls have begun to hang, before the deadline.
  bool WaitForHangs(int count, base::Deadline deadline) const;
  // What the module accuses its user of: two calls at a time on one session,
  // C_Finalize under a call.
  std::vector<std::string> Violations() const;

 private:
  std::vector<std::string> Lines() const;

  base::testing::TempDir dir_;
  size_t log_start_ = 0;
};

}  // namespace kek::fault
