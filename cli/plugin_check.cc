// SPDX-License-Identifier: Apache-2.0
#include "cli/plugin_check.h"

#include <openssl/rand.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/secret_bytes.h"
#include "base/status_macros.h"
#include "cli/connection.h"
#include "cli/exit_code.h"
#include "kubernetes/kms/v1beta1/api.grpc.pb.h"
#include "kubernetes/kms/v2/api.grpc.pb.h"

namespace kek::cli {
namespace {

using V2 = v2::KeyManagementService;
using V1Beta1 = v1beta1::KeyManagementService;

// kube-apiserver's limits (envelope.go: KeyIDMaxSize, the size of an encrypted
// DEK source, annotationsMaxSize) and its default timeout of one call.
constexpr size_t kMaxKeyId = 1024;
constexpr size_t kMaxCiphertext = 1024;
constexpr size_t kMaxAnnotations = 32 * 1024;
constexpr size_t kMaxV1Cipher = 65535;
constexpr auto kCallTimeout = std::chrono::seconds(3);
constexpr auto kPollInterval = std::chrono::milliseconds(200);
constexpr size_t kSeedSize = 32;

absl::Status Broken(absl::string_view what) {
  return absl::DataLossError(what);
}

base::Deadline CallDeadline(base::Deadline deadline) {
  return std::min(deadline, base::DeadlineAfter(kCallTimeout));
}

// k8s.io/apimachinery validation.IsFullyQualifiedDomainName.
bool IsFullyQualifiedDomainName(absl::string_view name) {
  if (absl::EndsWith(name, ".")) name.remove_suffix(1);
  if (name.empty() || name.size() > 253) return false;
  const std::vector<absl::string_view> labels = absl::StrSplit(name, '.');
  if (labels.size() < 2) return false;
  return std::all_of(labels.begin(), labels.end(), [](absl::string_view label) {
    if (label.empty() || label.size() > 63 || label.front() == '-' ||
        label.back() == '-') {
      return false;
    }
    return std::all_of(label.begin(), label.end(), [](char c) {
      return absl::ascii_islower(static_cast<unsigned char>(c)) ||
             absl::ascii_isdigit(static_cast<unsigned char>(c)) || c == '-';
    });
  });
}

std::string Shown(const std::string& text) {
  return absl::CHexEscape(text.size() > 128 ? text.substr(0, 128) + "..."
                                            : text);
}

absl::Status CheckKeyId(const std::string& key_id, absl::string_view where) {
  if (key_id.empty()) return Broken(absl::StrCat(where, ": key_id is empty"));
  if (key_id.size() > kMaxKeyId) {
    return Broken(absl::StrCat(where, ": key_id has ", key_id.size(),
                               " bytes, more than ", kMaxKeyId));
  }
  return absl::OkStatus();
}

bool Contains(const std::string& haystack, const std::string& needle) {
  return haystack.find(needle) != std::string::npos;
}

std::string RandomUid() {
  uint8_t b[16];
  RAND_bytes(b, sizeof(b));
  b[6] = static_cast<uint8_t>((b[6] & 0x0f) | 0x40);
  b[8] = static_cast<uint8_t>((b[8] & 0x3f) | 0x80);
  const std::string hex = absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(b), sizeof(b)));
  return absl::StrCat(hex.substr(0, 8), "-", hex.substr(8, 4), "-",
                      hex.substr(12, 4), "-", hex.substr(16, 4), "-",
                      hex.substr(20));
}

// Steps of one check, timed.
class Checker {
 public:
  // Runs a step; its text is what was seen.
  template <typename F>
  bool Step(absl::string_view name, F step) {
    const auto start = std::chrono::steady_clock::now();
    absl::StatusOr<std::string> seen = step();
    CheckStep result;
    result.name = std::string(name);
    result.time =
        absl::FromChrono(std::chrono::duration_cast<std::chrono::nanoseconds>(
            std::chrono::steady_clock::now() - start));
    result.passed = seen.ok();
    result.detail = seen.ok() ? *seen : std::string(seen.status().message());
    report_.steps.push_back(std::move(result));
    if (!seen.ok()) report_.result = seen.status();
    return seen.ok();
  }
  CheckReport& report() { return report_; }

 private:
  CheckReport report_;
};

class V2Checker {
 public:
  V2Checker(std::string socket, base::Deadline deadline)
      : socket_(std::move(socket)), deadline_(deadline) {
    plaintext_.resize(kSeedSize);
    RAND_bytes(reinterpret_cast<uint8_t*>(plaintext_.data()), kSeedSize);
  }
  ~V2Checker() { base::Wipe(plaintext_); }

  CheckReport Run() {
    const bool passed =
        checker_.Step("Status", [&] { return UntilHealthy(); }) &&
        checker_.Step("Encrypt", [&] { return Encrypt(); }) &&
        checker_.Step("Decrypt", [&] { return Decrypt(); }) &&
        checker_.Step("Encrypt again", [&] { return EncryptAgain(); }) &&
        checker_.Step("key_id", [&] { return Consistent(); });
    if (passed) checker_.report().result = absl::OkStatus();
    checker_.report().key_id = encrypted_.key_id();
    checker_.report().version = status_.version();
    return std::move(checker_.report());
  }

 private:
  absl::Status CallStatus(v2::StatusResponse& response) {
    if (connection_ == nullptr) {
      ASSIGN_OR_RETURN(connection_,
                       Connection::Open(socket_, CallDeadline(deadline_)));
      stub_ = V2::NewStub(connection_->channel());
    }
    return connection_->Call(stub_, &V2::Stub::Status, v2::StatusRequest(),
                             response, CallDeadline(deadline_));
  }

  // Healthy, and what it says is valid.
  absl::StatusOr<std::string> UntilHealthy() {
    absl::Status last;
    while (true) {
      v2::StatusResponse response;
      last = CallStatus(response);
      if (last.ok() && response.healthz() == "ok") {
        if (response.version() != "v2" && response.version() != "v2beta1") {
          return Broken(absl::StrCat("Status: version is '",
                                     Shown(response.version()),
                                     "', not v2 or v2beta1"));
        }
        RETURN_IF_ERROR(CheckKeyId(response.key_id(), "Status"));
        status_ = std::move(response);
        return absl::StrCat("healthy, version ", status_.version(), ", key_id ",
                            Shown(status_.key_id()));
      }
      if (last.ok()) {
        last = absl::UnavailableError(
            absl::StrCat("healthz is '", Shown(response.healthz()), "'"));
      } else if (last.code() == absl::StatusCode::kUnimplemented) {
        return WithHint(
            Broken("the process at this socket does not serve Kubernetes KMS "
                   "v2"),
            "use --v1beta1 for a plugin of the old API, or check the path");
      } else if (last.code() == absl::StatusCode::kPermissionDenied ||
                 last.code() == absl::StatusCode::kInvalidArgument) {
        return last;  // waiting does not change these
      } else {
        connection_.reset();  // a restarted plugin needs a new connection
      }
      if (std::chrono::steady_clock::now() + kPollInterval >= deadline_) {
        absl::Status gave_up(
            last.code() == absl::StatusCode::kDeadlineExceeded
                ? absl::StatusCode::kDeadlineExceeded
                : absl::StatusCode::kUnavailable,
            absl::StrCat("not healthy before the deadline: ", last.message()));
        return WithHint(std::move(gave_up), HintOf(last));
      }
      std::this_thread::sleep_for(kPollInterval);
    }
  }

  absl::StatusOr<std::string> EncryptOnce(v2::EncryptResponse& response) {
    v2::EncryptRequest request;
    const WipeAtEnd wipe(*request.mutable_plaintext());
    request.set_plaintext(plaintext_);
    request.set_uid(RandomUid());
    RETURN_IF_ERROR(connection_->Call(stub_, &V2::Stub::Encrypt, request,
                                      response, CallDeadline(deadline_)));
    const std::string& ciphertext = response.ciphertext();
    if (ciphertext.empty()) return Broken("Encrypt: ciphertext is empty");
    if (ciphertext.size() > kMaxCiphertext) {
      return Broken(absl::StrCat("Encrypt: ciphertext has ", ciphertext.size(),
                                 " bytes, more than ", kMaxCiphertext));
    }
    if (Contains(ciphertext, plaintext_)) {
      return Broken("Encrypt: the ciphertext contains the plaintext");
    }
    RETURN_IF_ERROR(CheckKeyId(response.key_id(), "Encrypt"));
    size_t size = 0;
    for (const auto& [name, value] : response.annotations()) {
      if (!IsFullyQualifiedDomainName(name)) {
        return Broken(absl::StrCat("Encrypt: annotation '", Shown(name),
                                   "' is not a fully qualified domain name"));
      }
      if (Contains(value, plaintext_)) {
        return Broken("Encrypt: an annotation contains the plaintext");
      }
      size += name.size() + value.size();
    }
    if (size > kMaxAnnotations) {
      return Broken(absl::StrCat("Encrypt: annotations have ", size,
                                 " bytes, more than ", kMaxAnnotations));
    }
    return absl::StrCat("32 random bytes became ", ciphertext.size(),
                        " bytes, ", response.annotations().size(),
                        " annotations");
  }

  // kube-apiserver accepts an Encrypt only under the key_id that Status gave;
  // one rotation may fall between the two.
  absl::StatusOr<std::string> Encrypt() {
    for (int attempt = 0;; ++attempt) {
      ASSIGN_OR_RETURN(std::string seen, EncryptOnce(encrypted_));
      if (encrypted_.key_id() == status_.key_id()) return seen;
      if (attempt == 1) {
        return Broken(absl::StrCat(
            "key_id of Encrypt is '", Shown(encrypted_.key_id()),
            "', of Status '", Shown(status_.key_id()), "', twice in a row"));
      }
      ASSIGN_OR_RETURN(std::string ignored, UntilHealthy());
    }
  }

  absl::StatusOr<std::string> Decrypt() {
    v2::DecryptRequest request;
    request.set_ciphertext(encrypted_.ciphertext());
    request.set_key_id(encrypted_.key_id());
    *request.mutable_annotations() = encrypted_.annotations();
    request.set_uid(RandomUid());
    v2::DecryptResponse response;
    const WipeAtEnd wipe(*response.mutable_plaintext());
    RETURN_IF_ERROR(connection_->Call(stub_, &V2::Stub::Decrypt, request,
                                      response, CallDeadline(deadline_)));
    if (response.plaintext() != plaintext_) {
      return Broken("Decrypt: the plaintext is not what was encrypted");
    }
    return std::string("the plaintext came back");
  }

  absl::StatusOr<std::string> EncryptAgain() {
    v2::EncryptResponse second;
    ASSIGN_OR_RETURN(std::string ignored, EncryptOnce(second));
    if (second.ciphertext() == encrypted_.ciphertext()) {
      return Broken(
          "Encrypt: the same plaintext gave the same ciphertext twice");
    }
    return std::string("another ciphertext of the same plaintext");
  }

  absl::StatusOr<std::string> Consistent() {
    const std::string version = status_.version();
    const std::string before = status_.key_id();
    ASSIGN_OR_RETURN(std::string ignored, UntilHealthy());
    if (status_.version() != version) {
      return Broken(absl::StrCat("Status: version changed from ", version,
                                 " to ", status_.version()));
    }
    if (status_.key_id() == before) {
      return absl::StrCat("the same in Status and Encrypt: ", Shown(before));
    }
    // Rotated meanwhile: then Encrypt has to follow.
    ASSIGN_OR_RETURN(ignored, Encrypt());
    return absl::StrCat("rotated meanwhile, Encrypt followed: ",
                        Shown(encrypted_.key_id()));
  }

  const std::string socket_;
  const base::Deadline deadline_;
  Checker checker_;
  std::unique_ptr<Connection> connection_;
  std::unique_ptr<V2::Stub> stub_;
  v2::StatusResponse status_;
  v2::EncryptResponse encrypted_;
  std::string plaintext_;
};

bool IsSemanticVersion(absl::string_view text) {
  absl::ConsumePrefix(&text, "v");
  const std::vector<absl::string_view> parts =
      absl::StrSplit(text.substr(0, text.find_first_of("-+")), '.');
  return parts.size() == 3 &&
         std::all_of(parts.begin(), parts.end(), [](absl::string_view part) {
           return !part.empty() &&
                  std::all_of(part.begin(), part.end(), [](char c) {
                    return absl::ascii_isdigit(static_cast<unsigned char>(c));
                  });
         });
}

}  // namespace

CheckReport CheckKmsV2(const std::string& socket, base::Deadline deadline) {
  return V2Checker(socket, deadline).Run();
}

CheckReport CheckKmsV1Beta1(const std::string& socket,
                            base::Deadline deadline) {
  Checker checker;
  std::unique_ptr<Connection> connection;
  std::unique_ptr<V1Beta1::Stub> stub;
  std::string plaintext(kSeedSize, '\0');
  RAND_bytes(reinterpret_cast<uint8_t*>(plaintext.data()), kSeedSize);
  std::string cipher;

  const auto version = [&]() -> absl::StatusOr<std::string> {
    while (true) {
      v1beta1::VersionResponse response;
      absl::Status status = [&]() -> absl::Status {
        ASSIGN_OR_RETURN(connection,
                         Connection::Open(socket, CallDeadline(deadline)));
        stub = V1Beta1::NewStub(connection->channel());
        v1beta1::VersionRequest request;
        request.set_version("v1beta1");
        return connection->Call(stub, &V1Beta1::Stub::Version, request,
                                response, CallDeadline(deadline));
      }();
      if (status.ok()) {
        if (response.version() != "v1beta1") {
          return Broken(absl::StrCat("Version: version is '",
                                     Shown(response.version()),
                                     "', not v1beta1"));
        }
        if (response.runtime_name().empty()) {
          return Broken("Version: runtime_name is empty");
        }
        checker.report().version = absl::StrCat(response.runtime_name(), " ",
                                                response.runtime_version());
        return absl::StrCat("v1beta1, ", Shown(response.runtime_name()), " ",
                            Shown(response.runtime_version()),
                            IsSemanticVersion(response.runtime_version())
                                ? ""
                                : " (not a semantic version)");
      }
      if (status.code() == absl::StatusCode::kUnimplemented) {
        return Broken(
            "the process at this socket does not serve Kubernetes KMS "
            "v1beta1");
      }
      if (status.code() != absl::StatusCode::kUnavailable &&
          status.code() != absl::StatusCode::kDeadlineExceeded) {
        return status;
      }
      if (std::chrono::steady_clock::now() + kPollInterval >= deadline) {
        return status;
      }
      std::this_thread::sleep_for(kPollInterval);
    }
  };
  const auto encrypt = [&]() -> absl::StatusOr<std::string> {
    v1beta1::EncryptRequest request;
    const WipeAtEnd wipe(*request.mutable_plain());
    request.set_version("v1beta1");
    request.set_plain(plaintext);
    v1beta1::EncryptResponse response;
    RETURN_IF_ERROR(connection->Call(stub, &V1Beta1::Stub::Encrypt, request,
                                     response, CallDeadline(deadline)));
    cipher = response.cipher();
    if (cipher.empty()) return Broken("Encrypt: cipher is empty");
    if (cipher.size() > kMaxV1Cipher) {
      return Broken(absl::StrCat("Encrypt: cipher has ", cipher.size(),
                                 " bytes, more than ", kMaxV1Cipher));
    }
    if (Contains(cipher, plaintext)) {
      return Broken("Encrypt: the ciphertext contains the plaintext");
    }
    return absl::StrCat("32 random bytes became ", cipher.size(), " bytes");
  };
  const auto decrypt = [&]() -> absl::StatusOr<std::string> {
    v1beta1::DecryptRequest request;
    request.set_version("v1beta1");
    request.set_cipher(cipher);
    v1beta1::DecryptResponse response;
    const WipeAtEnd wipe(*response.mutable_plain());
    RETURN_IF_ERROR(connection->Call(stub, &V1Beta1::Stub::Decrypt, request,
                                     response, CallDeadline(deadline)));
    if (response.plain() != plaintext) {
      return Broken("Decrypt: the plaintext is not what was encrypted");
    }
    return std::string("the plaintext came back");
  };
  if (checker.Step("Version", version) && checker.Step("Encrypt", encrypt) &&
      checker.Step("Decrypt", decrypt)) {
    checker.report().result = absl::OkStatus();
  }
  base::Wipe(plaintext);
  return std::move(checker.report());
}

}  // namespace kek::cli
