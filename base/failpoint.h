// SPDX-License-Identifier: Apache-2.0
#pragma once

// Named places at which a test may stop the process as kill -9 would. In builds
// with KEK_FAILPOINTS the environment variable KEKD_FAILPOINT="name" or
// "name:N" makes the N-th passage (default the first) through that place send
// SIGKILL to the process. In other builds the macro is nothing at all.
#ifdef KEK_FAILPOINTS
namespace kek::base {
void PassFailpoint(const char* name);
}  // namespace kek::base
#define KEK_FAILPOINT(name) ::kek::base::PassFailpoint(name)
#else
#define KEK_FAILPOINT(name) static_cast<void>(0)
#endif
