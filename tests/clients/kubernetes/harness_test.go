// SPDX-License-Identifier: Apache-2.0

// Package kubernetes drives kekd with kube-apiserver's own client code and with a whole, unmodified kube-apiserver on Debian's etcd.
//
// The programs are found through the environment (tests/clients/kubernetes/run sets it): KEKD_BUILD is a build directory with
// service/kekd and cli/kekctl, KUBE_APISERVER the API server's binary. Everything runs on fresh directories, tokens and ports.
package kubernetes

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	keyRing = "projects/test/locations/local/keyRings/cluster"
	nobody  = 65534 // kekd refuses to run as root; a test that is root runs it as nobody
)

func keyName(id string) string { return keyRing + "/cryptoKeys/" + id }

// eventually polls ok until it is true, and fails the test at the deadline with what describes the last look.
func eventually(t *testing.T, within time.Duration, what string, ok func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		done, last := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v; last: %s", what, within, last)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func mustWrite(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
}

func mustMkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
}

// process is a program under test: started, killed, and its output kept for when a test fails.
type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

func start(t *testing.T, name, log string, unprivileged bool, env []string, argv ...string) *process {
	t.Helper()
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if unprivileged && os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	p := &process{t: t, name: name, cmd: cmd, log: log, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.done) }()
	return p
}

func (p *process) signal(s syscall.Signal, within time.Duration) {
	p.t.Helper()
	_ = p.cmd.Process.Signal(s)
	select {
	case <-p.done:
	case <-time.After(within):
		_ = p.cmd.Process.Kill()
		p.t.Fatalf("%s did not end within %v of %v", p.name, within, s)
	}
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) tail() string {
	content, _ := os.ReadFile(p.log)
	if len(content) > 4000 {
		content = content[len(content)-4000:]
	}
	return string(content)
}

// kekd is an installation of its own: token, config, state, sockets; started and stopped as the test likes.
type kekd struct {
	t        *testing.T
	dir      string
	bindings []binding
	options  string // extra YAML
	proc     *process
}

type binding struct {
	name, key, onHsmLoss, version string
}

func (k *kekd) socket(name string) string { return filepath.Join(k.dir, "run", name+".sock") }
func (k *kekd) endpoint(name string) string {
	return "unix://" + k.socket(name)
}

func newKekd(t *testing.T, bindings ...binding) *kekd {
	t.Helper()
	// Unix socket paths are short (108 bytes), so not t.TempDir().
	dir, err := os.MkdirTemp("", "kekd")
	if err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	k := &kekd{t: t, dir: dir, bindings: bindings}
	t.Cleanup(func() {
		if k.proc != nil && k.proc.running() {
			k.proc.signal(syscall.SIGKILL, 10*time.Second)
		}
		if t.Failed() && k.proc != nil {
			t.Logf("kekd's log:\n%s", k.proc.tail())
		}
		os.RemoveAll(dir)
	})
	for _, d := range []string{"tokens", "state", "run"} {
		mustMkdir(t, filepath.Join(dir, d))
	}
	mustWrite(t, filepath.Join(dir, "softhsm2.conf"), fmt.Sprintf(
		"directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n", dir), 0o600)
	pin := make([]byte, 8)
	if _, err := rand.Read(pin); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, filepath.Join(dir, "pin"), hex.EncodeToString(pin)+"\n", 0o600)
	init := start(t, "softhsm2-util", filepath.Join(dir, "init.log"), true, k.env(), "softhsm2-util", "--init-token", "--free",
		"--label", "kek-test", "--so-pin", "12345678", "--pin", hex.EncodeToString(pin))
	<-init.done
	if init.cmd.ProcessState.ExitCode() != 0 {
		t.Fatalf("softhsm2-util: %s", init.tail())
	}
	k.writeConfig()
	k.start()
	k.ctl("keyring", "create", keyRing)
	made := map[string]bool{} // two bindings may share a key
	for _, b := range bindings {
		if !made[b.key] {
			k.ctl("key", "create", keyName(b.key))
			made[b.key] = true
		}
	}
	return k
}

func (k *kekd) env() []string {
	return []string{"SOFTHSM2_CONF=" + filepath.Join(k.dir, "softhsm2.conf")}
}

func (k *kekd) writeConfig() {
	var y strings.Builder
	fmt.Fprintf(&y, "state_dir: %s/state\n", k.dir)
	fmt.Fprintf(&y, "token:\n  module: /usr/lib/softhsm/libsofthsm2.so\n  uri: \"pkcs11:token=kek-test\"\n  pin:\n    file: %s/pin\n", k.dir)
	fmt.Fprintf(&y, "admin:\n  socket: %s\n  allowed_users: [\"%d\"]\n", k.socket("admin"), os.Getuid())
	y.WriteString("kubernetes:\n")
	for _, b := range k.bindings {
		fmt.Fprintf(&y, "  - name: %s\n    socket: %s\n    key: %s\n    allowed_users: [\"%d\"]\n", b.name, k.socket(b.name), keyName(b.key), os.Getuid())
		if b.onHsmLoss != "" {
			fmt.Fprintf(&y, "    on_hsm_loss: %s\n", b.onHsmLoss)
		}
		if b.version != "" {
			fmt.Fprintf(&y, "    version: %s\n", b.version)
		}
	}
	y.WriteString(k.options)
	mustWrite(k.t, filepath.Join(k.dir, "kekd.yaml"), y.String(), 0o600)
}

func buildDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("KEKD_BUILD")
	if dir == "" {
		t.Fatal("KEKD_BUILD is not set; run tests/clients/kubernetes/run")
	}
	return dir
}

// binary is a copy of kekd that an unprivileged user can reach: the build directory may lie in root's home.
func (k *kekd) binary() string {
	k.t.Helper()
	copied := filepath.Join(k.dir, "kekd")
	if _, err := os.Stat(copied); err == nil {
		return copied
	}
	content, err := os.ReadFile(filepath.Join(buildDir(k.t), "service", "kekd"))
	if err != nil {
		k.t.Fatal(err)
	}
	mustWrite(k.t, copied, string(content), 0o700)
	return copied
}

// start runs kekd and waits until its admin socket answers.
func (k *kekd) start() {
	k.t.Helper()
	k.proc = start(k.t, "kekd", filepath.Join(k.dir, "kekd.log"), true, k.env(), k.binary(),
		"--config", filepath.Join(k.dir, "kekd.yaml"))
	eventually(k.t, 20*time.Second, "kekd answers", func() (bool, string) {
		if !k.proc.running() {
			k.t.Fatalf("kekd ended at start:\n%s", k.proc.tail())
		}
		// Not "status", which says no while a binding's key has not been made yet.
		out, err := k.tryCtl("--project", "test", "--location", "local", "keyring", "list")
		return err == nil, out
	})
}

func (k *kekd) kill() { k.t.Helper(); k.proc.signal(syscall.SIGKILL, 10*time.Second) }
func (k *kekd) stop() {
	k.t.Helper()
	k.proc.signal(syscall.SIGTERM, 20*time.Second)
	if code := k.proc.cmd.ProcessState.ExitCode(); code != 0 {
		k.t.Fatalf("kekd's exit code after SIGTERM: %d\n%s", code, k.proc.tail())
	}
}

func (k *kekd) tryCtl(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(buildDir(k.t), "cli", "kekctl"), append([]string{"--socket", k.socket("admin")}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

func (k *kekd) ctl(args ...string) string {
	k.t.Helper()
	out, err := k.tryCtl(args...)
	if err != nil {
		k.t.Fatalf("kekctl %s: %v\n%s\nkekd's log:\n%s", strings.Join(args, " "), err, out, k.proc.tail())
	}
	return out
}

// record is what these tests look at in a line of kekd's audit log (docs/audit-format.md).
type record struct {
	Op, Front, Result, Rid, Ver string
	Coalesced                   bool
}

// audited returns the records of one front end's operation, in order.
func (k *kekd) audited(front, op string) []record {
	k.t.Helper()
	segments, err := filepath.Glob(filepath.Join(k.dir, "state", "audit", "*.jsonl"))
	if err != nil || len(segments) == 0 {
		k.t.Fatalf("no audit log in %s: %v", k.dir, err)
	}
	sort.Strings(segments) // names begin with the time
	var records []record
	for _, segment := range segments {
		content, err := os.ReadFile(segment)
		if err != nil {
			k.t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			var r record
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				k.t.Fatalf("audit record %q: %v", line, err)
			}
			if r.Front == front && r.Op == op {
				records = append(records, r)
			}
		}
	}
	return records
}

// takeTokenAway and bringTokenBack move the token's directory, which is what a pulled HSM looks like with SoftHSM.
func (k *kekd) takeTokenAway() {
	k.t.Helper()
	if err := os.Rename(filepath.Join(k.dir, "tokens"), filepath.Join(k.dir, "tokens.away")); err != nil {
		k.t.Fatal(err)
	}
}
func (k *kekd) bringTokenBack() {
	k.t.Helper()
	if err := os.Rename(filepath.Join(k.dir, "tokens.away"), filepath.Join(k.dir, "tokens")); err != nil {
		k.t.Fatal(err)
	}
}
