# SPDX-License-Identifier: Apache-2.0
"""Runs a program as systemd or a container engine would, where neither is there.

Host models this machine as a package finds it, but on a layer of its own: an overlay over / in a mount namespace that nobody else sees.
dpkg -i there is real and leaves no trace. Process is a program started in it under the restrictions of a unit or a pod.
"""
import ctypes
import ctypes.util
import os
import pathlib
import re
import select
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38


def need_root():
    """Exits with 77, "skipped", where the mount namespace cannot be made."""
    if os.geteuid() != 0:
        print("skipped: needs root, to install a package and to change users")
        sys.exit(77)


class Unit:
    """A unit file: sections of key -> list of values, in order."""

    def __init__(self, sections):
        self.sections = sections

    @classmethod
    def read(cls, path, instance=""):
        sections, section = {}, None
        text = pathlib.Path(path).read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            line = line.strip()
            if not line or line[0] in "#;":
                continue
            if line.startswith("["):
                section = sections.setdefault(line.strip("[]"), {})
                continue
            key, value = line.split("=", 1)
            section.setdefault(key.strip(), []).append(value.strip().replace("%i", instance))
        return cls(sections)

    def all(self, section, key):
        values = []
        for value in self.sections.get(section, {}).get(key, []):
            values = values + [value] if value else []  # an empty value resets
        return values

    def one(self, section, key, default=None):
        values = self.all(section, key)
        return values[-1] if values else default


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)


class Host:
    """/ on a layer of its own, with a loopback of its own. Made once a process, which moves into new namespaces."""

    def __init__(self):
        if LIBC.unshare(CLONE_NEWNS | CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        mount("--make-rprivate", "/")
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="kekd-packaging-"))
        mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", self.base)
        self.root = self.base / "root"
        for name in ("root", "upper", "work"):
            (self.base / name).mkdir()
        mount("-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={self.base}/upper,workdir={self.base}/work", self.root)
        for name in ("run", "tmp", "dev", "proc", "sys"):
            (self.root / name).mkdir(exist_ok=True)
        mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", self.root / "run")
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", self.root / "tmp")
        mount("--rbind", "/dev", self.root / "dev")
        mount("-t", "proc", "proc", self.root / "proc")
        mount("--bind", "/sys", self.root / "sys")

    def new_log(self):
        self.logs = getattr(self, "logs", 0) + 1
        return self.base / f"log-{self.logs}"

    def close(self):
        subprocess.run(["umount", "-l", self.base], check=False)
        self.base.rmdir()

    def path(self, name):
        return self.root / str(name).lstrip("/")

    def run(self, *command, user=None, check=True, text=True, timeout=60, **options):
        """A command on this host, as root or another user."""
        prefix = ["chroot", str(self.root)]
        if user is not None:
            prefix += ["setpriv", f"--reuid={user}", f"--regid={self.group_of(user)}", "--clear-groups"]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}
        environment.update(options.pop("env", {}))
        result = subprocess.run(prefix + [str(c) for c in command], capture_output=True, text=text, timeout=timeout, env=environment,
                                check=False, **options)
        if check and result.returncode != 0:
            raise AssertionError(f"{shlex.join(map(str, command))} exited with {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    def ids(self, user):
        """uid and gid of a name or number."""
        line = self.run("getent", "passwd", user).stdout.split(":")
        return int(line[2]), int(line[3])

    def group_of(self, user):
        return self.ids(user)[1]


# ---- seccomp, as systemd builds it from SystemCallFilter= ---------------------------------------------------------------------------


def expand_syscalls(words):
    names = set()
    for word in words:
        if not word.startswith("@"):
            names.add(word)
            continue
        listing = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager", word], capture_output=True, text=True, check=True)
        inner = [line.strip() for line in listing.stdout.splitlines()[1:]]
        names |= expand_syscalls([w for w in inner if w and not w.startswith("#")])
    return names


def allowed_syscalls(unit):
    """None if the unit has no filter."""
    allowed = None
    for value in unit.all("Service", "SystemCallFilter"):
        words = value.split()
        if value.startswith("~"):
            allowed -= expand_syscalls([words[0][1:]] + words[1:])
        else:
            allowed = (allowed or set()) | expand_syscalls(words)
    if allowed is not None:
        # What systemd always lets through.
        allowed |= expand_syscalls(["@default"]) | {"execve", "exit", "exit_group", "rt_sigreturn", "sigreturn"}
    return allowed


class _Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


class Seccomp:
    """A filter made before fork, loaded in the child."""
    ALLOW, ERRNO_EPERM, MASKED_EQ = 0x7FFF0000, 0x00050000 | 1, 7
    PROT_WRITE, PROT_EXEC = 2, 4

    def __init__(self, allowed=None, deny_write_execute=False):
        self.lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self.lib.seccomp_init.restype = ctypes.c_void_p
        self.context = ctypes.c_void_p(self.lib.seccomp_init(ctypes.c_uint32(self.ERRNO_EPERM if allowed else self.ALLOW)))
        resolve = self.lib.seccomp_syscall_resolve_name
        for name in sorted(allowed or ()):
            number = resolve(name.encode())
            if number < 0 or (deny_write_execute and name in ("mmap", "mprotect")):
                continue  # not of this architecture; or below
            self._rule(self.ALLOW, number)
        if deny_write_execute:
            both = self.PROT_WRITE | self.PROT_EXEC
            if allowed:
                for value in (0, self.PROT_WRITE, self.PROT_EXEC):
                    self._rule(self.ALLOW, resolve(b"mmap"), _Compare(2, self.MASKED_EQ, both, value))
                self._rule(self.ALLOW, resolve(b"mprotect"), _Compare(2, self.MASKED_EQ, self.PROT_EXEC, 0))
            else:
                self._rule(self.ERRNO_EPERM, resolve(b"mmap"), _Compare(2, self.MASKED_EQ, both, both))
                self._rule(self.ERRNO_EPERM, resolve(b"mprotect"), _Compare(2, self.MASKED_EQ, self.PROT_EXEC, self.PROT_EXEC))

    def _rule(self, action, number, *compares):
        array = (_Compare * max(1, len(compares)))(*compares)
        result = self.lib.seccomp_rule_add_array(self.context, ctypes.c_uint32(action), number, len(compares), array)
        if result != 0:
            raise OSError(-result, f"seccomp rule for system call {number}")

    def load(self):
        result = self.lib.seccomp_load(self.context)
        if result != 0:
            raise OSError(-result, "seccomp_load")


# ---- processes ----------------------------------------------------------------------------------------------------------------------


class Process:
    """A program in a root directory, as a user, restricted; in a mount namespace of its own that `mounts` arranges."""

    def __init__(self, root, command, uid, gid, environment, log, mounts=None, umask=0o022, seccomp=None, sockets=()):
        self.log_path = log
        self.notifications = []
        environment = dict(environment)
        self.pid = os.fork()
        if self.pid != 0:
            return
        try:
            if LIBC.unshare(CLONE_NEWNS) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            mount("--make-rprivate", "/")
            if mounts is not None:
                mounts()
            out = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(out, 1)
            os.dup2(out, 2)
            if sockets:
                environment["LISTEN_FDS"] = str(len(sockets))
                environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in sockets)
                # Out of the way first: 3, 4, ... may be in use.
                high = [os.dup2(s.fileno(), 200 + i) for i, (_, s) in enumerate(sockets)]
                for i, fd in enumerate(high):
                    os.dup2(fd, 3 + i, inheritable=True)
                os.closerange(3 + len(sockets), 256)
                environment["LISTEN_PID"] = str(os.getpid())
            else:
                os.closerange(3, 256)
            if "WATCHDOG_USEC" in environment:
                environment["WATCHDOG_PID"] = str(os.getpid())
            os.chroot(root)
            os.chdir("/")
            os.umask(umask)
            for capability in range(64):
                LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            if LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "no_new_privs")
            os.setsid()
            if seccomp is not None:
                seccomp.load()
            os.execve(command[0], command, environment)
        except BaseException as error:  # pylint: disable=broad-except
            os.write(2, f"cannot start {command}: {error}\n".encode())
        os._exit(127)

    def wait(self, timeout):
        """The exit code; None if it still runs then."""
        deadline = time.monotonic() + timeout
        pidfd = os.pidfd_open(self.pid)
        try:
            ready, _, _ = select.select([pidfd], [], [], max(0, deadline - time.monotonic()))
        finally:
            os.close(pidfd)
        if not ready:
            return None
        _, status = os.waitpid(self.pid, 0)
        self.pid = None
        return os.waitstatus_to_exitcode(status)

    def stop(self, timeout=30):
        os.kill(self.pid, signal.SIGTERM)
        code = self.wait(timeout)
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait(10)
            raise AssertionError(f"did not stop within {timeout} s\n{self.log()}")
        return code

    def kill(self):
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait(10)

    def log(self):
        try:
            return pathlib.Path(self.log_path).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""


def wait_until(condition, timeout, what, process=None):
    """Polls a condition that no descriptor tells of, e.g. a file that appears."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if process is not None and process.wait(0) is not None:
            raise AssertionError(f"ended while waiting for {what}\n{process.log()}")
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {timeout} s\n{process.log() if process else ''}")
        time.sleep(0.05)


def private_dev(root):
    """The /dev of PrivateDevices= and of containers."""
    dev = f"{root}/dev"
    nodes = ("null", "zero", "full", "random", "urandom", "tty")
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", dev)
    for node in nodes:
        os.mknod(f"{dev}/{node}", stat.S_IFCHR | 0o666, os.stat(f"/dev/{node}").st_rdev)
        os.chmod(f"{dev}/{node}", 0o666)
    mount("-o", "remount,ro", dev)


def bind(root, path, *options):
    """A mount of its own for a path, with options of its own. Symbolic links are those of this machine, of which the root is a layer."""
    target = root + os.path.realpath(path)
    if os.path.exists(target):
        mount("--bind", target, target)
        mount("-o", "remount,bind," + ",".join(options), target)


class Service(Process):
    """A service unit of the host, started as systemd starts it: user, environment, credentials, directories, sandbox, sd_notify, sockets."""

    def __init__(self, host, unit, name, sockets=()):
        self.host, self.unit = host, unit

        def one(key, default=None):
            return unit.one("Service", key, default)

        user = one("User")
        uid, gid = host.ids(user)
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "USER": user}
        for value in unit.all("Service", "Environment"):
            environment.update(word.split("=", 1) for word in shlex.split(value))
        writable = []
        for kind, base, variable in (("State", "/var/lib", "STATE_DIRECTORY"), ("Runtime", "/run", "RUNTIME_DIRECTORY"),
                                     ("Logs", "/var/log", "LOGS_DIRECTORY")):
            names = (one(f"{kind}Directory") or "").split()
            mode = int(one(f"{kind}DirectoryMode", "0755"), 8)
            for directory in names:
                path = host.path(f"{base}/{directory}")
                path.mkdir(parents=True, exist_ok=True)
                os.chown(path, uid, gid)
                path.chmod(mode)
                writable.append(f"{base}/{directory}")
            if names:
                environment[variable] = ":".join(f"{base}/{n}" for n in names)
        credentials = unit.all("Service", "LoadCredential")
        if credentials:
            directory = host.path(f"/run/credentials/{name}")
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            for credential in credentials:
                identifier, path = credential.split(":", 1)
                copy = directory / identifier
                copy.write_bytes(host.path(path).read_bytes())
                os.chown(copy, uid, gid)
                copy.chmod(0o400)
            os.chown(directory, uid, gid)
            directory.chmod(0o500)
            environment["CREDENTIALS_DIRECTORY"] = f"/run/credentials/{name}"
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify = host.path("/run/systemd/notify")
        notify.parent.mkdir(parents=True, exist_ok=True)
        notify.unlink(missing_ok=True)
        self.notify.bind(str(notify))
        notify.chmod(0o777)
        environment["NOTIFY_SOCKET"] = "/run/systemd/notify"
        if one("WatchdogSec"):
            environment["WATCHDOG_USEC"] = str(int(float(one("WatchdogSec").rstrip("s")) * 1e6))
        seccomp = Seccomp(allowed_syscalls(unit), one("MemoryDenyWriteExecute") == "yes")

        def mounts():
            root = str(host.root)
            mount("--rbind", root, root)
            if one("PrivateDevices") == "yes":
                subprocess.run(["umount", "-l", f"{root}/dev"], check=True)
                private_dev(root)
            if one("ProcSubset") == "pid":
                subprocess.run(["umount", "-l", f"{root}/proc"], check=True)
                mount("-t", "proc", "-o", "subset=pid,hidepid=invisible", "proc", f"{root}/proc")
            noexec = "noexec" if one("NoExecPaths") == "/" else "exec"
            strict = "ro" if one("ProtectSystem") == "strict" else "rw"
            if one("PrivateTmp") == "yes":
                mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{root}/tmp")
            mount("-o", f"remount,bind,{strict},{noexec}", root)
            mount("-o", f"remount,bind,{strict},{noexec}", f"{root}/run")
            for path in (one("ExecPaths") or "").split():
                bind(root, path.lstrip("-"), strict, "exec")
            for path in writable:
                bind(root, path, "rw", noexec)

        super().__init__(str(host.root), shlex.split(one("ExecStart")), uid, gid, environment, host.new_log(), mounts=mounts,
                         umask=int(one("UMask", "0022"), 8), seccomp=seccomp, sockets=sockets)

    def wait(self, timeout):
        code = super().wait(timeout)
        if code is not None:
            self.notify.close()
        return code

    def wait_for(self, message, timeout):
        """Until sd_notify said this; an end of the process before it is an error."""
        deadline = time.monotonic() + timeout
        pidfd = os.pidfd_open(self.pid)
        try:
            while message not in self.notifications:
                ready, _, _ = select.select([self.notify, pidfd], [], [], max(0, deadline - time.monotonic()))
                if self.notify in ready:
                    self.notifications += self.notify.recv(4096).decode().splitlines()
                elif pidfd in ready:
                    raise AssertionError(f"ended with {self.wait(1)} before {message}\n{self.log()}")
                elif not ready:
                    raise AssertionError(f"no {message} within {timeout} s\n{self.log()}")
        finally:
            os.close(pidfd)

    def reload(self):
        """ExecReload=, by the service's own user."""
        command = re.sub(r"\$MAINPID", str(self.pid), self.unit.one("Service", "ExecReload"))
        self.notifications.clear()
        self.host.run(*shlex.split(command), user=self.unit.one("Service", "User"))


class Pod(Process):
    """The container of a Pod, on the host's file system as its image: user, read-only root, no capabilities, volumes."""

    def __init__(self, host, pod, container):
        context = dict(pod["spec"].get("securityContext", {}))
        context.update(container.get("securityContext", {}))
        if context.get("runAsNonRoot") and context.get("runAsUser", 0) == 0:
            raise AssertionError("runAsNonRoot with uid 0")
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        environment.update({e["name"]: e["value"] for e in container.get("env", [])})
        volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
        image = host.base / "image"

        def mounts():
            image.mkdir(exist_ok=True)
            mount("--bind", host.root, image)
            for name in ("run", "tmp"):
                mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", image / name)
            mount("-t", "proc", "proc", image / "proc")
            private_dev(str(image))
            # The image knows nothing of the host's directories.
            for hidden in ("etc/kekd", "var/lib/kekd"):
                mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", image / hidden)
            binds = []
            for wanted in container["volumeMounts"]:
                volume = volumes[wanted["name"]]
                target = image / wanted["mountPath"].lstrip("/")
                target.mkdir(parents=True, exist_ok=True)
                if "hostPath" in volume:
                    source = host.path(volume["hostPath"]["path"])
                    kind = volume["hostPath"].get("type", "")
                    if kind == "DirectoryOrCreate":
                        source.mkdir(parents=True, exist_ok=True)
                    elif kind == "Directory" and not source.is_dir():
                        raise AssertionError(f"hostPath {source} is not a directory")
                    binds.append((source, target, wanted.get("readOnly", False)))
                elif "emptyDir" in volume:
                    mount("-t", "tmpfs", "-o", "mode=0777", "tmpfs", target)
                else:
                    raise AssertionError(f"no such kind of volume: {volume}")
            for source, target, _ in binds:
                mount("--bind", source, target)
            if context.get("readOnlyRootFilesystem"):
                mount("-o", "remount,bind,ro", image)
                mount("-o", "remount,ro", image / "run")
            for _, target, read_only in binds:
                if read_only:
                    mount("-o", "remount,bind,ro", target)

        super().__init__(str(image), container["command"] + container.get("args", []), context["runAsUser"], context["runAsGroup"],
                         environment, host.new_log(), mounts=mounts)
