// SPDX-License-Identifier: Apache-2.0
// kekctl keyring ... and kekctl key ...
#include <CLI/CLI.hpp>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/key_name.h"
#include "cli/output.h"

namespace kek::cli {
namespace {

namespace kms = google::cloud::kms::v1;
using catalog::ResourceName;

constexpr int kPageSize = 1000;

// ---- the fetching

template <typename Response, typename Item, typename Request>
absl::StatusOr<std::vector<Item>> AllPages(
    const Server& server,
    grpc::Status (Kms::Stub::*method)(grpc::ClientContext*, const Request&,
                                      Response*),
    const google::protobuf::RepeatedPtrField<Item>& (Response::*items)() const,
    Request request) {
  std::vector<Item> all;
  request.set_page_size(kPageSize);
  while (true) {
    Response response;
    RETURN_IF_ERROR(server.Call(method, request, response));
    for (const Item& item : (response.*items)()) all.push_back(item);
    if (response.next_page_token().empty()) return all;
    request.set_page_token(response.next_page_token());
  }
}

absl::StatusOr<std::vector<kms::KeyRing>> ListRings(
    const Server& server, const ResourceName& location) {
  kms::ListKeyRingsRequest request;
  request.set_parent(location.ToString());
  return AllPages(server, &Kms::Stub::ListKeyRings,
                  &kms::ListKeyRingsResponse::key_rings, request);
}

absl::StatusOr<std::vector<kms::CryptoKey>> ListKeys(const Server& server,
                                                     const std::string& ring) {
  kms::ListCryptoKeysRequest request;
  request.set_parent(ring);
  return AllPages(server, &Kms::Stub::ListCryptoKeys,
                  &kms::ListCryptoKeysResponse::crypto_keys, request);
}

absl::StatusOr<std::vector<kms::CryptoKeyVersion>> ListVersions(
    const Server& server, const std::string& key) {
  kms::ListCryptoKeyVersionsRequest request;
  request.set_parent(key);
  return AllPages(server, &Kms::Stub::ListCryptoKeyVersions,
                  &kms::ListCryptoKeyVersionsResponse::crypto_key_versions,
                  request);
}

// ---- the showing

std::string ShortText(const std::string& name, const NameDefaults& defaults) {
  const absl::StatusOr<ResourceName> parsed = ResourceName::Parse(name);
  return parsed.ok() ? ShortName(*parsed, defaults) : name;
}

std::string VersionNumber(const std::string& name) {
  return name.substr(name.rfind('/') + 1);
}

std::string StateText(const kms::CryptoKeyVersion& version) {
  return kms::CryptoKeyVersion::CryptoKeyVersionState_Name(version.state());
}

std::string LabelsText(const kms::CryptoKey& key) {
  const std::map<std::string, std::string> sorted(key.labels().begin(),
                                                  key.labels().end());
  return absl::StrJoin(sorted, " ", absl::PairFormatter("="));
}

template <typename Message>
absl::Status PrintList(const Invocation& run, const Settings& settings,
                       const std::vector<Message>& items, const Table& table,
                       absl::string_view nothing) {
  if (settings.output == OutputFormat::kJson) {
    std::vector<const google::protobuf::Message*> messages;
    for (const Message& item : items) messages.push_back(&item);
    ASSIGN_OR_RETURN(const std::string json, MessagesJson(messages));
    return run.Print(json);
  }
  return run.Print(items.empty() ? absl::StrCat(nothing, "\n")
                                 : table.ToString());
}

// One line for people, the message for programs.
absl::Status PrintOne(const Invocation& run, const Settings& settings,
                      const google::protobuf::Message& message,
                      absl::string_view line) {
  if (settings.output == OutputFormat::kJson) {
    ASSIGN_OR_RETURN(const std::string json, MessageJson(message));
    return run.Print(json);
  }
  return run.Print(absl::StrCat(line, "\n"));
}

absl::Status NoKeyHint(absl::Status status) {
  return status.code() == absl::StatusCode::kNotFound
             ? WithDefaultHint(std::move(status),
                               "`kekctl key list` shows the keys there are")
             : status;
}

// ---- keyring

absl::Status CreateRing(const Server& server, const ResourceName& ring,
                        kms::KeyRing& response) {
  kms::CreateKeyRingRequest request;
  request.set_parent(ring.Parent().ToString());
  request.set_key_ring_id(std::string(ring.id()));
  request.mutable_key_ring();
  return server.Call(&Kms::Stub::CreateKeyRing, request, response);
}

absl::Status KeyringCreate(const Invocation& run, const std::string& name) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const ResourceName ring,
                   ResolveKeyRing(name, settings.names));
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  kms::KeyRing response;
  RETURN_IF_ERROR(CreateRing(server, ring, response));
  return PrintOne(run, settings, response,
                  absl::StrCat("Created key ring ", response.name(), "."));
}

absl::Status KeyringList(const Invocation& run) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const ResourceName location,
                   ResolveLocation(settings.names));
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  ASSIGN_OR_RETURN(const std::vector<kms::KeyRing> rings,
                   ListRings(server, location));
  Table table({"KEY RING", "CREATED", "NAME"});
  for (const kms::KeyRing& ring : rings) {
    table.Add({VersionNumber(ring.name()), TimeText(ring.create_time()),
               ring.name()});
  }
  return PrintList(run, settings, rings, table,
                   absl::StrCat("No key rings in ", location.ToString(), "."));
}

// ---- key

struct KeyCreateOptions {
  std::string name;
  bool create_ring = false;
  std::string protection_level = "hsm";
  std::string rotation_period, next_rotation, destroy_delay;
  std::vector<std::string> labels;
};

absl::Status SetSchedule(const std::string& period_text,
                         const std::string& next_text, kms::CryptoKey& key) {
  absl::Time next = absl::InfinitePast();
  if (!period_text.empty()) {
    ASSIGN_OR_RETURN(const absl::Duration period, ParseDuration(period_text));
    key.mutable_rotation_period()->set_seconds(absl::ToInt64Seconds(period));
    next = absl::Now() + period;
  }
  if (!next_text.empty()) {
    std::string error;
    if (!absl::ParseTime(absl::RFC3339_full, next_text, &next, &error)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--next-rotation-time '", next_text.substr(0, 64),
                       "' is not a time such as 2027-01-31T02:00:00Z"));
    }
  }
  if (next != absl::InfinitePast()) {
    key.mutable_next_rotation_time()->set_seconds(absl::ToUnixSeconds(next));
  }
  return absl::OkStatus();
}

absl::Status SetLabels(const std::vector<std::string>& labels,
                       kms::CryptoKey& key) {
  for (const std::string& label : labels) {
    const size_t equals = label.find('=');
    if (equals == std::string::npos || equals == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--label '", label.substr(0, 64), "' is not of the form name=value"));
    }
    (*key.mutable_labels())[label.substr(0, equals)] = label.substr(equals + 1);
  }
  return absl::OkStatus();
}

absl::Status KeyCreate(const Invocation& run, const KeyCreateOptions& options) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const ResourceName name,
                   ResolveCryptoKey(options.name, settings.names));
  kms::CreateCryptoKeyRequest request;
  request.set_parent(name.Parent().ToString());
  request.set_crypto_key_id(std::string(name.id()));
  kms::CryptoKey& key = *request.mutable_crypto_key();
  key.set_purpose(kms::CryptoKey::ENCRYPT_DECRYPT);
  key.mutable_version_template()->set_algorithm(
      kms::CryptoKeyVersion::GOOGLE_SYMMETRIC_ENCRYPTION);
  key.mutable_version_template()->set_protection_level(
      options.protection_level == "software" ? kms::SOFTWARE : kms::HSM);
  RETURN_IF_ERROR(
      SetSchedule(options.rotation_period, options.next_rotation, key));
  RETURN_IF_ERROR(SetLabels(options.labels, key));
  if (!options.destroy_delay.empty()) {
    ASSIGN_OR_RETURN(const absl::Duration delay,
                     ParseDuration(options.destroy_delay));
    key.mutable_destroy_scheduled_duration()->set_seconds(
        absl::ToInt64Seconds(delay));
  }
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  if (options.create_ring) {
    kms::KeyRing ring;
    if (absl::Status status = CreateRing(server, name.Parent(), ring);
        !status.ok() && status.code() != absl::StatusCode::kAlreadyExists) {
      return status;
    }
  }
  kms::CryptoKey response;
  absl::Status status =
      server.Call(&Kms::Stub::CreateCryptoKey, request, response);
  if (status.code() == absl::StatusCode::kNotFound) {
    return WithHint(std::move(status),
                    absl::StrCat("`kekctl keyring create ",
                                 ShortName(name.Parent(), settings.names),
                                 "` makes the ring, or add --create-ring; a "
                                 "ring is for ever"));
  }
  RETURN_IF_ERROR(status);
  return PrintOne(
      run, settings, response,
      absl::StrCat("Created ", response.name(), ", primary version ",
                   VersionNumber(response.primary().name()), "."));
}

absl::Status KeyList(const Invocation& run, const std::string& ring_name) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  std::vector<std::string> rings;
  std::string where;
  if (!ring_name.empty()) {
    ASSIGN_OR_RETURN(const ResourceName ring,
                     ResolveKeyRing(ring_name, settings.names));
    rings.push_back(ring.ToString());
    where = ring.ToString();
  }
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  if (rings.empty()) {
    ASSIGN_OR_RETURN(const ResourceName location,
                     ResolveLocation(settings.names));
    where = location.ToString();
    ASSIGN_OR_RETURN(const std::vector<kms::KeyRing> all,
                     ListRings(server, location));
    for (const kms::KeyRing& ring : all) rings.push_back(ring.name());
  }
  std::vector<kms::CryptoKey> keys;
  for (const std::string& ring : rings) {
    absl::StatusOr<std::vector<kms::CryptoKey>> in_ring =
        ListKeys(server, ring);
    if (!in_ring.ok()) {
      return WithDefaultHint(in_ring.status(),
                             "`kekctl keyring list` shows the rings there are");
    }
    for (kms::CryptoKey& key : *in_ring) keys.push_back(std::move(key));
  }
  // Of a key in the default ring both parts are shown: a list is read across
  // rings.
  NameDefaults names = settings.names;
  names.key_ring.clear();
  Table table(
      {"KEY", "PRIMARY", "STATE", "PROTECTION", "NEXT ROTATION", "LABELS"});
  for (const kms::CryptoKey& key : keys) {
    const bool primary = key.has_primary();
    table.Add(
        {ShortText(key.name(), names),
         primary ? VersionNumber(key.primary().name()) : "-",
         primary ? StateText(key.primary()) : "-",
         kms::ProtectionLevel_Name(key.version_template().protection_level()),
         key.has_next_rotation_time() ? TimeText(key.next_rotation_time())
                                      : "-",
         LabelsText(key)});
  }
  return PrintList(run, settings, keys, table,
                   absl::StrCat("No keys in ", where, "."));
}

absl::Status DescribeVersion(const Invocation& run, const Settings& settings,
                             const Server& server, const ResourceName& name) {
  kms::GetCryptoKeyVersionRequest request;
  request.set_name(name.ToString());
  kms::CryptoKeyVersion version;
  RETURN_IF_ERROR(NoKeyHint(
      server.Call(&Kms::Stub::GetCryptoKeyVersion, request, version)));
  std::string text = FieldsText({
      {"Name", version.name()},
      {"State", StateText(version)},
      {"Algorithm", kms::CryptoKeyVersion::CryptoKeyVersionAlgorithm_Name(
                        version.algorithm())},
      {"Protection", kms::ProtectionLevel_Name(version.protection_level())},
      {"Created", TimeText(version.create_time())},
      {"Generated", TimeText(version.generate_time())},
      {"To be destroyed", TimeText(version.destroy_time())},
      {"Destroyed", TimeText(version.destroy_event_time())},
      {"Generation failed", version.generation_failure_reason()},
  });
  if (!text.empty()) text.pop_back();
  return PrintOne(run, settings, version, text);
}

absl::Status KeyDescribe(const Invocation& run, const std::string& key_name) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const ResourceName name,
                   ResolveKeyOrVersion(key_name, settings.names));
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  if (name.kind() == ResourceName::Kind::kCryptoKeyVersion) {
    return DescribeVersion(run, settings, server, name);
  }
  kms::GetCryptoKeyRequest request;
  request.set_name(name.ToString());
  kms::CryptoKey key;
  RETURN_IF_ERROR(
      NoKeyHint(server.Call(&Kms::Stub::GetCryptoKey, request, key)));
  ASSIGN_OR_RETURN(const std::vector<kms::CryptoKeyVersion> versions,
                   ListVersions(server, name.ToString()));
  if (settings.output == OutputFormat::kJson) {
    ASSIGN_OR_RETURN(std::string key_json, MessageJson(key));
    std::vector<const google::protobuf::Message*> messages;
    for (const auto& version : versions) messages.push_back(&version);
    ASSIGN_OR_RETURN(std::string versions_json, MessagesJson(messages));
    key_json.pop_back();
    versions_json.pop_back();
    return run.Print(absl::StrCat("{\"cryptoKey\": ", key_json,
                                  ",\n\"cryptoKeyVersions\": ", versions_json,
                                  "}\n"));
  }
  std::string text = FieldsText({
      {"Name", key.name()},
      {"Purpose", kms::CryptoKey::CryptoKeyPurpose_Name(key.purpose())},
      {"Protection",
       kms::ProtectionLevel_Name(key.version_template().protection_level())},
      {"Algorithm", kms::CryptoKeyVersion::CryptoKeyVersionAlgorithm_Name(
                        key.version_template().algorithm())},
      {"Primary version",
       key.has_primary() ? VersionNumber(key.primary().name()) : "none"},
      {"Rotation period", DurationText(key.rotation_period())},
      {"Next rotation", TimeText(key.next_rotation_time())},
      {"Destruction delay", DurationText(key.destroy_scheduled_duration())},
      {"Labels", LabelsText(key)},
      {"Created", TimeText(key.create_time())},
  });
  Table table({"VERSION", "STATE", "PRIMARY", "CREATED", "TO BE DESTROYED",
               "DESTROYED"});
  for (const kms::CryptoKeyVersion& version : versions) {
    table.Add({VersionNumber(version.name()), StateText(version),
               version.name() == key.primary().name() ? "primary" : "",
               TimeText(version.create_time()),
               TimeText(version.destroy_time()),
               TimeText(version.destroy_event_time())});
  }
  return run.Print(absl::StrCat(text, "\n", table.ToString()));
}

absl::Status KeyRotate(const Invocation& run, const std::string& key_name) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const ResourceName name,
                   ResolveCryptoKey(key_name, settings.names));
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  kek::admin::v1::RotateCryptoKeyRequest request;
  request.set_name(name.ToString());
  kek::admin::v1::RotateCryptoKeyResponse response;
  RETURN_IF_ERROR(NoKeyHint(
      server.Call(&AdminApi::Stub::RotateCryptoKey, request, response)));
  return PrintOne(
      run, settings, response,
      absl::StrCat("Rotated: version ",
                   VersionNumber(response.primary_version()), " of ",
                   ShortName(name, settings.names),
                   " encrypts from now on; the older ones still decrypt."));
}

struct KeyUpdateOptions {
  std::string name, rotation_period, next_rotation;
  bool remove_rotation = false;
};

absl::Status KeyUpdate(const Invocation& run, const KeyUpdateOptions& options) {
  if (options.remove_rotation ==
      (!options.rotation_period.empty() || !options.next_rotation.empty())) {
    return absl::InvalidArgumentError(
        "give either --remove-rotation or --rotation-period and "
        "--next-rotation-time");
  }
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const ResourceName name,
                   ResolveCryptoKey(options.name, settings.names));
  kms::UpdateCryptoKeyRequest request;
  request.mutable_crypto_key()->set_name(name.ToString());
  RETURN_IF_ERROR(SetSchedule(options.rotation_period, options.next_rotation,
                              *request.mutable_crypto_key()));
  if (!options.rotation_period.empty() || options.remove_rotation) {
    request.mutable_update_mask()->add_paths("rotation_period");
  }
  request.mutable_update_mask()->add_paths("next_rotation_time");
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  kms::CryptoKey response;
  RETURN_IF_ERROR(
      NoKeyHint(server.Call(&Kms::Stub::UpdateCryptoKey, request, response)));
  return PrintOne(
      run, settings, response,
      response.has_next_rotation_time()
          ? absl::StrCat("Next rotation of ", ShortName(name, settings.names),
                         ": ", TimeText(response.next_rotation_time()), ".")
          : absl::StrCat(ShortName(name, settings.names),
                         " is not rotated by time any more."));
}

absl::Status KeySetPrimary(const Invocation& run, const std::string& text) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const ResourceName name,
                   ResolveVersion(text, settings.names));
  kms::UpdateCryptoKeyPrimaryVersionRequest request;
  request.set_name(name.CryptoKey().ToString());
  request.set_crypto_key_version_id(std::string(name.id()));
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  kms::CryptoKey response;
  RETURN_IF_ERROR(NoKeyHint(server.Call(
      &Kms::Stub::UpdateCryptoKeyPrimaryVersion, request, response)));
  return PrintOne(run, settings, response,
                  absl::StrCat("Version ", name.version(), " of ",
                               ShortName(name.CryptoKey(), settings.names),
                               " encrypts from now on."));
}

absl::Status SetState(const Invocation& run, const std::string& text,
                      kms::CryptoKeyVersion::CryptoKeyVersionState state) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const ResourceName name,
                   ResolveVersion(text, settings.names));
  const std::string short_name = ShortName(name, settings.names);
  kms::UpdateCryptoKeyVersionRequest request;
  request.mutable_crypto_key_version()->set_name(name.ToString());
  request.mutable_crypto_key_version()->set_state(state);
  request.mutable_update_mask()->add_paths("state");
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  kms::CryptoKeyVersion response;
  absl::Status status = NoKeyHint(
      server.Call(&Kms::Stub::UpdateCryptoKeyVersion, request, response));
  if (status.code() == absl::StatusCode::kFailedPrecondition) {
    return WithDefaultHint(
        std::move(status),
        absl::StrCat("`kekctl key describe ", short_name,
                     "` shows its state; a version whose destruction is "
                     "scheduled is first restored: `kekctl key restore ",
                     short_name, "`"));
  }
  RETURN_IF_ERROR(status);
  return PrintOne(run, settings, response,
                  absl::StrCat(short_name, " is ", StateText(response),
                               state == kms::CryptoKeyVersion::DISABLED
                                   ? ": it neither encrypts nor decrypts."
                                   : "."));
}

absl::Status KeyDestroy(const Invocation& run, const std::string& text) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const ResourceName name,
                   ResolveVersion(text, settings.names));
  const std::string short_name = ShortName(name, settings.names);
  kms::DestroyCryptoKeyVersionRequest request;
  request.set_name(name.ToString());
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  kms::CryptoKeyVersion response;
  absl::Status status = NoKeyHint(
      server.Call(&Kms::Stub::DestroyCryptoKeyVersion, request, response));
  if (status.code() == absl::StatusCode::kFailedPrecondition) {
    return WithDefaultHint(
        std::move(status),
        absl::StrCat("`kekctl key describe ", short_name, "` shows its state"));
  }
  RETURN_IF_ERROR(status);
  return PrintOne(
      run, settings, response,
      absl::StrCat(short_name, " will be destroyed at ",
                   TimeText(response.destroy_time()),
                   "; what it encrypted is then lost. Until then `kekctl key "
                   "restore ",
                   short_name, "` brings it back."));
}

absl::Status KeyRestore(const Invocation& run, const std::string& text) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const ResourceName name,
                   ResolveVersion(text, settings.names));
  const std::string short_name = ShortName(name, settings.names);
  kms::RestoreCryptoKeyVersionRequest request;
  request.set_name(name.ToString());
  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  kms::CryptoKeyVersion response;
  RETURN_IF_ERROR(NoKeyHint(
      server.Call(&Kms::Stub::RestoreCryptoKeyVersion, request, response)));
  return PrintOne(run, settings, response,
                  absl::StrCat(short_name, " is ", StateText(response),
                               "; `kekctl key enable ", short_name,
                               "` puts it to use again."));
}

// A command that takes one name.
void AddNamed(CLI::App& parent, Invocation& run, const char* command,
              const char* help, const char* placeholder,
              const char* placeholder_help,
              std::function<absl::Status(const std::string&)> action) {
  auto name = std::make_shared<std::string>();
  CLI::App* sub = parent.add_subcommand(command, help);
  sub->fallthrough();
  sub->add_option(placeholder, *name, placeholder_help)->required();
  sub->callback([&run, name, action] {
    run.action = [name, action] { return action(*name); };
  });
}

constexpr char kKeyHelp[] = "key, ring/key or full name";
constexpr char kVersionHelp[] = "version: key:3, ring/key:3 or full name";

}  // namespace

void AddKeyCommands(CLI::App& app, Invocation& run) {
  CLI::App* keyring = app.add_subcommand("keyring", "Key rings");
  keyring->require_subcommand(1)->fallthrough();
  AddNamed(*keyring, run, "create", "Create a key ring (it is for ever)",
           "RING", "ring or full name",
           [&run](const std::string& n) { return KeyringCreate(run, n); });
  keyring->add_subcommand("list", "List the key rings of a location")
      ->fallthrough()
      ->callback([&run] { run.action = [&run] { return KeyringList(run); }; });

  CLI::App* key = app.add_subcommand("key", "Keys and their versions");
  key->require_subcommand(1)->fallthrough();

  auto create = std::make_shared<KeyCreateOptions>();
  CLI::App* sub = key->add_subcommand(
      "create", "Create a key and its first version in the token");
  sub->fallthrough();
  sub->add_option("KEY", create->name, kKeyHelp)->required();
  sub->add_flag("--create-ring", create->create_ring,
                "Create the key ring first if it is missing");
  sub->add_option("--protection-level", create->protection_level,
                  "hsm (default) or software, as the API's clients see it")
      ->check(CLI::IsMember({"hsm", "software"}));
  sub->add_option("--rotation-period", create->rotation_period,
                  "Rotate this often, e.g. 90d (at least 24h)");
  sub->add_option("--next-rotation-time", create->next_rotation,
                  "First rotation (RFC 3339); default: now + period");
  sub->add_option("--destroy-delay", create->destroy_delay,
                  "How long a destruction can be taken back; default 30d");
  sub->add_option("--label", create->labels, "name=value; repeatable")
      ->allow_extra_args(false);
  sub->callback([&run, create] {
    run.action = [&run, create] { return KeyCreate(run, *create); };
  });

  auto ring = std::make_shared<std::string>();
  sub = key->add_subcommand("list", "List keys of a ring, or of all rings");
  sub->fallthrough();
  sub->add_option("RING", *ring, "ring or full name; default: all rings");
  sub->callback([&run, ring] {
    run.action = [&run, ring] { return KeyList(run, *ring); };
  });

  AddNamed(*key, run, "describe", "Show a key with its versions, or a version",
           "KEY", "key, ring/key, ring/key:3 or full name",
           [&run](const std::string& n) { return KeyDescribe(run, n); });
  AddNamed(*key, run, "rotate", "Make a new version that encrypts from now on",
           "KEY", kKeyHelp,
           [&run](const std::string& n) { return KeyRotate(run, n); });

  auto update = std::make_shared<KeyUpdateOptions>();
  sub = key->add_subcommand("update", "Change the rotation schedule of a key");
  sub->fallthrough();
  sub->add_option("KEY", update->name, kKeyHelp)->required();
  sub->add_option("--rotation-period", update->rotation_period,
                  "Rotate this often, e.g. 90d");
  sub->add_option("--next-rotation-time", update->next_rotation,
                  "Next rotation (RFC 3339); default: now + period");
  sub->add_flag("--remove-rotation", update->remove_rotation,
                "Rotate by hand only");
  sub->callback([&run, update] {
    run.action = [&run, update] { return KeyUpdate(run, *update); };
  });

  AddNamed(*key, run, "set-primary", "Make an enabled version the primary",
           "VERSION", kVersionHelp,
           [&run](const std::string& n) { return KeySetPrimary(run, n); });
  AddNamed(*key, run, "enable", "Enable a disabled version", "VERSION",
           kVersionHelp, [&run](const std::string& n) {
             return SetState(run, n, kms::CryptoKeyVersion::ENABLED);
           });
  AddNamed(*key, run, "disable", "Disable a version: no use until enabled",
           "VERSION", kVersionHelp, [&run](const std::string& n) {
             return SetState(run, n, kms::CryptoKeyVersion::DISABLED);
           });
  AddNamed(*key, run, "destroy",
           "Schedule the destruction of a version (it can be taken back)",
           "VERSION", kVersionHelp,
           [&run](const std::string& n) { return KeyDestroy(run, n); });
  AddNamed(*key, run, "restore", "Take a scheduled destruction back", "VERSION",
           kVersionHelp,
           [&run](const std::string& n) { return KeyRestore(run, n); });
}

}  // namespace kek::cli
