// SPDX-License-Identifier: Apache-2.0
#include "cli/encryption_config.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace kek::cli {
namespace {

bool Plain(absl::string_view text, absl::string_view extra) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [&](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
           extra.find(c) != absl::string_view::npos;
  });
}

}  // namespace

absl::StatusOr<ProviderConfig> KubernetesProviderConfig(
    const ProviderOptions& options) {
  if (!Plain(options.name, "-_.")) {
    return absl::InvalidArgumentError(
        "the provider's name is made of letters, digits, '-', '_' and '.' "
        "(kube-apiserver refuses ':')");
  }
  const bool abstract = !options.socket.empty() && options.socket[0] == '@';
  if (!Plain(options.socket, "-_./@+,=") ||
      (options.socket[0] != '/' && !abstract)) {
    return absl::InvalidArgumentError(
        "the socket is an absolute path of letters, digits and -_./+,= or "
        "@name");
  }
  if (options.resources.empty()) {
    return absl::InvalidArgumentError("no resources to encrypt");
  }
  for (const std::string& resource : options.resources) {
    if (!Plain(resource, "-.*/")) {
      return absl::InvalidArgumentError(
          "resources are such as secrets, configmaps, apps.example.com");
    }
  }
  const std::string endpoint =
      absl::StrCat("unix://", abstract ? "/" : "", options.socket);
  const std::string timeout = absl::FormatDuration(options.timeout);

  ProviderConfig config;
  config.encryption_configuration = absl::StrCat(
      "apiVersion: apiserver.config.k8s.io/v1\n"
      "kind: EncryptionConfiguration\n"
      "resources:\n"
      "  - resources: [",
      absl::StrJoin(options.resources, ", ",
                    [](std::string* out, const std::string& r) {
                      absl::StrAppend(out, "\"", r, "\"");
                    }),
      "]\n"
      "    providers:\n"
      "      # The first provider writes. The name is part of every stored "
      "value: never change it.\n"
      "      - kms:\n"
      "          apiVersion: v2\n"
      "          name: ",
      options.name, "\n          endpoint: \"", endpoint,
      "\"\n          timeout: ", timeout, "\n");
  if (options.v1beta1) {
    absl::StrAppend(
        &config.encryption_configuration,
        "      # Reads what KMS v1 wrote; kube-apiserver 1.29 and later need\n"
        "      # --feature-gates=KMSv1=true for it. Remove it when all is "
        "rewritten.\n"
        "      - kms:\n"
        "          apiVersion: v1\n"
        "          name: ",
        options.name, "-v1\n          endpoint: \"", endpoint,
        "\"\n          cachesize: 1000\n          timeout: ", timeout, "\n");
  }
  absl::StrAppend(
      &config.encryption_configuration,
      "      # Reads what was stored before encryption. Remove it when all is "
      "rewritten.\n"
      "      - identity: {}\n");

  const std::string directory =
      abstract
          ? ""
          : std::string(std::filesystem::path(options.socket).parent_path());
  const bool shared =
      !options.admin_socket.empty() && !abstract &&
      std::filesystem::path(options.admin_socket).parent_path() == directory;
  config.static_pod = absl::StrCat(
      "# For /etc/kubernetes/manifests/kube-apiserver.yaml: add each list to "
      "the one that is there.\n"
      "spec:\n"
      "  containers:\n"
      "    - name: kube-apiserver\n"
      "      command:\n"
      "        - "
      "--encryption-provider-config=/etc/kubernetes/kekd/"
      "encryption-config.yaml\n"
      "        - --encryption-provider-config-automatic-reload=true\n"
      "      volumeMounts:\n"
      "        - name: kekd-config\n"
      "          mountPath: /etc/kubernetes/kekd\n"
      "          readOnly: true\n",
      abstract
          ? ""
          : absl::StrCat(
                "        # The directory, not the socket: kekd makes the "
                "socket anew.\n",
                shared ? "        # WARNING: it holds kekd's admin socket "
                         "too. Give the binding a directory of its\n"
                         "        # own, such as /run/kekd/NAME/kms.sock.\n"
                       : "",
                "        - name: kekd-socket\n"
                "          mountPath: ",
                directory, "\n"),
      "  volumes:\n"
      "    - name: kekd-config\n"
      "      hostPath:\n"
      "        path: /etc/kubernetes/kekd\n"
      "        type: Directory\n",
      abstract ? ""
               : absl::StrCat("    - name: kekd-socket\n"
                              "      hostPath:\n"
                              "        path: ",
                              directory,
                              "\n"
                              "        type: DirectoryOrCreate\n"));
  config.systemd = absl::StrCat(
      "# /etc/systemd/system/kube-apiserver.service.d/kekd.conf, for a "
      "kube-apiserver that systemd runs; add\n"
      "# --encryption-provider-config=/etc/kubernetes/kekd/"
      "encryption-config.yaml to its command line.\n"
      "[Unit]\n"
      "Wants=kekd.service\n"
      "After=kekd.service\n",
      abstract ? ""
               : absl::StrCat("\n[Service]\n"
                              "# Only needed where the unit hides /run.\n"
                              "BindPaths=",
                              directory, "\n"));
  return config;
}

}  // namespace kek::cli
