#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The package as an operator meets it: built, installed by dpkg, set up by kekctl init, run as its unit and as its static pod say, used,
upgraded, removed, purged.

  package_test.py --build DIR      the build directory that holds service/kekd and cli/kekctl
  package_test.py --deb FILE       a package that is built already

Needs root; the host is left as it was (sandbox.Host).
"""
import argparse
import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from sandbox import Host, Pod, Service, Unit, need_root, wait_until  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
KMS = "/run/kekd/kubernetes/kms.sock"
OPTIONS = None
HOST = None


def kekctl(*arguments, code=0, user=None, text=True, **options):
    result = HOST.run("kekctl", *arguments, user=user, check=False, text=text, **options)
    if result.returncode != code:
        raise AssertionError(f"kekctl {' '.join(arguments)} exited with {result.returncode}, not {code}\n{result.stdout}\n{result.stderr}")
    return result


def installed_files():
    return [line for line in HOST.run("dpkg", "-L", "kekd").stdout.splitlines() if HOST.path(line).is_file()]


def unit(name="kekd.service", instance=""):
    return Unit.read(HOST.path(f"/lib/systemd/system/{name}"), instance)


def start(sockets=()):
    service = Service(HOST, unit(), "kekd.service", sockets=sockets)
    service.wait_for("READY=1", 60)
    return service


class PackageTest(unittest.TestCase):
    """One story; the steps are in the order of their names, and each stands on the one before."""

    service = None

    @classmethod
    def tearDownClass(cls):
        if cls.service is not None:
            cls.service.kill()

    def setUp(self):
        if getattr(PackageTest, "broken", False):
            self.skipTest("an earlier step failed")
        PackageTest.broken = True

    def tearDown(self):
        result = self._outcome.result
        failed = any(test is self for test, _ in result.failures + result.errors)
        PackageTest.broken = failed
        if failed and PackageTest.service is not None:
            print(PackageTest.service.log(), file=sys.stderr)

    def test_01_lintian_finds_no_error(self):
        result = subprocess.run(["lintian", "--fail-on", "error", "--allow-root", OPTIONS.deb], capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_02_installs(self):
        (HOST.path("/tmp/kekd.deb")).write_bytes(pathlib.Path(OPTIONS.deb).read_bytes())
        HOST.run("dpkg", "-i", "/tmp/kekd.deb", timeout=120)
        uid, _ = HOST.ids("kekd")
        self.assertGreater(uid, 0)
        state = HOST.path("/var/lib/kekd").stat()
        self.assertEqual((state.st_uid, state.st_mode & 0o7777), (uid, 0o700))
        run = HOST.path("/run/kekd/kubernetes").stat()
        self.assertEqual((run.st_uid, run.st_mode & 0o7777), (uid, 0o750))
        self.assertIn("/etc/kekd/kekd.yaml.example", HOST.run("dpkg-query", "-W", "-f=${Conffiles}", "kekd").stdout)
        self.assertFalse(HOST.path("/etc/kekd/kekd.yaml").exists(), "the unit must not start before there is a config")
        self.assertRegex(kekctl("--version").stdout, r"kekctl \d+\.\d+")

    def test_03_units_are_right_in_place(self):
        verify = HOST.run("systemd-analyze", "verify", "--man=no", "kekd.service", "kekd-admin.socket",
                          "kekd-kubernetes@kubernetes.socket", check=False)
        ours = [line for line in (verify.stdout + verify.stderr).splitlines() if "kekd" in line]
        self.assertEqual(ours, [])
        HOST.run("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", "kekd.service")

    def test_04_kekd_refuses_to_run_as_root(self):
        result = HOST.run("kekd", "--config", "/etc/kekd/kekd.yaml.example", check=False)
        self.assertEqual(result.returncode, 77)
        self.assertIn("root", result.stderr)

    def test_05_init_makes_an_install_that_kekd_accepts(self):
        init = kekctl("init", "--output", "json")
        self.assertIn("systemctl enable --now kekd", json.loads(init.stdout)["next"][0])
        again = kekctl("init", code=73)
        self.assertIn("nothing was changed", again.stderr)
        HOST.run("kekd", "--check-config", "/etc/kekd/kekd.yaml", user="kekd")

    def test_06_starts_as_the_unit_says(self):
        PackageTest.service = start()
        PackageTest.service.wait_for("WATCHDOG=1", 30)
        process = process_status(PackageTest.service.pid)
        self.assertEqual((process["Seccomp"], process["NoNewPrivs"], process["CapBnd"], process["CapEff"]), ("2", "1", "0" * 16, "0" * 16))
        with open(f"/proc/{PackageTest.service.pid}/mountinfo", encoding="ascii") as f:
            options = {fields[4]: set(fields[5].split(",")) for fields in map(str.split, f)}
        self.assertLessEqual({"ro", "noexec"}, options["/"])
        self.assertIn("ro", options["/usr/lib"])
        self.assertNotIn("noexec", options["/usr/lib"])
        self.assertLessEqual({"rw", "noexec"}, options["/var/lib/kekd"])
        status = json.loads(kekctl("status", "--output", "json", code=69).stdout)
        self.assertEqual(status["token"]["state"], "READY")
        self.assertTrue(status["notReady"], "the binding's key is not there yet")

    def test_07_serves_a_control_plane(self):
        kekctl("kubernetes", "check", "--socket", KMS, "--deadline", "1s", code=69)
        kekctl("key", "create", "kubernetes/secrets", code=66)
        kekctl("key", "create", "kubernetes/secrets", "--create-ring")
        check = json.loads(kekctl("kubernetes", "check", "--socket", KMS, "--deadline", "30s", "--output", "json").stdout)
        self.assertTrue(check["passed"])
        kekctl("kubernetes", "check", "--socket", KMS, "--v1beta1")
        wait_until(lambda: kekctl_code("status") == 0, 30, "ready kekd")
        self.assertEqual(http_code({"host": "127.0.0.1", "port": 9464, "path": "/readyz"}), 200)
        kekctl("key", "rotate", "secrets")
        rotated = json.loads(kekctl("kubernetes", "check", "--socket", KMS, "--output", "json").stdout)
        self.assertNotEqual(rotated["keyId"], check["keyId"])

        config = json.loads(kekctl("kubernetes", "config", "--output", "json").stdout)
        provider = yaml.safe_load(config["encryptionConfiguration"])["resources"][0]["providers"][0]["kms"]
        self.assertEqual((provider["name"], provider["endpoint"]), ("kubernetes", "unix://" + KMS))
        # What is committed in deploy/ is what kekctl prints.
        patch = yaml.safe_load((ROOT / "deploy/kubernetes/kube-apiserver-patch.yaml").read_text(encoding="utf-8"))
        self.assertEqual(yaml.safe_load(config["staticPod"]), patch)

    def test_08_manages_keys(self):
        secret = os.urandom(32)
        sealed = kekctl("encrypt", "secrets", text=False, input=secret).stdout
        self.assertNotIn(secret, sealed)
        HOST.path("/tmp/aad").write_bytes(b"context")
        bound = kekctl("encrypt", "secrets", "--aad-file", "/tmp/aad", text=False, input=secret).stdout
        kekctl("key", "rotate", "secrets")
        self.assertEqual(kekctl("decrypt", "secrets", text=False, input=sealed).stdout, secret)
        self.assertEqual(kekctl("decrypt", "secrets", "--aad-file", "/tmp/aad", text=False, input=bound).stdout, secret)
        kekctl("decrypt", "secrets", code=65, text=False, input=bound)
        flipped = bytearray(sealed)
        flipped[-1] ^= 1
        kekctl("decrypt", "secrets", code=65, text=False, input=bytes(flipped))

        self.assertIn("secrets:2 is DISABLED", kekctl("key", "disable", "secrets:2").stdout)
        refused = kekctl("decrypt", "secrets", code=80, text=False, input=sealed)
        self.assertIn(b"DISABLED", refused.stderr)
        kekctl("key", "enable", "secrets:2")
        self.assertEqual(kekctl("decrypt", "secrets", text=False, input=sealed).stdout, secret)
        self.assertIn("will be destroyed", kekctl("key", "destroy", "secrets:2").stdout)
        kekctl("key", "destroy", "secrets:2", code=80)
        self.assertIn("secrets:2 is DISABLED", kekctl("key", "restore", "secrets:2").stdout)
        kekctl("key", "enable", "secrets:2")
        kekctl("key", "set-primary", "secrets:1")
        described = kekctl("key", "describe", "secrets").stdout
        self.assertRegex(described, r"(?m)^1 +ENABLED +primary")
        kekctl("key", "set-primary", "secrets:3")
        listed = json.loads(kekctl("key", "list", "--output", "json").stdout)
        self.assertEqual([k["name"].split("/")[-1] for k in listed], ["secrets"])
        self.assertTrue(listed[0]["primary"]["name"].endswith("/3"))
        kekctl("key", "create", "secrets", code=73)
        kekctl("keyring", "create", "spare")
        kekctl("keyring", "create", "spare", code=73)
        self.assertEqual([line.split()[0] for line in kekctl("keyring", "list").stdout.splitlines()[1:]], ["kubernetes", "spare"])
        self.assertIn("No keys in", kekctl("key", "list", "spare").stdout)
        kekctl("key", "list", "nowhere", code=66)
        kekctl("key", "describe", "nothing", code=66)
        kekctl("key", "rotate", "no good", code=64)
        kekctl("key", "update", "secrets", "--rotation-period", "90d")
        self.assertIn("90d", kekctl("key", "describe", "secrets").stdout)
        PackageTest.sealed, PackageTest.secret = sealed, secret

    def test_09_lets_in_whom_the_config_names(self):
        self.assertIn("run this as root", kekctl("key", "list", code=77, user="nobody").stderr)
        self.assertIn(kekctl("status", user="kekd").stdout.split("\n")[0], kekctl("status").stdout)

    def test_10_reloads_and_changes_its_log_level(self):
        PackageTest.service.reload()
        PackageTest.service.wait_for("READY=1", 10)
        self.assertIn("debug", kekctl("log-level", "debug").stdout)
        self.assertEqual(kekctl("log-level").stdout, "debug\n")
        kekctl("log-level", "info")
        kekctl("token", "login", code=64)
        kekctl("token", "login", "--retry")
        self.assertIn("READY", kekctl("token", "relogin").stdout)
        kekctl("kubernetes", "check", "--socket", KMS)

    def test_10b_a_pin_refused_while_running_is_mended_by_hand(self):
        credential = HOST.path("/run/credentials/kekd.service/hsm-pin")
        right = credential.read_bytes()
        credential.write_bytes(b"0000000000")
        kekctl("token", "relogin", code=79)
        self.assertIn("token login --retry", kekctl("status", code=79).stderr)
        credential.write_bytes(right)
        kekctl("token", "login", "--retry")
        kekctl("kubernetes", "check", "--socket", KMS)

    def test_11_restarts_and_opens_what_it_sealed(self):
        self.assertEqual(PackageTest.service.stop(), 0, PackageTest.service.log())
        kekctl("status", code=69)
        PackageTest.service = start()
        opened = kekctl("decrypt", "secrets", text=False, input=PackageTest.sealed).stdout
        self.assertEqual(opened, PackageTest.secret)

    def test_12_survives_an_upgrade(self):
        before = HOST.path("/etc/kekd/kekd.yaml").read_bytes()
        HOST.run("dpkg", "-i", "/tmp/kekd.deb", timeout=120)
        self.assertEqual(HOST.path("/etc/kekd/kekd.yaml").read_bytes(), before)
        kekctl("kubernetes", "check", "--socket", KMS)

    def test_13_sockets_of_systemd_outlive_a_restart(self):
        self.assertEqual(PackageTest.service.stop(), 0)
        sockets = []
        for name, instance in (("kekd-admin.socket", ""), ("kekd-kubernetes@.socket", "kubernetes")):
            description = unit(name, instance)
            path = description.one("Socket", "ListenStream")
            uid, gid = HOST.ids(description.one("Socket", "SocketUser"))
            HOST.path(path).unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            # Bound by its name inside the root, which is what kekd compares with its config.
            pid = os.fork()
            if pid == 0:
                os.chroot(HOST.root)
                listener.bind(path)
                os._exit(0)
            self.assertEqual(os.waitpid(pid, 0)[1], 0)
            listener.listen(int(description.one("Socket", "Backlog")))
            os.chown(HOST.path(path), uid, gid)
            HOST.path(path).chmod(int(description.one("Socket", "SocketMode"), 8))
            sockets.append((description.one("Socket", "FileDescriptorName"), listener))
        PackageTest.service = start(sockets)
        kekctl("kubernetes", "check", "--socket", KMS)
        self.assertEqual(PackageTest.service.stop(), 0)
        # Nobody runs, and the caller waits instead of failing.
        waiting = subprocess.Popen(["chroot", HOST.root, "kekctl", "kubernetes", "check", "--socket", KMS, "--deadline", "60s"],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            pending, _, _ = select.select([listener for name, listener in sockets if name == "kubernetes"], [], [], 30)
            self.assertTrue(pending, "kekctl did not connect")
            PackageTest.service = start(sockets)
            output, _ = waiting.communicate(timeout=60)
        finally:
            waiting.kill()
        self.assertEqual(waiting.returncode, 0, output)
        self.assertEqual(PackageTest.service.stop(), 0)
        for _, listener in sockets:
            listener.close()

    def test_14_a_wrong_pin_is_tried_once_and_restarts_are_not(self):
        pin = HOST.path("/etc/kekd/hsm-pin")
        right = pin.read_bytes()
        pin.write_bytes(b"0000000000")
        never = [int(n) for n in unit().one("Service", "RestartPreventExitStatus").split()]
        for _ in range(2):
            PackageTest.service = Service(HOST, unit(), "kekd.service")
            code = PackageTest.service.wait(30)
            self.assertEqual(code, 79, PackageTest.service.log())
            self.assertIn(code, never)
            self.assertNotIn("0000000000", PackageTest.service.log())
        pin.write_bytes(right)
        PackageTest.service = start()
        kekctl("kubernetes", "check", "--socket", KMS)
        self.assertEqual(PackageTest.service.stop(), 0)

    def test_15_runs_as_the_static_pod_says(self):
        with open(ROOT / "deploy/kubernetes/kekd.yaml", encoding="utf-8") as f:
            pod = yaml.safe_load(f)
        uid, gid = HOST.ids("kekd")
        # As docs/packaging.md says: the node's user, and a PIN file of its own.
        pod["spec"]["securityContext"].update(runAsUser=uid, runAsGroup=gid)
        config = HOST.path("/etc/kekd/kekd.yaml")
        text = config.read_text(encoding="utf-8")
        self.assertIn("credential: hsm-pin", text)
        config.write_text(text.replace("credential: hsm-pin", "file: /etc/kekd/hsm-pin"), encoding="utf-8")
        os.chown(HOST.path("/etc/kekd/hsm-pin"), uid, gid)
        PackageTest.service = process = Pod(HOST, pod, pod["spec"]["containers"][0])
        wait_until(lambda: kekctl_code("kubernetes", "check", "--socket", KMS) == 0, 60, "healthy plugin", process)
        opened = kekctl("decrypt", "secrets", text=False, input=PackageTest.sealed).stdout
        self.assertEqual(opened, PackageTest.secret)
        status = process_status(process.pid)
        self.assertEqual(status["CapEff"], "0" * 16)
        self.assertEqual(status["CapBnd"], "0" * 16)
        self.assertEqual(status["NoNewPrivs"], "1")
        self.assertEqual(status["Uid"].split(), [str(uid)] * 4)
        # The probes of the manifest, on the host's loopback as hostNetwork has it.
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            self.assertEqual(http_code(pod["spec"]["containers"][0][probe]["httpGet"]), 200, probe)
        self.assertEqual(process.stop(pod["spec"]["terminationGracePeriodSeconds"]), 0, process.log())

    def test_16_removal_keeps_what_opens_secrets(self):
        files = installed_files()
        self.assertIn("/usr/sbin/kekd", files)
        HOST.run("dpkg", "-r", "kekd")
        left = [f for f in files if HOST.path(f).exists()]
        self.assertEqual(left, ["/etc/kekd/kekd.yaml.example"])
        purge = HOST.run("dpkg", "-P", "kekd")
        self.assertIn("/var/lib/kekd is left in place", purge.stdout)
        self.assertFalse(HOST.path("/etc/kekd/kekd.yaml.example").exists())
        self.assertTrue(HOST.path("/var/lib/kekd/catalog.db").exists())
        self.assertTrue(HOST.path("/etc/kekd/kekd.yaml").exists())
        self.assertNotIn("kekd", HOST.run("dpkg", "-l").stdout)


def process_status(pid):
    return dict(re.findall(r"(?m)^(\w+):\s+(.*)$", pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8")))


def kekctl_code(*arguments):
    return HOST.run("kekctl", *arguments, check=False).returncode


def http_code(get):
    with socket.create_connection((get["host"], get["port"]), timeout=10) as connection:
        connection.sendall(f"GET {get['path']} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return int(connection.makefile("rb").readline().split()[1])


def main():
    global OPTIONS, HOST  # pylint: disable=global-statement
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build")
    parser.add_argument("--deb")
    OPTIONS, rest = parser.parse_known_args()
    need_root()
    with tempfile.TemporaryDirectory() as output:
        if OPTIONS.deb is None:
            command = [ROOT / "scripts/build-deb", "--output", output] + (["--build", OPTIONS.build] if OPTIONS.build else [])
            OPTIONS.deb = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        HOST = Host()
        try:
            program = unittest.main(argv=[sys.argv[0], "--verbose", "--failfast", *rest], exit=False)
        finally:
            HOST.close()
    sys.exit(0 if program.result.wasSuccessful() else 1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
