// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"

	"google.golang.org/protobuf/proto"
)

// keyIDOf reads the key_id of a value as kube-apiserver's v2 transformer stores it (with or without the etcd prefix).
func keyIDOf(t *testing.T, stored []byte) string {
	t.Helper()
	const prefix = "k8s:enc:kms:v2:hsm-kek:"
	stored = bytes.TrimPrefix(stored, []byte(prefix))
	var object kmstypes.EncryptedObject
	if err := proto.Unmarshal(stored, &object); err != nil {
		t.Fatalf("stored value: %v", err)
	}
	return object.KeyID
}

// cluster is an etcd and a kube-apiserver.
type cluster struct {
	t           *testing.T
	dir         string
	etcdPort    int
	port        int
	etcd        *process
	apiserver   *process
	http        *http.Client
	encryption  string
	featureGate string
}

const token = "admin-token-of-this-test"

func newCluster(t *testing.T) *cluster {
	t.Helper()
	if os.Getenv("KUBE_APISERVER") == "" {
		t.Fatal("KUBE_APISERVER is not set; run tests/clients/kubernetes/run")
	}
	c := &cluster{t: t, dir: t.TempDir(), etcdPort: freePort(t), port: freePort(t)}
	c.http = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	mustRun(t, c.dir, "openssl", "genrsa", "-out", "sa.key", "2048")
	mustRun(t, c.dir, "openssl", "rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
	if err := os.WriteFile(filepath.Join(c.dir, "tokens.csv"), []byte(token+",admin,1,\"system:masters\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	peer := freePort(t)
	c.etcd = start(t, "etcd", filepath.Join(c.dir, "etcd.log"), false, nil, "etcd", "--data-dir", filepath.Join(c.dir, "etcd"),
		"--listen-client-urls", c.etcdURL(), "--advertise-client-urls", c.etcdURL(), "--unsafe-no-fsync",
		"--listen-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", peer), "--initial-advertise-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", peer),
		"--initial-cluster", fmt.Sprintf("default=http://127.0.0.1:%d", peer))
	t.Cleanup(func() {
		if c.apiserver != nil && c.apiserver.running() {
			c.apiserver.signal(syscall.SIGKILL, 10*time.Second)
		}
		c.etcd.signal(syscall.SIGKILL, 10*time.Second)
		if t.Failed() && c.apiserver != nil {
			t.Logf("kube-apiserver's log:\n%s", c.apiserver.tail())
		}
	})
	eventually(t, 20*time.Second, "etcd answers", func() (bool, string) {
		out, err := c.etcdctl("endpoint", "health")
		return err == nil, string(out)
	})
	return c
}

func mustRun(t *testing.T, dir string, argv ...string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

func (c *cluster) etcdURL() string { return fmt.Sprintf("http://127.0.0.1:%d", c.etcdPort) }

func (c *cluster) etcdctl(args ...string) ([]byte, error) {
	cmd := exec.Command("etcdctl", append([]string{"--endpoints", c.etcdURL()}, args...)...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	return cmd.Output()
}

// raw is what etcd holds for a Secret.
func (c *cluster) raw(name string) []byte {
	c.t.Helper()
	out, err := c.etcdctl("get", "/registry/secrets/default/"+name, "--print-value-only")
	if err != nil {
		c.t.Fatalf("etcdctl: %v", err)
	}
	return bytes.TrimSuffix(out, []byte("\n"))
}

func (c *cluster) startAPIServer() {
	c.t.Helper()
	c.launchAPIServer()
	c.awaitAPIServer()
}

func (c *cluster) launchAPIServer() {
	c.t.Helper()
	config := filepath.Join(c.dir, "enc.yaml")
	if err := os.WriteFile(config, []byte(c.encryption), 0o600); err != nil {
		c.t.Fatal(err)
	}
	args := []string{os.Getenv("KUBE_APISERVER"), "--etcd-servers=" + c.etcdURL(), "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", c.port), "--cert-dir=" + filepath.Join(c.dir, "certs"), "--service-cluster-ip-range=10.0.0.0/24",
		"--authorization-mode=RBAC", "--token-auth-file=" + filepath.Join(c.dir, "tokens.csv"), "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + filepath.Join(c.dir, "sa.pub"), "--service-account-signing-key-file=" + filepath.Join(c.dir, "sa.key"),
		"--disable-admission-plugins=ServiceAccount", "--encryption-provider-config=" + config}
	if c.featureGate != "" {
		args = append(args, "--feature-gates="+c.featureGate)
	}
	c.apiserver = start(c.t, "kube-apiserver", filepath.Join(c.dir, "apiserver.log"), false, nil, args...)
}

func (c *cluster) awaitAPIServer() {
	c.t.Helper()
	eventually(c.t, 90*time.Second, "kube-apiserver is ready", func() (bool, string) {
		if !c.apiserver.running() {
			c.t.Fatalf("kube-apiserver ended:\n%s", c.apiserver.tail())
		}
		code, body, err := c.do(http.MethodGet, "/readyz", nil)
		return err == nil && code == http.StatusOK, fmt.Sprint(code, string(body), err)
	})
	eventually(c.t, 30*time.Second, "namespace default", func() (bool, string) {
		code, body, err := c.do(http.MethodGet, "/api/v1/namespaces/default", nil)
		return err == nil && code == http.StatusOK, fmt.Sprint(code, string(body), err)
	})
}

func (c *cluster) stopAPIServer() { c.t.Helper(); c.apiserver.signal(syscall.SIGTERM, 90*time.Second) }

func (c *cluster) do(method, path string, body any) (int, []byte, error) {
	var reader io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		reader = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(context.Background(), method, fmt.Sprintf("https://127.0.0.1:%d%s", c.port, path), reader)
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, content, err
}

func secretName(i int) string  { return fmt.Sprintf("s-%04d", i) }
func secretValue(i int) string { return fmt.Sprintf("MARKED-PLAINTEXT-%04d", i) }

// tryWrite creates or replaces a Secret.
func (c *cluster) tryWrite(i int) error {
	secret := map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": secretName(i)},
		"data": map[string]string{"v": base64.StdEncoding.EncodeToString([]byte(secretValue(i)))}}
	code, body, err := c.do(http.MethodPost, "/api/v1/namespaces/default/secrets", secret)
	if err == nil && code == http.StatusConflict {
		code, body, err = c.do(http.MethodPut, "/api/v1/namespaces/default/secrets/"+secretName(i), secret)
	}
	if err != nil {
		return err
	}
	if code != http.StatusCreated && code != http.StatusOK {
		return fmt.Errorf("HTTP %d: %s", code, body)
	}
	return nil
}

func (c *cluster) write(i int) {
	c.t.Helper()
	if err := c.tryWrite(i); err != nil {
		c.t.Fatalf("write %s: %v", secretName(i), err)
	}
}

func (c *cluster) tryRead(i int) error {
	code, body, err := c.do(http.MethodGet, "/api/v1/namespaces/default/secrets/"+secretName(i), nil)
	if err != nil {
		return err
	}
	var secret struct {
		Data map[string]string `json:"data"`
	}
	if code != http.StatusOK || json.Unmarshal(body, &secret) != nil {
		return fmt.Errorf("HTTP %d: %s", code, body)
	}
	got, err := base64.StdEncoding.DecodeString(secret.Data["v"])
	if err != nil || string(got) != secretValue(i) {
		return fmt.Errorf("value %q %v", got, err)
	}
	return nil
}

func (c *cluster) readAll(n int) {
	c.t.Helper()
	for i := range n {
		if err := c.tryRead(i); err != nil {
			c.t.Fatalf("read %s: %v", secretName(i), err)
		}
	}
}

// underLoad writes and reads Secrets from four clients while body runs, and a moment longer, and returns the first error any of them had.
func (c *cluster) underLoad(secrets int, body func()) error {
	c.t.Helper()
	stop := make(chan struct{})
	var load sync.WaitGroup
	var once sync.Once
	var wrong error
	var requests atomic.Int64
	for worker := range 4 {
		load.Go(func() {
			for i := worker; ; i = (i + 4) % secrets {
				select {
				case <-stop:
					return
				default:
				}
				for _, try := range []func(int) error{c.tryWrite, c.tryRead} {
					if err := try(i); err != nil {
						once.Do(func() { wrong = fmt.Errorf("%s: %w", secretName(i), err) })
					}
					requests.Add(1)
				}
			}
		})
	}
	await := func(what string) {
		c.t.Helper()
		more := requests.Load() + 40
		eventually(c.t, 60*time.Second, what, func() (bool, string) { n := requests.Load(); return n >= more, fmt.Sprint(n, " of ", more) })
	}
	await("the load runs")
	body()
	await("the load goes on")
	close(stop)
	load.Wait()
	c.t.Logf("%d requests under load", requests.Load())
	return wrong
}

// modRevision counts the writes to etcd of a Secret: it changes with each.
func (c *cluster) modRevision(name string) int64 {
	c.t.Helper()
	out, err := c.etcdctl("get", "/registry/secrets/default/"+name, "-w", "json")
	var answer struct {
		Kvs []struct {
			ModRevision int64 `json:"mod_revision"`
		}
	}
	if err != nil || json.Unmarshal(out, &answer) != nil || len(answer.Kvs) != 1 {
		c.t.Fatalf("etcdctl: %v %s", err, out)
	}
	return answer.Kvs[0].ModRevision
}

func (c *cluster) healthz() error {
	code, body, err := c.do(http.MethodGet, "/healthz?verbose", nil)
	if err != nil {
		return err
	}
	if code != http.StatusOK {
		return fmt.Errorf("HTTP %d: %s", code, body)
	}
	return nil
}

// The main job: Secrets of a real kube-apiserver under a KEK in the token, rotated while everything runs.
func TestK8s28K8s29K8s32K8s34WholeAPIServer(t *testing.T) {
	const secrets = 200
	k := newKekd(t, binding{name: "k8s", key: "secrets"})
	c := newCluster(t)
	c.encryption = encryptionConfig("hsm-kek", k.endpoint("k8s"))
	c.startAPIServer()

	for i := range secrets {
		c.write(i)
	}
	for i := range secrets {
		raw := c.raw(secretName(i))
		if !bytes.HasPrefix(raw, []byte("k8s:enc:kms:v2:hsm-kek:")) {
			t.Fatalf("%s in etcd begins %q", secretName(i), raw[:min(len(raw), 32)])
		}
		if bytes.Contains(raw, []byte("MARKED")) || bytes.Contains(raw, []byte(base64.StdEncoding.EncodeToString([]byte(secretValue(i))))) {
			t.Fatalf("%s in etcd contains the plaintext", secretName(i))
		}
	}
	t.Logf("%d Secrets are under k8s:enc:kms:v2: in etcd, none in plaintext", secrets)

	t.Run("RestartAPIServerThenKekd", func(t *testing.T) {
		c.stopAPIServer()
		c.startAPIServer()
		c.readAll(secrets)
		if wrong := c.underLoad(secrets, func() { k.stop(); k.start() }); wrong != nil {
			t.Fatalf("K8s33: a request failed while kekd was restarted: %v", wrong)
		}
		c.readAll(secrets)
	})
	t.Run("RestartKekdThenAPIServer", func(t *testing.T) {
		k.stop()
		k.start()
		c.stopAPIServer()
		c.startAPIServer()
		c.readAll(secrets)
	})

	t.Run("K8s28RotationIsSeenWithin70Seconds", func(t *testing.T) {
		oldID := keyIDOf(t, c.raw(secretName(0)))
		// Health is watched all the while, as a load balancer would.
		var unhealthy atomic.Value
		stop := make(chan struct{})
		var watcher sync.WaitGroup
		watcher.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Second):
					if err := c.healthz(); err != nil {
						unhealthy.Store(err.Error())
					}
				}
			}
		})
		encrypts := len(k.audited("kubernetes-v2", "Encrypt"))
		k.ctl("key", "rotate", keyName("secrets"))
		began := time.Now()
		eventually(t, 70*time.Second, "the next write carries the new key_id", func() (bool, string) {
			c.write(0)
			id := keyIDOf(t, c.raw(secretName(0)))
			return id != oldID, id
		})
		t.Logf("rotation seen after %v", time.Since(began))
		close(stop)
		watcher.Wait()
		if text := unhealthy.Load(); text != nil {
			t.Fatalf("health left ok: %s", text)
		}
		if n := len(k.audited("kubernetes-v2", "Encrypt")) - encrypts; n != 1 {
			t.Errorf("%d Encrypts followed the rotation, not one", n)
		}
	})

	t.Run("K8s29RewriteAllThenDisableTheOldVersion", func(t *testing.T) {
		newID := keyIDOf(t, c.raw(secretName(0)))
		// A write that changes nothing is what kubectl replace and a storage migration do: the API server stores it, because the old value is stale.
		before := c.modRevision(secretName(1))
		c.write(1)
		once := c.modRevision(secretName(1))
		c.write(1)
		if twice := c.modRevision(secretName(1)); once == before || twice != once {
			t.Errorf("revisions of a Secret that was written twice without change: %d, then %d, then %d; only the first should store it", before, once, twice)
		}
		for i := range secrets {
			c.write(i)
		}
		for i := range secrets {
			if id := keyIDOf(t, c.raw(secretName(i))); id != newID {
				t.Fatalf("%s has key_id %q, not %q", secretName(i), id, newID)
			}
		}
		k.ctl("key", "disable", keyName("secrets")+"/cryptoKeyVersions/1")
		c.stopAPIServer() // so that nothing is read from its cache
		c.startAPIServer()
		c.readAll(secrets)
	})

	t.Run("K8s32KilledUnderLoadRecoversWithTheStaleSocket", func(t *testing.T) {
		// Writes and reads go on from the API server's own seed and cache while kekd is down.
		wrong := c.underLoad(secrets, func() {
			k.kill()
			if _, err := os.Lstat(k.socket("k8s")); err != nil {
				t.Errorf("the stale socket is gone: %v", err)
			}
			k.start()
			eventually(t, 90*time.Second, "healthz is ok again", func() (bool, string) { err := c.healthz(); return err == nil, fmt.Sprint(err) })
		})
		if wrong != nil {
			t.Fatalf("a request failed while kekd was down: %v", wrong)
		}
		c.stopAPIServer()
		c.startAPIServer()
		c.readAll(secrets)
	})

	t.Run("TokenAwayAndBack", func(t *testing.T) {
		k.takeTokenAway()
		eventually(t, 90*time.Second, "healthz notices", func() (bool, string) {
			err := c.healthz()
			return err != nil && strings.Contains(err.Error(), "kms"), fmt.Sprint(err)
		})
		c.readAll(secrets) // from the API server's cache
		k.bringTokenBack()
		eventually(t, 60*time.Second, "healthz is ok again without a restart", func() (bool, string) { err := c.healthz(); return err == nil, fmt.Sprint(err) })
		c.stopAPIServer()
		c.startAPIServer()
		c.readAll(secrets)
	})

	t.Run("K8s34APIServerBeforeKekd", func(t *testing.T) {
		c.stopAPIServer()
		k.stop()
		c.launchAPIServer()
		eventually(t, 90*time.Second, "kube-apiserver is up and misses its plugin", func() (bool, string) {
			code, body, err := c.do(http.MethodGet, "/readyz", nil)
			return err == nil && code == http.StatusInternalServerError && strings.Contains(string(body), "[-]kms-providers failed"),
				fmt.Sprint(code, string(body), err)
		})
		if err := c.tryRead(0); err == nil {
			t.Fatal("a Secret was read without the plugin")
		}
		began := time.Now()
		k.start()
		eventually(t, 15*time.Second, "first read", func() (bool, string) { err := c.tryRead(0); return err == nil, fmt.Sprint(err) })
		t.Logf("from kekd's start to the first read: %v", time.Since(began))
		c.awaitAPIServer()
		c.readAll(secrets)
	})
}

// Migration of a cluster from v1beta1 to v2, both served by the one socket and key.
func TestMigrationFromV1Beta1ToV2(t *testing.T) {
	const secrets = 52 // a multiple of underLoad's four clients
	k := newKekd(t, binding{name: "k8s", key: "secrets"})
	c := newCluster(t)
	c.featureGate = "KMSv1=true"
	c.encryption = fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources: [secrets]
    providers:
      - kms: {name: hsm-kek-v1, endpoint: "%s", cachesize: 1000, timeout: 3s}
`, k.endpoint("k8s"))
	c.startAPIServer()
	for i := range secrets {
		c.write(i)
	}
	if raw := c.raw(secretName(0)); !bytes.HasPrefix(raw, []byte("k8s:enc:kms:v1:hsm-kek-v1:")) {
		t.Fatalf("etcd holds %q", raw[:min(len(raw), 32)])
	}
	// K8s33: v1beta1 asks the plugin for every write, so a restart of kekd has to fit into the API server's patience.
	if wrong := c.underLoad(secrets, func() { k.stop(); k.start() }); wrong != nil {
		t.Fatalf("a request failed while kekd was restarted: %v", wrong)
	}
	k.ctl("key", "rotate", keyName("secrets")) // old v1 blobs carry their version inside
	c.stopAPIServer()
	c.encryption = encryptionConfig("hsm-kek", k.endpoint("k8s")) +
		fmt.Sprintf("      - kms: {name: hsm-kek-v1, endpoint: \"%s\", cachesize: 1000, timeout: 3s}\n", k.endpoint("k8s"))
	c.startAPIServer()
	c.readAll(secrets)
	for i := range secrets {
		c.write(i)
	}
	for i := range secrets {
		if raw := c.raw(secretName(i)); !bytes.HasPrefix(raw, []byte("k8s:enc:kms:v2:hsm-kek:")) {
			t.Fatalf("%s in etcd begins %q", secretName(i), raw[:min(len(raw), 32)])
		}
	}
	c.stopAPIServer()
	c.featureGate = ""
	c.encryption = encryptionConfig("hsm-kek", k.endpoint("k8s"))
	c.startAPIServer()
	c.readAll(secrets)
}
