// SPDX-License-Identifier: Apache-2.0
#pragma once

// (gRPC-heavy; include only from adapters and where they are wired.)

#include <memory>

#include <grpcpp/support/server_callback.h>
#include <grpcpp/support/status.h>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/metrics.h"
#include "core/key_service.h"
#include "service/connections.h"
#include "service/executor.h"

namespace kek::service {

// The one place where an absl::Status becomes a grpc::Status. Codes map one to
// one, UNKNOWN becomes INTERNAL; the message is cut to 1 KiB of valid UTF-8;
// payloads do not travel.
grpc::Status ToGrpcStatus(const absl::Status& status);

// What an adapter says of a call.
struct Method {
  // Which workers do it. kQuick has workers of its own, so that Status and
  // health are answered while every other worker hangs in the token; quick work
  // never waits for the token.
  enum class Speed { kOrdinary, kQuick };

  absl::string_view api;   // "kubernetes.v2", "cloudkms.v1": for metrics
  absl::string_view name;  // "Encrypt"; both are literals that live for ever
  core::FrontEnd front_end = core::FrontEnd::kAdmin;
  Speed speed = Speed::kOrdinary;
};

// Dispatch models the way from a gRPC callback method to plain blocking code
// and back:
//
//   grpc::ServerUnaryReactor* Encrypt(grpc::CallbackServerContext* ctx,
//                                     const EncryptRequest* request,
//                                     EncryptResponse* response) override {
//     return dispatch_.Run(ctx, kEncrypt, request->uid(),
//         [this, request, response](const core::CallInfo& call) {
//           return DoEncrypt(call, *request, *response);
//         });
//   }
//
// Run finds the Caller by ctx->peer(), takes the deadline from ctx (none: the
// default; never more than the maximum), queues the work and finishes the
// reactor with the Status translated once. The queue is full:
// RESOURCE_EXHAUSTED at once. The deadline passed or the client went away
// before a worker was free: no work is done. The deadline passes or the client
// goes away while the work is stuck (PKCS#11 calls cannot be cancelled): the
// client is answered without it (DEADLINE_EXCEEDED, CANCELLED), request and
// response stay alive until the work returns, and its result is discarded.
//
// Work must not touch ctx. It may use request, response and the CallInfo until
// it returns, and must outlive nothing else. Messages of the method must be
// allocated by WipingMessages (service/messages.h); without it Run answers
// INTERNAL.
//
// Thread-safe. Destroy after the servers that use it and before nothing that
// the work uses: the destructor waits for no work (the Executor's does).
class Dispatch {
 public:
  struct Options {
    Executor* ordinary = nullptr;
    Executor* quick = nullptr;
    const Connections* connections = nullptr;
    absl::Duration default_deadline = absl::Seconds(10);
    absl::Duration max_deadline = absl::Seconds(10);
    base::Metrics* metrics = nullptr;  // may be null
  };
  using Work = absl::AnyInvocable<absl::Status(const core::CallInfo& call)>;

  explicit Dispatch(Options options);
  ~Dispatch();
  Dispatch(const Dispatch&) = delete;
  Dispatch& operator=(const Dispatch&) = delete;

  // request_id: what the protocol calls the request (Kubernetes' uid); empty:
  // the metadata x-request-id, or one is made. What is not printable ASCII is
  // escaped, and 128 bytes are kept. CallInfo carries it, and the trailing
  // metadata x-request-id echoes it. Returned is what the callback method
  // returns.
  grpc::ServerUnaryReactor* Run(grpc::CallbackServerContext* ctx,
                                const Method& method,
                                absl::string_view request_id, Work work);

 private:
  class Calls;
  std::shared_ptr<Calls> calls_;
};

}  // namespace kek::service
