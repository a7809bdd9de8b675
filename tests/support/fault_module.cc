// SPDX-License-Identifier: Apache-2.0
//
// libkekd_fault_module.so: a PKCS#11 2.40 module that forwards every call to a
// real module and makes some go wrong, by rules (fault_module_rules.h) that are
// read again whenever their file changes. Its environment, read at each
// C_Initialize:
//   KEKD_FAULT_TARGET  the real module (default SoftHSM)
//   KEKD_FAULT_RULES   the file with the rules; none: forward only. Replace it
//                      by rename.
//   KEKD_FAULT_LOG     gets one line a call, appended: function, CK_RV, details
//
// The log also accuses its user, in lines that begin with "!": two calls at a
// time on one session, C_Finalize while calls are in progress.
//
// Thread-safe. Its mutex is never held across a call of the real module. What a
// reset does on purpose (dropsessions, logout, finalize) waits until the real
// module is idle and keeps others out meanwhile: SoftHSM 2.6.1 crashes when
// sessions vanish under a call, and that is not the fault meant.
//
// Vendor profiles (zero IV written back, IV appended, object snapshots, ...)
// have their place between the entry points below and Module::Run: a profile
// rewrites the arguments before the call and the results after it, as swapkey
// and attr do for single rules.

#include <dlfcn.h>
#include <fcntl.h>
#include <p11-kit/pkcs11.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/sync.h"
#include "tests/support/fault_module_rules.h"

namespace kek::fault {
namespace {

using base::CondVar;
using base::Mutex;
using base::MutexLock;

constexpr char kDefaultTarget[] = "/usr/lib/softhsm/libsofthsm2.so";

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// Lets calls in together, and one at a time who must be alone.
class Gate {
 public:
  class Inside {
   public:
    explicit Inside(Gate& gate) : gate_(gate) {
      MutexLock lock(gate_.mu_);
      while (gate_.alone_) gate_.changed_.Wait(gate_.mu_);
      ++gate_.inside_;
    }
    ~Inside() {
      MutexLock lock(gate_.mu_);
      --gate_.inside_;
      gate_.changed_.NotifyAll();
    }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

   private:
    Gate& gate_;
  };

  template <typename Action>
  void Alone(Action action) {
    {
      MutexLock lock(mu_);
      while (alone_) changed_.Wait(mu_);
      alone_ = true;
      while (inside_ > 0) changed_.Wait(mu_);
    }
    action();
    MutexLock lock(mu_);
    alone_ = false;
    changed_.NotifyAll();
  }

 private:
  Mutex mu_;
  CondVar changed_;
  int inside_ ABSL_GUARDED_BY(mu_) = 0;
  bool alone_ ABSL_GUARDED_BY(mu_) = false;
};

// The arguments of the last good C_Initialize, to repeat it behind the caller's
// back.
struct InitArguments {
  bool given = false;
  CK_C_INITIALIZE_ARGS args = {};
  std::string reserved;

  static InitArguments Copy(CK_VOID_PTR init_args) {
    InitArguments copy;
    if (init_args == nullptr) return copy;
    copy.given = true;
    copy.args = *static_cast<CK_C_INITIALIZE_ARGS*>(init_args);
    // Opaque by the standard; a C string in every module that takes one.
    if (copy.args.pReserved != nullptr) {
      copy.reserved = static_cast<const char*>(copy.args.pReserved);
    }
    return copy;
  }
  CK_RV Initialize(const CK_FUNCTION_LIST* real) {
    if (!given) return real->C_Initialize(nullptr);
    if (args.pReserved != nullptr) args.pReserved = reserved.data();
    return real->C_Initialize(&args);
  }
};

class Module {
 public:
  // Never destroyed: calls may hang in the module while the process exits.
  static Module& Get() {
    static Module* module = new Module;
    return *module;
  }

  const CK_FUNCTION_LIST* real() {
    MutexLock lock(mu_);
    return real_;
  }

  CK_RV Initialize(CK_VOID_PTR init_args);
  CK_RV Finalize(CK_VOID_PTR reserved);

  CK_ULONG SlotOffset() {
    MutexLock lock(mu_);
    ReloadRules();
    return rules_.slot_offset();
  }

  // One call: the rule's disturbance, the real call, the change of its result,
  // the log line. forward(real, rule) makes the real call; change(rule, rv)
  // alters what a successful one answered; detail() ends the log line.
  template <typename Forward, typename Change, typename Detail>
  CK_RV Run(const RuleSet::Call& call, Forward forward, Change change,
            Detail detail) {
    const CK_FUNCTION_LIST* real = this->real();
    if (real == nullptr) return CKR_CRYPTOKI_NOT_INITIALIZED;
    Rule rule;
    uint64_t epoch;
    {
      MutexLock lock(mu_);
      ReloadRules();
      rule = rules_.Match(call);
      epoch = epoch_;
      ++calls_in_progress_;
      if (call.session != 0 && ++busy_[call.session] > 1) {
        WriteLog(absl::StrCat("! ", call.function, " on busy session ",
                              call.session));
      }
    }
    if (!rule.post) Disturb(rule, call);
    CK_RV rv;
    if (rule.rv.has_value() && !rule.post) {
      rv = *rule.rv;
    } else {
      {
        Gate::Inside inside(gate_);
        rv = forward(real, rule);
      }
      if (rv == CKR_OK) change(rule, rv);
      if (rule.post) {
        Disturb(rule, call);
        rv = rule.rv.value_or(rv);
      }
    }
    MutexLock lock(mu_);
    --calls_in_progress_;
    if (call.session != 0 && epoch == epoch_ && --busy_[call.session] == 0) {
      busy_.erase(call.session);
    }
    WriteLog(absl::StrCat(
        call.function, " 0x", absl::Hex(rv),
        call.session != 0 ? absl::StrCat(" session=", call.session) : "",
        detail()));
    return rv;
  }

  void Log(absl::string_view line) {
    MutexLock lock(mu_);
    WriteLog(line);
  }

  // Replaces bytes by what it was given first since the rules were read.
  void Repeat(CK_BYTE_PTR bytes, CK_ULONG size) {
    MutexLock lock(mu_);
    if (repeated_.empty()) repeated_.assign(bytes, bytes + size);
    for (CK_ULONG i = 0; i < size && !repeated_.empty(); ++i) {
      bytes[i] = repeated_[i % repeated_.size()];
    }
  }

 private:
  Module() = default;

  void Configure() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReloadRules() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WriteLog(absl::string_view line) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Disturb(const Rule& rule, const RuleSet::Call& call);
  void Reset(const Rule& rule);

  Gate gate_;
  Mutex mu_;
  const CK_FUNCTION_LIST* real_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::string target_ ABSL_GUARDED_BY(mu_);
  std::string rules_path_ ABSL_GUARDED_BY(mu_);
  // Device, inode, size and times of the rules last read.
  std::array<int64_t, 7> rules_identity_ ABSL_GUARDED_BY(mu_) = {};
  RuleSet rules_ ABSL_GUARDED_BY(mu_);
  std::vector<uint8_t> repeated_ ABSL_GUARDED_BY(mu_);
  int log_fd_ ABSL_GUARDED_BY(mu_) = -1;
  bool initialized_ ABSL_GUARDED_BY(mu_) = false;
  InitArguments init_arguments_ ABSL_GUARDED_BY(mu_);
  int calls_in_progress_ ABSL_GUARDED_BY(mu_) = 0;
  // Calls in progress by session, of this epoch; session numbers begin anew
  // when the real library is initialised again.
  std::map<uint64_t, int> busy_ ABSL_GUARDED_BY(mu_);
  uint64_t epoch_ ABSL_GUARDED_BY(mu_) = 0;
};

void Module::Configure() {
  std::string target = Environment("KEKD_FAULT_TARGET");
  if (target.empty()) target = kDefaultTarget;
  if (target != target_) {
    real_ = nullptr;
    target_ = target;
    // Stays loaded for good: it may have threads and exit handlers.
    void* library =
        dlopen(target.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const auto get_list = library == nullptr
                              ? nullptr
                              : reinterpret_cast<CK_C_GetFunctionList>(
                                    dlsym(library, "C_GetFunctionList"));
    CK_FUNCTION_LIST_PTR list = nullptr;
    if (get_list != nullptr && get_list(&list) == CKR_OK) {
      real_ = list;
    } else {
      std::fprintf(stderr, "fault module: cannot use KEKD_FAULT_TARGET %s\n",
                   target.c_str());
      target_.clear();
    }
  }
  // The same file goes on counting where it was: C_Initialize may be what the
  // rules provoked.
  std::string rules_path = Environment("KEKD_FAULT_RULES");
  if (rules_path != rules_path_) {
    rules_path_ = std::move(rules_path);
    rules_identity_ = {};
    rules_ = RuleSet();
  }
  if (log_fd_ >= 0) close(log_fd_);
  log_fd_ = -1;
  const std::string log = Environment("KEKD_FAULT_LOG");
  if (!log.empty()) {
    log_fd_ =
        open(log.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  }
}

void Module::ReloadRules() {
  if (rules_path_.empty()) return;
  struct stat status;
  std::array<int64_t, 7> identity = {};
  if (stat(rules_path_.c_str(), &status) == 0) {
    identity = {static_cast<int64_t>(status.st_dev),
                static_cast<int64_t>(status.st_ino),
                static_cast<int64_t>(status.st_size),
                status.st_mtim.tv_sec,
                status.st_mtim.tv_nsec,
                status.st_ctim.tv_sec,
                status.st_ctim.tv_nsec};
  }
  if (identity == rules_identity_) return;
  std::string text;
  if (identity[1] != 0) {
    std::FILE* file = std::fopen(rules_path_.c_str(), "re");
    if (file == nullptr)
      return;  // it is being replaced; the next call reads it
    char buffer[4096];
    size_t size;
    while ((size = std::fread(buffer, 1, sizeof buffer, file)) > 0) {
      text.append(buffer, size);
    }
    std::fclose(file);
  }
  // A last line without its end is still being written.
  text.resize(text.rfind('\n') + 1);
  auto rules = ParseRules(text);
  rules_identity_ = identity;
  if (!rules.ok()) {
    std::fprintf(stderr, "fault module: the old rules stay: %s\n",
                 std::string(rules.status().message()).c_str());
    WriteLog(absl::StrCat("! ", rules.status().message()));
    return;
  }
  rules_ = RuleSet(*std::move(rules));
  repeated_.clear();
}

void Module::WriteLog(absl::string_view line) {
  if (log_fd_ < 0) return;
  const std::string text = absl::StrCat(line, "\n");
  if (write(log_fd_, text.data(), text.size()) !=
      static_cast<ssize_t>(text.size())) {
    std::fprintf(stderr, "fault module: cannot write KEKD_FAULT_LOG\n");
  }
}

void Module::Disturb(const Rule& rule, const RuleSet::Call& call) {
  if (rule.delay.count() > 0) std::this_thread::sleep_for(rule.delay);
  if (!rule.hang.empty()) {
    Log(absl::StrCat("~ ", call.function, " hangs"));
    while (access(rule.hang.c_str(), F_OK) != 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    Log(absl::StrCat("~ ", call.function, " released"));
  }
  if (rule.dropsessions || rule.logout || rule.finalize || rule.reinit) {
    Log(absl::StrCat("~ ", call.function, " resets the token"));
    gate_.Alone([&] { Reset(rule); });
  }
  if (rule.abort) std::abort();
  if (rule.exit.has_value()) std::exit(*rule.exit);
}

void Module::Reset(const Rule& rule) {
  const CK_FUNCTION_LIST* real = this->real();
  if (rule.dropsessions || rule.logout) {
    std::vector<CK_SLOT_ID> slots(1024);
    CK_ULONG count = slots.size();
    if (real->C_GetSlotList(CK_TRUE, slots.data(), &count) != CKR_OK) count = 0;
    slots.resize(count);
    for (CK_SLOT_ID slot : slots) {
      CK_SESSION_HANDLE session;
      if (rule.logout && real->C_OpenSession(slot, CKF_SERIAL_SESSION, nullptr,
                                             nullptr, &session) == CKR_OK) {
        real->C_Logout(session);
        real->C_CloseSession(session);
      }
      if (rule.dropsessions) real->C_CloseAllSessions(slot);
    }
  }
  if (rule.finalize || rule.reinit) {
    real->C_Finalize(nullptr);
    InitArguments arguments;
    {
      MutexLock lock(mu_);
      initialized_ = false;
      busy_.clear();
      ++epoch_;
      arguments = init_arguments_;
    }
    if (rule.reinit && arguments.Initialize(real) == CKR_OK) {
      MutexLock lock(mu_);
      initialized_ = true;
    }
  }
}

CK_RV Module::Initialize(CK_VOID_PTR init_args) {
  {
    MutexLock lock(mu_);
    if (!initialized_) Configure();
    if (real_ == nullptr) return CKR_GENERAL_ERROR;
  }
  return Run(
      {"C_Initialize"},
      [&](const CK_FUNCTION_LIST* real, const Rule&) {
        const CK_RV rv = real->C_Initialize(init_args);
        if (rv == CKR_OK) {
          MutexLock lock(mu_);
          initialized_ = true;
          init_arguments_ = InitArguments::Copy(init_args);
          busy_.clear();
          ++epoch_;
        }
        return rv;
      },
      [](const Rule&, CK_RV&) {}, [] { return std::string(); });
}

CK_RV Module::Finalize(CK_VOID_PTR reserved) {
  return Run(
      {"C_Finalize"},
      [&](const CK_FUNCTION_LIST* real, const Rule&) {
        {
          MutexLock lock(mu_);
          if (calls_in_progress_ > 1) {
            WriteLog(absl::StrCat("! C_Finalize while ", calls_in_progress_ - 1,
                                  " calls are in progress"));
          }
        }
        const CK_RV rv = real->C_Finalize(reserved);
        if (rv == CKR_OK) {
          MutexLock lock(mu_);
          initialized_ = false;
        }
        return rv;
      },
      [](const Rule&, CK_RV&) {}, [] { return std::string(); });
}

void NoChange(const Rule&, CK_RV&) {}
std::string NoDetail() { return ""; }

// What a rule does to bytes the module has put out.
void ChangeOutput(const Rule& rule, CK_BYTE_PTR out, CK_ULONG_PTR size) {
  if (size == nullptr) return;
  if (out != nullptr && *size > 0) {
    if (rule.zero) std::fill_n(out, *size, CK_BYTE{0});
    if (rule.flip.has_value()) {
      const uint64_t bit = static_cast<uint64_t>(*rule.flip) % (*size * 8);
      out[bit / 8] ^= static_cast<CK_BYTE>(1U << (bit % 8));
    }
  }
  const int64_t stretched = static_cast<int64_t>(*size) + rule.stretch;
  *size = static_cast<CK_ULONG>(std::max<int64_t>(stretched, 0));
}

// Another AES key on the token of this session, token object for token object
// and session object for session object: the next one in the order of handles,
// so that of two keys each stands for the other. The key itself where it is
// alone of its kind.
CK_OBJECT_HANDLE OtherKey(const CK_FUNCTION_LIST* real,
                          CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key) {
  CK_SESSION_INFO info = {};
  CK_SESSION_HANDLE search;
  if (real->C_GetSessionInfo(session, &info) != CKR_OK ||
      real->C_OpenSession(info.slotID, CKF_SERIAL_SESSION, nullptr, nullptr,
                          &search) != CKR_OK) {
    return key;
  }
  CK_OBJECT_CLASS object_class = CKO_SECRET_KEY;
  CK_KEY_TYPE key_type = CKK_AES;
  CK_BBOOL on_token = CK_FALSE;
  CK_ATTRIBUTE wanted[] = {
      {CKA_CLASS, &object_class, sizeof object_class},
      {CKA_KEY_TYPE, &key_type, sizeof key_type},
      {CKA_TOKEN, &on_token, sizeof on_token},
  };
  std::vector<CK_OBJECT_HANDLE> keys(1024);
  CK_ULONG count = 0;
  if (real->C_GetAttributeValue(search, key, &wanted[2], 1) == CKR_OK &&
      real->C_FindObjectsInit(search, wanted, 3) == CKR_OK) {
    if (real->C_FindObjects(search, keys.data(), keys.size(), &count) !=
        CKR_OK) {
      count = 0;
    }
    real->C_FindObjectsFinal(search);
  }
  real->C_CloseSession(search);
  keys.resize(count);
  std::erase(keys, key);
  if (keys.empty()) return key;
  std::sort(keys.begin(), keys.end());
  const auto next = std::upper_bound(keys.begin(), keys.end(), key);
  return next == keys.end() ? keys.front() : *next;
}

bool Has(const CK_ATTRIBUTE* attributes, CK_ULONG count,
         CK_ATTRIBUTE_TYPE type) {
  return std::any_of(attributes, attributes + count,
                     [&](const CK_ATTRIBUTE& a) { return a.type == type; });
}

std::string IvDetail(const CK_MECHANISM* mechanism) {
  if (mechanism == nullptr || mechanism->mechanism != CKM_AES_GCM ||
      mechanism->pParameter == nullptr ||
      mechanism->ulParameterLen != sizeof(CK_GCM_PARAMS)) {
    return "";
  }
  const auto* params = static_cast<const CK_GCM_PARAMS*>(mechanism->pParameter);
  std::string detail = " iv=";
  for (CK_ULONG i = 0; params->iv_ptr != nullptr && i < params->iv_len; ++i) {
    absl::StrAppend(&detail, absl::Hex(params->iv_ptr[i], absl::kZeroPad2));
  }
  return detail;
}

// ---- entry points ----------------------------------------------------------

// A function that is only forwarded. kSession: its first argument is a session.
template <auto kMember, const char* kName, bool kSession>
struct Plain;
template <typename... Args, CK_RV (*CK_FUNCTION_LIST::*kMember)(Args...),
          const char* kName, bool kSession>
struct Plain<kMember, kName, kSession> {
  static CK_RV Call(Args... args) {
    RuleSet::Call call{kName};
    if constexpr (kSession) call.session = std::get<0>(std::tie(args...));
    return Module::Get().Run(
        call,
        [&](const CK_FUNCTION_LIST* real, const Rule&) {
          return (real->*kMember)(args...);
        },
        NoChange, NoDetail);
  }
};

// (session, input, its size, output, its size)
template <auto kMember, const char* kName>
struct OneShot {
  static CK_RV Call(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_size,
                    CK_BYTE_PTR out, CK_ULONG_PTR out_size) {
    return Module::Get().Run(
        {kName, session, in_size},
        [&](const CK_FUNCTION_LIST* real, const Rule&) {
          return (real->*kMember)(session, in, in_size, out, out_size);
        },
        [&](const Rule& rule, CK_RV&) { ChangeOutput(rule, out, out_size); },
        [&] { return absl::StrCat(" size=", in_size); });
  }
};

// (session, mechanism, key)
template <auto kMember, const char* kName>
struct KeyedInit {
  static CK_RV Call(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism,
                    CK_OBJECT_HANDLE key) {
    CK_OBJECT_HANDLE used = key;
    return Module::Get().Run(
        {kName, session},
        [&](const CK_FUNCTION_LIST* real, const Rule& rule) {
          if (rule.swapkey) used = OtherKey(real, session, key);
          return (real->*kMember)(session, mechanism, used);
        },
        NoChange,
        [&] {
          return absl::StrCat(
              " key=", key, used != key ? absl::StrCat(" swapped=", used) : "",
              IvDetail(mechanism));
        });
  }
};

CK_RV GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list);

CK_RV Initialize(CK_VOID_PTR init_args) {
  return Module::Get().Initialize(init_args);
}

CK_RV Finalize(CK_VOID_PTR reserved) {
  return Module::Get().Finalize(reserved);
}

CK_RV GetSlotList(CK_BBOOL present, CK_SLOT_ID_PTR slots, CK_ULONG_PTR count) {
  const CK_ULONG offset = Module::Get().SlotOffset();
  return Module::Get().Run(
      {"C_GetSlotList"},
      [&](const CK_FUNCTION_LIST* real, const Rule&) {
        return real->C_GetSlotList(present, slots, count);
      },
      [&](const Rule& rule, CK_RV&) {
        if (rule.slots == Rule::Slots::kNone) *count = 0;
        if (slots == nullptr) return;
        if (rule.slots == Rule::Slots::kReverse) {
          std::reverse(slots, slots + *count);
        }
        for (CK_ULONG i = 0; i < *count; ++i) slots[i] += offset;
      },
      NoDetail);
}

// A function whose first argument is a slot id.
template <auto kMember, const char* kName>
struct SlotCall;
template <typename... Args,
          CK_RV (*CK_FUNCTION_LIST::*kMember)(CK_SLOT_ID, Args...),
          const char* kName>
struct SlotCall<kMember, kName> {
  static CK_RV Call(CK_SLOT_ID slot, Args... args) {
    slot -= Module::Get().SlotOffset();
    return Module::Get().Run(
        {kName},
        [&](const CK_FUNCTION_LIST* real, const Rule&) {
          return (real->*kMember)(slot, args...);
        },
        NoChange, NoDetail);
  }
};

CK_RV GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info) {
  slot -= Module::Get().SlotOffset();
  return Module::Get().Run(
      {"C_GetTokenInfo"},
      [&](const CK_FUNCTION_LIST* real, const Rule&) {
        return real->C_GetTokenInfo(slot, info);
      },
      [&](const Rule& rule, CK_RV&) {
        info->flags = (info->flags & ~rule.flags_clear) | rule.flags;
      },
      NoDetail);
}

CK_RV OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR application,
                  CK_NOTIFY notify, CK_SESSION_HANDLE_PTR session) {
  slot -= Module::Get().SlotOffset();
  bool opened = false;
  return Module::Get().Run(
      {"C_OpenSession"},
      [&](const CK_FUNCTION_LIST* real, const Rule&) {
        const CK_RV rv =
            real->C_OpenSession(slot, flags, application, notify, session);
        opened = rv == CKR_OK;
        return rv;
      },
      NoChange,
      [&] { return opened ? absl::StrCat(" opened=", *session) : ""; });
}

CK_RV GetSessionInfo(CK_SESSION_HANDLE session, CK_SESSION_INFO_PTR info) {
  const CK_ULONG offset = Module::Get().SlotOffset();
  return Module::Get().Run(
      {"C_GetSessionInfo", session},
      [&](const CK_FUNCTION_LIST* real, const Rule&) {
        return real->C_GetSessionInfo(session, info);
      },
      [&](const Rule& rule, CK_RV&) {
        info->slotID += offset;
        if (rule.state.has_value()) info->state = *rule.state;
      },
      NoDetail);
}

CK_RV GetAttributeValue(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                        CK_ATTRIBUTE_PTR attributes, CK_ULONG count) {
  std::vector<CK_ULONG> room(count);
  for (CK_ULONG i = 0; i < count; ++i) {
    room[i] = attributes[i].pValue == nullptr ? 0 : attributes[i].ulValueLen;
  }
  const auto change = [&](const Rule& rule, CK_RV& rv) {
    for (CK_ULONG i = 0; rule.attr.has_value() && i < count; ++i) {
      CK_ATTRIBUTE& attribute = attributes[i];
      if (attribute.type != rule.attr->type) continue;
      if (!rule.attr->value.has_value()) {
        attribute.ulValueLen = CK_UNAVAILABLE_INFORMATION;
        rv = CKR_ATTRIBUTE_TYPE_INVALID;
        continue;
      }
      if (attribute.ulValueLen == CK_UNAVAILABLE_INFORMATION) {
        attribute.ulValueLen = room[i];
      }
      if (attribute.pValue == nullptr || attribute.ulValueLen > room[i]) {
        continue;
      }
      // Little-endian, as all machines this runs on: right for CK_BBOOL too.
      const CK_ULONG value = *rule.attr->value;
      const auto* bytes = reinterpret_cast<const CK_BYTE*>(&value);
      std::copy_n(bytes, std::min<CK_ULONG>(attribute.ulValueLen, sizeof value),
                  static_cast<CK_BYTE*>(attribute.pValue));
    }
  };
  return Module::Get().Run(
      {"C_GetAttributeValue", session},
      [&](const CK_FUNCTION_LIST* real, const Rule& rule) {
        CK_RV rv =
            real->C_GetAttributeValue(session, object, attributes, count);
        // An attribute the real module does not know may be made known.
        if (rv == CKR_ATTRIBUTE_TYPE_INVALID) change(rule, rv);
        return rv;
      },
      change, [&] { return absl::StrCat(" object=", object); });
}

CK_RV FindObjects(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE_PTR objects,
                  CK_ULONG max, CK_ULONG_PTR count) {
  return Module::Get().Run(
      {"C_FindObjects", session},
      [&](const CK_FUNCTION_LIST* real, const Rule&) {
        return real->C_FindObjects(session, objects, max, count);
      },
      [&](const Rule& rule, CK_RV&) {
        if (!rule.find.has_value()) return;
        const CK_ULONG wanted =
            std::min<CK_ULONG>(static_cast<CK_ULONG>(*rule.find), max);
        if (*count == 0) return;
        for (; *count < wanted; ++*count) objects[*count] = objects[*count - 1];
        *count = wanted;
      },
      [&] { return absl::StrCat(" found=", *count); });
}

CK_RV GenerateRandom(CK_SESSION_HANDLE session, CK_BYTE_PTR out,
                     CK_ULONG size) {
  return Module::Get().Run(
      {"C_GenerateRandom", session, size},
      [&](const CK_FUNCTION_LIST* real, const Rule&) {
        return real->C_GenerateRandom(session, out, size);
      },
      [&](const Rule& rule, CK_RV&) {
        if (rule.repeat) Module::Get().Repeat(out, size);
        CK_ULONG fixed = size;
        ChangeOutput(rule, out, &fixed);
      },
      [&] { return absl::StrCat(" size=", size); });
}

// Refuses a template by rule, or forwards.
template <typename Forward>
CK_RV RunWithTemplate(absl::string_view function, CK_SESSION_HANDLE session,
                      const CK_ATTRIBUTE* attributes, CK_ULONG count,
                      const CK_OBJECT_HANDLE* object, Forward forward) {
  bool made = false;
  return Module::Get().Run(
      {function, session},
      [&](const CK_FUNCTION_LIST* real, const Rule& rule) -> CK_RV {
        if (rule.refuse_attr.has_value() &&
            Has(attributes, count, rule.refuse_attr->type)) {
          return rule.refuse_attr->rv;
        }
        const CK_RV rv = forward(real);
        made = rv == CKR_OK;
        return rv;
      },
      NoChange, [&] { return made ? absl::StrCat(" object=", *object) : ""; });
}

CK_RV GenerateKey(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism,
                  CK_ATTRIBUTE_PTR attributes, CK_ULONG count,
                  CK_OBJECT_HANDLE_PTR key) {
  return RunWithTemplate("C_GenerateKey", session, attributes, count, key,
                         [&](const CK_FUNCTION_LIST* real) {
                           return real->C_GenerateKey(session, mechanism,
                                                      attributes, count, key);
                         });
}

CK_RV CreateObject(CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR attributes,
                   CK_ULONG count, CK_OBJECT_HANDLE_PTR object) {
  return RunWithTemplate("C_CreateObject", session, attributes, count, object,
                         [&](const CK_FUNCTION_LIST* real) {
                           return real->C_CreateObject(session, attributes,
                                                       count, object);
                         });
}

CK_RV UnwrapKey(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism,
                CK_OBJECT_HANDLE unwrapping_key, CK_BYTE_PTR wrapped,
                CK_ULONG size, CK_ATTRIBUTE_PTR attributes, CK_ULONG count,
                CK_OBJECT_HANDLE_PTR key) {
  return RunWithTemplate("C_UnwrapKey", session, attributes, count, key,
                         [&](const CK_FUNCTION_LIST* real) {
                           return real->C_UnwrapKey(
                               session, mechanism, unwrapping_key, wrapped,
                               size, attributes, count, key);
                         });
}

CK_RV WrapKey(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism,
              CK_OBJECT_HANDLE wrapping_key, CK_OBJECT_HANDLE key,
              CK_BYTE_PTR out, CK_ULONG_PTR out_size) {
  return Module::Get().Run(
      {"C_WrapKey", session},
      [&](const CK_FUNCTION_LIST* real, const Rule&) {
        return real->C_WrapKey(session, mechanism, wrapping_key, key, out,
                               out_size);
      },
      [&](const Rule& rule, CK_RV&) { ChangeOutput(rule, out, out_size); },
      NoDetail);
}

CK_RV DestroyObject(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object) {
  return Module::Get().Run(
      {"C_DestroyObject", session},
      [&](const CK_FUNCTION_LIST* real, const Rule& rule) {
        return real->C_DestroyObject(
            session, rule.swapkey ? OtherKey(real, session, object) : object);
      },
      NoChange, [&] { return absl::StrCat(" object=", object); });
}

CK_FUNCTION_LIST MakeFunctionList() {
  CK_FUNCTION_LIST list = {};
  list.version = {2, 40};
  list.C_GetFunctionList = GetFunctionList;
  list.C_Initialize = Initialize;
  list.C_Finalize = Finalize;
  list.C_GetSlotList = GetSlotList;
  list.C_GetTokenInfo = GetTokenInfo;
  list.C_OpenSession = OpenSession;
  list.C_GetSessionInfo = GetSessionInfo;
  list.C_GetAttributeValue = GetAttributeValue;
  list.C_FindObjects = FindObjects;
  list.C_GenerateRandom = GenerateRandom;
  list.C_GenerateKey = GenerateKey;
  list.C_CreateObject = CreateObject;
  list.C_UnwrapKey = UnwrapKey;
  list.C_WrapKey = WrapKey;
  list.C_DestroyObject = DestroyObject;

#define ENTRY(function, Kind, ...)                  \
  static constexpr char k##function[] = #function;  \
  list.function = Kind<&CK_FUNCTION_LIST::function, \
                       k##function __VA_OPT__(, ) __VA_ARGS__>::Call
  ENTRY(C_GetInfo, Plain, false);
  ENTRY(C_WaitForSlotEvent, Plain, false);
  ENTRY(C_GetSlotInfo, SlotCall);
  ENTRY(C_GetMechanismList, SlotCall);
  ENTRY(C_GetMechanismInfo, SlotCall);
  ENTRY(C_InitToken, SlotCall);
  ENTRY(C_CloseAllSessions, SlotCall);
  ENTRY(C_InitPIN, Plain, true);
  ENTRY(C_SetPIN, Plain, true);
  ENTRY(C_CloseSession, Plain, true);
  ENTRY(C_GetOperationState, Plain, true);
  ENTRY(C_SetOperationState, Plain, true);
  ENTRY(C_Login, Plain, true);
  ENTRY(C_Logout, Plain, true);
  ENTRY(C_CopyObject, Plain, true);
  ENTRY(C_GetObjectSize, Plain, true);
  ENTRY(C_SetAttributeValue, Plain, true);
  ENTRY(C_FindObjectsInit, Plain, true);
  ENTRY(C_FindObjectsFinal, Plain, true);
  ENTRY(C_EncryptInit, KeyedInit);
  ENTRY(C_Encrypt, OneShot);
  ENTRY(C_EncryptUpdate, OneShot);
  ENTRY(C_EncryptFinal, Plain, true);
  ENTRY(C_DecryptInit, KeyedInit);
  ENTRY(C_Decrypt, OneShot);
  ENTRY(C_DecryptUpdate, OneShot);
  ENTRY(C_DecryptFinal, Plain, true);
  ENTRY(C_DigestInit, Plain, true);
  ENTRY(C_Digest, OneShot);
  ENTRY(C_DigestUpdate, Plain, true);
  ENTRY(C_DigestKey, Plain, true);
  ENTRY(C_DigestFinal, Plain, true);
  ENTRY(C_SignInit, KeyedInit);
  ENTRY(C_Sign, OneShot);
  ENTRY(C_SignUpdate, Plain, true);
  ENTRY(C_SignFinal, Plain, true);
  ENTRY(C_SignRecoverInit, KeyedInit);
  ENTRY(C_SignRecover, OneShot);
  ENTRY(C_VerifyInit, KeyedInit);
  ENTRY(C_Verify, Plain, true);
  ENTRY(C_VerifyUpdate, Plain, true);
  ENTRY(C_VerifyFinal, Plain, true);
  ENTRY(C_VerifyRecoverInit, KeyedInit);
  ENTRY(C_VerifyRecover, OneShot);
  ENTRY(C_DigestEncryptUpdate, OneShot);
  ENTRY(C_DecryptDigestUpdate, OneShot);
  ENTRY(C_SignEncryptUpdate, OneShot);
  ENTRY(C_DecryptVerifyUpdate, OneShot);
  ENTRY(C_GenerateKeyPair, Plain, true);
  ENTRY(C_DeriveKey, Plain, true);
  ENTRY(C_SeedRandom, Plain, true);
  ENTRY(C_GetFunctionStatus, Plain, true);
  ENTRY(C_CancelFunction, Plain, true);
#undef ENTRY
  return list;
}

CK_RV GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) {
  static CK_FUNCTION_LIST functions = MakeFunctionList();
  if (list == nullptr) return CKR_ARGUMENTS_BAD;
  *list = &functions;
  return CKR_OK;
}

}  // namespace
}  // namespace kek::fault

extern "C" __attribute__((visibility("default"))) CK_RV C_GetFunctionList(
    CK_FUNCTION_LIST_PTR_PTR list) {
  return kek::fault::GetFunctionList(list);
}
