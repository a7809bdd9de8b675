#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The systemd units and Kubernetes manifests of deploy/, as systemd's own tools and a YAML parser see them. Needs no root."""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from sandbox import Unit  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNITS = ["kekd.service", "kekd-admin.socket", "kekd-kubernetes@.socket"]


class UnitsTest(unittest.TestCase):
    def setUp(self):
        self.tree = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tree)
        units = self.tree / "usr/lib/systemd/system"
        units.mkdir(parents=True)
        for name in UNITS:
            shutil.copy(DEPLOY / "systemd" / name, units)
        for target in pathlib.Path("/usr/lib/systemd/system").glob("*.target"):
            shutil.copy(target, units, follow_symlinks=True)
        for program in ("usr/sbin/kekd", "usr/bin/kill"):
            (self.tree / program).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy("/bin/true", self.tree / program)

    def analyze(self, *arguments):
        return subprocess.run(["systemd-analyze", f"--root={self.tree}", *arguments], capture_output=True, text=True,
                              check=False, timeout=60)

    def test_systemd_accepts_every_unit(self):
        result = self.analyze("verify", "--man=no", "kekd.service", "kekd-admin.socket",
                              "kekd-kubernetes@kubernetes.socket")
        self.assertEqual((result.returncode, result.stdout + result.stderr), (0, ""))

    def test_a_mistake_would_be_found(self):
        path = self.tree / "usr/lib/systemd/system/kekd.service"
        path.write_text(path.read_text().replace("ProtectHome=yes", "ProtectHome=perhaps"))
        result = self.analyze("verify", "--man=no", "kekd.service")
        self.assertIn("perhaps", result.stdout + result.stderr)

    def test_exposure_is_low(self):
        result = self.analyze("security", "--offline=true", "--threshold=20", "--no-pager", "kekd.service")
        self.assertEqual(result.returncode, 0, result.stdout[-400:])

    def test_drop_in_samples_are_accepted(self):
        drop_ins = self.tree / "etc/systemd/system/kekd.service.d"
        drop_ins.mkdir(parents=True)
        for sample in (DEPLOY / "systemd/kekd.service.d").glob("*.conf"):
            shutil.copy(sample, drop_ins)
        result = self.analyze("verify", "--man=no", "kekd.service")
        self.assertEqual((result.returncode, result.stdout + result.stderr), (0, ""))

    def test_a_restart_is_not_tried_where_it_mends_nothing(self):
        """The unit lists the exit codes that service/exit_code.h marks so."""
        header = (ROOT / "service/exit_code.h").read_text()
        comment = " ".join(re.findall(r"^// ?(.*)$", header[:header.index("enum class")], re.M))
        wanted = [int(n) for n in re.findall(r"\d+", comment[comment.index("does not mend"):])]
        unit = Unit.read(DEPLOY / "systemd/kekd.service")
        self.assertEqual([int(n) for n in unit.one("Service", "RestartPreventExitStatus").split()], wanted)

    def test_socket_units_carry_the_names_kekd_knows(self):
        self.assertEqual(Unit.read(DEPLOY / "systemd/kekd-admin.socket").one("Socket", "FileDescriptorName"), "admin")
        binding = Unit.read(DEPLOY / "systemd/kekd-kubernetes@.socket", instance="prod")
        self.assertEqual(binding.one("Socket", "FileDescriptorName"), "prod")
        self.assertEqual(binding.one("Socket", "ListenStream"), "/run/kekd/prod/kms.sock")


class ManifestTest(unittest.TestCase):
    def setUp(self):
        with open(DEPLOY / "kubernetes/kekd.yaml", encoding="utf-8") as f:
            self.pod = yaml.safe_load(f)
        self.container = self.pod["spec"]["containers"][0]

    def test_pod_is_last_to_go_and_needs_no_pod_network(self):
        spec = self.pod["spec"]
        self.assertTrue(spec["hostNetwork"])
        self.assertEqual(spec["priorityClassName"], "system-node-critical")
        self.assertFalse(spec["automountServiceAccountToken"])

    def test_pod_has_no_privilege(self):
        self.assertTrue(self.pod["spec"]["securityContext"]["runAsNonRoot"])
        self.assertGreater(self.pod["spec"]["securityContext"]["runAsUser"], 0)
        self.assertEqual(self.pod["spec"]["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
        self.assertEqual(self.container["securityContext"], {
            "privileged": False, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]}})

    def test_every_mount_has_its_volume(self):
        volumes = {v["name"] for v in self.pod["spec"]["volumes"]}
        self.assertEqual(volumes, {m["name"] for m in self.container["volumeMounts"]})

    def test_api_server_gets_the_directory_of_its_socket_and_not_the_admin_socket(self):
        with open(DEPLOY / "kubernetes/kube-apiserver-patch.yaml", encoding="utf-8") as f:
            patch = yaml.safe_load(f)
        paths = [v["hostPath"]["path"] for v in patch["spec"]["volumes"]]
        self.assertIn("/run/kekd/kubernetes", paths)
        self.assertNotIn("/run/kekd", paths)
        self.assertEqual({v["name"] for v in patch["spec"]["volumes"]},
                         {m["name"] for m in patch["spec"]["containers"][0]["volumeMounts"]})


if __name__ == "__main__":
    unittest.main(verbosity=2)
