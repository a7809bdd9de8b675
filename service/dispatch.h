// SPDX-License-Identifier: Apache-2.0
#pragma once

// Dispatch: from a gRPC callback method to plain blocking code and back.
// (gRPC-heavy; include only from adapters.)
//
//   grpc::ServerUnaryReactor* Encrypt(grpc::CallbackServerContext* ctx, const
//   Request* req, Response* resp) override {
//     return dispatch_.Run(ctx, "Encrypt", [this, req, resp](const
//     core::CallInfo& call) -> absl::Status { ... });
//   }
//
// Run finds the Caller by ctx->peer(), takes the deadline from ctx (or the
// default), queues the work and finishes the reactor with the Status translated
// once. If the deadline passes or the client goes away while the work is stuck
// (PKCS#11 calls cannot be cancelled), the client is answered without it: req
// and resp stay alive until the work returns, and its result is discarded.
