// SPDX-License-Identifier: Apache-2.0
#include "tests/support/fault_rules.h"

#include <fnmatch.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "tests/support/fault_module_rules.h"

namespace kek::fault {
namespace {

template <typename Condition>
bool Poll(base::Deadline deadline, Condition condition) {
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace

FaultRules::FaultRules(const std::string& target) {
  Clear();
  setenv("KEKD_FAULT_TARGET", target.c_str(), 1);
  setenv("KEKD_FAULT_RULES", dir_.File("rules").c_str(), 1);
  setenv("KEKD_FAULT_LOG", dir_.File("log").c_str(), 1);
}

FaultRules::~FaultRules() {
  unsetenv("KEKD_FAULT_TARGET");
  unsetenv("KEKD_FAULT_RULES");
  unsetenv("KEKD_FAULT_LOG");
}

std::string FaultRules::ModulePath() { return KEKD_FAULT_MODULE; }

void FaultRules::Set(const std::vector<std::string>& rules) {
  const std::string text =
      rules.empty() ? "" : absl::StrJoin(rules, "\n") + "\n";
  const auto parsed = ParseRules(text);
  if (!parsed.ok()) {
    std::fprintf(stderr, "%s\n", parsed.status().ToString().c_str());
    std::abort();
  }
  std::filesystem::rename(dir_.Write("rules.new", text), dir_.File("rules"));
}

std::string FaultRules::HangFile(absl::string_view name) const {
  return dir_.File(absl::StrCat("hang-", name));
}

void FaultRules::Release(absl::string_view name) {
  dir_.Write(absl::StrCat("hang-", name), "");
}

std::vector<std::string> FaultRules::Lines() const {
  const std::string log = base::testing::TempDir::Read(dir_.File("log"));
  std::vector<std::string> lines = absl::StrSplit(
      absl::string_view(log).substr(std::min(log_start_, log.size())), '\n');
  lines.pop_back();  // after the last line end, or still being written
  return lines;
}

std::vector<FaultRules::Call> FaultRules::Calls(
    absl::string_view function) const {
  const std::string pattern(function);
  std::vector<Call> calls;
  for (const std::string& line : Lines()) {
    if (!absl::StartsWith(line, "C_")) continue;
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    Call call;
    call.function = std::string(words[0]);
    if (fnmatch(pattern.c_str(), call.function.c_str(), 0) != 0) continue;
    if (!absl::SimpleHexAtoi(words[1], &call.rv)) std::abort();
    for (size_t i = 2; i < words.size(); ++i) {
      call.details.insert(
          std::pair<std::string, std::string>(absl::StrSplit(words[i], '=')));
    }
    calls.push_back(std::move(call));
  }
  return calls;
}

int FaultRules::Count(absl::string_view function) const {
  return static_cast<int>(Calls(function).size());
}

void FaultRules::Forget() {
  std::error_code ignored;
  const auto size = std::filesystem::file_size(dir_.File("log"), ignored);
  log_start_ = ignored ? 0 : size;
}

bool FaultRules::WaitForCalls(absl::string_view function, int count,
                              base::Deadline deadline) const {
  return Poll(deadline, [&] { return Count(function) >= count; });
}

bool FaultRules::WaitForHangs(int count, base::Deadline deadline) const {
  return Poll(deadline, [&] {
    int hangs = 0;
    for (const std::string& line : Lines()) {
      hangs += absl::EndsWith(line, " hangs") ? 1 : 0;
    }
    return hangs >= count;
  });
}

std::vector<std::string> FaultRules::Violations() const {
  std::vector<std::string> violations;
  for (const std::string& line : Lines()) {
    if (absl::StartsWith(line, "!")) violations.push_back(line);
  }
  return violations;
}

}  // namespace kek::fault
