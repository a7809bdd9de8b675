// SPDX-License-Identifier: Apache-2.0
#include "cli/output.h"

#include <google/protobuf/duration.pb.h>
#include <google/protobuf/message.h>
#include <google/protobuf/timestamp.pb.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cstddef>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"

namespace kek::cli {
namespace {

std::string Printable(absl::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = '?';
  }
  return out;
}

absl::StatusOr<std::string> Json(const google::protobuf::Message& message,
                                 bool whitespace) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = whitespace;
  std::string text;
  const auto status =
      google::protobuf::util::MessageToJsonString(message, &text, options);
  if (!status.ok()) {
    return absl::InternalError(absl::StrCat("cannot print the answer as JSON: ",
                                            status.message().as_string()));
  }
  return text;
}

}  // namespace

Table::Table(std::vector<std::string> heading) : heading_(std::move(heading)) {}

void Table::Add(std::vector<std::string> row) {
  row.resize(heading_.size());
  for (std::string& cell : row) cell = Printable(cell);
  rows_.push_back(std::move(row));
}

std::string Table::ToString() const {
  std::vector<size_t> widths;
  for (const std::string& cell : heading_) widths.push_back(cell.size());
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], row[i].size());
    }
  }
  std::string out;
  const auto line = [&](const std::vector<std::string>& row) {
    std::string text;
    for (size_t i = 0; i < row.size(); ++i) {
      absl::StrAppend(&text, row[i]);
      if (i + 1 < row.size()) text.append(widths[i] - row[i].size() + 2, ' ');
    }
    absl::StripTrailingAsciiWhitespace(&text);
    absl::StrAppend(&out, text, "\n");
  };
  line(heading_);
  for (const auto& row : rows_) line(row);
  return out;
}

std::string FieldsText(
    const std::vector<std::pair<std::string, std::string>>& fields) {
  size_t width = 0;
  for (const auto& [name, value] : fields) {
    if (!value.empty()) width = std::max(width, name.size());
  }
  std::string out;
  for (const auto& [name, value] : fields) {
    if (value.empty()) continue;
    absl::StrAppend(&out, name, ":", std::string(width - name.size() + 2, ' '),
                    Printable(value), "\n");
  }
  return out;
}

absl::StatusOr<std::string> MessageJson(const google::protobuf::Message& m) {
  ASSIGN_OR_RETURN(std::string text, Json(m, /*whitespace=*/true));
  if (text.empty() || text.back() != '\n') text.push_back('\n');
  return text;
}

absl::StatusOr<std::string> MessagesJson(
    const std::vector<const google::protobuf::Message*>& messages) {
  std::string out = "[";
  for (size_t i = 0; i < messages.size(); ++i) {
    ASSIGN_OR_RETURN(const std::string text,
                     Json(*messages[i], /*whitespace=*/false));
    absl::StrAppend(&out, i == 0 ? "\n  " : ",\n  ", text);
  }
  absl::StrAppend(&out, messages.empty() ? "]\n" : "\n]\n");
  return out;
}

std::string JsonString(absl::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      default:
        if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) {
          absl::StrAppendFormat(&out, "\\u%04x", static_cast<unsigned char>(c));
        } else {
          out.push_back(c);
        }
    }
  }
  out.push_back('"');
  return out;
}

std::string TimeText(const google::protobuf::Timestamp& time) {
  if (time.seconds() == 0) return "";
  return absl::FormatTime("%Y-%m-%d %H:%M:%SZ",
                          absl::FromUnixSeconds(time.seconds()),
                          absl::UTCTimeZone());
}

std::string DurationText(const google::protobuf::Duration& duration) {
  const int64_t seconds = duration.seconds();
  if (seconds == 0 && duration.nanos() == 0) return "";
  if (duration.nanos() == 0 && seconds % 86400 == 0) {
    return absl::StrCat(seconds / 86400, "d");
  }
  return absl::FormatDuration(absl::Seconds(seconds) +
                              absl::Nanoseconds(duration.nanos()));
}

}  // namespace kek::cli
