// SPDX-License-Identifier: Apache-2.0
#include "base/failpoint.h"

#ifdef KEK_FAILPOINTS

#include <csignal>
#include <cstdlib>

#include <atomic>
#include <string>

#include <unistd.h>

namespace kek::base {

void PassFailpoint(const char* name) {
  struct Armed {
    std::string name;
    std::atomic<long> passages_left{1};
  };
  static Armed* const armed = []() -> Armed* {
    const char* text = std::getenv("KEKD_FAILPOINT");
    if (text == nullptr || *text == '\0') return nullptr;
    auto* made = new Armed;
    made->name = text;
    if (const size_t colon = made->name.rfind(':');
        colon != std::string::npos) {
      made->passages_left =
          std::strtol(made->name.c_str() + colon + 1, nullptr, 10);
      made->name.resize(colon);
    }
    return made;
  }();
  if (armed == nullptr || armed->name != name) return;
  if (armed->passages_left.fetch_sub(1) == 1) {
    kill(getpid(), SIGKILL);
    pause();
  }
}

}  // namespace kek::base

#endif
