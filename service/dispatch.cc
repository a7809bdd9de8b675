// SPDX-License-Identifier: Apache-2.0
#include "service/dispatch.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <queue>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <grpc/support/time.h>
#include <grpcpp/server_context.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "service/messages.h"

namespace kek::service {
namespace {

constexpr size_t kMaxErrorBytes = 1024;
constexpr size_t kMaxRequestIdBytes = 128;
constexpr absl::string_view kRequestIdMetadata = "x-request-id";

grpc::StatusCode ToGrpcCode(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return grpc::StatusCode::OK;
    case absl::StatusCode::kCancelled:
      return grpc::StatusCode::CANCELLED;
    case absl::StatusCode::kInvalidArgument:
      return grpc::StatusCode::INVALID_ARGUMENT;
    case absl::StatusCode::kDeadlineExceeded:
      return grpc::StatusCode::DEADLINE_EXCEEDED;
    case absl::StatusCode::kNotFound:
      return grpc::StatusCode::NOT_FOUND;
    case absl::StatusCode::kAlreadyExists:
      return grpc::StatusCode::ALREADY_EXISTS;
    case absl::StatusCode::kPermissionDenied:
      return grpc::StatusCode::PERMISSION_DENIED;
    case absl::StatusCode::kResourceExhausted:
      return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case absl::StatusCode::kFailedPrecondition:
      return grpc::StatusCode::FAILED_PRECONDITION;
    case absl::StatusCode::kAborted:
      return grpc::StatusCode::ABORTED;
    case absl::StatusCode::kOutOfRange:
      return grpc::StatusCode::OUT_OF_RANGE;
    case absl::StatusCode::kUnimplemented:
      return grpc::StatusCode::UNIMPLEMENTED;
    case absl::StatusCode::kUnavailable:
      return grpc::StatusCode::UNAVAILABLE;
    case absl::StatusCode::kDataLoss:
      return grpc::StatusCode::DATA_LOSS;
    case absl::StatusCode::kUnauthenticated:
      return grpc::StatusCode::UNAUTHENTICATED;
    default:
      return grpc::StatusCode::INTERNAL;
  }
}

// Cuts text to limit bytes, at the start of a UTF-8 sequence.
absl::string_view Cut(absl::string_view text, size_t limit) {
  if (text.size() <= limit) return text;
  size_t end = limit;
  while (end > 0 && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}

std::string MakeRequestId() {
  static const uint64_t start = [] {
    std::random_device random;
    return uint64_t{random()} << 32 | random();
  }();
  static std::atomic<uint64_t> count{0};
  return absl::StrCat(absl::Hex(start, absl::kZeroPad16), "-",
                      count.fetch_add(1) + 1);
}

std::string RequestId(const grpc::CallbackServerContext& ctx,
                      absl::string_view given) {
  if (given.empty()) {
    const auto& metadata = ctx.client_metadata();
    const auto it =
        metadata.find({kRequestIdMetadata.data(), kRequestIdMetadata.size()});
    if (it != metadata.end()) {
      given = absl::string_view(it->second.data(), it->second.size());
    }
  }
  if (given.empty()) return MakeRequestId();
  // An escape is up to four bytes long and is not cut in two.
  std::string id;
  for (const char c : given) {
    const std::string escaped =
        c == ' ' ? std::string("\\x20")
                 : absl::CHexEscape(absl::string_view(&c, 1));
    if (id.size() + escaped.size() > kMaxRequestIdBytes) break;
    id += escaped;
  }
  return id;
}

// ctx->deadline() is on the wall clock; what gRPC was told is a duration.
absl::Duration TimeLeft(const grpc::CallbackServerContext& ctx) {
  const gpr_timespec deadline =
      gpr_convert_clock_type(ctx.raw_deadline(), GPR_CLOCK_MONOTONIC);
  if (gpr_time_cmp(deadline, gpr_inf_future(GPR_CLOCK_MONOTONIC)) == 0) {
    return absl::InfiniteDuration();
  }
  const gpr_timespec left =
      gpr_time_sub(deadline, gpr_now(GPR_CLOCK_MONOTONIC));
  return absl::Seconds(left.tv_sec) + absl::Nanoseconds(left.tv_nsec);
}

// What is told of every call that was answered: metrics, and the log where
// something is wrong with us or the operator asked. Series are looked up once.
class Ledger {
 public:
  explicit Ledger(base::Metrics* metrics) : metrics_(metrics) {}

  void Record(const Method& method, const core::CallInfo& call,
              const absl::Status& status, base::Deadline start) {
    const std::chrono::duration<double> took =
        std::chrono::steady_clock::now() - start;
    const bool ours = status.code() == absl::StatusCode::kInternal ||
                      status.code() == absl::StatusCode::kUnknown ||
                      status.code() == absl::StatusCode::kDataLoss;
    if (ours || base::GetLogLevel() == base::LogLevel::kDebug) {
      base::Log(
          ours ? base::LogLevel::kError : base::LogLevel::kDebug,
          ours ? "call failed" : "call answered",
          {{"api", method.api},
           {"method", method.name},
           {"binding", call.caller.binding},
           {"caller", call.caller.principals.empty() ? "" : call.caller.name()},
           {"request_id", call.request_id},
           {"seconds", took.count()},
           {"status", status}});
    }
    if (metrics_ == nullptr) return;
    base::Metrics::Counter* answered = nullptr;
    base::Metrics::Histogram* duration = nullptr;
    {
      base::MutexLock lock(mu_);
      Series& series =
          series_[{method.api.data(), method.name.data(), call.caller.binding}];
      base::Metrics::Labels labels = {{"api", std::string(method.api)},
                                      {"binding", call.caller.binding},
                                      {"method", std::string(method.name)}};
      if (series.duration == nullptr) {
        series.duration = metrics_->GetLatency(
            "kekd_request_duration_seconds",
            "Time from a call's arrival to its answer.", labels);
      }
      auto& counter = series.answered[status.code()];
      if (counter == nullptr) {
        labels.emplace_back("code", absl::StatusCodeToString(status.code()));
        counter = metrics_->GetCounter(
            "kekd_requests_total",
            "Calls answered, by front end, binding, method and code.", labels);
      }
      answered = counter;
      duration = series.duration;
    }
    answered->Increment();
    duration->Observe(took.count());
  }

 private:
  struct Series {
    base::Metrics::Histogram* duration = nullptr;
    std::map<absl::StatusCode, base::Metrics::Counter*> answered;
  };
  base::Metrics* const metrics_;
  base::Mutex mu_;
  // By the addresses of the method's literals, and the binding.
  std::map<std::tuple<const char*, const char*, std::string>, Series> series_
      ABSL_GUARDED_BY(mu_);
};

// A call from Run until both gRPC and the worker are done with it.
//
// gRPC destroys the reactor once it was finished, so exactly one party may
// finish it, and nobody may touch it after losing: Claim decides. The worker
// holds the Call, which holds the messages and the connection; the reactor
// holds the Call too, for OnCancel.
class Reactor;
struct Call {
  core::CallInfo info;
  Connections::Call connection;
  CallMessages::Ref messages;
  Dispatch::Work work;
  Method method;
  base::Deadline start;
  std::shared_ptr<Ledger> ledger;
  Reactor* reactor = nullptr;  // only for who has claimed
  std::atomic<bool> claimed{false};

  bool Claim() { return !claimed.exchange(true); }
  void Finish(const absl::Status& status);
};

class Reactor : public grpc::ServerUnaryReactor {
 public:
  void Bind(std::shared_ptr<Call> call) { call_ = std::move(call); }
  void OnCancel() override {
    if (call_ != nullptr && call_->Claim()) {
      call_->Finish(absl::CancelledError("the caller went away"));
    }
  }
  void OnDone() override { delete this; }

 private:
  std::shared_ptr<Call> call_;
};

void Call::Finish(const absl::Status& status) {
  ledger->Record(method, info, status, start);
  // From here on the reactor may be gone at any time.
  reactor->Finish(ToGrpcStatus(status));
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const absl::string_view text = Cut(status.message(), kMaxErrorBytes);
  return grpc::Status(ToGrpcCode(status.code()),
                      std::string(text.data(), text.size()));
}

// The calls in progress, by deadline: one thread answers those whose deadline
// passes. Entries of calls answered earlier stay in the heap until their time
// comes; they are weak, and keep nothing but themselves alive.
class Dispatch::Calls {
 public:
  explicit Calls(Options options)
      : options_(options),
        ledger_(std::make_shared<Ledger>(options.metrics)),
        in_flight_(options.metrics == nullptr
                       ? nullptr
                       : options.metrics->GetGauge(
                             "kekd_requests_in_flight",
                             "Calls that have a worker or wait for one.")),
        expiry_([this] { Expire(); }) {}

  ~Calls() {
    {
      base::MutexLock lock(mu_);
      stopping_ = true;
    }
    changed_.NotifyAll();
    expiry_.join();
  }

  const Options& options() const { return options_; }
  base::Metrics::Gauge* in_flight() const { return in_flight_; }
  const std::shared_ptr<Ledger>& ledger() const { return ledger_; }

  void Watch(const std::shared_ptr<Call>& call) {
    base::MutexLock lock(mu_);
    const bool first =
        heap_.empty() || call->info.deadline < heap_.top().deadline;
    heap_.push({call->info.deadline, call});
    if (first) changed_.NotifyOne();
  }

 private:
  struct Entry {
    base::Deadline deadline;
    std::weak_ptr<Call> call;
    bool operator<(const Entry& other) const {
      return deadline > other.deadline;  // priority_queue: earliest on top
    }
  };

  void Expire() {
    while (true) {
      std::shared_ptr<Call> due;
      {
        base::MutexLock lock(mu_);
        while (true) {
          if (stopping_) return;
          if (heap_.empty()) {
            changed_.Wait(mu_);
          } else if (const base::Deadline at = heap_.top().deadline;
                     at > std::chrono::steady_clock::now()) {
            changed_.WaitUntil(mu_, at);
          } else {
            due = heap_.top().call.lock();
            heap_.pop();
            break;
          }
        }
      }
      if (due != nullptr && due->Claim()) {
        due->Finish(absl::DeadlineExceededError(
            "the deadline passed before the operation finished"));
      }
    }
  }

  const Options options_;
  const std::shared_ptr<Ledger> ledger_;
  base::Metrics::Gauge* const in_flight_;
  base::Mutex mu_;
  base::CondVar changed_;
  std::priority_queue<Entry> heap_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread expiry_;
};

Dispatch::Dispatch(Options options)
    : calls_(std::make_shared<Calls>(options)) {}
Dispatch::~Dispatch() = default;

grpc::ServerUnaryReactor* Dispatch::Run(grpc::CallbackServerContext* ctx,
                                        const Method& method,
                                        absl::string_view request_id,
                                        Work work) {
  const Options& options = calls_->options();
  auto* reactor = new Reactor;
  const base::Deadline start = std::chrono::steady_clock::now();
  // Not make_shared: an entry that waits for its time in the heap must not keep
  // the call's memory.
  std::shared_ptr<Call> call(new Call);
  call->info.request_id = RequestId(*ctx, request_id);
  call->method = method;
  call->start = start;
  call->ledger = calls_->ledger();
  call->reactor = reactor;
  const auto refuse = [&](const absl::Status& status) {
    call->claimed = true;
    call->Finish(status);
    return reactor;
  };
  ctx->AddTrailingMetadata(std::string(kRequestIdMetadata),
                           call->info.request_id);

  auto* messages = dynamic_cast<CallMessages*>(ctx->GetRpcAllocatorState());
  if (messages == nullptr) {
    return refuse(absl::InternalError(
        absl::StrCat(method.name, " has no message allocator")));
  }
  absl::StatusOr<Connections::Call> connection =
      options.connections->Find(ctx->peer());
  if (!connection.ok()) return refuse(connection.status());

  call->info.caller = connection->caller();
  call->info.caller.front_end = method.front_end;
  absl::Duration left = TimeLeft(*ctx);
  if (left == absl::InfiniteDuration()) left = options.default_deadline;
  left = std::min(left, options.max_deadline);
  call->info.deadline = start + absl::ToChronoNanoseconds(left);
  call->connection = *std::move(connection);
  call->messages = CallMessages::Ref(messages);
  call->work = std::move(work);

  base::Metrics::Gauge* in_flight = calls_->in_flight();
  Executor* executor =
      method.speed == Method::Speed::kQuick ? options.quick : options.ordinary;
  if (in_flight != nullptr) in_flight->Add(1);
  const absl::Status queued = executor->Submit(
      call->info.deadline,
      [call, in_flight] {
        // Answered while it waited: nobody wants the work any more.
        if (!call->claimed.load()) {
          const absl::Status status = call->work(call->info);
          if (call->Claim()) call->Finish(status);
        }
        call->work = nullptr;
        if (in_flight != nullptr) in_flight->Add(-1);
      },
      [call, in_flight] {
        if (call->Claim()) {
          call->Finish(absl::DeadlineExceededError(
              "the deadline passed before a worker was free"));
        }
        call->work = nullptr;
        if (in_flight != nullptr) in_flight->Add(-1);
      });
  if (!queued.ok()) {
    if (in_flight != nullptr) in_flight->Add(-1);
    return refuse(queued);
  }
  calls_->Watch(call);
  // gRPC calls OnCancel and OnDone only after this method has returned the
  // reactor.
  reactor->Bind(std::move(call));
  return reactor;
}

}  // namespace kek::service
