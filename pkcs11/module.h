// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sync.h"
#include "pkcs11/call_watch.h"
#include "pkcs11/cryptoki.h"

namespace kek::pkcs11 {

// Module models one PKCS#11 library in this process: loaded by absolute path,
// never unloaded (libraries with OpenSSL inside do not survive that), and
// initialised while a Module of it lives. Tokens of one library share a Module.
// It owns the generation gate: whoever makes calls is inside (Use), and the
// library is re-initialised only when everybody is outside (Exclusive), because
// C_Finalize under a running call crashes real modules. Thread-safe.
class Module {
 public:
  // The right to make calls. Leaves on destruction. Move-only.
  class Use {
   public:
    Use() = default;
    Use(Use&& other) noexcept : module_(std::move(other.module_)) {}
    Use& operator=(Use&& other) noexcept;
    ~Use() { Leave(); }

   private:
    friend class Module;
    explicit Use(std::shared_ptr<Module> module) : module_(std::move(module)) {}
    void Leave() noexcept;
    std::shared_ptr<Module> module_;
  };

  // Nobody else makes calls, but those tolerated. Move-only.
  class Exclusive {
   public:
    Exclusive(Exclusive&& other) noexcept
        : module_(std::move(other.module_)), empty_(other.empty_) {}
    Exclusive& operator=(Exclusive&&) = delete;
    ~Exclusive();
    // No call at all is running.
    bool empty() const { return empty_; }

   private:
    friend class Module;
    Exclusive(std::shared_ptr<Module> module, bool empty)
        : module_(std::move(module)), empty_(empty) {}
    std::shared_ptr<Module> module_;
    bool empty_;
  };

  // INVALID_ARGUMENT: path not absolute. NOT_FOUND: no such file.
  // FAILED_PRECONDITION: not a PKCS#11 module, or in use with other init_args.
  static absl::StatusOr<std::shared_ptr<Module>> Load(
      const std::string& path, const std::string& init_args);
  // C_Finalize, unless calls are still running.
  ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  CK_FUNCTION_LIST* functions() const { return functions_; }
  const std::string& path() const { return path_; }
  // Grows with every C_Initialize; 0 while not initialised.
  uint64_t epoch() const;

  // self must be the pointer this Module lives in.
  static absl::StatusOr<Use> Enter(const std::shared_ptr<Module>& self,
                                   base::Deadline deadline);
  // Lets nobody in and waits until at most tolerated() calls are running.
  // DEADLINE_EXCEEDED leaves the gate as it was.
  static absl::StatusOr<Exclusive> Drain(const std::shared_ptr<Module>& self,
                                         std::function<int()> tolerated,
                                         base::Deadline deadline);

  // C_Initialize, preceded by C_Finalize when it was initialised. Does nothing
  // when epoch() is no longer seen_epoch: another token did it.
  // FAILED_PRECONDITION when the library says that someone else in this process
  // initialised it; otherwise the class of the CK_RV.
  absl::Status Initialize(const Exclusive& gate, uint64_t seen_epoch,
                          CallWatch& watch);

 private:
  struct Library;
  Module(Library* library, std::string path, std::string init_args);

  Library* const library_;
  const std::string path_;
  const std::string init_args_;
  CK_FUNCTION_LIST* const functions_;
  mutable base::Mutex mu_;
  base::CondVar changed_;
  int users_ ABSL_GUARDED_BY(mu_) = 0;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t epoch_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t last_epoch_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace kek::pkcs11
