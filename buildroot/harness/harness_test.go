package harness

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"edged/buildroot/fat"
	"edged/buildroot/slot"
	"edged/internal/ociimage"
)

const config = "kubeconfig: boot\nedged:\n  node-label: [room=cellar]\n"

// helloArchive is the image of examples/hello for a board.
func helloArchive(t *testing.T, goarch string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "hello"), 0o755))
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "hello", "hello"), "edged/examples/hello")
	build.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+goarch, "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	path := filepath.Join(dir, "hello.tar")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, ociimage.Write(f, dir, ociimage.Spec{
		Arch: goarch, Layers: map[string]string{"hello": "hello"},
		Images: []ociimage.Image{{Names: []string{"example.org/hello:v1"}, Layers: []string{"hello"}, Config: ociimage.Config{Entrypoint: []string{"/hello"}}}},
	}))
	return path
}

const wide = 5 * time.Minute

// hello runs a Pod of the preloaded image and sees it run.
func hello(a *API) {
	a.t.Helper()
	if _, err := a.Kubectl("", "run", "hello", "--image=example.org/hello:v1", "--image-pull-policy=Never"); err != nil {
		a.t.Fatal(err)
	}
	a.PodPhase("hello", "Running", wide)
}

func grown(t *testing.T, m *Machine) {
	t.Helper()
	m.WaitFor(0, "edged-init: making an empty data partition", wide)
}

// TestAMD64 boots by UEFI and systemd-boot, runs a Pod, upgrades from slot a to b,
// and then takes a broken system, from which it comes back by itself.
func TestAMD64(t *testing.T) {
	m := New(t, Options{Board: "amd64", MemoryMB: 512, Config: config, Preload: []string{helloArchive(t, "amd64")}})
	m.On()
	m.WaitFor(0, "edged-init: the daemon is ready", wide)
	grown(t, m)
	a := m.API(time.Minute)
	a.NodeReady(wide)
	hello(a)

	good := filepath.Join(os.Getenv("EDGED_IMAGES"), "edged-amd64.upgrade")
	mark := m.Mark()
	upgrade(t, a, "good", good)
	m.WaitFor(mark, "edged-init: edged .*, slot b", wide)
	m.WaitFor(mark, "edged-init: slot b is kept", wide)
	a.NodeReady(wide)
	a.PodPhase("hello", "Running", wide)

	mark = m.Mark()
	upgrade(t, a, "broken", brokenUpgrade(t, "amd64", good))
	m.WaitFor(mark, "edged-init: start from the RAM disk: mount the root", wide)
	m.WaitFor(mark, "edged-init: edged .*, slot b", wide)
	m.WaitFor(mark, "edged-init: the daemon is ready", wide)
	a.NodeReady(wide)
	a.PodPhase("hello", "Running", wide)
}

// upgrade has a privileged Pod of the device write an upgrade that the harness
// serves, which is how it is done on a machine without a shell; with --cluster,
// have it written on all.
func upgrade(t *testing.T, a *API, name, file string, flags ...string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })}
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { must(t, srv.Close()) })
	_, port, err := net.SplitHostPort(l.Addr().String())
	must(t, err)
	more := ""
	for _, f := range flags {
		more += fmt.Sprintf(", %q", f)
	}
	manifest := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"upgrade-%s"},"spec":{"restartPolicy":"Never","hostPID":true,"hostNetwork":true,
"containers":[{"name":"upgrade","image":"example.org/hello:v1","imagePullPolicy":"Never","securityContext":{"privileged":true},
"command":["/host/bin/edged","upgrade","--root","/host","--image","http://10.0.2.2:%s/"%s],"volumeMounts":[{"name":"host","mountPath":"/host"}]}],
"volumes":[{"name":"host","hostPath":{"path":"/"}}]}}`, name, port, more)
	if _, err := a.Kubectl(manifest, "create", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// brokenUpgrade is a properly signed upgrade whose root is none.
func brokenUpgrade(t *testing.T, board, good string) string {
	t.Helper()
	return signAgain(t, board, good, "broken", func([]byte) []byte { return []byte("no file system") })
}

// nextUpgrade is another system: its root has a tail that squashfs does not read.
func nextUpgrade(t *testing.T, board, good string) string {
	t.Helper()
	return signAgain(t, board, good, "next", func(root []byte) []byte { return append(root, bytes.Repeat([]byte("next"), 1024)...) })
}

// signAgain signs an upgrade with another root.
func signAgain(t *testing.T, board, good, version string, change func(root []byte) []byte) string {
	t.Helper()
	text, err := os.ReadFile(os.Getenv("EDGED_UPGRADE_KEY"))
	must(t, err)
	seed, err := hex.DecodeString(strings.TrimSpace(string(text)))
	must(t, err)
	in, err := os.Open(good)
	must(t, err)
	defer in.Close()
	var files []fat.File
	var root []byte
	var was slot.Manifest
	for tr := tar.NewReader(in); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		data, err := io.ReadAll(tr)
		must(t, err)
		switch {
		case h.Name == "manifest.json":
			must(t, json.Unmarshal(data, &was))
		case strings.HasPrefix(h.Name, "manifest."):
		case h.Name == slot.RootName:
			root = data
		default:
			files = append(files, fat.File{Name: h.Name, Data: data})
		}
	}
	path := filepath.Join(t.TempDir(), version+".upgrade")
	out, err := os.Create(path)
	must(t, err)
	defer out.Close()
	must(t, slot.Sign(out, ed25519.NewKeyFromSeed(seed), slot.Manifest{Board: board, Version: version, Cmdline: was.Cmdline}, files, change(root)))
	return path
}

// TestPi boots the Raspberry Pi's image with the harness as its firmware, writes
// through the API, and cuts the power in a flush, the disk's cache lost: every
// acknowledged write is there, as often as EDGED_CUTS says.
func TestPi(t *testing.T) {
	m := New(t, Options{Board: "rpi", MemoryMB: 256, Config: config, Preload: []string{helloArchive(t, "arm64")}, NBD: true})
	m.On()
	m.WaitFor(0, "edged-init: the daemon is ready", wide)
	grown(t, m)
	a := m.API(time.Minute)
	a.NodeReady(wide)
	hello(a)
	cuts := 2
	if v := os.Getenv("EDGED_CUTS"); v != "" {
		var err error
		cuts, err = strconv.Atoi(v)
		must(t, err)
	}
	var acked []string
	for cut := range cuts {
		load := startLoad(a, cut)
		load.wait(t, 20)
		mark := m.Mark()
		select {
		case <-m.disk.CutAtFlush(1 + rand.IntN(20)):
		case <-time.After(wide):
			t.Fatal("four writers wait and nothing is flushed")
		}
		m.Cut()
		acked = append(acked, load.stop()...)
		m.On()
		m.WaitFor(mark, "edged-init: the daemon is ready", wide)
		var list struct {
			Items []struct {
				Metadata struct {
					Name string `json:"name"`
				} `json:"metadata"`
			} `json:"items"`
		}
		poll(t, wide, "the list of ConfigMaps", func() error {
			return a.Do(http.MethodGet, "/api/v1/namespaces/default/configmaps", nil, &list)
		})
		have := map[string]bool{}
		for _, i := range list.Items {
			have[i.Metadata.Name] = true
		}
		for _, name := range acked {
			if !have[name] {
				t.Errorf("after cut %d: %s was acknowledged and is not there", cut, name)
			}
		}
		t.Logf("cut %d: %d acknowledged writes so far, %d unflushed writes of the disk lost or torn", cut+1, len(acked), m.disk.Lost)
	}
	a.NodeReady(wide)
	a.PodPhase("hello", "Running", wide)
	if m.disk.Lost == 0 {
		t.Error("no cut took a write: nothing was shown")
	}
}

// TestPiUpgrade lets the harness's firmware read tryboot.txt once: the new slot is
// kept when it is ready; one whose root cannot be mounted is left by itself.
func TestPiUpgrade(t *testing.T) {
	m := New(t, Options{Board: "rpi", MemoryMB: 384, Config: config, Preload: []string{helloArchive(t, "arm64")}})
	m.On()
	m.WaitFor(0, "edged-init: the daemon is ready", wide)
	a := m.API(time.Minute)
	a.NodeReady(wide)
	good := filepath.Join(os.Getenv("EDGED_IMAGES"), "edged-rpi.upgrade")
	mark := m.Mark()
	upgrade(t, a, "good", good)
	m.Restarted(mark, wide)
	m.WaitFor(mark, "edged-init: edged .*, slot b", wide)
	m.WaitFor(mark, "edged-init: slot b is kept", wide)

	mark = m.Mark()
	m.Cut()
	m.On()
	m.WaitFor(mark, "edged-init: edged .*, slot b", wide)
	m.WaitFor(mark, "edged-init: the daemon is ready", wide)
	a.NodeReady(wide)

	mark = m.Mark()
	upgrade(t, a, "broken", brokenUpgrade(t, "rpi", good))
	m.Restarted(mark, wide) // into slot a, whose kernel finds no root
	m.Ended(wide)
	m.On()
	m.WaitFor(mark, "edged-init: edged .*, slot b", wide)
	m.WaitFor(mark, "edged-init: the daemon is ready", wide)
	a.NodeReady(wide)
}

// TestPi3B boots from the SD card of an emulated board, by its own device tree,
// with its network on USB and its clock at 1970.
func TestPi3B(t *testing.T) {
	m := New(t, Options{Board: "rpi", Machine: "raspi3b", MemoryMB: 1024, Config: config})
	m.On()
	m.WaitFor(0, "edged-init: the clock was at 1970-01-01 ", wide)
	grown(t, m)
	m.WaitFor(0, "edged-init: the daemon is ready", wide)
	m.API(time.Minute).NodeReady(wide)
}

// load is writers that go on until the power is cut.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	acked  chan string // as many as can be acknowledged in a test
}

func startLoad(a *API, cut int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel, acked: make(chan string, 10000)}
	for w := range 4 {
		l.wg.Go(func() {
			for i := 0; ctx.Err() == nil && len(l.acked) < cap(l.acked)-4; i++ {
				name := fmt.Sprintf("cut-%d-%d-%d", cut, w, i)
				if a.Do(http.MethodPost, "/api/v1/namespaces/default/configmaps", map[string]any{
					"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name}, "data": map[string]any{"k": strings.Repeat("v", 1000)},
				}, nil) != nil {
					return // not acknowledged: nothing was promised
				}
				l.acked <- name
			}
		})
	}
	return l
}

// wait returns when n writes were acknowledged; the writers go on.
func (l *load) wait(t *testing.T, n int) {
	t.Helper()
	poll(t, wide, "acknowledged writes", func() error {
		if len(l.acked) < n {
			return fmt.Errorf("there are %d of %d", len(l.acked), n)
		}
		return nil
	})
}

// stop ends the writers and tells what was acknowledged.
func (l *load) stop() (acked []string) {
	l.cancel()
	l.wg.Wait()
	close(l.acked)
	for name := range l.acked {
		acked = append(acked, name)
	}
	return acked
}

// TestDisk sees that the disk loses what was not flushed and nothing else.
func TestDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	d, err := ServeDisk(path, filepath.Join(t.TempDir(), "s"))
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	block := func(b byte) []byte { return []byte(strings.Repeat(string(rune(b)), 4096)) }
	for i := range 64 {
		_, err := d.WriteAt(block('a'), int64(i)*4096)
		must(t, err)
	}
	must(t, d.Sync())
	for i := range 64 {
		_, err := d.WriteAt(block('b'), int64(i)*4096)
		must(t, err)
	}
	got := make([]byte, 4096)
	_, err = d.ReadAt(got, 0)
	must(t, err)
	if got[0] != 'b' {
		t.Error("a read does not see what was written last")
	}
	must(t, d.Cut())
	old, torn := 0, 0
	for i := range 64 {
		_, err := d.ReadAt(got, int64(i)*4096)
		must(t, err)
		switch b := strings.Trim(string(got), "b"); {
		case strings.Trim(b, "a") != "":
			t.Errorf("block %d holds %q", i, b[:1])
		case len(b) == 4096:
			old++
		case len(b) > 0:
			torn++
		}
	}
	if old == 0 || torn == 0 || old+torn == 64 || d.Lost == 0 {
		t.Errorf("of 64 unflushed writes %d are lost and %d torn", old, torn)
	}
}
