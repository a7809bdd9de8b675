// SPDX-License-Identifier: Apache-2.0
#include "cache/cache.h"

#include <string>

namespace kek::cache {

// The templates live in their headers; one instance is compiled here so that
// every build and analysis of this folder sees them whole.
template class SingleFlight<std::string, std::string>;
template class Cache<std::string, std::string>;

}  // namespace kek::cache
