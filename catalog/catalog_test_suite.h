// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "base/sync.h"
#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "catalog/catalog.h"
#include "gtest/gtest.h"

namespace kek::catalog {

// One suite for every back end: what it proves is what the rest of kekd may
// count on. A back end joins it with
//   INSTANTIATE_TEST_SUITE_P(Sqlite, CatalogTest,
//   ::testing::Values(BackEnd{...}));
// in a test of its own, linked with catalog_test_suite.cc.
struct BackEnd {
  std::string name;
  // Opens a catalog in dir, an empty directory of this test.
  std::function<absl::StatusOr<std::unique_ptr<Catalog>>(
      const std::string& dir)>
      open;
};
inline void PrintTo(const BackEnd& back_end, std::ostream* out) {
  *out << back_end.name;
}

class CatalogTest : public ::testing::TestWithParam<BackEnd> {
 protected:
  void SetUp() override {
    auto catalog = GetParam().open(dir_.path());
    ASSERT_OK(catalog);
    catalog_ = *std::move(catalog);
  }

  base::testing::TempDir dir_;
  std::unique_ptr<Catalog> catalog_;
};

// Material for tests of catalogs.
base::Deadline Soon();
absl::Time At(int64_t seconds);  // after 2026-01-01
ResourceName NameOf(absl::string_view text);
// Ring "projects/p/locations/l/keyRings/r", key ".../cryptoKeys/k".
const ResourceName& RingName();
const ResourceName& KeyName();
// Records with every field set to something that is not its default, so that a
// field that gets lost is seen. Not stored yet.
KeyRing FullRing(const ResourceName& name);
CryptoKey FullKey(const ResourceName& name);
CryptoKeyVersion FullVersion(const ResourceName& name);
// Stores one record in a transaction of its own.
template <typename Record>
absl::Status Store(Catalog& catalog, Record& record) {
  uint64_t revision = 0;
  const absl::Status status = catalog.Transact(
      [&](Transaction& t) {
        Record copy = record;
        const absl::Status put = t.Put(copy);
        revision = copy.revision;
        return put;
      },
      Soon());
  if (status.ok()) record.revision = revision;
  return status;
}
// Stores RingName() and KeyName().
void StoreParents(Catalog& catalog);

// All fields, for assertions.
std::string Show(const KeyRing& ring);
std::string Show(const CryptoKey& key);
std::string Show(const CryptoKeyVersion& version);

}  // namespace kek::catalog
