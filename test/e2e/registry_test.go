package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"edged/test/harness"
)

const (
	registryUser     = "reader"
	registryPassword = "correct horse"
	registryToken    = "a token for those who said the password"
)

// privateRegistry is an OCI distribution endpoint that holds one archive's image,
// under any name, for those who have logged in: by the password itself, or by a
// token that the password gives.
type privateRegistry struct {
	blobs    map[string][]byte // by digest
	manifest string            // its digest
	realm    string            // where tokens are; empty: by the password
}

func newPrivateRegistry(t *testing.T, archive, realm string) *privateRegistry {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := &privateRegistry{blobs: map[string][]byte{}, realm: realm}
	for files := tar.NewReader(f); ; {
		h, err := files.Next()
		if err == io.EOF {
			return r
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		if digest, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok {
			r.blobs["sha256:"+digest] = data
		}
		if h.Name == "index.json" {
			var index struct{ Manifests []struct{ Digest string } }
			if err := json.Unmarshal(data, &index); err != nil || len(index.Manifests) == 0 {
				t.Fatalf("%s: %v", data, err)
			}
			r.manifest = index.Manifests[0].Digest
		}
	}
}

func (r *privateRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	known := user == registryUser && password == registryPassword
	if req.URL.Path == "/token" {
		if !known {
			http.Error(w, "wrong password", http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"token": registryToken})
		return
	}
	challenge := `Basic realm="private"`
	if r.realm != "" {
		challenge = fmt.Sprintf(`Bearer realm=%q,service="private"`, r.realm)
		known = req.Header.Get("Authorization") == "Bearer "+registryToken
	}
	if !known {
		w.Header().Set("WWW-Authenticate", challenge)
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
		return
	}
	part := strings.Split(req.URL.Path, "/")
	what, name := part[len(part)-2], part[len(part)-1]
	if what == "manifests" && !strings.HasPrefix(name, "sha256:") {
		name = r.manifest
	}
	data, ok := r.blobs[name]
	if !ok {
		http.NotFound(w, req)
		return
	}
	if what == "manifests" {
		var m struct{ MediaType string }
		if err := json.Unmarshal(data, &m); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", m.MediaType)
		w.Header().Set("Docker-Content-Digest", name)
	}
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
}

// TestPrivateRegistry: an image of a registry that asks who one is comes to Pods
// with the right imagePullSecrets, their own or their ServiceAccount's, and to no
// others.
func TestPrivateRegistry(t *testing.T) {
	d := harness.Lone(t)
	d.ImportBusybox()
	p := placeOn(t, d)
	for port, realm := range map[int]string{5000: "", 5001: "http://127.0.0.1:5001/token"} {
		l, err := d.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: newPrivateRegistry(t, filepath.Join(d.Dir, "busybox.tar"), realm)}
		go srv.Serve(l)
		t.Cleanup(func() { srv.Close() })
		registry := fmt.Sprintf("127.0.0.1:%d", port)
		name := func(s string) string { return fmt.Sprintf("%s-%d", s, port) }
		for secret, password := range map[string]string{"good": registryPassword, "bad": "a guess"} {
			p.kubectl("create", "secret", "docker-registry", name(secret), "--docker-server="+registry, "--docker-username="+registryUser, "--docker-password="+password)
		}
		run := func(pod, spec string) {
			t.Helper()
			p.apply(fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q},"spec":{%s"terminationGracePeriodSeconds":0,
				"containers":[{"name":"c","image":"%s/private/%s:1","imagePullPolicy":"Always","command":["sleep","3600"]}]}}`, name(pod), spec, registry, pod))
		}
		refused := func(pod string) {
			t.Helper()
			p.waitPod(name(pod), "refused by the registry", func(pod *corev1.Pod) bool {
				if len(pod.Status.ContainerStatuses) == 0 {
					return false
				}
				w := pod.Status.ContainerStatuses[0].State.Waiting
				return w != nil && (w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff") &&
					(strings.Contains(w.Message, "401") || strings.Contains(w.Message, "authorization failed"))
			})
		}
		run("anonymous", "")
		refused("anonymous")
		run("wrong", fmt.Sprintf(`"imagePullSecrets":[{"name":%q}],`, name("bad")))
		refused("wrong")
		run("right", fmt.Sprintf(`"imagePullSecrets":[{"name":%q},{"name":%q}],`, name("bad"), name("good")))
		p.waitReady(name("right"))
		// The image is there now, and Always asks whether this Pod may have it.
		run("right-without", "")
		refused("right-without")
		p.kubectl("create", "serviceaccount", name("puller"))
		p.kubectl("patch", "serviceaccount", name("puller"), "-p", fmt.Sprintf(`{"imagePullSecrets":[{"name":%q}]}`, name("good")))
		run("by-account", fmt.Sprintf(`"serviceAccountName":%q,`, name("puller")))
		p.waitReady(name("by-account"))
	}
}
