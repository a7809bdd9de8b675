// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <initializer_list>
#include <string>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace kek::base {

// The program's log: one line an event, text or JSON, to stderr. An event is a
// fixed message and named fields; nothing that came from outside is ever part
// of the message, and field values are escaped and capped. No key bytes, PIN,
// DEK or ciphertext body may be passed in. All functions are thread-safe.
enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

struct LogField {
  LogField(absl::string_view n, absl::string_view v) : name(n), value(v) {}
  LogField(absl::string_view n, const char* v) : name(n), value(v) {}
  LogField(absl::string_view n, const std::string& v) : name(n), value(v) {}
  LogField(absl::string_view n, bool v)
      : name(n), value(v ? "true" : "false"), bare(true) {}
  template <typename T>
  requires(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>)
      LogField(absl::string_view n, T v)
      : name(n), value(absl::StrCat(v)), bare(true) {}
  LogField(absl::string_view n, const absl::Status& v)
      : name(n),
        value(v.ToString(absl::StatusToStringMode::kWithNoExtraData)) {}

  std::string name;
  std::string value;
  bool bare = false;  // a number or boolean: JSON prints it without quotes
};

void Log(LogLevel level, absl::string_view message,
         std::initializer_list<LogField> fields = {});

void SetLogFormat(LogFormat format);
// May be called at any time; the next line obeys.
void SetLogLevel(LogLevel level);
LogLevel GetLogLevel();
// "debug", "info", "warning", "error"; INVALID_ARGUMENT names the choices.
absl::StatusOr<LogLevel> ParseLogLevel(absl::string_view text);
absl::string_view LogLevelName(LogLevel level);

inline void LogDebug(absl::string_view m,
                     std::initializer_list<LogField> f = {}) {
  Log(LogLevel::kDebug, m, f);
}
inline void LogInfo(absl::string_view m,
                    std::initializer_list<LogField> f = {}) {
  Log(LogLevel::kInfo, m, f);
}
inline void LogWarning(absl::string_view m,
                       std::initializer_list<LogField> f = {}) {
  Log(LogLevel::kWarning, m, f);
}
inline void LogError(absl::string_view m,
                     std::initializer_list<LogField> f = {}) {
  Log(LogLevel::kError, m, f);
}

// Appends value to out as a JSON string with quotes: control characters, quotes
// and backslashes escaped, bytes that are not UTF-8 replaced by U+FFFD. The one
// JSON escaper of the program (log and audit).
void AppendJsonString(absl::string_view value, std::string& out);

}  // namespace kek::base
