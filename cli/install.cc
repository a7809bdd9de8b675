// SPDX-License-Identifier: Apache-2.0
#include "cli/install.h"

#include <fcntl.h>
#include <grp.h>
#include <openssl/rand.h>
#include <poll.h>
#include <pty.h>
#include <pwd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/secret_bytes.h"
#include "base/status_macros.h"
#include "base/sync.h"
#include "catalog/resource_name.h"
#include "cli/exit_code.h"
#include "cli/files.h"

namespace kek::cli {
namespace {

constexpr const char* kSoftHsmModules[] = {
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
};

// PKCS#11 tokens commonly take PINs of up to 32 characters of any alphabet.
constexpr size_t kPinSize = 24;
constexpr absl::string_view kPinAlphabet =
    "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789";

struct Account {
  uid_t uid = 0;
  gid_t gid = 0;
  std::string user;
  std::string group;
};

absl::Status FileError(absl::string_view what, const std::string& path,
                       int error) {
  const std::string message =
      absl::StrCat("cannot ", what, " ", path, ": ", std::strerror(error));
  if (error == EACCES || error == EPERM || error == EROFS) {
    return WithHint(absl::PermissionDeniedError(message),
                    "run this as root, or give paths of your own (kekctl init "
                    "--help)");
  }
  return WithExit(absl::UnknownError(message), ExitCode::kIo);
}

absl::StatusOr<Account> FindAccount(const InstallOptions& options) {
  Account account;
  const bool root = geteuid() == 0;
  const passwd* entry =
      options.user.empty() && !root
          ? getpwuid(geteuid())
          : getpwnam(options.user.empty() ? "kekd" : options.user.c_str());
  if (entry == nullptr) {
    const std::string user = options.user.empty() ? "kekd" : options.user;
    return WithHint(
        absl::NotFoundError(absl::StrCat("there is no user '", user, "'")),
        absl::StrCat("make it with `useradd --system --home-dir / --shell "
                     "/usr/sbin/nologin ",
                     user, "`, or give --user"));
  }
  account.uid = entry->pw_uid;
  account.gid = entry->pw_gid;
  account.user = entry->pw_name;
  if (account.uid == 0) {
    return WithHint(absl::InvalidArgumentError("kekd does not run as root"),
                    "give --user the account that will run it");
  }
  if (!root && account.uid != geteuid()) {
    return WithHint(
        absl::PermissionDeniedError(absl::StrCat(
            "only root can install for another user (", account.user, ")")),
        "run this as root, or leave --user out");
  }
  const group* group_entry = options.group.empty()
                                 ? getgrgid(account.gid)
                                 : getgrnam(options.group.c_str());
  if (group_entry == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("there is no group '", options.group, "'"));
  }
  account.gid = group_entry->gr_gid;
  account.group = group_entry->gr_name;
  return account;
}

base::SecretBytes RandomPin() {
  base::SecretBytes pin(kPinSize);
  for (size_t i = 0; i < kPinSize;) {
    uint8_t byte = 0;
    RAND_bytes(&byte, 1);
    const size_t limit = 256 - 256 % kPinAlphabet.size();  // no bias
    if (byte >= limit) continue;
    pin.mutable_data()[i++] =
        static_cast<uint8_t>(kPinAlphabet[byte % kPinAlphabet.size()]);
  }
  return pin;
}

// A config value in double quotes. Paths and names with characters that would
// need escaping are refused before.
std::string Quoted(absl::string_view text) {
  return absl::StrCat("\"", text, "\"");
}

absl::Status CheckText(absl::string_view what, absl::string_view value) {
  for (const char c : value) {
    if (static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\' ||
        c == 0x7f) {
      return absl::InvalidArgumentError(absl::StrCat(
          what, " must not hold control characters, quotes or backslashes"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPath(absl::string_view flag, const std::string& path) {
  if (path.empty() || path[0] != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " '", path.substr(0, 128), "' is not absolute"));
  }
  return CheckText(flag, path);
}

// Makes things and knows how to unmake them.
class Undo {
 public:
  explicit Undo(const Account& account) : account_(account) {}
  ~Undo() {
    for (auto it = steps_.rbegin(); it != steps_.rend(); ++it) (*it)();
  }
  void Keep() { steps_.clear(); }

  // A directory with parents; only what is new is ours. OK if it is there.
  absl::StatusOr<bool> Directory(const std::string& path, mode_t mode,
                                 bool kekds) {
    struct stat info;
    if (stat(path.c_str(), &info) == 0) {
      if (!S_ISDIR(info.st_mode)) {
        return absl::AlreadyExistsError(
            absl::StrCat(path, " exists and is not a directory"));
      }
      return false;
    }
    const std::string parent = std::filesystem::path(path).parent_path();
    if (!parent.empty() && parent != path) {
      RETURN_IF_ERROR(Directory(parent, 0755, false).status());
    }
    if (mkdir(path.c_str(), 0700) != 0) {
      return FileError("make", path, errno);
    }
    steps_.push_back([path] { rmdir(path.c_str()); });
    if (kekds) RETURN_IF_ERROR(Own(path));
    if (chmod(path.c_str(), mode) != 0) return FileError("make", path, errno);
    return true;
  }

  absl::Status File(const std::string& path, mode_t mode, bool kekds,
                    std::span<const uint8_t> content) {
    const int fd =
        open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
             0600);
    if (fd < 0) {
      if (errno == EEXIST) {
        return absl::AlreadyExistsError(absl::StrCat(path, " exists"));
      }
      return FileError("create", path, errno);
    }
    steps_.push_back([path] { unlink(path.c_str()); });
    const absl::Cleanup close_it = [fd] { close(fd); };
    RETURN_IF_ERROR(WriteAll(fd, content, path));
    if (kekds && geteuid() == 0 &&
        fchown(fd, account_.uid, account_.gid) != 0) {
      return FileError("change the owner of", path, errno);
    }
    if (fchmod(fd, mode) != 0 || fsync(fd) != 0) {
      return FileError("write", path, errno);
    }
    return absl::OkStatus();
  }
  absl::Status File(const std::string& path, mode_t mode, bool kekds,
                    absl::string_view text) {
    return File(
        path, mode, kekds,
        std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
  }

  // All that a token put into a directory that was empty before.
  void Contents(const std::string& directory) {
    steps_.push_back([directory] {
      std::error_code ignored;
      for (const auto& entry :
           std::filesystem::directory_iterator(directory, ignored)) {
        std::filesystem::remove_all(entry.path(), ignored);
      }
    });
  }

 private:
  absl::Status Own(const std::string& path) {
    if (geteuid() == 0 &&
        chown(path.c_str(), account_.uid, account_.gid) != 0) {
      return FileError("change the owner of", path, errno);
    }
    return absl::OkStatus();
  }

  const Account& account_;
  std::vector<std::function<void()>> steps_;
};

// softhsm2-util takes PINs from its command line, where every user of the host
// can read them, or asks on a terminal. It gets a terminal of its own, and each
// question its answer.
absl::Status InitSoftHsmToken(const Account& account, const std::string& conf,
                              const std::string& label,
                              std::span<const uint8_t> so_pin,
                              std::span<const uint8_t> pin) {
  int terminal = -1;
  const pid_t child = forkpty(&terminal, nullptr, nullptr, nullptr);
  if (child < 0) return FileError("start", "softhsm2-util", errno);
  if (child == 0) {
    if (geteuid() == 0 &&
        (setgroups(0, nullptr) != 0 ||
         setresgid(account.gid, account.gid, account.gid) != 0 ||
         setresuid(account.uid, account.uid, account.uid) != 0)) {
      _exit(126);
    }
    umask(0077);
    if (chdir("/") != 0) _exit(126);
    setenv("SOFTHSM2_CONF", conf.c_str(), 1);
    setenv("LC_ALL", "C", 1);
    execlp("softhsm2-util", "softhsm2-util", "--init-token", "--free",
           "--label", label.c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  absl::Cleanup close_it = [&] { close(terminal); };
  const base::Deadline deadline = base::DeadlineAfter(std::chrono::seconds(30));
  const std::span<const uint8_t> answers[] = {so_pin, so_pin, pin, pin};
  size_t answered = 0;
  std::string said;  // the terminal shows PINs as asterisks
  size_t asked_from = 0;
  bool timed_out = false;
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      timed_out = true;
      break;
    }
    pollfd wait = {.fd = terminal, .events = POLLIN, .revents = 0};
    const int ready = poll(&wait, 1, static_cast<int>(left.count()));
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0) continue;
    char buffer[512];
    const ssize_t n = read(terminal, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;  // EIO: the child is gone
    said.append(buffer, static_cast<size_t>(n));
    if (absl::EndsWith(said, "PIN: ") && answered < std::size(answers) &&
        said.size() > asked_from) {
      base::SecretBytes line(answers[answered].size() + 1);
      std::copy(answers[answered].begin(), answers[answered].end(),
                line.mutable_data());
      line.mutable_data()[line.size() - 1] = '\n';
      RETURN_IF_ERROR(WriteAll(terminal, line.span(), "softhsm2-util"));
      ++answered;
      asked_from = said.size();
    }
  }
  if (timed_out) kill(child, SIGKILL);
  int result = 0;
  while (waitpid(child, &result, 0) < 0 && errno == EINTR) {
  }
  if (timed_out) {
    return absl::DeadlineExceededError(
        "softhsm2-util did not end within 30 seconds");
  }
  if (WIFEXITED(result) && WEXITSTATUS(result) == 0) return absl::OkStatus();
  if (WIFEXITED(result) && WEXITSTATUS(result) == 127) {
    return WithHint(absl::NotFoundError("softhsm2-util is not installed"),
                    "install the package softhsm2, or give --module and "
                    "--token-uri of another token");
  }
  const size_t line = said.find("ERROR");
  std::string reason = line == std::string::npos
                           ? "it ended with an error"
                           : said.substr(line, said.find('\r', line) - line);
  return absl::FailedPreconditionError(
      absl::StrCat("softhsm2-util could not make the token: ", reason));
}

std::string ConfigText(const InstallOptions& options, const Account& account,
                       const std::string& uri, const std::string& key,
                       const std::string& admin_socket,
                       const std::string& kubernetes_socket) {
  const std::string pin =
      options.pin_delivery == PinDelivery::kCredential
          ? "    credential: hsm-pin\n"
          : absl::StrCat("    file: ", Quoted(options.pin_file), "\n");
  return absl::StrCat(
      "# kekd's configuration, as `kekctl init` wrote it for user ",
      account.user,
      ".\n"
      "# What is not set has the default that the manual gives:\n"
      "# /etc/kekd/kekd.yaml.example. Check a change with\n"
      "# `kekd --check-config --config ",
      options.config,
      "`.\n"
      "state_dir: ",
      Quoted(options.state_dir),
      "\n"
      "token:\n"
      "  module: ",
      Quoted(options.module), "\n  uri: ", Quoted(uri),
      "\n"
      "  pin:\n",
      pin, "admin:\n  socket: ", Quoted(admin_socket),
      "\n"
      "kubernetes:\n"
      "  - name: ",
      Quoted(options.binding), "\n    socket: ", Quoted(kubernetes_socket),
      "\n    key: ", Quoted(key),
      "\n"
      "    # Beside root and kekd's user, who may open the socket: a\n"
      "    # kube-apiserver that runs as another user goes here.\n"
      "    # owner: root\n"
      "    # group: kube-apiserver\n"
      "    # mode: \"0660\"\n"
      "    # allowed_users: [kube-apiserver]\n",
      options.http_listen.empty()
          ? ""
          : absl::StrCat("http:\n  listen: ", Quoted(options.http_listen),
                         "\n"));
}

}  // namespace

absl::StatusOr<InstallReport> Install(InstallOptions options) {
  InstallReport report;
  ASSIGN_OR_RETURN(const Account account, FindAccount(options));
  const bool make_token = options.token_uri.empty();
  if (options.token_dir.empty()) {
    options.token_dir = absl::StrCat(options.state_dir, "/tokens");
  }
  if (options.module.empty()) {
    if (!make_token) {
      return WithHint(
          absl::InvalidArgumentError(
              "--token-uri names an existing token; its module is missing"),
          "give --module the absolute path of the PKCS#11 library");
    }
    for (const char* path : kSoftHsmModules) {
      if (access(path, R_OK) == 0) {
        options.module = path;
        break;
      }
    }
    if (options.module.empty()) {
      return WithHint(absl::NotFoundError("SoftHSM is not installed"),
                      "install the package softhsm2, or give --module and "
                      "--token-uri of another token");
    }
  }
  const bool softhsm = absl::StrContains(options.module, "softhsm");
  if (make_token && !softhsm) {
    return WithHint(
        absl::InvalidArgumentError(absl::StrCat(
            options.module, " is not SoftHSM: only SoftHSM tokens are made")),
        "make the token with its vendor's tool and give --token-uri "
        "\"pkcs11:token=...;serial=...\" and --pin-file");
  }

  // Everything that can be wrong without touching anything.
  const std::pair<absl::string_view, const std::string*> paths[] = {
      {"--config", &options.config},
      {"--state-dir", &options.state_dir},
      {"--runtime-dir", &options.runtime_dir},
      {"--module", &options.module},
      {"--softhsm-conf", &options.softhsm_conf},
      {"--token-dir", &options.token_dir},
      {"--pin-file", &options.pin_file},
      {"--so-pin-file", &options.so_pin_file},
  };
  for (const auto& [flag, path] : paths)
    RETURN_IF_ERROR(CheckPath(flag, *path));
  if (!options.client_config.empty()) {
    RETURN_IF_ERROR(CheckPath("--kekctl-config", options.client_config));
  }
  RETURN_IF_ERROR(CheckText("--token-uri", options.token_uri));
  RETURN_IF_ERROR(CheckText("--http-listen", options.http_listen));
  if (options.token_label.empty() || options.token_label.size() > 32 ||
      options.token_label.find_first_not_of(
          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
          " ") != std::string::npos) {
    return absl::InvalidArgumentError(
        "--token-label is 1 to 32 letters, digits, '-', '_', '.' and spaces");
  }
  if (options.binding.empty() || options.binding.size() > 63 ||
      options.binding.find_first_not_of(
          "abcdefghijklmnopqrstuvwxyz0123456789-") != std::string::npos) {
    return absl::InvalidArgumentError(
        "--binding is 1 to 63 of a-z, 0-9 and '-'");
  }
  ASSIGN_OR_RETURN(const catalog::ResourceName location,
                   catalog::ResourceName::Parse(
                       absl::StrCat("projects/", options.project, "/locations/",
                                    options.location),
                       catalog::ResourceName::Kind::kLocation));
  ASSIGN_OR_RETURN(const catalog::ResourceName ring,
                   location.Child(options.key_ring));
  ASSIGN_OR_RETURN(const catalog::ResourceName key, ring.Child(options.key));
  if (access(options.module.c_str(), R_OK) != 0) {
    return absl::NotFoundError(absl::StrCat("there is no PKCS#11 module ",
                                            options.module, ": ",
                                            std::strerror(errno)));
  }
  std::vector<const std::string*> made = {&options.config};
  if (!options.client_config.empty()) made.push_back(&options.client_config);
  if (make_token) {
    made.push_back(&options.pin_file);
    made.push_back(&options.so_pin_file);
    made.push_back(&options.softhsm_conf);
  }
  std::vector<std::string> present;
  struct stat info;
  for (const std::string* path : made) {
    if (lstat(path->c_str(), &info) == 0) present.push_back(*path);
  }
  std::error_code ignored;
  if (make_token &&
      std::filesystem::directory_iterator(options.token_dir, ignored) !=
          std::filesystem::directory_iterator()) {
    present.push_back(absl::StrCat(options.token_dir, " (not empty)"));
  }
  if (!present.empty()) {
    return WithHint(
        absl::AlreadyExistsError(
            absl::StrCat(absl::StrJoin(present, ", "),
                         present.size() == 1 ? " exists" : " exist",
                         "; nothing was changed")),
        "move it away if this is meant to be a new install, or give other "
        "paths (kekctl init --help)");
  }
  if (!make_token && stat(options.pin_file.c_str(), &info) != 0) {
    return WithHint(
        absl::NotFoundError(
            absl::StrCat("there is no PIN file ", options.pin_file)),
        "write the token's PIN into it (mode 0600), or give --pin-file");
  }

  Undo undo(account);
  for (const std::string& path :
       {options.config, options.client_config, options.pin_file,
        options.so_pin_file, options.softhsm_conf}) {
    const std::string parent = std::filesystem::path(path).parent_path();
    if (!parent.empty()) {
      RETURN_IF_ERROR(undo.Directory(parent, 0755, false).status());
    }
  }
  ASSIGN_OR_RETURN(const bool new_state,
                   undo.Directory(options.state_dir, 0700, true));
  if (new_state) {
    report.done.push_back(absl::StrCat("made ", options.state_dir,
                                       " for the catalog and the audit log"));
  }
  // Under systemd RuntimeDirectory= makes it anew at every start.
  ASSIGN_OR_RETURN(const bool new_runtime,
                   undo.Directory(options.runtime_dir, 0750, true));
  if (new_runtime) {
    report.done.push_back(
        absl::StrCat("made ", options.runtime_dir, " for the sockets"));
  }
  // A directory of its own, because a kube-apiserver in a container gets the
  // whole of it and must not see the admin socket.
  RETURN_IF_ERROR(
      undo.Directory(absl::StrCat(options.runtime_dir, "/", options.binding),
                     0750, true)
          .status());

  std::string uri = options.token_uri;
  if (make_token) {
    RETURN_IF_ERROR(undo.Directory(options.token_dir, 0700, true).status());
    RETURN_IF_ERROR(undo.File(
        options.softhsm_conf, 0644, false,
        absl::StrCat("# SoftHSM's configuration for kekd (SOFTHSM2_CONF).\n"
                     "directories.tokendir = ",
                     options.token_dir,
                     "\nobjectstore.backend = file\n"
                     "objectstore.umask = 0077\n"
                     "log.level = ERROR\n"
                     "slots.removable = false\n")));
    const base::SecretBytes pin = RandomPin();
    const base::SecretBytes so_pin = RandomPin();
    RETURN_IF_ERROR(undo.File(options.pin_file, 0600,
                              options.pin_delivery == PinDelivery::kFile,
                              pin.span()));
    RETURN_IF_ERROR(undo.File(options.so_pin_file, 0600, false, so_pin.span()));
    undo.Contents(options.token_dir);
    RETURN_IF_ERROR(InitSoftHsmToken(account, options.softhsm_conf,
                                     options.token_label, so_pin.span(),
                                     pin.span()));
    std::string label;
    for (const char c : options.token_label) {
      if (c == ' ') {
        label += "%20";
      } else {
        label.push_back(c);
      }
    }
    uri = absl::StrCat("pkcs11:token=", label);
    report.done.push_back(absl::StrCat("made the SoftHSM token '",
                                       options.token_label, "' in ",
                                       options.token_dir));
    report.done.push_back(absl::StrCat(
        "wrote a random PIN to ", options.pin_file, " (mode 0600, ",
        options.pin_delivery == PinDelivery::kFile ? account.user
                                                   : std::string("this user"),
        ") and the security officer's to ", options.so_pin_file,
        ": keep that one elsewhere"));
    report.done.push_back(absl::StrCat(
        "wrote ", options.softhsm_conf, ": kekd needs SOFTHSM2_CONF=",
        options.softhsm_conf, ", which kekd.service sets"));
  } else {
    report.done.push_back(
        absl::StrCat("left the token as it is: ", options.token_uri));
  }

  const std::string admin_socket =
      absl::StrCat(options.runtime_dir, "/admin.sock");
  const std::string kubernetes_socket =
      absl::StrCat(options.runtime_dir, "/", options.binding, "/kms.sock");
  if (!options.client_config.empty()) {
    RETURN_IF_ERROR(undo.File(
        options.client_config, 0644, false,
        absl::StrCat("# What kekctl takes for granted; ~/.config/kekctl.yaml, "
                     "KEKCTL_* and flags go first.\nsocket: ",
                     Quoted(admin_socket),
                     "\nproject: ", Quoted(options.project),
                     "\nlocation: ", Quoted(options.location),
                     "\nkey_ring: ", Quoted(options.key_ring), "\n")));
    report.done.push_back(
        absl::StrCat("wrote ", options.client_config, " (kekctl's defaults)"));
  }
  RETURN_IF_ERROR(undo.File(options.config, 0644, false,
                            ConfigText(options, account, uri, key.ToString(),
                                       admin_socket, kubernetes_socket)));
  report.done.push_back(absl::StrCat("wrote ", options.config));
  undo.Keep();

  report.next.push_back(
      options.pin_delivery == PinDelivery::kCredential
          ? "systemctl enable --now kekd"
          : absl::StrCat(
                make_token
                    ? absl::StrCat("SOFTHSM2_CONF=", options.softhsm_conf, " ")
                    : "",
                "kekd --config ", options.config, "   (as ", account.user,
                ")"));
  report.next.push_back(absl::StrCat("kekctl key create ", options.key_ring,
                                     "/", options.key, " --create-ring"));
  report.next.push_back(
      absl::StrCat("kekctl kubernetes check --socket ", kubernetes_socket));
  report.next.push_back(
      absl::StrCat("kekctl kubernetes config ", options.binding));
  return report;
}

}  // namespace kek::cli
