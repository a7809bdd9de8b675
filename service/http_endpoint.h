// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kek::service {

// HttpEndpoint models what kekd tells monitoring, over plain HTTP on a loopback
// address: /metrics in Prometheus' text format, /livez and /readyz. A probe
// answers 200 "ok", or 503 with one reason a line. Everything else is 404, and
// only GET and HEAD are known. Thread-safe; stops on destruction.
class HttpEndpoint {
 public:
  struct Options {
    std::string listen;  // "127.0.0.1:9464", "[::1]:0"
    // All are called on threads of the endpoint and must answer from memory.
    std::function<std::string()> metrics;
    std::function<std::vector<std::string>()> not_live;   // empty: alive
    std::function<std::vector<std::string>()> not_ready;  // empty: ready
  };
  // FAILED_PRECONDITION: the port is taken, or the address is not one of this
  // host.
  static absl::StatusOr<std::unique_ptr<HttpEndpoint>> Start(Options options);
  ~HttpEndpoint();

  // What was bound, also when port 0 was asked for.
  int port() const;

 private:
  class Civet;
  explicit HttpEndpoint(std::unique_ptr<Civet> civet);
  std::unique_ptr<Civet> civet_;
};

}  // namespace kek::service
