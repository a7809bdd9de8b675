// SPDX-License-Identifier: Apache-2.0
#include "service/http_endpoint.h"

#include <arpa/inet.h>
#include <civetweb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/log.h"

namespace kek::service {
namespace {

struct Answer {
  int code = 200;
  absl::string_view type = "text/plain; charset=utf-8";
  std::string body;
};

Answer Probe(const std::vector<std::string>& reasons) {
  if (reasons.empty()) return {.body = "ok\n"};
  Answer answer{.code = 503, .body = ""};
  for (const std::string& reason : reasons) {
    absl::StrAppend(&answer.body, reason, "\n");
  }
  return answer;
}

absl::string_view Phrase(int code) {
  switch (code) {
    case 200:
      return "OK";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    default:
      return "Service Unavailable";
  }
}

}  // namespace

class HttpEndpoint::Civet {
 public:
  explicit Civet(Options options) : options_(std::move(options)) {}
  // civetweb's accepting thread looks for the stop once in two seconds, or when
  // somebody knocks.
  ~Civet() {
    if (context_ == nullptr) return;
    std::atomic<bool> stopped{false};
    std::thread stopper([&] {
      mg_stop(context_);
      stopped = true;
    });
    while (!stopped) {
      Knock();
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    stopper.join();
  }

  absl::Status Start() {
    // No document root: nothing of the file system is ever served.
    const char* settings[] = {"listening_ports",
                              options_.listen.c_str(),
                              "num_threads",
                              "3",
                              "request_timeout_ms",
                              "5000",
                              "max_request_size",
                              "16384",
                              "enable_directory_listing",
                              "no",
                              nullptr};
    mg_callbacks callbacks{};
    callbacks.begin_request = &Civet::Handle;
    callbacks.log_message = [](const mg_connection*, const char* message) {
      base::LogDebug("http endpoint", {{"reason", message}});
      return 1;
    };
    mg_init_library(0);
    mg_error_data error{};
    char text[256] = {};
    error.text = text;
    error.text_buffer_size = sizeof(text);
    mg_init_data init{};
    init.callbacks = &callbacks;
    init.user_data = this;
    init.configuration_options = settings;
    context_ = mg_start2(&init, &error);
    mg_server_port ports[2] = {};
    if (context_ == nullptr || mg_get_server_ports(context_, 2, ports) != 1) {
      return absl::FailedPreconditionError(absl::StrCat(
          "cannot listen on ", options_.listen,
          " for http: the port is taken, or the address is not one of this "
          "host",
          text[0] == '\0' ? "" : " (", text, text[0] == '\0' ? "" : ")"));
    }
    port_ = ports[0].port;
    is_ipv6_ = ports[0].protocol != 1;
    return absl::OkStatus();
  }

  int port() const { return port_; }

 private:
  static int Handle(mg_connection* connection) {
    const void* self = mg_get_user_data(mg_get_context(connection));
    const mg_request_info& request = *mg_get_request_info(connection);
    const absl::string_view method = request.request_method;
    const Answer answer = static_cast<const Civet*>(self)->Respond(
        method, request.local_uri == nullptr ? "" : request.local_uri);
    std::string head = absl::StrCat(
        "HTTP/1.1 ", answer.code, " ", Phrase(answer.code),
        "\r\nContent-Type: ", answer.type,
        "\r\nContent-Length: ", answer.body.size(),
        "\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n",
        answer.code == 405 ? "Allow: GET, HEAD\r\n" : "",
        "Connection: close\r\n\r\n");
    mg_write(connection, head.data(), head.size());
    if (method != "HEAD") {
      mg_write(connection, answer.body.data(), answer.body.size());
    }
    return answer.code;
  }

  // A connection to our own port, given up at once.
  void Knock() const {
    sockaddr_in v4{};
    v4.sin_family = AF_INET;
    v4.sin_port = htons(static_cast<uint16_t>(port_));
    v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sockaddr_in6 v6{};
    v6.sin6_family = AF_INET6;
    v6.sin6_port = v4.sin_port;
    v6.sin6_addr = in6addr_loopback;
    const int fd = socket(is_ipv6_ ? AF_INET6 : AF_INET,
                          SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return;
    const auto* address = is_ipv6_ ? reinterpret_cast<const sockaddr*>(&v6)
                                   : reinterpret_cast<const sockaddr*>(&v4);
    // Whether it is heard shows in whether the stop comes.
    static_cast<void>(connect(fd, address, is_ipv6_ ? sizeof(v6) : sizeof(v4)));
    close(fd);
  }

  Answer Respond(absl::string_view method, absl::string_view path) const {
    if (method != "GET" && method != "HEAD") {
      return {.code = 405, .body = "only GET and HEAD\n"};
    }
    if (path == "/metrics") {
      return {.type = "text/plain; version=0.0.4; charset=utf-8",
              .body = options_.metrics()};
    }
    if (path == "/livez") return Probe(options_.not_live());
    if (path == "/readyz") return Probe(options_.not_ready());
    return {.code = 404, .body = "there are /metrics, /livez and /readyz\n"};
  }

  const Options options_;
  mg_context* context_ = nullptr;
  int port_ = 0;
  bool is_ipv6_ = false;
};

absl::StatusOr<std::unique_ptr<HttpEndpoint>> HttpEndpoint::Start(
    Options options) {
  auto civet = std::make_unique<Civet>(std::move(options));
  if (absl::Status status = civet->Start(); !status.ok()) return status;
  return std::unique_ptr<HttpEndpoint>(new HttpEndpoint(std::move(civet)));
}

HttpEndpoint::HttpEndpoint(std::unique_ptr<Civet> civet)
    : civet_(std::move(civet)) {}
HttpEndpoint::~HttpEndpoint() = default;
int HttpEndpoint::port() const { return civet_->port(); }

}  // namespace kek::service
