// SPDX-License-Identifier: Apache-2.0
//
// The program crash_test kills: does one thing, or one thing over and over, and
// says on standard output what has been acknowledged, one line each:
//   ready            the service is open
//   E <hex>          a ciphertext of "payload" under key k
//   R <version>      a rotation of key k
//   C <id>           a key made
//   D                a version destroyed
//   done, or error <text>
// Usage: kek_crash_driver DIRECTORY create|rotate|destroy|encrypt|mixed
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "tests/support/service_instance.h"

namespace kek::core {
namespace {

constexpr char kRing[] = "projects/p/locations/l/keyRings/r";

// One write: what was acknowledged before a kill is all in the pipe.
void Say(const std::string& line) {
  const std::string text = line + "\n";
  if (write(STDOUT_FILENO, text.data(), text.size()) < 0) _exit(3);
}

CallInfo Call() {
  return ServiceInstance::Root(base::DeadlineAfter(std::chrono::seconds(60)));
}

catalog::ResourceName Key() {
  return *catalog::ResourceName::Parse(absl::StrCat(kRing, "/cryptoKeys/k"));
}

absl::Status Create(KeyService& service, const std::string& id) {
  CreateCryptoKeyRequest request{.ring = Key().Parent()};
  request.id = id;
  request.purpose = catalog::Purpose::kEncryptDecrypt;
  RETURN_IF_ERROR(service.CreateCryptoKey(Call(), request).status());
  Say(absl::StrCat("C ", id));
  return absl::OkStatus();
}

absl::Status Rotate(KeyService& service) {
  ASSIGN_OR_RETURN(const CryptoKeyView view, service.Rotate(Call(), Key()));
  Say(absl::StrCat("R ", view.key.primary_version));
  return absl::OkStatus();
}

absl::Status Encrypt(KeyService& service) {
  constexpr absl::string_view kPayload = "payload";
  ASSIGN_OR_RETURN(
      const EncryptResult sealed,
      service.Encrypt(
          Call(),
          {.name = Key(),
           .context = EnvelopeContext::kCloudKms,
           .plaintext = {reinterpret_cast<const uint8_t*>(kPayload.data()),
                         kPayload.size()}}));
  Say(absl::StrCat("E ",
                   absl::BytesToHexString(absl::string_view(
                       reinterpret_cast<const char*>(sealed.ciphertext.data()),
                       sealed.ciphertext.size()))));
  return absl::OkStatus();
}

absl::Status Run(const std::string& directory, absl::string_view scenario) {
  base::ManualClock clock(absl::FromUnixSeconds(1'800'000'000));
  ServiceInstance::Options options{.directory = directory};
  options.service.clock = &clock;
  options.service.max_use_block = 16;
  ASSIGN_OR_RETURN(const std::unique_ptr<ServiceInstance> instance,
                   ServiceInstance::Open(options));
  KeyService& service = *instance->service;
  RETURN_IF_ERROR(service.ResumePending(Call().deadline));
  Say("ready");
  if (scenario == "create") return Create(service, "new");
  if (scenario == "rotate") return Rotate(service);
  if (scenario == "destroy") {
    RETURN_IF_ERROR(service.ScheduleDestroy(Call(), Key().Version(1)).status());
    clock.Advance(absl::Hours(24 * 30));
    if (service.RunDue(Call().deadline) != 1) {
      return absl::UnknownError("nothing was destroyed");
    }
    Say("D");
    return absl::OkStatus();
  }
  if (scenario == "encrypt") {
    for (;;) RETURN_IF_ERROR(Encrypt(service));
  }
  if (scenario == "mixed") {
    std::vector<std::thread> threads;
    const auto forever = [&](auto work) {
      threads.emplace_back([work] {
        for (int i = 0;; ++i) {
          if (const absl::Status status = work(i); !status.ok()) {
            Say(absl::StrCat("error ", status.ToString()));
            _exit(1);
          }
        }
      });
    };
    for (int i = 0; i < 4; ++i) {
      forever([&service](int) { return Encrypt(service); });
    }
    forever([&service](int) { return Rotate(service); });
    forever([&service](int i) {
      return Create(service, absl::StrCat("key-", getpid(), "-", i));
    });
    for (std::thread& thread : threads) thread.join();
  }
  return absl::InvalidArgumentError("no such scenario");
}

}  // namespace
}  // namespace kek::core

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  kek::base::SetLogLevel(kek::base::LogLevel::kError);
  const absl::Status status = kek::core::Run(argv[1], argv[2]);
  kek::core::Say(status.ok() ? "done"
                             : absl::StrCat("error ", status.ToString()));
  return status.ok() ? 0 : 1;
}
