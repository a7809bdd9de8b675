// SPDX-License-Identifier: Apache-2.0
#include "tests/support/fault_module_rules.h"

#include <fnmatch.h>
#include <p11-kit/pkcs11.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"

namespace kek::fault {
namespace {

struct Name {
  const char* name;
  uint64_t value;
};

#define NAME(x) \
  { #x, x }
constexpr Name kReturnValues[] = {NAME(CKR_OK),
                                  NAME(CKR_CANCEL),
                                  NAME(CKR_HOST_MEMORY),
                                  NAME(CKR_SLOT_ID_INVALID),
                                  NAME(CKR_GENERAL_ERROR),
                                  NAME(CKR_FUNCTION_FAILED),
                                  NAME(CKR_ARGUMENTS_BAD),
                                  NAME(CKR_CANT_LOCK),
                                  NAME(CKR_ATTRIBUTE_READ_ONLY),
                                  NAME(CKR_ATTRIBUTE_SENSITIVE),
                                  NAME(CKR_ATTRIBUTE_TYPE_INVALID),
                                  NAME(CKR_ATTRIBUTE_VALUE_INVALID),
                                  NAME(CKR_ACTION_PROHIBITED),
                                  NAME(CKR_DATA_INVALID),
                                  NAME(CKR_DATA_LEN_RANGE),
                                  NAME(CKR_DEVICE_ERROR),
                                  NAME(CKR_DEVICE_MEMORY),
                                  NAME(CKR_DEVICE_REMOVED),
                                  NAME(CKR_ENCRYPTED_DATA_INVALID),
                                  NAME(CKR_ENCRYPTED_DATA_LEN_RANGE),
                                  NAME(CKR_FUNCTION_CANCELED),
                                  NAME(CKR_FUNCTION_NOT_SUPPORTED),
                                  NAME(CKR_KEY_HANDLE_INVALID),
                                  NAME(CKR_KEY_SIZE_RANGE),
                                  NAME(CKR_KEY_TYPE_INCONSISTENT),
                                  NAME(CKR_KEY_CHANGED),
                                  NAME(CKR_KEY_FUNCTION_NOT_PERMITTED),
                                  NAME(CKR_KEY_UNEXTRACTABLE),
                                  NAME(CKR_MECHANISM_INVALID),
                                  NAME(CKR_MECHANISM_PARAM_INVALID),
                                  NAME(CKR_OBJECT_HANDLE_INVALID),
                                  NAME(CKR_OPERATION_ACTIVE),
                                  NAME(CKR_OPERATION_NOT_INITIALIZED),
                                  NAME(CKR_PIN_INCORRECT),
                                  NAME(CKR_PIN_INVALID),
                                  NAME(CKR_PIN_LEN_RANGE),
                                  NAME(CKR_PIN_EXPIRED),
                                  NAME(CKR_PIN_LOCKED),
                                  NAME(CKR_SESSION_CLOSED),
                                  NAME(CKR_SESSION_COUNT),
                                  NAME(CKR_SESSION_HANDLE_INVALID),
                                  NAME(CKR_SESSION_READ_ONLY),
                                  NAME(CKR_SESSION_EXISTS),
                                  NAME(CKR_SIGNATURE_INVALID),
                                  NAME(CKR_TEMPLATE_INCOMPLETE),
                                  NAME(CKR_TEMPLATE_INCONSISTENT),
                                  NAME(CKR_TOKEN_NOT_PRESENT),
                                  NAME(CKR_TOKEN_NOT_RECOGNIZED),
                                  NAME(CKR_TOKEN_WRITE_PROTECTED),
                                  NAME(CKR_UNWRAPPING_KEY_HANDLE_INVALID),
                                  NAME(CKR_USER_ALREADY_LOGGED_IN),
                                  NAME(CKR_USER_NOT_LOGGED_IN),
                                  NAME(CKR_USER_PIN_NOT_INITIALIZED),
                                  NAME(CKR_USER_TYPE_INVALID),
                                  NAME(CKR_USER_ANOTHER_ALREADY_LOGGED_IN),
                                  NAME(CKR_USER_TOO_MANY_TYPES),
                                  NAME(CKR_WRAPPED_KEY_INVALID),
                                  NAME(CKR_WRAPPED_KEY_LEN_RANGE),
                                  NAME(CKR_WRAPPING_KEY_HANDLE_INVALID),
                                  NAME(CKR_RANDOM_NO_RNG),
                                  NAME(CKR_BUFFER_TOO_SMALL),
                                  NAME(CKR_CRYPTOKI_NOT_INITIALIZED),
                                  NAME(CKR_CRYPTOKI_ALREADY_INITIALIZED),
                                  NAME(CKR_FUNCTION_REJECTED),
                                  {"CKR_AEAD_DECRYPT_FAILED", 0x42},
                                  {"CKR_TOKEN_RESOURCE_EXCEEDED", 0x201}};

constexpr Name kAttributes[] = {NAME(CKA_CLASS),
                                NAME(CKA_TOKEN),
                                NAME(CKA_PRIVATE),
                                NAME(CKA_LABEL),
                                NAME(CKA_VALUE),
                                NAME(CKA_ID),
                                NAME(CKA_KEY_TYPE),
                                NAME(CKA_SENSITIVE),
                                NAME(CKA_ENCRYPT),
                                NAME(CKA_DECRYPT),
                                NAME(CKA_WRAP),
                                NAME(CKA_UNWRAP),
                                NAME(CKA_SIGN),
                                NAME(CKA_VERIFY),
                                NAME(CKA_DERIVE),
                                NAME(CKA_START_DATE),
                                NAME(CKA_VALUE_LEN),
                                NAME(CKA_EXTRACTABLE),
                                NAME(CKA_LOCAL),
                                NAME(CKA_NEVER_EXTRACTABLE),
                                NAME(CKA_MODIFIABLE),
                                NAME(CKA_COPYABLE),
                                NAME(CKA_TRUSTED),
                                NAME(CKA_ALWAYS_SENSITIVE),
                                NAME(CKA_CHECK_VALUE),
                                NAME(CKA_KEY_GEN_MECHANISM),
                                NAME(CKA_ALLOWED_MECHANISMS),
                                NAME(CKA_WRAP_WITH_TRUSTED),
                                {"CKA_DESTROYABLE", 0x172}};
#undef NAME

bool ParseNumber(absl::string_view text, uint64_t& value) {
  if (absl::ConsumePrefix(&text, "0x")) {
    return absl::SimpleHexAtoi(text, &value);
  }
  return absl::SimpleAtoi(text, &value);
}

template <size_t kSize>
bool ParseName(const Name (&names)[kSize], absl::string_view prefix,
               absl::string_view text, uint64_t& value) {
  if (ParseNumber(text, value)) return true;
  absl::ConsumePrefix(&text, prefix);
  for (const Name& candidate : names) {
    if (absl::StripPrefix(candidate.name, prefix) == text) {
      value = candidate.value;
      return true;
    }
  }
  return false;
}

bool ParseBool(absl::string_view text, bool& value) {
  if (text != "0" && text != "1") return false;
  value = text == "1";
  return true;
}

template <typename T>
bool ParseInto(absl::string_view text, std::optional<T>& value) {
  T number;
  if (!absl::SimpleAtoi(text, &number)) return false;
  value = number;
  return true;
}

bool ParseAttribute(absl::string_view text, Rule& rule) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits(':', 1));
  Rule::Attribute attr;
  if (!ParseName(kAttributes, "CKA_", parts.first, attr.type)) return false;
  if (parts.second != "none") {
    uint64_t value;
    if (!ParseNumber(parts.second, value)) return false;
    attr.value = value;
  }
  rule.attr = attr;
  return true;
}

bool ParseRefusedAttribute(absl::string_view text, Rule& rule) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits(':', 1));
  Rule::RefusedAttribute refused;
  if (!ParseName(kAttributes, "CKA_", parts.first, refused.type)) return false;
  refused.rv = CKR_ATTRIBUTE_TYPE_INVALID;
  if (!parts.second.empty() &&
      !ParseName(kReturnValues, "CKR_", parts.second, refused.rv)) {
    return false;
  }
  rule.refuse_attr = refused;
  return true;
}

bool ParseSlots(absl::string_view text, Rule& rule) {
  if (text == "none") {
    rule.slots = Rule::Slots::kNone;
  } else if (text == "reverse") {
    rule.slots = Rule::Slots::kReverse;
  } else {
    return false;
  }
  return true;
}

bool ParseWord(absl::string_view key, absl::string_view value, Rule& rule) {
  if (value.empty()) return false;
  uint64_t number = 0;
  if (key == "after") return absl::SimpleAtoi(value, &rule.after);
  if (key == "every") {
    return absl::SimpleAtoi(value, &rule.every) && rule.every > 0;
  }
  if (key == "count") return absl::SimpleAtoi(value, &rule.count);
  if (key == "size") return ParseInto(value, rule.size);
  if (key == "same_session") return ParseBool(value, rule.same_session);
  if (key == "post") return ParseBool(value, rule.post);
  if (key == "delay") {
    absl::Duration delay;
    if (!absl::ParseDuration(value, &delay)) return false;
    rule.delay = absl::ToChronoNanoseconds(delay);
    return true;
  }
  if (key == "hang") {
    rule.hang = std::string(value);
    return true;
  }
  if (key == "dropsessions") return ParseBool(value, rule.dropsessions);
  if (key == "logout") return ParseBool(value, rule.logout);
  if (key == "finalize") return ParseBool(value, rule.finalize);
  if (key == "reinit") return ParseBool(value, rule.reinit);
  if (key == "abort") return ParseBool(value, rule.abort);
  if (key == "exit") return ParseInto(value, rule.exit);
  if (key == "rv") {
    if (!ParseName(kReturnValues, "CKR_", value, number)) return false;
    rule.rv = number;
    return true;
  }
  if (key == "swapkey") return ParseBool(value, rule.swapkey);
  if (key == "refuse_attr") return ParseRefusedAttribute(value, rule);
  if (key == "flip") return ParseInto(value, rule.flip);
  if (key == "zero") return ParseBool(value, rule.zero);
  if (key == "short" || key == "long") {
    if (!ParseNumber(value, number)) return false;
    rule.stretch = key == "long" ? static_cast<int64_t>(number)
                                 : -static_cast<int64_t>(number);
    return true;
  }
  if (key == "repeat") return ParseBool(value, rule.repeat);
  if (key == "attr") return ParseAttribute(value, rule);
  if (key == "find") return ParseInto(value, rule.find);
  if (key == "flags") return ParseNumber(value, rule.flags);
  if (key == "flags_clear") return ParseNumber(value, rule.flags_clear);
  if (key == "state") return ParseInto(value, rule.state);
  if (key == "slots") return ParseSlots(value, rule);
  if (key == "slot_offset") return ParseNumber(value, rule.slot_offset);
  return false;
}

}  // namespace

absl::StatusOr<std::vector<Rule>> ParseRules(absl::string_view text) {
  std::vector<Rule> rules;
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++line_number;
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (words.empty() || words[0][0] == '#') continue;
    if (words[0] != "*" && !absl::StartsWith(words[0], "C_")) {
      return absl::InvalidArgumentError(absl::StrCat(
          "fault rules, line ", line_number, ": not a function: ", words[0]));
    }
    Rule rule;
    rule.function = std::string(words[0]);
    for (size_t i = 1; i < words.size(); ++i) {
      const std::pair<absl::string_view, absl::string_view> parts =
          absl::StrSplit(words[i], absl::MaxSplits('=', 1));
      if (!ParseWord(parts.first, parts.second, rule)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "fault rules, line ", line_number, ": not understood: ", words[i]));
      }
    }
    rules.push_back(std::move(rule));
  }
  return rules;
}

RuleSet::RuleSet(std::vector<Rule> rules) {
  for (Rule& rule : rules) {
    if (rule.slot_offset != 0) {
      slot_offset_ = rule.slot_offset;
    } else {
      rules_.push_back({std::move(rule)});
    }
  }
}

Rule RuleSet::Match(const Call& call) {
  const std::string function(call.function);
  const Counted* due = nullptr;
  for (Counted& counted : rules_) {
    const Rule& rule = counted.rule;
    if (fnmatch(rule.function.c_str(), function.c_str(), 0) != 0) continue;
    if (rule.size.has_value() && *rule.size != call.size) continue;
    if (rule.same_session) {
      if (call.session == 0) continue;
      if (counted.session == 0) counted.session = call.session;
      if (counted.session != call.session) continue;
    }
    const int64_t beyond = counted.matched++ - rule.after;
    if (due != nullptr || beyond < 0 || (beyond + 1) % rule.every != 0) {
      continue;
    }
    if (rule.count >= 0 && counted.acted >= rule.count) continue;
    ++counted.acted;
    due = &counted;
  }
  return due == nullptr ? Rule() : due->rule;
}

}  // namespace kek::fault
