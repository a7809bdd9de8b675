// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/status/status.h"

namespace kek::service {

// Makes this process keep to itself, before it holds anything secret: no other
// user can read its memory (PR_SET_DUMPABLE 0), it leaves no core image, gains
// no privileges (PR_SET_NO_NEW_PRIVS), makes files for itself alone (umask 077)
// and does not die of a peer that goes away (SIGPIPE). Call first in main, on
// the only thread.
//
// PERMISSION_DENIED, and nothing is done, for root, real or effective, with the
// remedy: kekd needs no privilege, and what runs as root cannot be contained.
absl::Status HardenProcess();

}  // namespace kek::service
