// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/connection.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include <openssl/sha.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "pkcs11/conformance.h"
#include "pkcs11/error_internal.h"
#include "pkcs11/key_objects.h"

namespace kek::pkcs11 {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr auto kTick = milliseconds(200);
constexpr auto kPinLook = seconds(1);
constexpr auto kMaxBackOff = seconds(5);
constexpr auto kLoginBackOff = seconds(30);
constexpr int kBreakerFailures = 3;

base::Deadline Now() { return std::chrono::steady_clock::now(); }

std::chrono::nanoseconds ToChrono(absl::Duration duration) {
  return absl::ToChronoNanoseconds(duration);
}

template <size_t N>
std::string Text(const unsigned char (&padded)[N]) {
  const std::string text(reinterpret_cast<const char*>(padded), N);
  return std::string(absl::StripTrailingAsciiWhitespace(
      absl::string_view(text).substr(0, std::min(text.find('\0'), N))));
}

std::string Identity(const TokenInfo& info) {
  return absl::StrCat(info.manufacturer, "\n", info.model, "\n", info.serial,
                      "\n", info.label);
}

bool IsTokenGone(const absl::Status& status) {
  switch (RvOf(status).value_or(CKR_OK)) {
    case CKR_TOKEN_NOT_PRESENT:
    case CKR_TOKEN_NOT_RECOGNIZED:
    case CKR_DEVICE_REMOVED:
    case CKR_SLOT_ID_INVALID:
      return true;
    default:
      return false;
  }
}

const char* StateName(TokenState state) {
  switch (state) {
    case TokenState::kStarting:
      return "starting";
    case TokenState::kReady:
      return "ready";
    case TokenState::kDegraded:
      return "degraded";
    case TokenState::kAbsent:
      return "absent";
    case TokenState::kPinRefused:
      return "pin_refused";
  }
  return "?";
}

// Tells a changed PIN from an unchanged one without scrypt; lives in this
// process only.
std::string QuickDigest(const base::SecretBytes& pin) {
  static const std::array<uint8_t, 32> key = [] {
    std::array<uint8_t, 32> k{};
    (void)HostRandom(k);
    return k;
  }();
  base::SecretBytes input(key.size() + pin.size());
  std::copy(key.begin(), key.end(), input.mutable_data());
  std::copy(pin.data(), pin.data() + pin.size(),
            input.mutable_data() + key.size());
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(input.data(), input.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

}  // namespace

Link::Link(uint64_t g, SessionContext c, SessionPool::Options p)
    : generation(g),
      module_epoch(c.module->epoch()),
      context(std::move(c)),
      pool(std::move(p)),
      keys(g) {}

std::unique_ptr<Session> Link::TakeAdminSession() {
  base::MutexLock lock(mu_);
  return std::move(admin_session_);
}

void Link::KeepAdminSession(std::unique_ptr<Session> session) {
  base::MutexLock lock(mu_);
  if (closed_) {
    session->Abandon();
    return;
  }
  admin_session_ = std::move(session);
}

void Link::Close() {
  std::unique_ptr<Session> admin;
  {
    base::MutexLock lock(mu_);
    closed_ = true;
    admin = std::move(admin_session_);
  }
  admin.reset();
  pool.CloseIdle();
  login_session.reset();
}

absl::StatusOr<std::shared_ptr<Connection>> Connection::Open(
    TokenOptions options) {
  ASSIGN_OR_RETURN(TokenUri uri, TokenUri::Parse(options.uri));
  ASSIGN_OR_RETURN(std::shared_ptr<Module> module,
                   Module::Load(options.module_path, options.init_args));
  std::shared_ptr<Connection> connection(
      new Connection(std::move(options), std::move(uri), std::move(module)));
  // The supervisor holds a reference: it may hang in a call when everybody
  // else has gone.
  connection->supervisor_ =
      std::thread([connection] { connection->Supervise(); });
  const base::Deadline patience =
      Now() + 6 * ToChrono(connection->options_.call_deadline) + seconds(5);
  Failure failure;
  {
    base::MutexLock lock(connection->mu_);
    while (connection->attempts_done_ == 0) {
      if (!connection->changed_.WaitUntil(connection->mu_, patience) &&
          Now() >= patience && connection->attempts_done_ == 0) {
        failure.status = absl::UnavailableError(
            "the PKCS#11 module does not answer: the first login hangs");
        failure.fatal = true;
        break;
      }
    }
    if (connection->attempts_done_ != 0) failure = connection->start_failure_;
  }
  if (failure.fatal) {
    connection->Close();
    return failure.status;
  }
  return connection;
}

Connection::Connection(TokenOptions options, TokenUri uri,
                       std::shared_ptr<Module> module)
    : options_(std::move(options)),
      uri_(std::move(uri)),
      module_(std::move(module)),
      watch_(std::make_shared<CallWatch>(options_.metrics,
                                         options_.call_deadline)),
      cipher_(options_.profile,
              [this](const char* detail) { Event("token-random", detail); }),
      admin_lane_({.name = "admin lane of the token"}),
      retry_refused_pin_(options_.retry_refused_pin) {}

void Connection::Close() {
  std::shared_ptr<Link> link;
  bool ended = false;
  {
    base::MutexLock lock(mu_);
    stop_ = true;
    phase_ = Phase::kDown;
    error_ = MakeError(ErrorClass::kDevice, "the token is being closed");
    link = link_;
    changed_.NotifyAll();
    const base::Deadline patience = Now() + ToChrono(options_.call_deadline);
    while (!ended_ && Now() < patience) changed_.WaitUntil(mu_, patience);
    ended = ended_;
    link_.reset();
  }
  if (!ended) {
    supervisor_.detach();
    return;
  }
  supervisor_.join();
  if (link == nullptr) return;
  link->pool.Retire();
  const absl::StatusOr<Module::Exclusive> gate = Module::Drain(
      module_, [] { return 0; }, Now() + ToChrono(options_.call_deadline));
  if (gate.ok()) link->Close();
}

absl::StatusOr<Connection::Work> Connection::Enter(base::Deadline deadline) {
  while (true) {
    std::shared_ptr<Link> link;
    {
      base::MutexLock lock(mu_);
      while (phase_ == Phase::kRecovering) {
        if (!changed_.WaitUntil(mu_, deadline) && Now() >= deadline &&
            phase_ == Phase::kRecovering) {
          return absl::DeadlineExceededError(
              "the token is being recovered; the deadline passed meanwhile");
        }
      }
      if (phase_ == Phase::kDown) return DownError();
      link = link_;
    }
    ASSIGN_OR_RETURN(Module::Use use, Module::Enter(module_, deadline));
    if (module_->epoch() != link->module_epoch) {
      // Another token of this module had the library re-initialised.
      use = Module::Use();
      RETURN_IF_ERROR(Recover(link->generation, Rung::kRelogin, deadline));
      continue;
    }
    base::MutexLock lock(mu_);
    if (link_ == link && phase_ == Phase::kUp) {
      return Work{std::move(link), std::move(use)};
    }
  }
}

absl::Status Connection::Recover(uint64_t seen, Rung rung,
                                 base::Deadline deadline) {
  base::MutexLock lock(mu_);
  if (generation_ > seen) return absl::OkStatus();
  if (phase_ == Phase::kDown) return DownError();
  if (phase_ == Phase::kUp) {
    phase_ = Phase::kRecovering;
    rung_ = rung;
    // A generation that ended before anything worked in it: not at once again.
    next_attempt_ = back_off_.count() == 0 ? Now() : next_attempt_;
  } else {
    rung_ = std::max(rung_, rung);
  }
  changed_.NotifyAll();
  while (phase_ == Phase::kRecovering && generation_ <= seen) {
    if (!changed_.WaitUntil(mu_, deadline) && Now() >= deadline &&
        phase_ == Phase::kRecovering && generation_ <= seen) {
      return absl::DeadlineExceededError(
          "the token is being recovered; the deadline passed meanwhile");
    }
  }
  if (generation_ > seen || phase_ == Phase::kUp) return absl::OkStatus();
  return DownError();
}

void Connection::ReportSuccess() {
  last_success_.store(Now().time_since_epoch().count(),
                      std::memory_order_relaxed);
  if (failures_in_a_row_.exchange(0, std::memory_order_relaxed) != 0 ||
      unproven_generation_.exchange(false, std::memory_order_relaxed)) {
    base::MutexLock lock(mu_);
    if (phase_ == Phase::kUp) back_off_ = std::chrono::nanoseconds(0);
  }
}

void Connection::ReportFailure(const absl::Status& status) {
  if (ClassOf(status) != ErrorClass::kDevice &&
      ClassOf(status) != ErrorClass::kSession) {
    return;
  }
  const int failures = failures_in_a_row_.fetch_add(1) + 1;
  if (failures < kBreakerFailures) return;
  {
    base::MutexLock lock(mu_);
    if (phase_ != Phase::kUp) return;
    phase_ = Phase::kDown;
    state_ = TokenState::kDegraded;
    error_ = status;
    rung_ = Rung::kProbe;
    next_attempt_ = Now() + std::max<std::chrono::nanoseconds>(
                                back_off_, milliseconds(100));
    changed_.NotifyAll();
  }
  Event("token-degraded", std::string(status.message()));
}

absl::Status Connection::Attempt(Rung rung, bool retry_refused_pin,
                                 base::Deadline deadline) {
  base::MutexLock lock(mu_);
  if (stop_) return DownError();
  // One attempt may be running; it began before this request.
  const uint64_t wanted = attempts_begun_ + 1;
  forced_ = true;
  rung_ = phase_ == Phase::kUp ? rung : std::max(rung_, rung);
  retry_refused_pin_ |= retry_refused_pin;
  if (phase_ == Phase::kUp) phase_ = Phase::kRecovering;
  changed_.NotifyAll();
  while (attempts_done_ < wanted) {
    if (!changed_.WaitUntil(mu_, deadline) && Now() >= deadline &&
        attempts_done_ < wanted) {
      return absl::DeadlineExceededError(
          "the token did not answer in time; the attempt goes on");
    }
  }
  return phase_ == Phase::kUp ? absl::OkStatus() : error_;
}

absl::Status Connection::DownError() const {
  const std::string message =
      absl::StrCat("the token is not usable: ", error_.message());
  return Reclassify(error_,
                    state_ == TokenState::kPinRefused ||
                            ClassOf(error_) == ErrorClass::kOperator
                        ? ErrorClass::kOperator
                        : ErrorClass::kDevice,
                    message);
}

// ---- the supervisor ---------------------------------------------------------

bool Connection::IsDue(base::Deadline now) {
  if (forced_) return true;
  if (phase_ == Phase::kUp || state_ == TokenState::kPinRefused) return false;
  return now >= next_attempt_;
}

void Connection::Supervise() {
  while (true) {
    Rung rung = Rung::kProbe;
    bool retry_pin = false;
    bool attempt = false;
    {
      base::MutexLock lock(mu_);
      const base::Deadline tick = Now() + kTick;
      while (!stop_ && !IsDue(Now()) && Now() < tick) {
        base::Deadline until = tick;
        if (phase_ != Phase::kUp && state_ != TokenState::kPinRefused) {
          until = std::min(until, next_attempt_);
        }
        changed_.WaitUntil(mu_, until);
      }
      if (stop_) {
        ended_ = true;
        changed_.NotifyAll();
        return;
      }
      if (IsDue(Now())) {
        attempt = true;
        rung = rung_;
        retry_pin = retry_refused_pin_;
        forced_ = false;
        retry_refused_pin_ = false;
        ++attempts_begun_;
      }
    }
    if (!attempt) {
      Tick();
      continue;
    }
    Failure failure;
    failure.status = Run(rung, retry_pin, failure);
    if (!failure.status.ok()) Failed(failure);
    SetGauges();
  }
}

void Connection::Tick() {
  // Nobody waits for ever behind an administrative call that hangs.
  admin_lane_.AbandonHolders(Now() - 6 * ToChrono(options_.call_deadline));
  const int hung = watch_->HungCalls();
  bool too_many = false;
  bool look_at_pin = false;
  {
    base::MutexLock lock(mu_);
    if (hung >= options_.hang_limit && phase_ == Phase::kUp) {
      phase_ = Phase::kDown;
      state_ = TokenState::kDegraded;
      error_ = MakeError(ErrorClass::kDevice,
                         absl::StrCat(hung, " PKCS#11 calls hang"));
      rung_ = Rung::kProbe;
      next_attempt_ = Now() + milliseconds(500);
      too_many = true;
      changed_.NotifyAll();
    }
    look_at_pin = state_ == TokenState::kPinRefused;
  }
  if (too_many) {
    Event("token-degraded", absl::StrCat(hung, " PKCS#11 calls hang"));
  }
  if (look_at_pin && Now() - last_pin_look_ >= kPinLook) {
    last_pin_look_ = Now();
    if (PinChanged()) {
      base::MutexLock lock(mu_);
      forced_ = true;
    }
  }
  SetGauges();
}

bool Connection::PinChanged() {
  const absl::StatusOr<base::SecretBytes> pin = options_.pin.Read();
  return pin.ok() && QuickDigest(*pin) != refused_pin_digest_;
}

absl::Status Connection::Run(Rung rung, bool retry_pin, Failure& failure) {
  std::shared_ptr<Link> old;
  {
    base::MutexLock lock(mu_);
    old = link_;
  }
  const int hung = watch_->HungCalls();
  if (hung >= options_.hang_limit) {
    return MakeError(ErrorClass::kDevice,
                     absl::StrCat(hung, " PKCS#11 calls hang"));
  }
  if (rung == Rung::kProbe && old != nullptr &&
      old->module_epoch == module_->epoch()) {
    ASSIGN_OR_RETURN(
        Module::Use use,
        Module::Enter(module_, Now() + ToChrono(options_.call_deadline)));
    ASSIGN_OR_RETURN(
        std::unique_ptr<Session> session,
        Session::Open(old->context, options_.profile.read_write_sessions));
    RETURN_IF_ERROR(Control(*session, *old));
    Succeeded(old);
    return absl::OkStatus();
  }
  if (old != nullptr) old->pool.Retire();
  const bool strict = rung == Rung::kReinitialize || module_->epoch() == 0;
  ASSIGN_OR_RETURN(
      const Module::Exclusive gate,
      Module::Drain(
          module_, [&] { return strict ? 0 : watch_->HungCalls(); },
          Now() + ToChrono(options_.call_deadline) + seconds(1)));
  if (old != nullptr) {
    // Its generation ends here, also if the next one cannot begin.
    {
      base::MutexLock lock(mu_);
      link_.reset();
    }
    old->Close();
    old.reset();
  }
  const auto reinitialize = [&]() -> absl::Status {
    last_initialize_ = Now();
    if (options_.metrics != nullptr && seen_module_epoch_ != 0) {
      options_.metrics
          ->GetCounter("kekd_token_reinitializations_total",
                       "C_Finalize and C_Initialize to recover")
          ->Increment();
    }
    const uint64_t epoch = module_->epoch();
    const absl::Status status = module_->Initialize(gate, epoch, *watch_);
    seen_module_epoch_ = module_->epoch();
    if (ClassOf(status) == ErrorClass::kOperator) failure.fatal = true;
    if (!status.ok()) failure.state = TokenState::kAbsent;
    return status;
  };
  const bool another_did_it =
      seen_module_epoch_ != module_->epoch() && module_->epoch() != 0;
  if (another_did_it) {
    seen_module_epoch_ = module_->epoch();
  } else if (strict) {
    RETURN_IF_ERROR(reinitialize());
  }
  std::shared_ptr<Link> link;
  absl::Status status = Connect(retry_pin, failure, link);
  if (!status.ok() && !strict && gate.empty() && !failure.login_failed &&
      !failure.fatal &&
      (ClassOf(status) == ErrorClass::kDevice ||
       ClassOf(status) == ErrorClass::kSession) &&
      Now() - last_initialize_ >=
          ToChrono(options_.reinitialize_min_interval)) {
    failure = Failure{};
    RETURN_IF_ERROR(reinitialize());
    status = Connect(retry_pin, failure, link);
  }
  RETURN_IF_ERROR(status);
  Succeeded(std::move(link));
  return absl::OkStatus();
}

absl::Status Connection::Connect(bool retry_pin, Failure& failure,
                                 std::shared_ptr<Link>& result) {
  CK_SLOT_ID slot = 0;
  CK_TOKEN_INFO token{};
  RETURN_IF_ERROR(FindSlot(&slot, &token, failure));
  TokenInfo info;
  info.label = Text(token.label);
  info.manufacturer = Text(token.manufacturerID);
  info.model = Text(token.model);
  info.serial = Text(token.serialNumber);
  info.firmware =
      absl::StrCat(token.firmwareVersion.major, ".",
                   absl::Dec(token.firmwareVersion.minor, absl::kZeroPad2));
  CK_INFO library{};
  const std::shared_ptr<CallSlot> call = watch_->NewSlot();
  if (watch_->Run(Function::kGetInfo, *call, [&] {
        return module_->functions()->C_GetInfo(&library);
      }) == CKR_OK) {
    info.library = absl::StrCat(Text(library.libraryDescription), " ",
                                library.libraryVersion.major, ".",
                                library.libraryVersion.minor);
  }
  const std::string identity = Identity(info);
  if (pin_memory_ == nullptr || probed_identity_ != identity) {
    pin_memory_ = std::make_unique<PinMemory>(options_.state_dir, identity);
  }

  SessionContext context{module_, watch_, slot, false};
  const bool rw = options_.profile.read_write_sessions;
  ASSIGN_OR_RETURN(std::unique_ptr<Session> login_session,
                   Session::Open(context, rw));
  if (options_.profile.login_required) {
    RETURN_IF_ERROR(Login(*login_session, token, retry_pin, failure));
  }
  context.must_be_logged_in = options_.profile.login_required;
  uint64_t generation = 0;
  {
    base::MutexLock lock(mu_);
    generation = generation_ + 1;
  }
  auto link = std::make_shared<Link>(
      generation, context,
      SessionPool::Options{
          .max_sessions = std::max(1, options_.profile.max_sessions),
          .open = [context, rw] { return Session::Open(context, rw); }});
  link->login_session = std::move(login_session);

  ASSIGN_OR_RETURN(std::unique_ptr<Session> session,
                   Session::Open(context, rw));
  if (probed_identity_ != identity) {
    absl::StatusOr<std::vector<Guarantee>> found =
        ProbeModule(*session, cipher_);
    if (!found.ok()) {
      failure.fatal = ClassOf(found.status()) == ErrorClass::kOperator;
      return found.status();
    }
    const absl::Status verdict = JudgeGuarantees(*found);
    if (!verdict.ok() && !options_.profile.insecure_module_ok) {
      failure.fatal = true;
      return verdict;
    }
    if (!verdict.ok()) Event("insecure-module", std::string(verdict.message()));
    if (!probed_identity_.empty()) {
      Event("token-changed",
            absl::StrCat("the token's serial is now ", info.serial));
    }
    base::MutexLock lock(mu_);
    guarantees_ = *std::move(found);
  }
  KeyTemplate control_key = KeyTemplate::AesSessionKey();
  absl::StatusOr<CK_OBJECT_HANDLE> control =
      GenerateAes(*link->login_session, control_key, nullptr);
  RETURN_IF_ERROR(control.status());
  link->control_key = *control;
  RETURN_IF_ERROR(Control(*session, *link));
  probed_identity_ = identity;
  {
    base::MutexLock lock(mu_);
    info_ = std::move(info);
  }
  result = std::move(link);
  return absl::OkStatus();
}

absl::Status Connection::FindSlot(CK_SLOT_ID* slot, CK_TOKEN_INFO* info,
                                  Failure& failure) {
  const std::shared_ptr<CallSlot> call = watch_->NewSlot();
  std::vector<CK_SLOT_ID> slots(64);
  CK_ULONG count = 0;
  CK_RV rv = CKR_OK;
  while (true) {
    count = slots.size();
    rv = watch_->Run(Function::kGetSlotList, *call, [&] {
      return module_->functions()->C_GetSlotList(CK_TRUE, slots.data(), &count);
    });
    if (rv != CKR_BUFFER_TOO_SMALL || slots.size() >= 65536) break;
    slots.resize(slots.size() * 8);
  }
  failure.state = TokenState::kAbsent;
  if (rv != CKR_OK) return FromRv(rv, Operation::kOther, "C_GetSlotList");
  slots.resize(std::min<size_t>(count, slots.size()));
  int matches = 0;
  absl::Status trouble;
  for (const CK_SLOT_ID candidate : slots) {
    CK_TOKEN_INFO found{};
    rv = watch_->Run(Function::kGetTokenInfo, *call, [&] {
      return module_->functions()->C_GetTokenInfo(candidate, &found);
    });
    if (rv != CKR_OK) {
      trouble = FromRv(rv, Operation::kOther, "C_GetTokenInfo");
      continue;
    }
    if ((found.flags & CKF_TOKEN_INITIALIZED) == 0 || !uri_.Matches(found)) {
      continue;
    }
    *slot = candidate;
    *info = found;
    ++matches;
  }
  if (matches > 1) {
    failure.state = TokenState::kDegraded;
    failure.fatal = true;
    return MakeError(ErrorClass::kOperator,
                     absl::StrCat(matches, " tokens match ", options_.uri,
                                  "; add serial= so that exactly one does"));
  }
  if (matches == 0) {
    if (!trouble.ok()) return trouble;
    return MakeError(ErrorClass::kDevice,
                     absl::StrCat("no token matches ", options_.uri));
  }
  failure.state = TokenState::kDegraded;
  return absl::OkStatus();
}

absl::Status Connection::Login(Session& session, const CK_TOKEN_INFO& info,
                               bool retry_pin, Failure& failure) {
  const auto refuse = [&](absl::Status status) {
    failure.state = TokenState::kPinRefused;
    failure.fatal = true;
    return status;
  };
  const std::string label = Text(info.label);
  if ((info.flags & CKF_USER_PIN_LOCKED) != 0) {
    refused_pin_digest_.clear();
    return refuse(MakeError(
        ErrorClass::kOperator,
        absl::StrCat("the PIN of token ", label,
                     " is locked; unlock it with the security officer's PIN")));
  }
  if ((info.flags & CKF_USER_PIN_FINAL_TRY) != 0) {
    return refuse(MakeError(
        ErrorClass::kOperator,
        absl::StrCat("token ", label,
                     " has one PIN try left; kekd does not use it up. Log in "
                     "once with the token's own tool")));
  }
  base::SecretBytes pin;
  const bool on_device =
      (info.flags & CKF_PROTECTED_AUTHENTICATION_PATH) != 0 &&
      options_.pin.empty();
  if (!on_device) {
    absl::StatusOr<base::SecretBytes> read = options_.pin.Read();
    if (!read.ok()) {
      failure.fatal = true;
      return Reclassify(read.status(), ErrorClass::kOperator,
                        read.status().message());
    }
    pin = *std::move(read);
    absl::StatusOr<bool> refused = pin_memory_->WasRefused(pin.span());
    if (!refused.ok()) {
      failure.fatal = true;
      return Reclassify(refused.status(), ErrorClass::kOperator,
                        refused.status().message());
    }
    if (*refused && !retry_pin) {
      refused_pin_digest_ = QuickDigest(pin);
      absl::Status status = absl::PermissionDeniedError(absl::StrCat(
          "token ", label, " refused this PIN before (",
          options_.pin.Describe(),
          "); it is not tried again until it changes or an operator asks for "
          "one more try"));
      return refuse(std::move(status));
    }
  }
  if ((info.flags & CKF_USER_PIN_COUNT_LOW) != 0) {
    Event("pin-count-low",
          absl::StrCat("token ", label, " says that a wrong PIN was used"));
  }
  const CK_RV rv = session.Call(
      Function::kLogin, [&](CK_FUNCTION_LIST* f, CK_SESSION_HANDLE h) {
        return f->C_Login(h, CKU_USER, on_device ? nullptr : pin.mutable_data(),
                          on_device ? 0 : pin.size());
      });
  if (options_.metrics != nullptr) {
    options_.metrics
        ->GetCounter("kekd_token_logins_total", "C_Login calls by result",
                     {{"rv", std::string(RvName(rv))}})
        ->Increment();
  }
  const std::string what = absl::StrCat("login to token ", label);
  switch (rv) {
    case CKR_OK:
      pin_memory_->Clear();
      refused_pin_digest_.clear();
      return absl::OkStatus();
    case CKR_USER_ALREADY_LOGGED_IN: {
      // True of a login someone else made, or one that survived; some modules
      // merely say so.
      const absl::Status state = session.CheckLoggedIn();
      if (state.ok()) return absl::OkStatus();
      failure.login_failed = true;
      return Reclassify(
          state, ErrorClass::kDevice,
          absl::StrCat(what,
                       ": the token says CKR_USER_ALREADY_LOGGED_IN, but "
                       "the session is not logged in"));
    }
    case CKR_PIN_INCORRECT:
    case CKR_PIN_INVALID:
    case CKR_PIN_LEN_RANGE:
    case CKR_PIN_EXPIRED:
    case CKR_PIN_LOCKED: {
      refused_pin_digest_ = QuickDigest(pin);
      const absl::Status remembered = pin_memory_->Remember(pin.span());
      Event("pin-refused", absl::StrCat(what, ": ", RvName(rv), "; PIN from ",
                                        options_.pin.Describe()));
      std::string message = absl::StrCat(
          what, ": ", RvName(rv), "; the PIN from ", options_.pin.Describe(),
          rv == CKR_PIN_LOCKED ? " is locked; unlock it with the security "
                                 "officer's PIN"
                               : " is not tried again until it changes or an "
                                 "operator asks for one more try");
      if (!remembered.ok()) {
        absl::StrAppend(&message, "; and this cannot be remembered: ",
                        remembered.message());
      }
      absl::Status status = Reclassify(FromRv(rv, Operation::kLogin, what),
                                       ErrorClass::kOperator, message);
      absl::Status denied = absl::PermissionDeniedError(message);
      status.ForEachPayload(
          [&](absl::string_view url, const absl::Cord& payload) {
            denied.SetPayload(url, payload);
          });
      return refuse(std::move(denied));
    }
    default: {
      absl::Status status = FromRv(rv, Operation::kLogin, what);
      const ErrorClass error_class = ClassOf(status);
      failure.fatal = error_class == ErrorClass::kOperator;
      // A login that never reached the token is no failed login.
      failure.login_failed = !IsTokenGone(status) &&
                             rv != CKR_CRYPTOKI_NOT_INITIALIZED &&
                             error_class != ErrorClass::kSession;
      if (IsTokenGone(status)) failure.state = TokenState::kAbsent;
      return status;
    }
  }
}

// The device works when it opens what it sealed, on a key that no handle of a
// generation before can be mistaken for.
absl::Status Connection::Control(Session& session, const Link& link) {
  const std::array<uint8_t, 16> plaintext{'c', 'o', 'n', 't', 'r', 'o', 'l'};
  ASSIGN_OR_RETURN(const Sealed sealed, cipher_.Seal(session, link.control_key,
                                                     plaintext, plaintext));
  absl::StatusOr<base::SecretBytes> opened =
      cipher_.Open(session, link.control_key, plaintext, sealed);
  if (!opened.ok()) {
    return Reclassify(opened.status(), ErrorClass::kDevice,
                      opened.status().message());
  }
  if (!base::ConstantTimeEqual(opened->span(), plaintext)) {
    return MakeError(ErrorClass::kDevice,
                     "the token does not decrypt what it encrypted");
  }
  return absl::OkStatus();
}

absl::Status Connection::ControlExperiment(Link& link,
                                           base::Deadline deadline) {
  ASSIGN_OR_RETURN(SessionPool::Lease lease,
                   link.pool.Acquire(deadline, SessionPool::Freshness::kNew));
  RETURN_IF_ERROR(Control(*lease, link));
  std::move(lease).Return();
  return absl::OkStatus();
}

void Connection::Succeeded(std::shared_ptr<Link> link) {
  bool news = false;
  {
    base::MutexLock lock(mu_);
    news = state_ != TokenState::kReady;
    generation_ = link->generation;
    link_ = std::move(link);
    phase_ = stop_ ? Phase::kDown : Phase::kUp;
    state_ = TokenState::kReady;
    error_ = absl::OkStatus();
    start_failure_ = Failure{};
    // Should it end before any work succeeds, the next attempt waits.
    back_off_ = std::max<std::chrono::nanoseconds>(
        back_off_, ToChrono(options_.reinitialize_min_interval));
    next_attempt_ = Now() + back_off_;
    attempts_done_ = attempts_begun_;
    failures_in_a_row_.store(0);
    unproven_generation_.store(true);
    last_success_.store(Now().time_since_epoch().count());
    changed_.NotifyAll();
  }
  if (news) Event("token-ready", info().label);
}

void Connection::Failed(const Failure& failure) {
  bool news = false;
  {
    base::MutexLock lock(mu_);
    news = state_ != failure.state;
    phase_ = Phase::kDown;
    state_ = failure.state;
    error_ = failure.status;
    start_failure_ = failure;
    if (failure.login_failed) {
      back_off_ = kLoginBackOff;
    } else {
      const std::chrono::nanoseconds first =
          ToChrono(options_.reinitialize_min_interval);
      const std::chrono::nanoseconds cap = kMaxBackOff;
      back_off_ =
          back_off_ > cap ? first : std::clamp(back_off_ * 2, first, cap);
    }
    next_attempt_ = Now() + back_off_;
    // Each attempt goes further than the last, but a PIN that is missing or
    // refused is no trouble of the library's.
    const bool pin_trouble = failure.state == TokenState::kPinRefused ||
                             ClassOf(failure.status) == ErrorClass::kOperator;
    rung_ = (rung_ == Rung::kProbe && link_ != nullptr) || pin_trouble
                ? Rung::kRelogin
                : Rung::kReinitialize;
    attempts_done_ = attempts_begun_;
    changed_.NotifyAll();
  }
  if (news) {
    Event(failure.state == TokenState::kAbsent ? "token-absent"
                                               : "token-degraded",
          std::string(failure.status.message()));
  }
}

// ---- what it knows ----------------------------------------------------------

void Connection::Event(const std::string& event,
                       const std::string& detail) const {
  base::LogWarning("token event", {{"event", event}, {"detail", detail}});
  if (options_.on_event) options_.on_event(event, detail);
}

void Connection::CountCanary(const char* result) {
  if (options_.metrics == nullptr) return;
  options_.metrics
      ->GetCounter("kekd_token_canaries_total",
                   "Proofs of key handles by result", {{"result", result}})
      ->Increment();
}

void Connection::SetGauges() {
  base::Metrics* metrics = options_.metrics;
  if (metrics == nullptr) return;
  const TokenHealth now = health();
  metrics->GetGauge("kekd_token_sessions_open", "Sessions for cryptography")
      ->Set(now.sessions_open);
  metrics->GetGauge("kekd_token_sessions_in_use", "Sessions leased")
      ->Set(now.sessions_in_use);
  metrics->GetGauge("kekd_token_waiters", "Callers that wait for a session")
      ->Set(now.waiters);
  metrics->GetGauge("kekd_token_generation", "Logins and re-initialisations")
      ->Set(static_cast<double>(now.generation));
  metrics->GetGauge("kekd_token_hung_calls", "PKCS#11 calls that hang")
      ->Set(watch_->HungCalls());
  for (const TokenState state :
       {TokenState::kStarting, TokenState::kReady, TokenState::kDegraded,
        TokenState::kAbsent, TokenState::kPinRefused}) {
    metrics
        ->GetGauge("kekd_token_state", "1 for the state the token is in",
                   {{"state", StateName(state)}})
        ->Set(now.state == state ? 1 : 0);
  }
}

TokenHealth Connection::health() const {
  TokenHealth result;
  std::shared_ptr<Link> link;
  {
    base::MutexLock lock(mu_);
    result.state = state_;
    result.last_error = error_;
    result.generation = generation_;
    link = link_;
  }
  if (const int64_t last = last_success_.load(); last != 0) {
    result.last_success = base::Deadline(base::Deadline::duration(last));
  }
  if (link != nullptr) {
    result.sessions_open = link->pool.open();
    result.sessions_in_use = link->pool.in_use();
    result.waiters = link->pool.waiters();
  }
  return result;
}

TokenInfo Connection::info() const {
  base::MutexLock lock(mu_);
  return info_;
}

std::vector<Guarantee> Connection::guarantees() const {
  base::MutexLock lock(mu_);
  return guarantees_;
}

}  // namespace kek::pkcs11
