// SPDX-License-Identifier: Apache-2.0
//
// plugin_status SOCKET: one Status call; the exit code is the gRPC code. For
// tests that need a caller with another identity.
#include "kubernetes/kms/v2/api.grpc.pb.h"
#include "tests/support/kekd_process.h"

int main(int argc, char** argv) {
  if (argc != 2) return 100;
  auto stub =
      v2::KeyManagementService::NewStub(kek::integration::ConnectTo(argv[1]));
  v2::StatusResponse response;
  return stub
      ->Status(kek::integration::Context(std::chrono::seconds(3)).get(),
               v2::StatusRequest(), &response)
      .error_code();
}
