// SPDX-License-Identifier: Apache-2.0
#include "service/config.h"

#include <fcntl.h>
#include <grp.h>
#include <openssl/sha.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <span>
#include <utility>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/message_differencer.h>
#include <yaml-cpp/yaml.h>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "catalog/resource_name.h"

namespace kek::service {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr size_t kMaxFileBytes = 1 << 20;
constexpr absl::Duration kMinHealthPeriod = absl::Seconds(20);

std::string Quote(absl::string_view text) {
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, 80)), "\"");
}

google::protobuf::Duration ToProto(absl::Duration duration) {
  google::protobuf::Duration proto;
  proto.set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  proto.set_nanos(static_cast<int32_t>(
      absl::IDivDuration(duration, absl::Nanoseconds(1), &duration)));
  return proto;
}

// Where each setting stands, by its path ("kubernetes[0].mode"), so that later
// checks can say it.
using Lines = std::map<std::string, int>;

// Fills a message of the schema from a YAML mapping, by reflection. Strict:
// what the schema does not know, what stands twice and what has the wrong form
// is an error.
class Reader {
 public:
  explicit Reader(const std::string& file) : file_(file) {}

  absl::Status Read(const YAML::Node& node, const std::string& path,
                    Message& message) {
    if (node.IsNull()) return absl::OkStatus();
    if (!node.IsMap()) {
      return Error(node, absl::StrCat(path.empty() ? "the file" : path,
                                      " must be a list of \"name: value\""));
    }
    std::set<std::string> seen;
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) {
        return Error(entry.first, "a field's name must be plain text");
      }
      const std::string& name = entry.first.Scalar();
      const FieldDescriptor* field =
          message.GetDescriptor()->FindFieldByName(name);
      if (field == nullptr) {
        return Error(entry.first,
                     absl::StrCat(path.empty() ? "unknown field "
                                               : absl::StrCat(path,
                                                              " has no "
                                                              "field "),
                                  Quote(name), "; there are: ",
                                  FieldNames(*message.GetDescriptor())));
      }
      const std::string field_path =
          path.empty() ? name : absl::StrCat(path, ".", name);
      if (!seen.insert(name).second) {
        return Error(entry.first, absl::StrCat(field_path, " is set twice"));
      }
      lines_[field_path] = entry.first.Mark().line + 1;
      RETURN_IF_ERROR(ReadField(entry.second, field_path, *field, message));
    }
    return absl::OkStatus();
  }

  const Lines& lines() const { return lines_; }

 private:
  absl::Status Error(const YAML::Node& node, absl::string_view what) const {
    const int line = node.Mark().line;
    return absl::InvalidArgumentError(
        line < 0 ? absl::StrCat(file_, ": ", what)
                 : absl::StrCat(file_, ":", line + 1, ": ", what));
  }

  static std::string FieldNames(const Descriptor& type) {
    std::vector<absl::string_view> names;
    for (int i = 0; i < type.field_count(); ++i) {
      names.push_back(type.field(i)->name());
    }
    return absl::StrJoin(names, ", ");
  }

  absl::Status ReadField(const YAML::Node& node, const std::string& path,
                         const FieldDescriptor& field, Message& message) {
    const Reflection& reflection = *message.GetReflection();
    if (!field.is_repeated()) return ReadValue(node, path, field, message);
    if (node.IsNull()) return absl::OkStatus();
    if (!node.IsSequence()) {
      return Error(node, absl::StrCat(path,
                                      " must be a list: [a, b], or one "
                                      "\"- \" line each"));
    }
    for (size_t i = 0; i < node.size(); ++i) {
      const std::string item = absl::StrCat(path, "[", i, "]");
      lines_[item] = node[i].Mark().line + 1;
      if (field.type() == FieldDescriptor::TYPE_MESSAGE) {
        RETURN_IF_ERROR(
            Read(node[i], item, *reflection.AddMessage(&message, &field)));
      } else {  // the schema has lists of messages and of strings
        if (!node[i].IsScalar()) {
          return Error(node[i], absl::StrCat(item, " must be plain text"));
        }
        reflection.AddString(&message, &field, node[i].Scalar());
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadValue(const YAML::Node& node, const std::string& path,
                         const FieldDescriptor& field, Message& message) {
    const Reflection& reflection = *message.GetReflection();
    if (field.type() == FieldDescriptor::TYPE_MESSAGE) {
      Message& child = *reflection.MutableMessage(&message, &field);
      if (child.GetDescriptor()->full_name() == "google.protobuf.Duration") {
        return ReadDuration(node, path, child);
      }
      return Read(node, path, child);
    }
    if (!node.IsScalar()) {
      if (node.IsNull()) {  // stands where the next thing begins
        return absl::InvalidArgumentError(absl::StrCat(
            file_, ":", lines_[path], ": ", path, " has no value"));
      }
      return Error(node, absl::StrCat(path, " must be one value"));
    }
    const std::string& text = node.Scalar();
    const auto mismatch = [&](absl::string_view wanted) {
      return Error(node,
                   absl::StrCat(path, ": ", Quote(text), " is not ", wanted));
    };
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_STRING:
        reflection.SetString(&message, &field, text);
        return absl::OkStatus();
      case FieldDescriptor::CPPTYPE_BOOL:
        if (text != "true" && text != "false") {
          return mismatch("true or false");
        }
        reflection.SetBool(&message, &field, text == "true");
        return absl::OkStatus();
      case FieldDescriptor::CPPTYPE_INT32: {
        int32_t value = 0;
        if (!absl::SimpleAtoi(text, &value)) return mismatch("a number");
        reflection.SetInt32(&message, &field, value);
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_UINT64: {
        uint64_t value = 0;
        if (!absl::SimpleAtoi(text, &value)) {
          return mismatch("a number that is not negative");
        }
        reflection.SetUInt64(&message, &field, value);
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_ENUM: {
        const auto* value = field.enum_type()->FindValueByName(text);
        if (value == nullptr) {
          std::vector<absl::string_view> names;
          for (int i = 0; i < field.enum_type()->value_count(); ++i) {
            names.push_back(field.enum_type()->value(i)->name());
          }
          return mismatch(absl::StrCat("one of ", absl::StrJoin(names, ", ")));
        }
        reflection.SetEnum(&message, &field, value);
        return absl::OkStatus();
      }
      default:
        return Error(node, absl::StrCat(path, " cannot be set"));
    }
  }

  absl::Status ReadDuration(const YAML::Node& node, const std::string& path,
                            Message& message) {
    absl::Duration duration;
    if (!node.IsScalar() || !absl::ParseDuration(node.Scalar(), &duration) ||
        duration < absl::ZeroDuration() ||
        duration > absl::Hours(24 * 365 * 100)) {
      return Error(node, absl::StrCat(path,
                                      " must be a length of time, such "
                                      "as 500ms, 20s, 5m or 24h"));
    }
    message.CopyFrom(ToProto(duration));
    return absl::OkStatus();
  }

  const std::string& file_;
  Lines lines_;
};

absl::StatusOr<YAML::Node> ParseYaml(absl::string_view yaml,
                                     const std::string& file) {
  try {
    const std::vector<YAML::Node> documents =
        YAML::LoadAll(std::string(yaml.data(), yaml.size()));
    if (documents.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": holds more than one document (---)"));
    }
    return documents.empty() ? YAML::Node() : documents[0];
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ":", error.mark.line + 1, ": ", error.msg));
  }
}

// "65534" or a name. nullopt: there is none.
std::optional<uint32_t> FindUser(const std::string& name) {
  uint32_t id = 0;
  if (absl::SimpleAtoi(name, &id)) return id;
  passwd entry{}, *found = nullptr;
  std::vector<char> buffer(16384);
  if (getpwnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found) !=
          0 ||
      found == nullptr) {
    return std::nullopt;
  }
  return entry.pw_uid;
}
std::optional<uint32_t> FindGroup(const std::string& name) {
  uint32_t id = 0;
  if (absl::SimpleAtoi(name, &id)) return id;
  group entry{}, *found = nullptr;
  std::vector<char> buffer(1 << 20);
  if (getgrnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found) !=
          0 ||
      found == nullptr) {
    return std::nullopt;
  }
  return entry.gr_gid;
}

// Fills defaults in and checks what the schema cannot say.
class Validator {
 public:
  Validator(Config& config, const Lines& lines)
      : config_(config), settings_(config.settings), lines_(lines) {}

  absl::Status Run() {
    if (settings_.state_dir().empty()) settings_.set_state_dir("/var/lib/kekd");
    RETURN_IF_ERROR(AbsolutePath("state_dir", settings_.state_dir()));
    RETURN_IF_ERROR(CheckToken());
    RETURN_IF_ERROR(CheckStores());
    RETURN_IF_ERROR(CheckAdmin());
    RETURN_IF_ERROR(CheckKubernetes());
    RETURN_IF_ERROR(CheckHttp());
    RETURN_IF_ERROR(CheckLog());
    RETURN_IF_ERROR(CheckExecutor());
    return CheckKeys();
  }

 private:
  // The line of the setting, or of the nearest setting around it.
  absl::Status Error(std::string path, absl::string_view what) const {
    const std::string named = path;
    while (!path.empty()) {
      if (const auto it = lines_.find(path); it != lines_.end()) {
        return absl::InvalidArgumentError(absl::StrCat(
            config_.file, ":", it->second, ": ", named, " ", what));
      }
      const size_t cut = path.find_last_of(".[");
      path.resize(cut == std::string::npos ? 0 : cut);
    }
    return absl::InvalidArgumentError(
        absl::StrCat(config_.file, ": ", named, " ", what));
  }

  absl::Status AbsolutePath(const std::string& path,
                            const std::string& value) const {
    if (value.empty()) return Error(path, "is missing");
    if (value[0] != '/' || value.find('\0') != std::string::npos) {
      return Error(path, absl::StrCat("must be an absolute path, and is ",
                                      Quote(value)));
    }
    return absl::OkStatus();
  }

  absl::Status DefaultDuration(const std::string& path, bool has,
                               google::protobuf::Duration* value,
                               absl::Duration usual, absl::Duration least,
                               absl::Duration most) const {
    if (!has) {
      *value = ToProto(usual);
      return absl::OkStatus();
    }
    const absl::Duration given =
        absl::Seconds(value->seconds()) + absl::Nanoseconds(value->nanos());
    if (given < least || given > most) {
      return Error(
          path, absl::StrCat("must lie between ", absl::FormatDuration(least),
                             " and ", absl::FormatDuration(most), ", and is ",
                             absl::FormatDuration(given)));
    }
    return absl::OkStatus();
  }

  absl::Status CheckToken() {
    auto& token = *settings_.mutable_token();
    RETURN_IF_ERROR(AbsolutePath("token.module", token.module()));
    if (token.uri().empty()) return Error("token.uri", "is missing");
    if (!absl::StartsWith(token.uri(), "pkcs11:")) {
      return Error("token.uri", "must begin with pkcs11:");
    }
    if (absl::StrContains(token.uri(), "pin-value") ||
        absl::StrContains(token.uri(), "pin-source")) {
      return Error("token.uri", "must not carry the PIN; use token.pin");
    }
    const auto& pin = token.pin();
    const int sources = !pin.credential().empty() + !pin.file().empty() +
                        pin.has_file_descriptor() + !pin.environment().empty();
    if (sources != 1) {
      return Error("token.pin",
                   absl::StrCat("must name exactly one source (credential, "
                                "file, file_descriptor or environment), and "
                                "names ",
                                sources));
    }
    if (!pin.file().empty()) {
      RETURN_IF_ERROR(AbsolutePath("token.pin.file", pin.file()));
    }
    if (absl::StrContains(pin.credential(), '/')) {
      return Error("token.pin.credential",
                   "is a credential's name, not a path");
    }
    if (pin.has_file_descriptor() && pin.file_descriptor() < 3) {
      return Error("token.pin.file_descriptor", "must be 3 or more");
    }
    if (!pin.environment().empty() && !pin.allow_environment()) {
      return Error("token.pin.environment",
                   "can be read by others through /proc for a moment; if that "
                   "is acceptable, set allow_environment: true");
    }
    if (token.max_sessions() == 0) token.set_max_sessions(16);
    if (token.max_sessions() < 2 || token.max_sessions() > 1024) {
      return Error("token.max_sessions", "must lie between 2 and 1024");
    }
    const bool has_call_deadline = token.has_call_deadline();
    return DefaultDuration("token.call_deadline", has_call_deadline,
                           token.mutable_call_deadline(), absl::Seconds(10),
                           absl::Seconds(1), absl::Minutes(10));
  }

  absl::Status CheckStores() {
    auto& catalog = *settings_.mutable_catalog();
    if (catalog.path().empty()) {
      catalog.set_path(settings_.state_dir() + "/catalog.db");
    }
    RETURN_IF_ERROR(AbsolutePath("catalog.path", catalog.path()));
    auto& audit = *settings_.mutable_audit();
    if (audit.directory().empty()) {
      audit.set_directory(settings_.state_dir() + "/audit");
    }
    RETURN_IF_ERROR(AbsolutePath("audit.directory", audit.directory()));
    if (audit.segment_bytes() == 0) audit.set_segment_bytes(256ULL << 20);
    if (audit.segment_bytes() < (1 << 16)) {
      return Error("audit.segment_bytes", "must be at least 65536");
    }
    return absl::OkStatus();
  }

  // What admin and kubernetes[i] have in common. Writes defaults back.
  template <typename Socket>
  absl::Status CheckAccess(const std::string& path, Socket& socket,
                           SocketAccess& access) {
    if (socket.mode().empty()) socket.set_mode("0600");
    int mode = 0;
    if (socket.mode().size() > 4 ||
        !std::all_of(socket.mode().begin(), socket.mode().end(),
                     [](char c) { return c >= '0' && c <= '7'; }) ||
        (mode = static_cast<int>(
             std::strtol(socket.mode().c_str(), nullptr, 8))) > 0777) {
      return Error(path + ".mode",
                   absl::StrCat("must be an octal mode such as \"0660\", and "
                                "is ",
                                Quote(socket.mode())));
    }
    if ((mode & 0007) != 0) {
      return Error(path + ".mode",
                   absl::StrCat(Quote(socket.mode()),
                                " lets every user on the host in; use owner "
                                "and group"));
    }
    if ((mode & 0600) != 0600) {
      return Error(path + ".mode", "must let the owner read and write");
    }
    access.mode = static_cast<mode_t>(mode);
    if (!socket.owner().empty()) {
      access.owner = FindUser(socket.owner());
      if (!access.owner.has_value()) {
        return Error(path + ".owner", NoSuch("user", socket.owner()));
      }
    }
    if (!socket.group().empty()) {
      access.group = FindGroup(socket.group());
      if (!access.group.has_value()) {
        return Error(path + ".group", NoSuch("group", socket.group()));
      }
    }
    for (int i = 0; i < socket.allowed_users_size(); ++i) {
      const auto id = FindUser(socket.allowed_users(i));
      if (!id.has_value()) {
        return Error(absl::StrCat(path, ".allowed_users[", i, "]"),
                     NoSuch("user", socket.allowed_users(i)));
      }
      access.uids.push_back(*id);
    }
    for (int i = 0; i < socket.allowed_groups_size(); ++i) {
      const auto id = FindGroup(socket.allowed_groups(i));
      if (!id.has_value()) {
        return Error(absl::StrCat(path, ".allowed_groups[", i, "]"),
                     NoSuch("group", socket.allowed_groups(i)));
      }
      access.gids.push_back(*id);
    }
    if (access.uids.empty()) access.uids = {0, geteuid()};
    return absl::OkStatus();
  }
  static std::string NoSuch(absl::string_view kind, absl::string_view name) {
    return absl::StrCat("names a ", kind,
                        " that does not exist: ", Quote(name));
  }

  absl::Status CheckSocketPath(const std::string& path,
                               const std::string& socket) {
    if (socket.size() > 107) {
      return Error(path,
                   "is longer than 107 bytes, the most a Unix socket's "
                   "path may have");
    }
    const auto [it, is_new] = sockets_.emplace(socket, path);
    if (!is_new) {
      return Error(
          path, absl::StrCat("is ", Quote(socket),
                             ", which is already the socket of ", it->second));
    }
    return absl::OkStatus();
  }

  absl::Status CheckAdmin() {
    auto& admin = *settings_.mutable_admin();
    if (admin.socket().empty()) admin.set_socket("/run/kekd/admin.sock");
    RETURN_IF_ERROR(AbsolutePath("admin.socket", admin.socket()));
    RETURN_IF_ERROR(CheckSocketPath("admin.socket", admin.socket()));
    return CheckAccess("admin", admin, config_.admin);
  }

  absl::Status CheckKubernetes() {
    std::set<std::string> names;
    for (int i = 0; i < settings_.kubernetes_size(); ++i) {
      auto& binding = *settings_.mutable_kubernetes(i);
      const std::string path = absl::StrCat("kubernetes[", i, "]");
      if (binding.name().empty() || binding.name().size() > 63 ||
          !std::all_of(binding.name().begin(), binding.name().end(),
                       [](char c) {
                         return absl::ascii_islower(c) ||
                                absl::ascii_isdigit(c) || c == '-';
                       })) {
        return Error(path + ".name",
                     absl::StrCat("must be 1 to 63 of a-z, 0-9 and -, and is ",
                                  Quote(binding.name())));
      }
      if (!names.insert(binding.name()).second) {
        return Error(path + ".name", absl::StrCat("is ", Quote(binding.name()),
                                                  ", as another binding's is"));
      }
      if (binding.name() == "admin") {
        return Error(path + ".name",
                     "must not be \"admin\", which names the admin socket");
      }
      if (absl::StartsWith(binding.socket(), "@")) {
        if (!binding.allow_abstract()) {
          return Error(path + ".socket",
                       "is an abstract socket, which no file permission "
                       "protects; if that is acceptable, set allow_abstract: "
                       "true");
        }
        if (binding.socket().size() < 2) {
          return Error(path + ".socket", "has no name after the @");
        }
      } else {
        RETURN_IF_ERROR(AbsolutePath(path + ".socket", binding.socket()));
      }
      RETURN_IF_ERROR(CheckSocketPath(path + ".socket", binding.socket()));
      if (binding.key().empty()) return Error(path + ".key", "is missing");
      if (const auto key = catalog::ResourceName::Parse(
              binding.key(), catalog::ResourceName::Kind::kCryptoKey);
          !key.ok()) {
        return Error(path + ".key",
                     absl::StrCat("is no key: ", key.status().message()));
      }
      if (binding.version().empty()) binding.set_version("v2");
      if (binding.version() != "v2" && binding.version() != "v2beta1") {
        return Error(path + ".version",
                     absl::StrCat("must be v2, or v2beta1 for kube-apiserver "
                                  "1.27 and 1.28, and is ",
                                  Quote(binding.version())));
      }
      const bool has_health_period = binding.has_health_period();
      RETURN_IF_ERROR(
          DefaultDuration(path + ".health_period", has_health_period,
                          binding.mutable_health_period(), kMinHealthPeriod,
                          kMinHealthPeriod, absl::Hours(1)));
      RETURN_IF_ERROR(
          CheckAccess(path, binding, config_.kubernetes.emplace_back()));
    }
    return absl::OkStatus();
  }

  absl::Status CheckHttp() {
    const std::string& listen = settings_.http().listen();
    if (listen.empty()) return absl::OkStatus();
    const size_t colon = listen.rfind(':');
    uint32_t port = 0;
    if (colon == std::string::npos ||
        !absl::SimpleAtoi(listen.substr(colon + 1), &port) || port > 65535) {
      return Error("http.listen",
                   absl::StrCat("must be an address and a port, such as "
                                "127.0.0.1:9464, and is ",
                                Quote(listen)));
    }
    const std::string host = listen.substr(0, colon);
    if (host != "127.0.0.1" && host != "[::1]") {
      return Error("http.listen",
                   absl::StrCat("must be on 127.0.0.1 or [::1], because what "
                                "it serves is not authenticated, and is on ",
                                Quote(host)));
    }
    return absl::OkStatus();
  }

  absl::Status CheckLog() {
    auto& log = *settings_.mutable_log();
    if (log.format().empty()) log.set_format("text");
    if (log.format() != "text" && log.format() != "json") {
      return Error("log.format", absl::StrCat("must be text or json, and is ",
                                              Quote(log.format())));
    }
    if (log.level().empty()) log.set_level("info");
    if (!base::ParseLogLevel(log.level()).ok()) {
      return Error("log.level",
                   absl::StrCat("must be debug, info, warning or error, and "
                                "is ",
                                Quote(log.level())));
    }
    return absl::OkStatus();
  }

  absl::Status CheckExecutor() {
    auto& executor = *settings_.mutable_executor();
    const int sessions = settings_.token().max_sessions();
    if (executor.workers() == 0) {
      executor.set_workers(std::max(32, 3 * sessions));
    }
    // Calls that wait for the audit log or the catalog hold no session.
    if (executor.workers() <= sessions || executor.workers() > 4096) {
      return Error("executor.workers",
                   absl::StrCat("must be more than token.max_sessions (",
                                sessions, ") and at most 4096"));
    }
    if (executor.queue() == 0) executor.set_queue(1024);
    if (executor.queue() < 1 || executor.queue() > 1 << 20) {
      return Error("executor.queue", "must lie between 1 and 1048576");
    }
    const bool has_default_deadline = executor.has_default_deadline();
    RETURN_IF_ERROR(
        DefaultDuration("executor.default_deadline", has_default_deadline,
                        executor.mutable_default_deadline(), absl::Seconds(10),
                        absl::Milliseconds(100), absl::Minutes(10)));
    const bool has_stop_grace = executor.has_stop_grace();
    return DefaultDuration("executor.stop_grace", has_stop_grace,
                           executor.mutable_stop_grace(), absl::Seconds(10),
                           absl::ZeroDuration(), absl::Minutes(10));
  }

  absl::Status CheckKeys() {
    auto& keys = *settings_.mutable_keys();
    for (int i = 0; i < keys.locations_size(); ++i) {
      if (const auto location = catalog::ResourceName::Parse(
              keys.locations(i), catalog::ResourceName::Kind::kLocation);
          !location.ok()) {
        return Error(
            absl::StrCat("keys.locations[", i, "]"),
            absl::StrCat("is no location: ", location.status().message()));
      }
    }
    const bool has_default_destroy_scheduled_duration =
        keys.has_default_destroy_scheduled_duration();
    RETURN_IF_ERROR(DefaultDuration(
        "keys.default_destroy_scheduled_duration",
        has_default_destroy_scheduled_duration,
        keys.mutable_default_destroy_scheduled_duration(), absl::Hours(24 * 30),
        absl::Hours(24), absl::Hours(24 * 120)));
    if (keys.rotate_after_uses() == 0) {
      keys.set_rotate_after_uses(uint64_t{1} << 31);
    }
    if (keys.rotate_after_uses() > uint64_t{1} << 31) {
      return Error("keys.rotate_after_uses",
                   "must be at most 2147483648 (2^31): random 96-bit IVs bear "
                   "no more than 2^32 under one key");
    }
    if (!keys.has_verify_after_encrypt()) keys.set_verify_after_encrypt(true);
    return absl::OkStatus();
  }

  Config& config_;
  config::v1::Config& settings_;
  const Lines& lines_;
  std::map<std::string, std::string> sockets_;  // socket -> whose it is
};

// Adds to changed the paths of the fields in which a and b differ.
void Differences(const Message& a, const Message& b, const std::string& prefix,
                 std::vector<std::string>& changed) {
  using google::protobuf::util::MessageDifferencer;
  const Descriptor* type = a.GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    MessageDifferencer differencer;
    const std::string path = absl::StrCat(prefix, field->name());
    std::vector<const FieldDescriptor*> one = {field};
    if (differencer.CompareWithFields(a, b, one, one)) continue;
    if (prefix.empty() && field->type() == FieldDescriptor::TYPE_MESSAGE &&
        !field->is_repeated()) {
      Differences(a.GetReflection()->GetMessage(a, field),
                  b.GetReflection()->GetMessage(b, field), path + ".", changed);
    } else {
      changed.push_back(path);
    }
  }
}

}  // namespace

absl::StatusOr<Config> ParseConfig(absl::string_view yaml,
                                   const std::string& file) {
  ASSIGN_OR_RETURN(const YAML::Node root, ParseYaml(yaml, file));
  Config config;
  config.file = file;
  Reader reader(file);
  RETURN_IF_ERROR(reader.Read(root, "", config.settings));
  RETURN_IF_ERROR(Validator(config, reader.lines()).Run());
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(yaml.data()), yaml.size(),
         digest);
  config.digest = absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest)));
  return config;
}

absl::StatusOr<Config> LoadConfig(const std::string& file) {
  const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const std::string text =
        absl::StrCat("cannot read ", file, ": ", std::strerror(errno));
    if (errno == ENOENT) {
      return absl::NotFoundError(absl::StrCat(
          text, "; kekctl init writes one, deploy/kekd.yaml is the sample"));
    }
    return errno == EACCES ? absl::PermissionDeniedError(text)
                           : absl::UnavailableError(text);
  }
  std::string text;
  char buffer[4096];
  ssize_t size = 0;
  while ((size = read(fd, buffer, sizeof(buffer))) > 0 &&
         text.size() <= kMaxFileBytes) {
    text.append(buffer, static_cast<size_t>(size));
  }
  const int error = errno;
  close(fd);
  if (size < 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot read ", file, ": ", std::strerror(error)));
  }
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": is longer than 1 MiB"));
  }
  return ParseConfig(text, file);
}

std::vector<std::string> NeedRestart(const Config& running,
                                     const Config& wanted) {
  // What a reload applies is made equal first; what then differs needs a
  // restart.
  config::v1::Config a = running.settings, b = wanted.settings;
  a.clear_log();
  b.clear_log();
  a.mutable_executor()->clear_stop_grace();
  b.mutable_executor()->clear_stop_grace();
  for (config::v1::Config* c : {&a, &b}) {
    c->mutable_admin()->clear_allowed_users();
    c->mutable_admin()->clear_allowed_groups();
    for (auto& binding : *c->mutable_kubernetes()) {
      binding.clear_allowed_users();
      binding.clear_allowed_groups();
    }
  }
  std::vector<std::string> changed;
  Differences(a, b, "", changed);
  return changed;
}

}  // namespace kek::service
