// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	v1beta1 "k8s.io/kms/apis/v1beta1"
	v2 "k8s.io/kms/apis/v2"

	"google.golang.org/protobuf/proto"
)

// vectorsFile holds one line of JSON per message: its type, its fields, and the bytes Kubernetes' own Go code encodes it to.
// The C++ tests decode and encode the same bytes. Map fields have one entry, because protobuf does not fix their order.
const vectorsFile = "../../vectors/kubernetes/messages.json"

type vector struct {
	Type   string `json:"type"`
	Fields any    `json:"fields"`
	Hex    string `json:"hex"`
}

func bytesOf(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + 3)
	}
	return b
}

func vectors(t *testing.T) []vector {
	t.Helper()
	messages := []struct {
		name    string
		message proto.Message
	}{
		{"v2.StatusRequest", &v2.StatusRequest{}},
		{"v2.StatusResponse", &v2.StatusResponse{Version: "v2", Healthz: "ok", KeyId: "kekd-00112233445566778899aabbccddeeff-7-9"}},
		{"v2.EncryptRequest", &v2.EncryptRequest{Plaintext: bytesOf(32), Uid: "6f9619ff-8b86-d011-b42d-00c04fc964ff"}},
		{"v2.EncryptResponse", &v2.EncryptResponse{Ciphertext: bytesOf(90), KeyId: "k1", Annotations: map[string][]byte{"format.kekd.example": {1, 0, 255}}}},
		{"v2.DecryptRequest", &v2.DecryptRequest{Ciphertext: bytesOf(90), Uid: "u", KeyId: "k1", Annotations: map[string][]byte{"format.kekd.example": {1, 0, 255}}}},
		{"v2.DecryptResponse", &v2.DecryptResponse{Plaintext: bytesOf(32)}},
		{"v2.DecryptResponse", &v2.DecryptResponse{}},
		{"v1beta1.VersionRequest", &v1beta1.VersionRequest{Version: "v1beta1"}},
		{"v1beta1.VersionResponse", &v1beta1.VersionResponse{Version: "v1beta1", RuntimeName: "kekd", RuntimeVersion: "0.1.0"}},
		{"v1beta1.EncryptRequest", &v1beta1.EncryptRequest{Version: "v1beta1", Plain: bytesOf(32)}},
		{"v1beta1.EncryptResponse", &v1beta1.EncryptResponse{Cipher: bytesOf(90)}},
		{"v1beta1.DecryptRequest", &v1beta1.DecryptRequest{Version: "v1beta1", Cipher: bytesOf(90)}},
		{"v1beta1.DecryptResponse", &v1beta1.DecryptResponse{Plain: bytesOf(32)}},
	}
	var out []vector
	for _, m := range messages {
		encoded, err := proto.Marshal(m.message)
		if err != nil {
			t.Fatalf("%s: %v", m.name, err)
		}
		out = append(out, vector{Type: m.name, Fields: m.message, Hex: hex.EncodeToString(encoded)})
	}
	return out
}

// K8s05: the committed vectors are what Kubernetes' Go code encodes. KEKD_WRITE_VECTORS=1 writes them.
func TestK8s05GoldenVectorsEqualGos(t *testing.T) {
	var want []byte
	for _, v := range vectors(t) {
		line, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		want = append(append(want, line...), '\n')
	}
	if os.Getenv("KEKD_WRITE_VECTORS") != "" {
		if err := os.WriteFile(vectorsFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Fatalf("%s is not what k8s.io/kms encodes; run with KEKD_WRITE_VECTORS=1 and look at the difference", vectorsFile)
	}
}
