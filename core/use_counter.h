// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "base/lane.h"
#include "base/sync.h"
#include "catalog/catalog.h"
#include "catalog/resource_name.h"

namespace kek::core {

// UseCounter models how many encryptions one key version has made, so that it
// never makes more than the limit (SP 800-38D: random IVs collide). Uses are
// reserved durably in blocks before any of them happens: a crash wastes what
// was left of a block, and the count in the catalog is never too low.
// Thread-safe. No lock is held while the catalog writes; callers that find the
// block empty take turns, and one of them reserves for all.
class UseCounter {
 public:
  struct Limits {
    uint64_t max_uses;
    uint64_t max_block;  // uses reserved at a time; grows from 1024 to this
  };
  // All references must outlive the counter.
  UseCounter(catalog::Catalog& catalog, catalog::ResourceName version,
             Limits limits);

  // The right to encrypt once, and its number, counted from 1. A number that is
  // taken is used up, whatever becomes of the encryption. FAILED_PRECONDITION
  // at the limit; else as Catalog::ReserveUses and base::Lane.
  absl::StatusOr<uint64_t> Take(base::Deadline deadline);

 private:
  // Zero when the block is empty.
  uint64_t TakeFromBlock();
  absl::Status Exhausted() const;

  catalog::Catalog& catalog_;
  const catalog::ResourceName version_;
  const Limits limits_;
  base::Lane lane_;

  base::Mutex mu_;
  // Numbers next_ .. last_ are reserved and free.
  uint64_t next_ ABSL_GUARDED_BY(mu_) = 1;
  uint64_t last_ ABSL_GUARDED_BY(mu_) = 0;

  // Touched only by who is in lane_.
  bool known_ = false;  // reserved_ has been read from the catalog
  uint64_t reserved_ = 0;
  uint64_t block_;
};

}  // namespace kek::core
