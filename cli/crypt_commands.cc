// SPDX-License-Identifier: Apache-2.0
// kekctl encrypt and kekctl decrypt. CRC32C is checked both ways: what kekd
// received is what was read, and what is written is what kekd sent.
#include <CLI/CLI.hpp>
#include <span>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "base/secret_bytes.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/connection.h"
#include "cli/exit_code.h"
#include "cli/key_name.h"

namespace kek::cli {
namespace {

namespace kms = google::cloud::kms::v1;
using catalog::ResourceName;

// More than kekd takes of either (64 KiB, a ciphertext somewhat more), so that
// it is kekd that says what its limit is.
constexpr size_t kMaxInput = 256 * 1024;

struct CryptOptions {
  std::string key;
  std::string in = "-", out = "-", aad_file;
  bool base64 = false, force = false;
};

std::span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}
void Assign(std::string& field, const base::SecretBytes& bytes) {
  field.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

absl::Status Damaged(absl::string_view what) {
  return WithHint(
      absl::DataLossError(absl::StrCat(what, " was damaged on the way")),
      "nothing was written; try again, and if it happens again look for bad "
      "memory or a broken kekd");
}

absl::Status Hinted(absl::Status status, const ResourceName& name,
                    const Settings& settings) {
  const std::string key = ShortName(name.CryptoKey(), settings.names);
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return WithDefaultHint(std::move(status),
                             "`kekctl key list` shows the keys there are");
    case absl::StatusCode::kFailedPrecondition:
      return WithDefaultHint(
          std::move(status),
          absl::StrCat("`kekctl key describe ", key,
                       "` shows the states of its versions; `kekctl key "
                       "enable` puts one to use again"));
    default:
      return status;
  }
}

absl::Status Encrypt(const Invocation& run, const CryptOptions& options) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const ResourceName name,
                   ResolveKeyOrVersion(options.key, settings.names));
  kms::EncryptRequest request;
  const WipeAtEnd wipe(*request.mutable_plaintext());
  request.set_name(name.ToString());
  {
    ASSIGN_OR_RETURN(const base::SecretBytes plaintext,
                     ReadInput(run.io, options.in, kMaxInput));
    Assign(*request.mutable_plaintext(), plaintext);
  }
  if (!options.aad_file.empty()) {
    ASSIGN_OR_RETURN(const base::SecretBytes aad,
                     ReadInput(run.io, options.aad_file, kMaxInput));
    Assign(*request.mutable_additional_authenticated_data(), aad);
  }
  request.mutable_plaintext_crc32c()->set_value(
      base::Crc32c(Bytes(request.plaintext())));
  request.mutable_additional_authenticated_data_crc32c()->set_value(
      base::Crc32c(Bytes(request.additional_authenticated_data())));

  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  kms::EncryptResponse response;
  RETURN_IF_ERROR(Hinted(server.Call(&Kms::Stub::Encrypt, request, response),
                         name, settings));
  if (!response.verified_plaintext_crc32c() ||
      !response.verified_additional_authenticated_data_crc32c()) {
    return Damaged("the request (kekd did not confirm its checksums)");
  }
  if (!response.has_ciphertext_crc32c() ||
      response.ciphertext_crc32c().value() !=
          base::Crc32c(Bytes(response.ciphertext()))) {
    return Damaged("the ciphertext");
  }
  const absl::StatusOr<ResourceName> used =
      ResourceName::Parse(response.name());
  if (!used.ok() || used->kind() != ResourceName::Kind::kCryptoKeyVersion ||
      !(used->CryptoKey() == name.CryptoKey())) {
    return absl::DataLossError(
        "kekd answered for another key than was asked for");
  }
  if (options.base64) {
    const std::string text =
        absl::StrCat(absl::Base64Escape(response.ciphertext()), "\n");
    return WriteOutput(
        run.io, options.out, Bytes(text),
        options.force ? Overwrite::kReplace : Overwrite::kRefuse);
  }
  return WriteOutput(run.io, options.out, Bytes(response.ciphertext()),
                     options.force ? Overwrite::kReplace : Overwrite::kRefuse);
}

absl::Status Decrypt(const Invocation& run, const CryptOptions& options) {
  ASSIGN_OR_RETURN(const Settings settings, run.LoadSettings());
  ASSIGN_OR_RETURN(const ResourceName name,
                   ResolveCryptoKey(options.key, settings.names));
  kms::DecryptRequest request;
  request.set_name(name.ToString());
  {
    ASSIGN_OR_RETURN(const base::SecretBytes ciphertext,
                     ReadInput(run.io, options.in, kMaxInput));
    Assign(*request.mutable_ciphertext(), ciphertext);
  }
  if (options.base64) {
    std::string decoded;
    if (!absl::Base64Unescape(absl::StripAsciiWhitespace(request.ciphertext()),
                              &decoded)) {
      return absl::InvalidArgumentError("the ciphertext is not Base64");
    }
    request.set_ciphertext(decoded);
  }
  if (!options.aad_file.empty()) {
    ASSIGN_OR_RETURN(const base::SecretBytes aad,
                     ReadInput(run.io, options.aad_file, kMaxInput));
    Assign(*request.mutable_additional_authenticated_data(), aad);
  }
  request.mutable_ciphertext_crc32c()->set_value(
      base::Crc32c(Bytes(request.ciphertext())));
  request.mutable_additional_authenticated_data_crc32c()->set_value(
      base::Crc32c(Bytes(request.additional_authenticated_data())));

  ASSIGN_OR_RETURN(const Server server, run.Dial(settings));
  kms::DecryptResponse response;
  const WipeAtEnd wipe(*response.mutable_plaintext());
  absl::Status status = server.Call(&Kms::Stub::Decrypt, request, response);
  if (status.code() == absl::StatusCode::kInvalidArgument &&
      absl::StartsWith(status.message(), "Decryption failed")) {
    return WithHint(
        WithExit(std::move(status), ExitCode::kIntegrity),
        options.aad_file.empty()
            ? "the ciphertext is damaged, or was made with another key or "
              "with --aad-file"
            : "the ciphertext is damaged, or was made with another key or "
              "other --aad-file data");
  }
  RETURN_IF_ERROR(Hinted(std::move(status), name, settings));
  if (!response.has_plaintext_crc32c() ||
      response.plaintext_crc32c().value() !=
          base::Crc32c(Bytes(response.plaintext()))) {
    return Damaged("the plaintext");
  }
  return WriteOutput(run.io, options.out, Bytes(response.plaintext()),
                     options.force ? Overwrite::kReplace : Overwrite::kRefuse);
}

void Add(CLI::App& app, Invocation& run, const char* command, const char* help,
         const char* key_help, const char* base64_help,
         absl::Status (*action)(const Invocation&, const CryptOptions&)) {
  auto options = std::make_shared<CryptOptions>();
  CLI::App* sub = app.add_subcommand(command, help);
  sub->fallthrough();
  sub->add_option("KEY", options->key, key_help)->required();
  sub->add_option("--in", options->in, "Input file; default: standard input")
      ->type_name("FILE");
  sub->add_option("--out", options->out,
                  "Output file (mode 0600); default: standard output")
      ->type_name("FILE");
  sub->add_option("--aad-file", options->aad_file,
                  "Additional authenticated data: the same for decrypt")
      ->type_name("FILE");
  sub->add_flag("--base64", options->base64, base64_help);
  sub->add_flag("--force", options->force, "Replace an existing output file");
  sub->callback([&run, options, action] {
    run.action = [&run, options, action] { return action(run, *options); };
  });
}

}  // namespace

void AddCryptCommands(CLI::App& app, Invocation& run) {
  Add(app, run, "encrypt", "Encrypt a small secret, such as a data key",
      "key (its primary is used) or version: key, ring/key, ring/key:3",
      "Write the ciphertext as Base64", &Encrypt);
  Add(app, run, "decrypt", "Decrypt what encrypt made",
      "key, ring/key or full name; the ciphertext knows the version",
      "The ciphertext is Base64", &Decrypt);
}

}  // namespace kek::cli
