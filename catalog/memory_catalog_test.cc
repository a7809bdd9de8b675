// SPDX-License-Identifier: Apache-2.0
#include "catalog/catalog_test_suite.h"

namespace kek::catalog {
namespace {

INSTANTIATE_TEST_SUITE_P(
    Memory, CatalogTest,
    ::testing::Values(BackEnd{
        "Memory",
        [](const std::string&) -> absl::StatusOr<std::unique_ptr<Catalog>> {
          return MakeMemoryCatalog();
        }}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace kek::catalog
