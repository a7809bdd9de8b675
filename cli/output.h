// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace google::protobuf {
class Message;
class Duration;
class Timestamp;
}  // namespace google::protobuf

namespace kek::cli {

// Table models aligned columns under a heading. Control characters of cells
// are replaced: a name from elsewhere cannot steer a terminal.
class Table {
 public:
  explicit Table(std::vector<std::string> heading);
  void Add(std::vector<std::string> row);  // as many cells as the heading
  bool empty() const { return rows_.empty(); }
  std::string ToString() const;

 private:
  std::vector<std::string> heading_;
  std::vector<std::vector<std::string>> rows_;
};

// "name:  value" lines with aligned values; pairs with an empty value are left
// out.
std::string FieldsText(
    const std::vector<std::pair<std::string, std::string>>& fields);

// JSON of a message as its API defines it (lowerCamelCase, RFC 3339 times,
// "30s" durations, enum names), ending in a newline.
absl::StatusOr<std::string> MessageJson(const google::protobuf::Message& m);
// A JSON array of messages.
absl::StatusOr<std::string> MessagesJson(
    const std::vector<const google::protobuf::Message*>& messages);
// A JSON string literal.
std::string JsonString(absl::string_view text);

// "2026-11-21 09:30:00Z", "" for the epoch.
std::string TimeText(const google::protobuf::Timestamp& time);
// "30d", "36h", "90s"; "" for zero.
std::string DurationText(const google::protobuf::Duration& duration);

}  // namespace kek::cli
