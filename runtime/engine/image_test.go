package engine_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"edged/runtime/engine"
)

func TestImportAndRemove(t *testing.T) {
	d := newDevice(t)
	e := d.open()
	archive, err := boxArchive()
	if err != nil {
		t.Fatal(err)
	}
	var zipped bytes.Buffer
	gz := gzip.NewWriter(&zipped)
	gz.Write(archive)
	gz.Close()
	imported, err := e.ImportImages(ctx, &zipped)
	if err != nil || len(imported) != 2 {
		t.Fatalf("imported %+v, %v", imported, err)
	}
	if again, err := e.ImportImages(ctx, bytes.NewReader(archive)); err != nil || !reflect.DeepEqual(again, imported) {
		t.Errorf("imported again %+v, %v", again, err)
	}
	list, err := e.Images(ctx)
	if err != nil || len(list) != 2 {
		t.Fatalf("list %+v, %v", list, err)
	}
	box, ok, err := e.Image(ctx, boxName)
	if err != nil || !ok {
		t.Fatalf("box: %v, %v", ok, err)
	}
	if want := []string{boxName, "test.local/box:latest"}; !reflect.DeepEqual(box.Names, want) {
		t.Errorf("names %v", box.Names)
	}
	if box.SizeBytes < 100<<10 || !strings.HasPrefix(box.ID, "sha256:") || box.Config.Entrypoint[0] != "/bin/box" {
		t.Errorf("box %+v", box)
	}
	for _, ref := range []string{"test.local/box", box.RepoDigests[0], box.ID} {
		if got, ok, err := e.Image(ctx, ref); err != nil || !ok || got.ID != box.ID {
			t.Errorf("by %s: %+v, %v, %v", ref, got, ok, err)
		}
	}
	if _, ok, err := e.Image(ctx, "box"); ok || err != nil {
		t.Errorf("docker.io/library/box: %v, %v", ok, err)
	}
	if _, _, err := e.Image(ctx, "Not A Name"); !errors.Is(err, engine.ErrInvalidImageName) {
		t.Errorf("bad name: %v", err)
	}
	custom, _, _ := e.Image(ctx, "test.local/custom:1")
	if uid, name := custom.Config.UserID(); uid != nil || name != "alice" {
		t.Errorf("user %v %q", uid, name)
	}

	d.create(e, d.box("c", "forever"))
	if err := e.RemoveImage(ctx, "test.local/box"); err != nil {
		t.Errorf("remove one of two names: %v", err)
	}
	if err := e.RemoveImage(ctx, boxName); !errors.Is(err, engine.ErrInUse) {
		t.Errorf("remove the last name of an image in use: %v", err)
	}
	if err := e.Delete(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.RemoveImage(ctx, boxName), e.RemoveImage(ctx, custom.ID)); err != nil {
		t.Fatal(err)
	}
	if list, err := e.Images(ctx); err != nil || len(list) != 0 {
		t.Errorf("left %+v, %v", list, err)
	}
	if err := e.RemoveImage(ctx, boxName); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("remove of nothing: %v", err)
	}
	d.expectNoContent()
}

// expectNoContent: nothing that costs room is left of removed images.
func (d *device) expectNoContent() {
	d.t.Helper()
	for _, dir := range []string{"content/blobs/sha256", "content/ingest", "overlayfs/snapshots"} {
		entries, _ := os.ReadDir(filepath.Join(d.cfg.Root, dir))
		if len(entries) > 0 {
			d.t.Errorf("%d entries are left in %s", len(entries), dir)
		}
	}
}

func TestImportDockerArchive(t *testing.T) {
	d := newDevice(t)
	e := d.open()
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	tarFile(t, tw, "etc/motd", []byte("hi\n"))
	tw.Close()
	config, _ := json.Marshal(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH, "config": map[string]any{"Cmd": []string{"/x"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{sum(layer.Bytes())}},
	})
	manifest, _ := json.Marshal([]any{map[string]any{"Config": "c.json", "RepoTags": []string{"motd:1"}, "Layers": []string{"l/layer.tar"}}})
	var archive bytes.Buffer
	tw = tar.NewWriter(&archive)
	tarFile(t, tw, "l/layer.tar", layer.Bytes())
	tarFile(t, tw, "c.json", config)
	tarFile(t, tw, "manifest.json", manifest)
	tw.Close()
	imgs, err := e.ImportImages(ctx, &archive)
	if err != nil || len(imgs) != 1 || imgs[0].Names[0] != "docker.io/library/motd:1" {
		t.Fatalf("imported %+v, %v", imgs, err)
	}
	if _, ok, err := e.Image(ctx, "motd:1"); !ok || err != nil {
		t.Errorf("short name: %v, %v", ok, err)
	}
	target := t.TempDir()
	if err := e.MountImage(ctx, "motd:1", target); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(target + "/etc/motd"); string(data) != "hi\n" {
		t.Errorf("read %q, %v", data, err)
	}
	if err := os.WriteFile(target+"/etc/motd", nil, 0o644); err == nil {
		t.Error("an image volume is writable")
	}
	if err := errors.Join(e.UnmountImage(ctx, target), e.UnmountImage(ctx, target)); err != nil {
		t.Error(err)
	}
}

func tarFile(t *testing.T, tw *tar.Writer, name string, data []byte) {
	t.Helper()
	err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = tw.Write(data)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(s[:])
}

func TestImportGarbage(t *testing.T) {
	d := newDevice(t)
	e := d.open()
	archive, err := boxArchive()
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(archive)
	flipped[len(flipped)/3] ^= 1
	for name, data := range map[string][]byte{
		"empty": nil, "text": []byte("this is no archive"), "cut off": archive[:len(archive)/2], "flipped bit": flipped,
	} {
		if imgs, err := e.ImportImages(ctx, bytes.NewReader(data)); err == nil {
			t.Errorf("%s: imported %+v", name, imgs)
		}
	}
	if list, err := e.Images(ctx); err != nil || len(list) != 0 {
		t.Errorf("list %+v, %v", list, err)
	}
	d.expectNoContent()
}

// A daemon killed while it imports leaves nothing that is listed but broken, and
// nothing that takes room once the next one has looked around.
func TestKilledWhileImporting(t *testing.T) {
	d := newDevice(t)
	archive, err := boxArchive()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "box.tar")
	if err := os.WriteFile(file, archive, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, pause := range []time.Duration{0, 5, 15, 30, 60, 120} {
		daemon := d.daemon(order{Import: file})
		daemon.expect("importing")
		time.Sleep(pause * time.Millisecond) // the moment of the kill is what is tested
		daemon.kill()
		e, err := engine.Open(ctx, d.cfg)
		if err != nil {
			t.Fatal(err)
		}
		list, err := e.Images(ctx)
		if err != nil {
			t.Error(err)
		}
		for _, img := range list {
			spec := d.box("c", "print=x")
			spec.Image = img.ID
			d.start(e, spec)
			if out, _ := d.output(e, "c"); out != "x\n" {
				t.Errorf("after %d ms: said %q", pause, out)
			}
			if err := errors.Join(e.Delete(ctx, "c"), e.RemoveImage(ctx, img.ID)); err != nil {
				t.Error(err)
			}
		}
		eventually(t, "the left-overs go", func() bool {
			blobs, _ := os.ReadDir(filepath.Join(d.cfg.Root, "content/blobs/sha256"))
			layers, _ := os.ReadDir(filepath.Join(d.cfg.Root, "overlayfs/snapshots"))
			return len(blobs)+len(layers) == 0
		})
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

// registry serves the blobs of an OCI archive as one repository, on loopback.
type registry struct {
	*httptest.Server
	blobs map[string][]byte
	index map[string]string // name -> manifest digest
	auth  string            // "user:password" demanded, or ""

	mu    sync.Mutex
	count map[string]int // digest -> times served
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	archive, err := boxArchive()
	if err != nil {
		t.Fatal(err)
	}
	r := &registry{blobs: map[string][]byte{}, index: map[string]string{}, count: map[string]int{}}
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(tr)
		if strings.HasPrefix(hdr.Name, "blobs/sha256/") && len(path.Base(hdr.Name)) == 64 {
			r.blobs["sha256:"+path.Base(hdr.Name)] = data
		}
		if hdr.Name == "index.json" {
			var idx struct {
				Manifests []struct {
					Digest      string
					Annotations map[string]string
				}
			}
			if err := json.Unmarshal(data, &idx); err != nil {
				t.Fatal(err)
			}
			for _, m := range idx.Manifests {
				r.index[m.Annotations["io.containerd.image.name"]] = m.Digest
			}
		}
	}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if user, password, _ := req.BasicAuth(); r.auth != "" && user+":"+password != r.auth {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	_, kind, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/")
	dgst := path.Base(req.URL.Path)
	if d, ok := r.index["test.local/box:"+dgst]; ok && strings.Contains(kind, "manifests") {
		dgst = d
	}
	data, ok := r.blobs[dgst]
	if !ok {
		http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`, http.StatusNotFound)
		return
	}
	if strings.Contains(kind, "manifests") {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	}
	w.Header().Set("Docker-Content-Digest", dgst)
	r.mu.Lock()
	if req.Method == http.MethodGet {
		r.count[dgst]++
	}
	r.mu.Unlock()
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
}

// mirror writes a hosts folder that sends one registry to another address.
func mirror(t *testing.T, host, server string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, host, "hosts.toml")
	err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755),
		os.WriteFile(file, fmt.Appendf(nil, "server = %q\n", server), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestPull(t *testing.T) {
	d := newDevice(t)
	e := d.open()
	r := newRegistry(t)
	host := strings.TrimPrefix(r.URL, "http://")
	t.Run("loopback registry", func(t *testing.T) {
		img, err := e.Pull(ctx, host+"/box:1", engine.PullOptions{})
		if err != nil || img.Names[0] != host+"/box:1" || img.RepoDigests[0] != host+"/box@"+img.Digest {
			t.Fatalf("pulled %+v, %v", img, err)
		}
		spec := d.box("c", "print=pulled")
		spec.Image = host + "/box@" + img.Digest
		d.start(e, spec)
		if out, _ := d.output(e, "c"); out != "pulled\n" {
			t.Errorf("said %q", out)
		}
		byDigest, err := e.Pull(ctx, host+"/box@"+img.Digest, engine.PullOptions{})
		if err != nil || byDigest.ID != img.ID {
			t.Errorf("by digest %+v, %v", byDigest, err)
		}
		for dgst, n := range r.count {
			if len(r.blobs[dgst]) > 100<<10 && n > 1 {
				t.Errorf("a layer was fetched %d times", n)
			}
		}
	})
	t.Run("mirror and credentials", func(t *testing.T) {
		r.auth = "u:p"
		dir := mirror(t, "reg.example", r.URL)
		_, err := e.Pull(ctx, "reg.example/box:1", engine.PullOptions{HostsDir: dir})
		if err == nil || !strings.Contains(err.Error(), "401") {
			t.Errorf("without credentials: %v", err)
		}
		var asked string
		img, err := e.Pull(ctx, "reg.example/box:1", engine.PullOptions{HostsDir: dir, Auth: func(h string) engine.Auth {
			asked = h
			return engine.Auth{Username: "u", Password: "p"}
		}})
		if err != nil || img.Names[len(img.Names)-1] != "reg.example/box:1" {
			t.Errorf("pulled %+v, %v, asked for %s", img, err, asked)
		}
		r.auth = ""
	})
	t.Run("missing", func(t *testing.T) {
		_, err := e.Pull(ctx, host+"/box:none", engine.PullOptions{})
		if err == nil || !strings.Contains(err.Error(), "not found") {
			t.Errorf("err %v", err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		l.Close()
		_, err = e.Pull(ctx, addr+"/box:1", engine.PullOptions{})
		if err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("err %v", err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		silent, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		_, err = e.Pull(ctx, silent.Addr().String()+"/box:1", engine.PullOptions{})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err %v", err)
		}
	})
	t.Run("bad name", func(t *testing.T) {
		if _, err := e.Pull(ctx, "UPPER", engine.PullOptions{}); !errors.Is(err, engine.ErrInvalidImageName) {
			t.Errorf("err %v", err)
		}
	})
}
