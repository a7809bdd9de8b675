// SPDX-License-Identifier: Apache-2.0
#include "pkcs11/error.h"

#include <algorithm>
#include <array>
#include <map>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/sync.h"
#include "pkcs11/cryptoki.h"
#include "pkcs11/error_internal.h"

namespace kek::pkcs11 {
namespace {

constexpr absl::string_view kClassUrl = "kekd/pkcs11/error-class";
constexpr absl::string_view kRvUrl = "kekd/pkcs11/rv";

struct RvRow {
  CK_RV rv;
  absl::string_view name;
};

// PKCS#11 2.40 base specification, section 5.1, and 3.0's additions we meet.
constexpr std::array kRvs = {
    RvRow{CKR_OK, "CKR_OK"},
    RvRow{CKR_CANCEL, "CKR_CANCEL"},
    RvRow{CKR_HOST_MEMORY, "CKR_HOST_MEMORY"},
    RvRow{CKR_SLOT_ID_INVALID, "CKR_SLOT_ID_INVALID"},
    RvRow{CKR_GENERAL_ERROR, "CKR_GENERAL_ERROR"},
    RvRow{CKR_FUNCTION_FAILED, "CKR_FUNCTION_FAILED"},
    RvRow{CKR_ARGUMENTS_BAD, "CKR_ARGUMENTS_BAD"},
    RvRow{CKR_NEED_TO_CREATE_THREADS, "CKR_NEED_TO_CREATE_THREADS"},
    RvRow{CKR_CANT_LOCK, "CKR_CANT_LOCK"},
    RvRow{CKR_ATTRIBUTE_READ_ONLY, "CKR_ATTRIBUTE_READ_ONLY"},
    RvRow{CKR_ATTRIBUTE_SENSITIVE, "CKR_ATTRIBUTE_SENSITIVE"},
    RvRow{CKR_ATTRIBUTE_TYPE_INVALID, "CKR_ATTRIBUTE_TYPE_INVALID"},
    RvRow{CKR_ATTRIBUTE_VALUE_INVALID, "CKR_ATTRIBUTE_VALUE_INVALID"},
    RvRow{0x1B, "CKR_ACTION_PROHIBITED"},
    RvRow{CKR_DATA_INVALID, "CKR_DATA_INVALID"},
    RvRow{CKR_DATA_LEN_RANGE, "CKR_DATA_LEN_RANGE"},
    RvRow{CKR_DEVICE_ERROR, "CKR_DEVICE_ERROR"},
    RvRow{CKR_DEVICE_MEMORY, "CKR_DEVICE_MEMORY"},
    RvRow{CKR_DEVICE_REMOVED, "CKR_DEVICE_REMOVED"},
    RvRow{CKR_ENCRYPTED_DATA_INVALID, "CKR_ENCRYPTED_DATA_INVALID"},
    RvRow{CKR_ENCRYPTED_DATA_LEN_RANGE, "CKR_ENCRYPTED_DATA_LEN_RANGE"},
    RvRow{CKR_AEAD_DECRYPT_FAILED, "CKR_AEAD_DECRYPT_FAILED"},
    RvRow{CKR_FUNCTION_CANCELED, "CKR_FUNCTION_CANCELED"},
    RvRow{CKR_FUNCTION_NOT_PARALLEL, "CKR_FUNCTION_NOT_PARALLEL"},
    RvRow{CKR_FUNCTION_NOT_SUPPORTED, "CKR_FUNCTION_NOT_SUPPORTED"},
    RvRow{CKR_KEY_HANDLE_INVALID, "CKR_KEY_HANDLE_INVALID"},
    RvRow{CKR_KEY_SIZE_RANGE, "CKR_KEY_SIZE_RANGE"},
    RvRow{CKR_KEY_TYPE_INCONSISTENT, "CKR_KEY_TYPE_INCONSISTENT"},
    RvRow{CKR_KEY_CHANGED, "CKR_KEY_CHANGED"},
    RvRow{CKR_KEY_FUNCTION_NOT_PERMITTED, "CKR_KEY_FUNCTION_NOT_PERMITTED"},
    RvRow{CKR_KEY_NOT_WRAPPABLE, "CKR_KEY_NOT_WRAPPABLE"},
    RvRow{CKR_KEY_UNEXTRACTABLE, "CKR_KEY_UNEXTRACTABLE"},
    RvRow{CKR_MECHANISM_INVALID, "CKR_MECHANISM_INVALID"},
    RvRow{CKR_MECHANISM_PARAM_INVALID, "CKR_MECHANISM_PARAM_INVALID"},
    RvRow{CKR_OBJECT_HANDLE_INVALID, "CKR_OBJECT_HANDLE_INVALID"},
    RvRow{CKR_OPERATION_ACTIVE, "CKR_OPERATION_ACTIVE"},
    RvRow{CKR_OPERATION_NOT_INITIALIZED, "CKR_OPERATION_NOT_INITIALIZED"},
    RvRow{CKR_PIN_INCORRECT, "CKR_PIN_INCORRECT"},
    RvRow{CKR_PIN_INVALID, "CKR_PIN_INVALID"},
    RvRow{CKR_PIN_LEN_RANGE, "CKR_PIN_LEN_RANGE"},
    RvRow{CKR_PIN_EXPIRED, "CKR_PIN_EXPIRED"},
    RvRow{CKR_PIN_LOCKED, "CKR_PIN_LOCKED"},
    RvRow{CKR_SESSION_CLOSED, "CKR_SESSION_CLOSED"},
    RvRow{CKR_SESSION_COUNT, "CKR_SESSION_COUNT"},
    RvRow{CKR_SESSION_HANDLE_INVALID, "CKR_SESSION_HANDLE_INVALID"},
    RvRow{CKR_SESSION_PARALLEL_NOT_SUPPORTED,
          "CKR_SESSION_PARALLEL_NOT_SUPPORTED"},
    RvRow{CKR_SESSION_READ_ONLY, "CKR_SESSION_READ_ONLY"},
    RvRow{CKR_SESSION_EXISTS, "CKR_SESSION_EXISTS"},
    RvRow{CKR_SIGNATURE_INVALID, "CKR_SIGNATURE_INVALID"},
    RvRow{CKR_SIGNATURE_LEN_RANGE, "CKR_SIGNATURE_LEN_RANGE"},
    RvRow{CKR_TEMPLATE_INCOMPLETE, "CKR_TEMPLATE_INCOMPLETE"},
    RvRow{CKR_TEMPLATE_INCONSISTENT, "CKR_TEMPLATE_INCONSISTENT"},
    RvRow{CKR_TOKEN_NOT_PRESENT, "CKR_TOKEN_NOT_PRESENT"},
    RvRow{CKR_TOKEN_NOT_RECOGNIZED, "CKR_TOKEN_NOT_RECOGNIZED"},
    RvRow{CKR_TOKEN_WRITE_PROTECTED, "CKR_TOKEN_WRITE_PROTECTED"},
    RvRow{CKR_UNWRAPPING_KEY_HANDLE_INVALID,
          "CKR_UNWRAPPING_KEY_HANDLE_INVALID"},
    RvRow{CKR_USER_ALREADY_LOGGED_IN, "CKR_USER_ALREADY_LOGGED_IN"},
    RvRow{CKR_USER_NOT_LOGGED_IN, "CKR_USER_NOT_LOGGED_IN"},
    RvRow{CKR_USER_PIN_NOT_INITIALIZED, "CKR_USER_PIN_NOT_INITIALIZED"},
    RvRow{CKR_USER_TYPE_INVALID, "CKR_USER_TYPE_INVALID"},
    RvRow{CKR_USER_ANOTHER_ALREADY_LOGGED_IN,
          "CKR_USER_ANOTHER_ALREADY_LOGGED_IN"},
    RvRow{CKR_USER_TOO_MANY_TYPES, "CKR_USER_TOO_MANY_TYPES"},
    RvRow{CKR_WRAPPED_KEY_INVALID, "CKR_WRAPPED_KEY_INVALID"},
    RvRow{CKR_WRAPPED_KEY_LEN_RANGE, "CKR_WRAPPED_KEY_LEN_RANGE"},
    RvRow{CKR_WRAPPING_KEY_HANDLE_INVALID, "CKR_WRAPPING_KEY_HANDLE_INVALID"},
    RvRow{CKR_RANDOM_SEED_NOT_SUPPORTED, "CKR_RANDOM_SEED_NOT_SUPPORTED"},
    RvRow{CKR_RANDOM_NO_RNG, "CKR_RANDOM_NO_RNG"},
    RvRow{CKR_BUFFER_TOO_SMALL, "CKR_BUFFER_TOO_SMALL"},
    RvRow{CKR_CRYPTOKI_NOT_INITIALIZED, "CKR_CRYPTOKI_NOT_INITIALIZED"},
    RvRow{CKR_CRYPTOKI_ALREADY_INITIALIZED, "CKR_CRYPTOKI_ALREADY_INITIALIZED"},
    RvRow{CKR_MUTEX_BAD, "CKR_MUTEX_BAD"},
    RvRow{CKR_MUTEX_NOT_LOCKED, "CKR_MUTEX_NOT_LOCKED"},
    RvRow{CKR_FUNCTION_REJECTED, "CKR_FUNCTION_REJECTED"},
    RvRow{0x201, "CKR_TOKEN_RESOURCE_EXCEEDED"},
};

absl::StatusCode CodeOf(ErrorClass error_class, uint64_t rv) {
  switch (error_class) {
    case ErrorClass::kCallerData:
      return absl::StatusCode::kInvalidArgument;
    case ErrorClass::kCapacity:
      return absl::StatusCode::kResourceExhausted;
    case ErrorClass::kOperator:
      switch (rv) {
        case CKR_PIN_INCORRECT:
        case CKR_PIN_INVALID:
        case CKR_PIN_LEN_RANGE:
        case CKR_PIN_EXPIRED:
        case CKR_PIN_LOCKED:
          return absl::StatusCode::kPermissionDenied;
        // Encryption waits for a generator; decryption goes on.
        case CKR_RANDOM_NO_RNG:
        case CKR_RANDOM_SEED_NOT_SUPPORTED:
          return absl::StatusCode::kUnavailable;
        case CKR_ARGUMENTS_BAD:
          return absl::StatusCode::kInternal;
        default:
          return absl::StatusCode::kFailedPrecondition;
      }
    case ErrorClass::kIntegrity:
      return absl::StatusCode::kDataLoss;
    default:
      return absl::StatusCode::kUnavailable;
  }
}

}  // namespace

ErrorClass ClassOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kClassUrl);
  int value = 0;
  if (!payload.has_value() ||
      !absl::SimpleAtoi(std::string(*payload), &value)) {
    return ErrorClass::kNone;
  }
  return static_cast<ErrorClass>(value);
}

std::optional<uint64_t> RvOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRvUrl);
  uint64_t rv = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &rv)) {
    return std::nullopt;
  }
  return rv;
}

absl::string_view RvName(uint64_t rv) {
  for (const RvRow& row : kRvs) {
    if (row.rv == rv) return row.name;
  }
  // Vendor codes: few per module, so each name is made once and kept.
  struct Names {
    base::Mutex mu;
    std::map<uint64_t, std::string> made ABSL_GUARDED_BY(mu);
  };
  static Names* const names = new Names;
  base::MutexLock lock(names->mu);
  if (names->made.size() > 256 && !names->made.contains(rv)) {
    return "CKR_UNKNOWN";
  }
  std::string& name = names->made[rv];
  if (name.empty()) {
    name = absl::StrCat("CKR_0x", absl::Hex(rv, absl::kZeroPad8));
  }
  return name;
}

ErrorClass ClassifyRv(uint64_t rv, Operation operation,
                      std::span<const uint64_t> ambiguous) {
  if (operation == Operation::kDecrypt) {
    if (std::find(ambiguous.begin(), ambiguous.end(), rv) != ambiguous.end()) {
      return ErrorClass::kAmbiguous;
    }
    switch (rv) {
      case CKR_ENCRYPTED_DATA_INVALID:
      case CKR_ENCRYPTED_DATA_LEN_RANGE:
      case CKR_AEAD_DECRYPT_FAILED:
      case CKR_DATA_INVALID:
      case CKR_DATA_LEN_RANGE:
        return ErrorClass::kCallerData;
      // SoftHSM 2.6.1 answers a wrong tag with the first, nShield with the
      // second.
      case CKR_GENERAL_ERROR:
      case CKR_FUNCTION_FAILED:
        return ErrorClass::kAmbiguous;
      default:
        break;
    }
  }
  if (operation == Operation::kEncrypt && rv == CKR_DATA_LEN_RANGE) {
    return ErrorClass::kCallerData;
  }
  // AWS CloudHSM says "maximum sessions" so when sessions are opened fast.
  if (operation == Operation::kOpenSession && rv == CKR_ARGUMENTS_BAD) {
    return ErrorClass::kCapacity;
  }
  switch (rv) {
    case CKR_OPERATION_ACTIVE:
    case CKR_OPERATION_NOT_INITIALIZED:
    case CKR_SESSION_HANDLE_INVALID:
    case CKR_SESSION_CLOSED:
    case CKR_FUNCTION_CANCELED:
    case CKR_CANCEL:
    case CKR_BUFFER_TOO_SMALL:
      return ErrorClass::kSession;
    case CKR_KEY_HANDLE_INVALID:
    case CKR_OBJECT_HANDLE_INVALID:
    case CKR_WRAPPING_KEY_HANDLE_INVALID:
    case CKR_UNWRAPPING_KEY_HANDLE_INVALID:
    case CKR_KEY_CHANGED:
      return ErrorClass::kHandle;
    case CKR_KEY_TYPE_INCONSISTENT:
    case CKR_KEY_SIZE_RANGE:
      // The handle is of some other object than the AES-256 key it once was.
      return operation == Operation::kCipherInit ? ErrorClass::kHandle
                                                 : ErrorClass::kOperator;
    case CKR_USER_NOT_LOGGED_IN:
      return ErrorClass::kLogin;
    case CKR_SESSION_COUNT:
    case CKR_HOST_MEMORY:
    case CKR_DEVICE_MEMORY:
    case CKR_FUNCTION_REJECTED:
    case 0x201:
      return ErrorClass::kCapacity;
    case CKR_PIN_INCORRECT:
    case CKR_PIN_INVALID:
    case CKR_PIN_LEN_RANGE:
    case CKR_PIN_EXPIRED:
    case CKR_PIN_LOCKED:
    case CKR_USER_PIN_NOT_INITIALIZED:
    case CKR_USER_TYPE_INVALID:
    case CKR_USER_ANOTHER_ALREADY_LOGGED_IN:
    case CKR_MECHANISM_INVALID:
    case CKR_MECHANISM_PARAM_INVALID:
    case CKR_TEMPLATE_INCOMPLETE:
    case CKR_TEMPLATE_INCONSISTENT:
    case CKR_ATTRIBUTE_READ_ONLY:
    case CKR_ATTRIBUTE_SENSITIVE:
    case CKR_ATTRIBUTE_TYPE_INVALID:
    case CKR_ATTRIBUTE_VALUE_INVALID:
    case 0x1B:
    case CKR_USER_TOO_MANY_TYPES:
    case CKR_KEY_NOT_WRAPPABLE:
    case CKR_KEY_UNEXTRACTABLE:
    case CKR_SESSION_READ_ONLY_EXISTS:
    case CKR_CANT_LOCK:
    case CKR_NEED_TO_CREATE_THREADS:
    case CKR_CRYPTOKI_ALREADY_INITIALIZED:
    case CKR_KEY_FUNCTION_NOT_PERMITTED:
    case CKR_FUNCTION_NOT_SUPPORTED:
    case CKR_TOKEN_WRITE_PROTECTED:
    case CKR_SESSION_READ_ONLY:
    case CKR_ARGUMENTS_BAD:
    case CKR_RANDOM_NO_RNG:
    case CKR_RANDOM_SEED_NOT_SUPPORTED:
      return ErrorClass::kOperator;
    default:
      // CRYPTOKI_NOT_INITIALIZED, DEVICE_*, TOKEN_*, GENERAL_ERROR, ...; also
      // what no standard names: vendors' codes, and errno values that Trustway
      // Proteccio returns.
      return ErrorClass::kDevice;
  }
}

absl::Status MakeError(ErrorClass error_class, absl::string_view message) {
  absl::Status status(CodeOf(error_class, CKR_OK), message);
  status.SetPayload(kClassUrl,
                    absl::Cord(absl::StrCat(static_cast<int>(error_class))));
  return status;
}

absl::Status FromRv(uint64_t rv, Operation operation, absl::string_view what,
                    std::span<const uint64_t> ambiguous) {
  const ErrorClass error_class = ClassifyRv(rv, operation, ambiguous);
  absl::Status status(CodeOf(error_class, rv),
                      absl::StrCat(what, ": ", RvName(rv)));
  status.SetPayload(kClassUrl,
                    absl::Cord(absl::StrCat(static_cast<int>(error_class))));
  status.SetPayload(kRvUrl, absl::Cord(absl::StrCat(rv)));
  return status;
}

absl::Status Reclassify(const absl::Status& status, ErrorClass error_class,
                        absl::string_view message) {
  absl::Status changed = MakeError(error_class, message);
  if (const std::optional<uint64_t> rv = RvOf(status)) {
    changed.SetPayload(kRvUrl, absl::Cord(absl::StrCat(*rv)));
  }
  return changed;
}

absl::Status CiphertextError() {
  return MakeError(ErrorClass::kCallerData,
                   "the ciphertext does not open: it, its IV or the additional "
                   "data are not what was encrypted under this key");
}

}  // namespace kek::pkcs11
