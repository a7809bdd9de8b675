// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace kek::core {

// Who vouches for a caller's identity.
enum class Authenticator {
  kPeerCredentials,  // SO_PEERCRED and SO_PEERGROUPS of a Unix socket
  kInternal,  // kekd itself: scheduled rotation, due destruction, self-test
};

// Through which door a call came in; decides the envelope context and which
// grants can apply.
enum class FrontEnd {
  kInternal,
  kAdmin,
  kCloudKms,
  kKubernetesV1Beta1,
  kKubernetesV2
};

// Caller models who makes a call, as far as kekd knows it. Made by service/
// only (and by core for its own work). Principals are what policy grants to;
// the first is the most specific one and names the caller in audit records.
struct Caller {
  std::vector<std::string>
      principals;  // "unix:uid:1000", "unix:gid:1000", ...; "kekd:lifecycle"
                   // for internal work
  Authenticator authenticator = Authenticator::kInternal;
  FrontEnd front_end = FrontEnd::kInternal;
  std::string peer;  // "unix:/run/kekd/admin.sock pid 4711": for audit, never
                     // for decisions
  std::string binding;  // the Kubernetes binding's name, or empty

  const std::string& name() const { return principals.front(); }
};

}  // namespace kek::core
