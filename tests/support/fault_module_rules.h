// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kek::fault {

// The rules of the fault module: which PKCS#11 calls go wrong, and how. One
// rule a line; '#' begins a comment line:
//
//   C_Encrypt after=3 count=2 rv=CKR_DEVICE_ERROR
//
// The first word names the function, with '*' and '?' as in file names
// ("C_*cryptInit"). Which calls:
//   after=N         let the first N matching calls pass (default 0)
//   every=N         of those after that, only each N-th
//   count=N         act N times (default 1), -1: for ever
//   size=N          match only calls with N bytes of input (C_Encrypt,
//                   C_Decrypt, ...) or N bytes asked (C_GenerateRandom)
//   same_session=1  match only the session of the rule's first match
// What happens, before the real call, or after it with post=1:
//   delay=5ms       (us, ms, s)
//   hang=PATH       wait until that file exists; the log says when that begins
//   dropsessions=1  all sessions of all tokens close, as in a reset
//   logout=1        the login of every token ends
//   finalize=1      the library is finalised; reinit=1: and initialised again
//   abort=1, exit=N
//   rv=CKR_X        answer that (a name, "DEVICE_ERROR", or a number); the real
//                   call is made only with post=1
// What is changed in the real call:
//   swapkey=1       *Init and C_DestroyObject get another AES key's handle
//   refuse_attr=CKA_X[:CKR_Y]  a template with that attribute is refused
// What is changed in what it answers:
//   flip=K zero=1   bit K of the output inverted; output all zero
//   short=N long=N  output length off by N
//   repeat=1        C_GenerateRandom says again what it said at the first match
//   attr=CKA_X:V    C_GetAttributeValue says V; attr=CKA_X:none does not know X
//   find=N          C_FindObjects finds N objects (0, or 2: the last one twice)
//   flags=F flags_clear=F  C_GetTokenInfo's flags
//   state=S         C_GetSessionInfo's state
//   slots=none|reverse  C_GetSlotList's list
// And for all calls as long as the rule stands (no call matches it):
//   slot_offset=N   every slot id is N larger than the library's
//
// Of several rules for one call the first that is due acts; all that match
// count the call.
struct Rule {
  enum class Slots { kAsIs, kNone, kReverse };
  struct Attribute {
    uint64_t type = 0;
    std::optional<uint64_t> value;
  };
  struct RefusedAttribute {
    uint64_t type = 0;
    uint64_t rv = 0;
  };

  std::string function;
  int64_t after = 0;
  int64_t every = 1;
  int64_t count = 1;
  std::optional<uint64_t> size;
  bool same_session = false;

  bool post = false;
  std::chrono::nanoseconds delay{0};
  std::string hang;
  bool dropsessions = false, logout = false, finalize = false, reinit = false;
  bool abort = false;
  std::optional<int> exit;
  std::optional<uint64_t> rv;

  bool swapkey = false;
  std::optional<RefusedAttribute> refuse_attr;

  std::optional<int64_t> flip;
  bool zero = false;
  int64_t stretch = 0;  // short: negative, long: positive
  bool repeat = false;
  std::optional<Attribute> attr;
  std::optional<int64_t> find;
  uint64_t flags = 0, flags_clear = 0;
  std::optional<uint64_t> state;
  Slots slots = Slots::kAsIs;
  uint64_t slot_offset = 0;
};

// INVALID_ARGUMENT names the line and the word that is wrong.
absl::StatusOr<std::vector<Rule>> ParseRules(absl::string_view text);

// RuleSet counts the calls that match and says which rule acts. Not
// thread-safe.
class RuleSet {
 public:
  struct Call {
    absl::string_view function;
    uint64_t session = 0;  // 0: not a session's call
    size_t size = 0;
  };

  RuleSet() = default;
  explicit RuleSet(std::vector<Rule> rules);
  // The rule to apply to this call; one with no effect where none is due.
  Rule Match(const Call& call);
  uint64_t slot_offset() const { return slot_offset_; }

 private:
  struct Counted {
    Rule rule;
    int64_t matched = 0;
    int64_t acted = 0;
    uint64_t session = 0;
  };
  std::vector<Counted> rules_;
  uint64_t slot_offset_ = 0;
};

}  // namespace kek::fault
