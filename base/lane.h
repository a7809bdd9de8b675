// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/sync.h"

namespace kek::base {

// Lane models a narrow place that work passes one at a time (or capacity at a
// time): the token's admin session, the login, the catalog's writing
// connection. It is what kekd uses where a mutex would be held across an HSM,
// disk or network call: entering has a deadline, the queue is bounded and first
// come first served, and a holder that hangs can be abandoned, so that the lane
// goes on without it. Thread-safe. A Hold may outlive the Lane.
class Lane {
 public:
  struct Options {
    std::string name;           // for errors: "admin lane of token kek-a"
    int capacity = 1;           // holders at a time
    size_t max_waiters = 1024;  // further callers are refused
  };

  // The right to be in the lane. Gives it back on destruction. Move-only.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept;
    Hold& operator=(Hold&& other) noexcept;
    ~Hold() { Release(); }
    void Release() noexcept;
    // False when the lane was taken from this holder (AbandonHolders): what it
    // did must be discarded.
    bool valid() const;

   private:
    friend class Lane;
    struct State;
    Hold(std::shared_ptr<State> state, uint64_t ticket)
        : state_(std::move(state)), ticket_(ticket) {}
    std::shared_ptr<State> state_;
    uint64_t ticket_ = 0;
  };

  explicit Lane(Options options);
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // DEADLINE_EXCEEDED when the turn did not come in time; RESOURCE_EXHAUSTED
  // when max_waiters already wait.
  absl::StatusOr<Hold> Enter(Deadline deadline);

  // Takes the lane from holders that entered before entered_before; their Holds
  // become invalid and free nothing. Returns how many there were. For a
  // supervisor that has given up on a hung call.
  int AbandonHolders(Deadline entered_before);

 private:
  std::shared_ptr<Hold::State> state_;
};

}  // namespace kek::base
