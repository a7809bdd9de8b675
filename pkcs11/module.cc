// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/module.h"

#include <algorithm>
#include <map>
#include <utility>

#include <p11-kit/p11-kit.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "pkcs11/error_internal.h"

namespace kek::pkcs11 {
namespace {

// What C_Initialize gets. NSS softokn reads one pointer beyond the standard
// structure.
struct InitializeArgs {
  CK_C_INITIALIZE_ARGS standard{};
  void* nss_reserved = nullptr;
};

constexpr auto kSlice = std::chrono::milliseconds(50);

bool HasFunctions(const CK_FUNCTION_LIST& f) {
  return f.C_Initialize != nullptr && f.C_Finalize != nullptr &&
         f.C_GetInfo != nullptr && f.C_GetSlotList != nullptr &&
         f.C_GetTokenInfo != nullptr && f.C_OpenSession != nullptr &&
         f.C_CloseSession != nullptr && f.C_GetSessionInfo != nullptr &&
         f.C_Login != nullptr && f.C_FindObjectsInit != nullptr &&
         f.C_FindObjects != nullptr && f.C_FindObjectsFinal != nullptr &&
         f.C_GetAttributeValue != nullptr && f.C_SetAttributeValue != nullptr &&
         f.C_CopyObject != nullptr && f.C_GenerateKey != nullptr &&
         f.C_DestroyObject != nullptr && f.C_WrapKey != nullptr &&
         f.C_UnwrapKey != nullptr && f.C_EncryptInit != nullptr &&
         f.C_Encrypt != nullptr && f.C_DecryptInit != nullptr &&
         f.C_Decrypt != nullptr && f.C_GenerateRandom != nullptr;
}

}  // namespace

// A loaded library; there for the rest of the process.
struct Module::Library {
  CK_FUNCTION_LIST* functions = nullptr;
  std::weak_ptr<Module> module;
  bool owned = false;  // a Module exists, or its end was not clean
  // Initialised by us, and no C_Finalize has said otherwise: libraries whose
  // device is gone may refuse to be finalised. For the owner alone.
  bool held = false;

  static base::Mutex& Lock() {
    static auto* mu = new base::Mutex();
    return *mu;
  }
  static base::CondVar& Changed() {
    static auto* changed = new base::CondVar();
    return *changed;
  }
  static std::map<std::string, Library>& All() {
    static auto* all = new std::map<std::string, Library>();
    return *all;
  }
};

Module::Use& Module::Use::operator=(Use&& other) noexcept {
  if (this != &other) {
    Leave();
    module_ = std::move(other.module_);
  }
  return *this;
}

void Module::Use::Leave() noexcept {
  if (module_ == nullptr) return;
  bool wake = false;
  {
    base::MutexLock lock(module_->mu_);
    --module_->users_;
    wake = module_->closed_;
  }
  if (wake) module_->changed_.NotifyAll();
  module_.reset();
}

Module::Exclusive::~Exclusive() {
  if (module_ == nullptr) return;
  {
    base::MutexLock lock(module_->mu_);
    module_->closed_ = false;
  }
  module_->changed_.NotifyAll();
}

absl::StatusOr<std::shared_ptr<Module>> Module::Load(
    const std::string& path, const std::string& init_args) {
  if (path.empty() || path[0] != '/') {
    return absl::InvalidArgumentError(absl::StrCat(
        "PKCS#11 module \"", path, "\": the path must be absolute"));
  }
  if (access(path.c_str(), F_OK) != 0) {
    return absl::NotFoundError(
        absl::StrCat("PKCS#11 module ", path, ": no such file"));
  }
  base::MutexLock lock(Library::Lock());
  Library& library = Library::All()[path];
  if (library.functions == nullptr) {
    CK_FUNCTION_LIST* functions =
        p11_kit_module_load(path.c_str(), P11_KIT_MODULE_UNMANAGED);
    if (functions == nullptr) {
      const char* why = p11_kit_message();
      return absl::FailedPreconditionError(absl::StrCat(
          "PKCS#11 module ", path,
          " does not load: ", why != nullptr ? why : "unknown reason"));
    }
    if (functions->version.major != 2 || !HasFunctions(*functions)) {
      return absl::FailedPreconditionError(
          absl::StrCat("PKCS#11 module ", path,
                       ": not a version 2 function list, or functions that "
                       "kekd needs are missing"));
    }
    library.functions = functions;
  }
  if (std::shared_ptr<Module> existing = library.module.lock()) {
    if (existing->init_args_ != init_args) {
      return absl::FailedPreconditionError(absl::StrCat(
          "PKCS#11 module ", path, " is in use with other init_args"));
    }
    return existing;
  }
  // The previous Module may be in its C_Finalize.
  const base::Deadline patience = base::DeadlineAfter(std::chrono::seconds(10));
  while (library.owned) {
    if (!Library::Changed().WaitUntil(Library::Lock(), patience) &&
        std::chrono::steady_clock::now() >= patience && library.owned) {
      return absl::FailedPreconditionError(
          absl::StrCat("PKCS#11 module ", path,
                       " was not left cleanly: a call hangs in it"));
    }
  }
  library.owned = true;
  std::shared_ptr<Module> module(new Module(&library, path, init_args));
  library.module = module;
  return module;
}

Module::Module(Library* library, std::string path, std::string init_args)
    : library_(library),
      path_(std::move(path)),
      init_args_(std::move(init_args)),
      functions_(library->functions) {}

Module::~Module() {
  // Every Use holds a reference, so none is left.
  if (epoch() != 0 || library_->held) {
    const CK_RV rv = functions_->C_Finalize(nullptr);
    library_->held = rv != CKR_OK && rv != CKR_CRYPTOKI_NOT_INITIALIZED;
  }
  {
    base::MutexLock lock(Library::Lock());
    library_->owned = false;
  }
  Library::Changed().NotifyAll();
}

uint64_t Module::epoch() const {
  base::MutexLock lock(mu_);
  return epoch_;
}

absl::StatusOr<Module::Use> Module::Enter(const std::shared_ptr<Module>& self,
                                          base::Deadline deadline) {
  base::MutexLock lock(self->mu_);
  while (self->closed_) {
    if (!self->changed_.WaitUntil(self->mu_, deadline) &&
        std::chrono::steady_clock::now() >= deadline && self->closed_) {
      return absl::DeadlineExceededError(
          "the token is being recovered; the deadline passed meanwhile");
    }
  }
  ++self->users_;
  return Use(self);
}

absl::StatusOr<Module::Exclusive> Module::Drain(
    const std::shared_ptr<Module>& self, std::function<int()> tolerated,
    base::Deadline deadline) {
  {
    base::MutexLock lock(self->mu_);
    while (self->closed_) {
      if (!self->changed_.WaitUntil(self->mu_, deadline) &&
          std::chrono::steady_clock::now() >= deadline && self->closed_) {
        return absl::DeadlineExceededError(
            "another token's recovery of this module takes too long");
      }
    }
    self->closed_ = true;
  }
  while (true) {
    const int allowed = tolerated();
    base::MutexLock lock(self->mu_);
    if (self->users_ <= allowed) return Exclusive(self, self->users_ == 0);
    const base::Deadline now = std::chrono::steady_clock::now();
    if (now >= deadline) {
      self->closed_ = false;
      self->changed_.NotifyAll();
      return absl::DeadlineExceededError(
          absl::StrCat(self->users_,
                       " PKCS#11 calls do not return; the library cannot be "
                       "re-initialised under them"));
    }
    self->changed_.WaitUntil(self->mu_, std::min(deadline, now + kSlice));
  }
}

absl::Status Module::Initialize(const Exclusive& gate, uint64_t seen_epoch,
                                CallWatch& watch) {
  {
    base::MutexLock lock(mu_);
    if (epoch_ != seen_epoch) return absl::OkStatus();
    epoch_ = 0;
  }
  if (!gate.empty()) {
    return MakeError(ErrorClass::kDevice,
                     "calls hang in the PKCS#11 library; it cannot be "
                     "re-initialised");
  }
  const std::shared_ptr<CallSlot> slot = watch.NewSlot();
  if (seen_epoch != 0 || library_->held) {
    // A failure is no reason to stop: some libraries fail here and are well
    // after the C_Initialize that follows. But the library may still be ours.
    const CK_RV rv = watch.Run(Function::kFinalize, *slot,
                               [&] { return functions_->C_Finalize(nullptr); });
    library_->held = rv != CKR_OK && rv != CKR_CRYPTOKI_NOT_INITIALIZED;
  }
  InitializeArgs args;
  args.standard.flags = CKF_OS_LOCKING_OK;
  std::string init_args = init_args_;  // CK_VOID_PTR: not const
  if (!init_args.empty()) args.standard.pReserved = init_args.data();
  const CK_RV rv = watch.Run(Function::kInitialize, *slot, [&] {
    return functions_->C_Initialize(&args.standard);
  });
  if (rv == CKR_CRYPTOKI_ALREADY_INITIALIZED) {
    if (!library_->held) {
      return FromRv(rv, Operation::kInitialize,
                    absl::StrCat("PKCS#11 module ", path_,
                                 " is in use by someone else in this process"));
    }
  } else if (rv != CKR_OK) {
    return FromRv(rv, Operation::kInitialize,
                  absl::StrCat("C_Initialize of ", path_));
  }
  library_->held = true;
  base::MutexLock lock(mu_);
  epoch_ = ++last_epoch_;
  return absl::OkStatus();
}

}  // namespace kek::pkcs11
