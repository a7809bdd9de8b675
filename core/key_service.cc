// SPDX-License-Identifier: Apache-2.0
// The data path of KeyService, and what all its calls share. Changes are in
// key_service_admin.cc, work with key material in key_service_versions.cc,
// kekd's own initiative in key_service_upkeep.cc.
#include "core/key_service.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "core/algorithm.h"
#include "core/key_service_engine.h"
#include "openssl/evp.h"
#include "openssl/rand.h"

namespace kek::core {

using catalog::ResourceName;

namespace {

// An audit record is written even when the call's time is up.
constexpr std::chrono::seconds kAuditGrace(2);

absl::Status InvalidCiphertext() {
  return absl::InvalidArgumentError(
      "Decryption failed: the ciphertext is invalid.");
}

absl::Status CheckPurpose(const catalog::CryptoKey& key) {
  if (key.purpose == catalog::Purpose::kEncryptDecrypt) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "CryptoKey ", key.name.ToString(), " has not purpose ENCRYPT_DECRYPT."));
}

absl::Status NoPrimary(const ResourceName& key) {
  return absl::FailedPreconditionError(
      absl::StrCat("CryptoKey ", key.ToString(), " has no primary version."));
}

absl::Status CheckSizes(catalog::ProtectionLevel level, size_t plaintext,
                        size_t aad) {
  const EncryptLimits limits = LimitsOf(level);
  if (plaintext > limits.plaintext) {
    return absl::InvalidArgumentError(
        absl::StrCat("plaintext is ", plaintext, " bytes long; at most ",
                     limits.plaintext, " are allowed"));
  }
  if (aad > limits.aad) {
    return absl::InvalidArgumentError(
        absl::StrCat("additional_authenticated_data is ", aad,
                     " bytes long; at most ", limits.aad, " are allowed"));
  }
  if (plaintext + aad > limits.together) {
    return absl::InvalidArgumentError(absl::StrCat(
        "plaintext and additional_authenticated_data are ", plaintext + aad,
        " bytes together; at most ", limits.together, " are allowed"));
  }
  return absl::OkStatus();
}

// crc32c is the caller's, of the field called name; absent: not checked.
absl::Status CheckChecksum(absl::string_view name,
                           std::optional<int64_t> crc32c,
                           std::span<const uint8_t> data) {
  if (!crc32c.has_value() || *crc32c == int64_t{base::Crc32c(data)}) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("The checksum in field ", name,
                   "_crc32c did not match the data in field ", name, "."));
}

// Names one decryption: the same name means the same question.
std::string FlightKey(const DecryptRequest& request) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> hash(
      EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  EVP_DigestInit_ex(hash.get(), EVP_sha256(), nullptr);
  const auto add = [&hash](const void* data, uint64_t size) {
    EVP_DigestUpdate(hash.get(), &size, sizeof size);
    EVP_DigestUpdate(hash.get(), data, size);
  };
  const std::string& name = request.key.ToString();
  add(name.data(), name.size());
  add(&request.context, sizeof request.context);
  add(request.aad.data(), request.aad.size());
  add(request.ciphertext.data(), request.ciphertext.size());
  std::string digest(32, '\0');
  EVP_DigestFinal_ex(hash.get(), reinterpret_cast<uint8_t*>(digest.data()),
                     nullptr);
  return digest;
}

absl::string_view FrontEndName(FrontEnd front_end) {
  switch (front_end) {
    case FrontEnd::kInternal:
      return "internal";
    case FrontEnd::kAdmin:
      return "admin";
    case FrontEnd::kCloudKms:
      return "cloudkms";
    case FrontEnd::kKubernetesV1Beta1:
      return "kubernetes_v1beta1";
    case FrontEnd::kKubernetesV2:
      return "kubernetes_v2";
  }
  return "unknown";
}

}  // namespace

absl::string_view MethodName(Method method) {
  switch (method) {
    case Method::kEncrypt:
      return "Encrypt";
    case Method::kDecrypt:
      return "Decrypt";
    case Method::kPrimary:
      return "Primary";
    case Method::kCreateKeyRing:
      return "CreateKeyRing";
    case Method::kGetKeyRing:
      return "GetKeyRing";
    case Method::kListKeyRings:
      return "ListKeyRings";
    case Method::kCreateCryptoKey:
      return "CreateCryptoKey";
    case Method::kGetCryptoKey:
      return "GetCryptoKey";
    case Method::kListCryptoKeys:
      return "ListCryptoKeys";
    case Method::kUpdateCryptoKey:
      return "UpdateCryptoKey";
    case Method::kSetPrimary:
      return "UpdateCryptoKeyPrimaryVersion";
    case Method::kCreateVersion:
      return "CreateCryptoKeyVersion";
    case Method::kRotate:
      return "RotateCryptoKey";
    case Method::kGetVersion:
      return "GetCryptoKeyVersion";
    case Method::kListVersions:
      return "ListCryptoKeyVersions";
    case Method::kEnable:
      return "EnableCryptoKeyVersion";
    case Method::kDisable:
      return "DisableCryptoKeyVersion";
    case Method::kScheduleDestroy:
      return "DestroyCryptoKeyVersion";
    case Method::kRestore:
      return "RestoreCryptoKeyVersion";
    case Method::kDestroyMaterial:
      return "DestroyKeyMaterial";
    case Method::kResumeCreation:
      return "ResumeCreation";
    case Method::kCount:
      break;
  }
  return "Unknown";
}

absl::Status ExpectKind(const ResourceName& name, ResourceName::Kind kind) {
  if (name.kind() == kind) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      name.ToString(), " is not the name of a ", catalog::KindName(kind), "."));
}

catalog::CryptoKeyVersion Present(catalog::CryptoKeyVersion version) {
  // Until the state is DESTROYED this marks a destruction that has begun.
  if (version.state != catalog::VersionState::kDestroyed) {
    version.destroy_event_time.reset();
  }
  return version;
}

absl::Time Micros(absl::Time time) {
  return absl::FromUnixMicros(absl::ToUnixMicros(time));
}

// ---- OperationMetrics

void OperationMetrics::Record(Method method, FrontEnd front_end,
                              absl::StatusCode code, absl::Duration latency) {
  if (metrics_ == nullptr) return;
  const size_t m = static_cast<size_t>(method);
  const size_t f = static_cast<size_t>(front_end);
  const size_t c = std::min<size_t>(static_cast<size_t>(code), kCodes - 1);
  const std::string method_name(MethodName(method));
  const std::string front_end_name(FrontEndName(front_end));
  std::atomic<base::Metrics::Counter*>& counter =
      counters_[(m * kFrontEnds + f) * kCodes + c];
  base::Metrics::Counter* count = counter.load(std::memory_order_acquire);
  if (count == nullptr) {
    // Two threads get the same series.
    count = metrics_->GetCounter("kekd_operations_total",
                                 "Operations by front end, method and code.",
                                 {{"front_end", front_end_name},
                                  {"method", method_name},
                                  {"code", absl::StatusCodeToString(code)}});
    counter.store(count, std::memory_order_release);
  }
  count->Increment();
  std::atomic<base::Metrics::Histogram*>& slot = latencies_[m * kFrontEnds + f];
  base::Metrics::Histogram* histogram = slot.load(std::memory_order_acquire);
  if (histogram == nullptr) {
    histogram = metrics_->GetLatency(
        "kekd_operation_duration_seconds",
        "Time from the check of the permission to the durable audit record.",
        {{"front_end", front_end_name}, {"method", method_name}});
    slot.store(histogram, std::memory_order_release);
  }
  histogram->Observe(absl::ToDoubleSeconds(latency));
}

// ---- KeyLanes

absl::StatusOr<KeyLanes::Turn> KeyLanes::Enter(const ResourceName& key,
                                               base::Deadline deadline) {
  Turn turn;
  {
    base::MutexLock lock(mu_);
    // Lanes nobody is in or waits for are forgotten here.
    for (auto it = lanes_.begin(); it != lanes_.end();) {
      it = it->second.expired() ? lanes_.erase(it) : std::next(it);
    }
    std::weak_ptr<base::Lane>& slot = lanes_[key.ToString()];
    turn.lane = slot.lock();
    if (turn.lane == nullptr) {
      turn.lane = std::make_shared<base::Lane>(base::Lane::Options{
          .name = absl::StrCat("changes of ", key.ToString())});
      slot = turn.lane;
    }
  }
  ASSIGN_OR_RETURN(turn.hold, turn.lane->Enter(deadline));
  return turn;
}

// ---- Engine

KeyService::Engine::Engine(catalog::Catalog& c, pkcs11::Token& t, Authorizer& a,
                           AuditLog& l, Options o)
    : catalog(c),
      token(t),
      authorizer(a),
      audit(l),
      options(std::move(o)),
      clock(options.clock != nullptr ? *options.clock : base::Clock::Real()),
      metrics(options.metrics),
      wrapper(t),
      keys(c, wrapper,
           {.keys = options.cached_keys,
            .uses = {.max_uses = options.max_uses,
                     .max_block = options.max_use_block}}) {}

absl::Time KeyService::Engine::Now() const { return Micros(clock.Now()); }

CallInfo KeyService::Engine::Internal(base::Deadline deadline) const {
  CallInfo call;
  call.caller.principals = {"kekd:lifecycle"};
  call.caller.authenticator = Authenticator::kInternal;
  call.caller.front_end = FrontEnd::kInternal;
  call.deadline = deadline;
  return call;
}

KeyService::Engine::Started KeyService::Engine::Begin(
    const CallInfo& call, Method method, const ResourceName& resource) const {
  Started started;
  started.at = std::chrono::steady_clock::now();
  started.record.method = std::string(MethodName(method));
  started.record.caller = call.caller;
  started.record.resource = resource.ToString();
  started.record.request_id = call.request_id;
  return started;
}

absl::Status KeyService::Engine::Permit(
    const CallInfo& call, std::initializer_list<absl::string_view> permissions,
    const ResourceName& resource) const {
  for (const absl::string_view permission : permissions) {
    RETURN_IF_ERROR(authorizer.Check(call.caller, permission, resource));
  }
  return absl::OkStatus();
}

absl::Status KeyService::Engine::End(const CallInfo& call, Method method,
                                     Started& started, const Watch* watch) {
  AuditRecord& record = started.record;
  const auto elapsed = [&started] {
    return absl::FromChrono(std::chrono::steady_clock::now() - started.at);
  };
  const base::Deadline audit_deadline =
      std::max(call.deadline, base::DeadlineAfter(kAuditGrace));
  record.latency = elapsed();
  absl::Status end = record.status;
  if (absl::Status written = audit.Append(record, audit_deadline);
      !written.ok()) {
    // No durable record, no reply.
    base::LogError("audit record not written, the result is withheld",
                   {{"method", record.method}, {"error", written}});
    end = absl::Status(
        written.code() == absl::StatusCode::kOk ? absl::StatusCode::kUnavailable
                                                : written.code(),
        absl::StrCat("the audit log did not take the record of this call: ",
                     written.message()));
  } else if (record.status.ok() && watch != nullptr &&
             watch->version.has_value() && keys.epoch() != watch->epoch) {
    // Something changed while the call was on its way: is the version it used
    // still ENABLED?
    absl::StatusOr<catalog::CryptoKeyVersion> version =
        catalog.GetVersion(*watch->version);
    absl::Status still =
        version.ok() ? CheckEnabled(*version) : version.status();
    if (!still.ok()) {
      record.status = still;
      record.output_bytes = 0;
      record.detail = "result withheld: the version changed meanwhile";
      record.latency = elapsed();
      if (absl::Status written = audit.Append(record, audit_deadline);
          !written.ok()) {
        base::LogError("audit record of a withheld result not written",
                       {{"method", record.method}, {"error", written}});
      }
      end = std::move(still);
    }
  }
  metrics.Record(method, call.caller.front_end, end.code(), elapsed());
  CountVersionUse(method, record.version, end.code());
  return end;
}

void KeyService::Engine::CountVersionUse(Method method,
                                         const std::string& version,
                                         absl::StatusCode code) {
  if (options.metrics == nullptr || version.empty() ||
      (method != Method::kEncrypt && method != Method::kDecrypt)) {
    return;
  }
  constexpr absl::string_view kInfix = "/cryptoKeyVersions/";
  const size_t infix = version.rfind(kInfix.data(), std::string::npos);
  if (infix == std::string::npos) return;
  const std::string key = version.substr(0, infix);
  {
    base::MutexLock lock(mu);
    if (!in_metrics.contains(key)) return;
  }
  options.metrics
      ->GetCounter("kekd_key_version_operations_total",
                   "Uses of the versions of bound keys, by method and code.",
                   {{"code", absl::StatusCodeToString(code)},
                    {"key", key},
                    {"method", std::string(MethodName(method))},
                    {"version", version.substr(infix + kInfix.size())}})
      ->Increment();
}

absl::Status KeyService::Engine::CheckEnabled(
    const catalog::CryptoKeyVersion& version) {
  if (version.state == catalog::VersionState::kEnabled) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      version.name.ToString(), " is not enabled, current state is: ",
      catalog::VersionStateName(version.state), "."));
}

absl::Status KeyService::Engine::TakeUse(const ResolvedKey& key,
                                         const LoadedVersion& version,
                                         base::Deadline deadline) {
  absl::StatusOr<uint64_t> use = version.runtime->uses.Take(deadline);
  const uint64_t rotate_after =
      std::min(options.max_uses, key.key.rotate_after_uses != 0
                                     ? key.key.rotate_after_uses
                                     : options.default_rotate_after_uses);
  const uint32_t number = version.record.name.version();
  const bool exhausted = absl::IsFailedPrecondition(use.status());
  if ((exhausted || (use.ok() && *use >= rotate_after)) &&
      number == key.key.primary_version) {
    base::MutexLock lock(mu);
    used_up[key.key.name.ToString()] = number;
  }
  return use.status();
}

KeyService::KeyService(catalog::Catalog& catalog, pkcs11::Token& token,
                       Authorizer& authorizer, AuditLog& audit, Options options)
    : engine_(std::make_unique<Engine>(catalog, token, authorizer, audit,
                                       std::move(options))) {}

KeyService::~KeyService() = default;

// ---- data

absl::StatusOr<EncryptResult> KeyService::Encrypt(
    const CallInfo& call, const EncryptRequest& request) {
  Engine& e = *engine_;
  if (request.name.kind() != ResourceName::Kind::kCryptoKeyVersion) {
    RETURN_IF_ERROR(ExpectKind(request.name, ResourceName::Kind::kCryptoKey));
  }
  const ResourceName key_name = request.name.CryptoKey();
  Engine::Watch watch{.epoch = e.keys.epoch()};
  return e.Run<EncryptResult>(
      call, Method::kEncrypt, {permission::kUseToEncrypt}, key_name,
      [&](AuditRecord& record) -> absl::StatusOr<EncryptResult> {
        record.resource = request.name.ToString();
        record.input_bytes = request.plaintext.size();
        record.aad_bytes = request.aad.size();
        ASSIGN_OR_RETURN(const std::shared_ptr<const ResolvedKey> key,
                         e.keys.Get(key_name, call.deadline));
        const bool by_version =
            request.name.kind() == ResourceName::Kind::kCryptoKeyVersion;
        const uint32_t number =
            by_version ? request.name.version() : key->key.primary_version;
        if (number == 0) {
          RETURN_IF_ERROR(CheckPurpose(key->key));
          return NoPrimary(key_name);
        }
        ASSIGN_OR_RETURN(const std::shared_ptr<const LoadedVersion> version,
                         e.keys.GetVersion(*key, number, call.deadline));
        watch.version = version->record.name;
        record.version = version->record.name.ToString();
        RETURN_IF_ERROR(CheckPurpose(key->key));
        RETURN_IF_ERROR(Engine::CheckEnabled(version->record));
        RETURN_IF_ERROR(CheckSizes(version->record.protection_level,
                                   request.plaintext.size(),
                                   request.aad.size()));
        if (request.plaintext.empty() && !request.allow_empty_plaintext) {
          return absl::InvalidArgumentError("plaintext is empty");
        }
        RETURN_IF_ERROR(CheckChecksum("plaintext", request.plaintext_crc32c,
                                      request.plaintext));
        RETURN_IF_ERROR(CheckChecksum(
            "additional_authenticated_data",
            request.additional_authenticated_data_crc32c, request.aad));
        RETURN_IF_ERROR(e.TakeUse(*key, *version, call.deadline));
        EncryptResult result{
            .version = version->record.name,
            .protection_level = version->record.protection_level};
        ASSIGN_OR_RETURN(
            result.ciphertext,
            e.wrapper.Wrap(version->runtime->resolved, request.plaintext,
                           request.aad,
                           {.context = request.context,
                            .verify = e.options.verify_after_encrypt},
                           call.deadline));
        if (number == key->key.primary_version) key->activity->Succeeded();
        record.output_bytes = result.ciphertext.size();
        return result;
      },
      &watch);
}

absl::StatusOr<DecryptResult> KeyService::Decrypt(
    const CallInfo& call, const DecryptRequest& request) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(request.key, ResourceName::Kind::kCryptoKey));
  Engine::Watch watch{.epoch = e.keys.epoch()};
  return e.Run<DecryptResult>(
      call, Method::kDecrypt, {permission::kUseToDecrypt}, request.key,
      [&](AuditRecord& record) -> absl::StatusOr<DecryptResult> {
        record.input_bytes = request.ciphertext.size();
        record.aad_bytes = request.aad.size();
        ASSIGN_OR_RETURN(const std::shared_ptr<const ResolvedKey> key,
                         e.keys.Get(request.key, call.deadline));
        RETURN_IF_ERROR(CheckPurpose(key->key));
        // The version is in the ciphertext, so that this part of the payload
        // comes before the version's state.
        RETURN_IF_ERROR(CheckChecksum("ciphertext", request.ciphertext_crc32c,
                                      request.ciphertext));
        const absl::StatusOr<Envelope> envelope =
            Envelope::Parse(request.ciphertext);
        if (!envelope.ok()) return InvalidCiphertext();
        if (envelope->key_uuid != key->key.uuid) {
          return absl::InvalidArgumentError(
              "Decryption failed: verify that 'name' refers to the correct "
              "CryptoKey.");
        }
        if (envelope->context != request.context) return InvalidCiphertext();
        ASSIGN_OR_RETURN(
            const std::shared_ptr<const LoadedVersion> version,
            e.keys.GetVersion(*key, envelope->version, call.deadline));
        watch.version = version->record.name;
        record.version = version->record.name.ToString();
        RETURN_IF_ERROR(Engine::CheckEnabled(version->record));
        const EncryptLimits limits = LimitsOf(version->record.protection_level);
        if (request.ciphertext.size() >
            limits.plaintext + kMaxEnvelopeOverhead) {
          return InvalidCiphertext();
        }
        if (request.aad.size() > limits.aad) {
          return absl::InvalidArgumentError(absl::StrCat(
              "additional_authenticated_data is ", request.aad.size(),
              " bytes long; at most ", limits.aad, " are allowed"));
        }
        RETURN_IF_ERROR(CheckChecksum(
            "additional_authenticated_data",
            request.additional_authenticated_data_crc32c, request.aad));

        // Only the token's work is shared: this caller has been checked above.
        const std::string flight = FlightKey(request);
        absl::StatusOr<std::shared_ptr<const base::SecretBytes>> plaintext =
            absl::UnknownError("not run");
        do {
          record.coalesced = true;
          plaintext = e.decrypts.Do(
              flight,
              [&]()
                  -> absl::StatusOr<std::shared_ptr<const base::SecretBytes>> {
                record.coalesced = false;
                ASSIGN_OR_RETURN(
                    base::SecretBytes opened,
                    e.wrapper.Unwrap(version->runtime->resolved, *envelope,
                                     request.aad, call.deadline));
                return std::make_shared<const base::SecretBytes>(
                    std::move(opened));
              },
              call.deadline);
          // The caller who did the work had less time than this one.
        } while (record.coalesced &&
                 absl::IsDeadlineExceeded(plaintext.status()) &&
                 std::chrono::steady_clock::now() < call.deadline);
        if (absl::IsInvalidArgument(plaintext.status())) {
          return InvalidCiphertext();
        }
        RETURN_IF_ERROR(plaintext.status());
        const bool primary = envelope->version == key->key.primary_version;
        if (primary) key->activity->Succeeded();
        record.output_bytes = (*plaintext)->size();
        return DecryptResult{
            .plaintext = base::SecretBytes((*plaintext)->span()),
            .version = version->record.name,
            .used_primary = primary,
            .protection_level = version->record.protection_level};
      },
      &watch);
}

absl::StatusOr<PrimaryInfo> KeyService::Primary(const CallInfo& call,
                                                const ResourceName& key_name) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(key_name, ResourceName::Kind::kCryptoKey));
  RETURN_IF_ERROR(
      e.authorizer.Check(call.caller, permission::kUseToEncrypt, key_name));
  ASSIGN_OR_RETURN(const std::shared_ptr<const ResolvedKey> key,
                   e.keys.Get(key_name, call.deadline));
  if (key->key.primary_version == 0) return NoPrimary(key_name);
  ASSIGN_OR_RETURN(
      const std::shared_ptr<const LoadedVersion> version,
      e.keys.GetVersion(*key, key->key.primary_version, call.deadline));
  return PrimaryInfo{.version = version->record.name,
                     .key_uuid = key->key.uuid,
                     .activation = key->key.primary_activation,
                     .state = version->record.state};
}

absl::Status KeyService::SelfTest(const ResourceName& key_name,
                                  base::Deadline deadline) {
  Engine& e = *engine_;
  RETURN_IF_ERROR(ExpectKind(key_name, ResourceName::Kind::kCryptoKey));
  ASSIGN_OR_RETURN(const std::shared_ptr<const ResolvedKey> key,
                   e.keys.Get(key_name, deadline));
  RETURN_IF_ERROR(CheckPurpose(key->key));
  if (key->key.primary_version == 0) return NoPrimary(key_name);
  ASSIGN_OR_RETURN(const std::shared_ptr<const LoadedVersion> version,
                   e.keys.GetVersion(*key, key->key.primary_version, deadline));
  RETURN_IF_ERROR(Engine::CheckEnabled(version->record));
  RETURN_IF_ERROR(e.TakeUse(*key, *version, deadline));

  base::SecretBytes sample(32);
  if (RAND_bytes(sample.mutable_data(), static_cast<int>(sample.size())) != 1) {
    return absl::UnavailableError(
        "self-test: the host's random generator fails");
  }
  const ResolvedVersion& resolved = version->runtime->resolved;
  ASSIGN_OR_RETURN(
      const std::vector<uint8_t> ciphertext,
      e.wrapper.Wrap(resolved, sample.span(), {},
                     {.context = EnvelopeContext::kKekV1, .verify = false},
                     deadline));
  ASSIGN_OR_RETURN(const Envelope envelope, Envelope::Parse(ciphertext));
  ASSIGN_OR_RETURN(const base::SecretBytes opened,
                   e.wrapper.Unwrap(resolved, envelope, {}, deadline));
  if (!(opened == sample)) {
    return absl::DataLossError(
        absl::StrCat("self-test of ", version->record.name.ToString(),
                     ": what came back is not what was wrapped"));
  }
  key->activity->Succeeded();
  return absl::OkStatus();
}

std::optional<base::Deadline> KeyService::LastSuccess(
    const ResourceName& key) const {
  return engine_->keys.LastSuccess(key);
}

absl::Status KeyService::CheckServer(const CallInfo& call,
                                     absl::string_view permission) const {
  return engine_->authorizer.CheckServer(call.caller, permission);
}

absl::Status KeyService::Audit(const CallInfo& call, absl::string_view method,
                               absl::string_view resource,
                               const absl::Status& status,
                               absl::string_view detail) {
  AuditRecord record;
  record.method = std::string(method);
  record.caller = call.caller;
  record.resource = std::string(resource);
  record.request_id = call.request_id;
  record.status = status;
  record.permitted = !absl::IsPermissionDenied(status);
  record.detail = std::string(detail);
  return engine_->audit.Append(
      record, std::max(call.deadline, base::DeadlineAfter(kAuditGrace)));
}

}  // namespace kek::core
