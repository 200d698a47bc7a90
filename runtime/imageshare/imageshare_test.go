package imageshare_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/cluster/identity"
	"edged/internal/ociimage"
	"edged/runtime/engine"
	"edged/runtime/imageshare"
)

// device is a content store of its own with the Share in front, reached over TLS
// with the certificate of a device.
type device struct {
	name   string
	engine *engine.Engine
	share  *imageshare.Share
	server *httptest.Server
	id     *identity.Identity
	// served are the bytes of blobs that it gave others.
	served atomic.Int64
	// broken answers everything with an error.
	broken atomic.Bool
}

var devices atomic.Int64

// newCluster makes devices that know each other by their Nodes.
func newCluster(t *testing.T, n int) (*registry.Registry, []*device) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("unpacking images needs root")
	}
	reg := registrytest.New(t)
	first := newIdentity(t, filepath.Join(t.TempDir(), "pki"), "d1")
	shared, err := first.Share()
	if err != nil {
		t.Fatal(err)
	}
	var all []*device
	for i := 1; i <= n; i++ {
		d := &device{name: fmt.Sprintf("d%d", i), id: first}
		if i > 1 {
			dir := filepath.Join(t.TempDir(), "pki")
			if err := identity.Install(dir, shared, deviceKey(t)); err != nil {
				t.Fatal(err)
			}
			d.id = newIdentity(t, dir, d.name)
		}
		d.open(t, reg)
		all = append(all, d)
	}
	return reg, all
}

func newIdentity(t *testing.T, dir, name string) *identity.Identity {
	t.Helper()
	id, err := identity.Open(identity.Config{Dir: dir, NodeName: name, Now: time.Now, Logger: slog.New(slog.DiscardHandler), IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (d *device) open(t *testing.T, reg *registry.Registry) {
	t.Helper()
	dir, err := os.MkdirTemp("", "shr") // t.TempDir is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	cfg := engine.Config{
		Root: dir + "/data", State: dir + "/run", BinDir: dir + "/bin", CgroupRoot: fmt.Sprintf("/edged-share-%d-%d", os.Getpid(), devices.Add(1)),
	}
	if d.engine, err = engine.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	d.share = imageshare.New(imageshare.Config{
		NodeName: d.name, Registry: reg, Store: d.engine, TLS: d.id.PeerClientTLS(), Device: deviceOf, Logger: slog.New(slog.DiscardHandler),
	})
	h := d.share.Handler()
	d.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.broken.Load() {
			http.Error(w, "broken", http.StatusInternalServerError)
			return
		}
		h.ServeHTTP(&counter{ResponseWriter: w, n: &d.served}, r)
	}))
	d.server.Listener = tls.NewListener(d.server.Listener, d.id.ServerTLS())
	d.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	d.server.Start()
	t.Cleanup(func() {
		d.share.Close()
		d.server.CloseClientConnections()
		d.server.Close()
		if err := errors.Join(d.engine.Close(), engine.Cleanup(context.Background(), cfg), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	d.setReady(t, reg, true)
}

// setReady makes the device's Node or changes its condition.
func (d *device) setReady(t *testing.T, reg *registry.Registry, is bool) {
	t.Helper()
	nodes := registry.For[*corev1.Node](reg)
	if _, ok := nodes.Get("", d.name); !ok {
		if _, err := nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: d.name}}); err != nil {
			t.Fatal(err)
		}
	}
	at := d.server.Listener.Addr().(*net.TCPAddr)
	if _, err := nodes.UpdateStatus(t.Context(), "", d.name, func(n *corev1.Node) error {
		status := corev1.ConditionFalse
		if is {
			status = corev1.ConditionTrue
		}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: at.IP.String()}}
		n.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(at.Port)
		n.Status.NodeInfo = corev1.NodeSystemInfo{Architecture: goruntime.GOARCH, OperatingSystem: "linux"}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// deviceOf is what the daemon's authenticator says, short.
func deviceOf(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return ""
	}
	leaf := r.TLS.PeerCertificates[0]
	name, ok := strings.CutPrefix(leaf.Subject.CommonName, "system:node:")
	if !ok || len(leaf.Subject.Organization) != 1 || leaf.Subject.Organization[0] != "system:nodes" {
		return ""
	}
	return name
}

// counter counts what is written; it has to let a claim flush.
type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n.Add(int64(n))
	return n, err
}
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// archive is an image of layers that no compression makes small.
func archive(t *testing.T, name string, layers, layerBytes int) []byte {
	t.Helper()
	dir := t.TempDir()
	spec := ociimage.Spec{Arch: goruntime.GOARCH, Layers: map[string]string{}}
	im := ociimage.Image{Names: []string{name}, Config: ociimage.Config{Cmd: []string{"/x"}}}
	for i := range layers {
		layer := fmt.Sprintf("l%d", i)
		data := make([]byte, layerBytes)
		rand.Read(data)
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, layer), 0o755), os.WriteFile(filepath.Join(dir, layer, layer), data, 0o644)); err != nil {
			t.Fatal(err)
		}
		spec.Layers[layer] = layer
		im.Layers = append(im.Layers, layer)
	}
	spec.Images = []ociimage.Image{im}
	var out bytes.Buffer
	if err := ociimage.Write(&out, dir, spec); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func (d *device) pull(t *testing.T, ref string, opts engine.PullOptions) (engine.Image, error) {
	opts.Source = d.share
	return d.engine.Pull(t.Context(), ref, opts)
}

// TestImportedOnOne: an image that was imported on one device is had by the
// others, by tag and by digest, without a registry, and is no registry's there.
func TestImportedOnOne(t *testing.T) {
	_, d := newCluster(t, 3)
	const name = "reg.invalid/team/app:1"
	imported, err := d[0].engine.ImportImages(t.Context(), bytes.NewReader(archive(t, name, 2, 100<<10)))
	if err != nil {
		t.Fatal(err)
	}
	im, err := d[1].pull(t, name, engine.PullOptions{})
	if err != nil || im.ID != imported[0].ID || im.Pulled {
		t.Fatalf("pulled %+v, %v, want %s", im, err, imported[0].ID)
	}
	if im, err = d[2].pull(t, "reg.invalid/team/app@"+imported[0].Digest, engine.PullOptions{}); err != nil || im.ID != imported[0].ID {
		t.Fatalf("by digest %+v, %v", im, err)
	}
	if _, err := d[1].pull(t, name, engine.PullOptions{Fresh: true}); err == nil {
		t.Error("a name that has to be asked at the registry was taken from a device")
	}
	if _, err := d[1].pull(t, "reg.invalid/team/other:1", engine.PullOptions{}); err == nil {
		t.Error("an image that nobody has was pulled")
	}
	if got := strings.Join(d[0].share.Copies(t.Context(), name, im.Digest), " "); got != "d2 d3" {
		t.Errorf("copies are said to be on %q, want d2 d3", got)
	}
}

// TestServe is the distribution API as a client sees it, and who is none.
func TestServe(t *testing.T) {
	_, d := newCluster(t, 1)
	imported, err := d[0].engine.ImportImages(t.Context(), bytes.NewReader(archive(t, "docker.io/library/app:1", 1, 50<<10)))
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: d[0].id.PeerClientTLS()}}
	defer client.CloseIdleConnections()
	get := func(method, path, byteRange string) (*http.Response, []byte) {
		t.Helper()
		req, err := http.NewRequest(method, "https://"+d[0].server.Listener.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if byteRange != "" {
			req.Header.Set("Range", byteRange)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, body
	}
	resp, body := get("GET", "/v2/library/app/manifests/1?ns=docker.io", "")
	if resp.StatusCode != 200 || resp.Header.Get("Docker-Content-Digest") != imported[0].Digest || !strings.Contains(resp.Header.Get("Content-Type"), "manifest") {
		t.Fatalf("manifest: %s %v", resp.Status, resp.Header)
	}
	var m struct {
		Layers []struct {
			Digest string
			Size   int64
		}
	}
	if err := json.Unmarshal(body, &m); err != nil || len(m.Layers) != 1 {
		t.Fatalf("manifest %s: %v", body, err)
	}
	byDigest, same := get("GET", "/v2/whatever/manifests/"+imported[0].Digest, "")
	if byDigest.StatusCode != 200 || !bytes.Equal(same, body) || byDigest.Header.Get("Content-Type") != resp.Header.Get("Content-Type") {
		t.Errorf("manifest by digest: %s %v", byDigest.Status, byDigest.Header)
	}
	layer := "/v2/library/app/blobs/" + m.Layers[0].Digest
	_, whole := get("GET", layer, "")
	if int64(len(whole)) != m.Layers[0].Size {
		t.Fatalf("layer of %d bytes, want %d", len(whole), m.Layers[0].Size)
	}
	resp, part := get("GET", layer, "bytes=1000-")
	if resp.StatusCode != 206 || !bytes.Equal(part, whole[1000:]) {
		t.Errorf("range: %s, %d bytes", resp.Status, len(part))
	}
	if resp, _ := get("HEAD", layer, ""); resp.StatusCode != 200 || resp.ContentLength != m.Layers[0].Size {
		t.Errorf("HEAD: %s %d", resp.Status, resp.ContentLength)
	}
	for path, want := range map[string]int{
		"/v2/": 200, "/v2/library/app/manifests/2": 404, "/v2/other/manifests/1": 404, "/v2/x/blobs/sha256:" + strings.Repeat("0", 64): 404,
		"/v2/x/blobs/..%2f..%2fetc": 404, "/v2/x/tags/list": 404, "/v2/library/app/manifests/" + m.Layers[0].Digest: 404,
	} {
		if resp, body := get("GET", path, ""); resp.StatusCode != want {
			t.Errorf("%s: %s %s, want %d", path, resp.Status, body, want)
		}
	}
	// Nobody else is served: no certificate, and an administrator's.
	admin := d[0].id.KubeletClientTLS()
	for who, cfg := range map[string]*tls.Config{"a stranger": {InsecureSkipVerify: true}, "no device": admin} {
		client = &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
		for _, path := range []string{layer, "/edged/v1/claims/sha256:x"} {
			if resp, _ := get("GET", path, ""); resp.StatusCode != 401 {
				t.Errorf("%s: %s: %s", who, path, resp.Status)
			}
		}
	}
}

// upstream is a registry behind a link that is cut after every so many bytes. It
// counts what goes over the link.
type upstream struct {
	*httptest.Server
	blobs map[string][]byte
	root  string
	total int64

	mu     sync.Mutex
	sent   int64
	ranges int
	cutAt  int64 // bytes of one connection; 0: never
}

func newUpstream(t *testing.T, archived []byte, cutAt int64) *upstream {
	t.Helper()
	u := &upstream{blobs: map[string][]byte{}, cutAt: cutAt}
	u.root = readArchive(t, archived, u.blobs)
	for _, b := range u.blobs {
		u.total += int64(len(b))
	}
	u.Server = httptest.NewServer(u)
	t.Cleanup(u.Close)
	return u
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i := strings.LastIndexByte(r.URL.Path, '/')
	digest := r.URL.Path[i+1:]
	if digest == "1" {
		digest = u.root
	}
	data, ok := u.blobs[digest]
	if !ok {
		http.Error(w, "{}", http.StatusNotFound)
		return
	}
	if strings.Contains(r.URL.Path, "/manifests/") {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	}
	w.Header().Set("Docker-Content-Digest", digest)
	if r.Header.Get("Range") != "" {
		u.mu.Lock()
		u.ranges++
		u.mu.Unlock()
	}
	http.ServeContent(&link{w, u, 0}, r, "", time.Time{}, bytes.NewReader(data))
}

// link cuts the connection in the middle of a body.
type link struct {
	http.ResponseWriter
	u    *upstream
	sent int64
}

func (l *link) Write(b []byte) (int, error) {
	if cut := l.u.cutAt; cut > 0 && l.sent+int64(len(b)) > cut {
		n, _ := l.ResponseWriter.Write(b[:cut-l.sent])
		l.count(n)
		http.NewResponseController(l.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	n, err := l.ResponseWriter.Write(b)
	l.count(n)
	return n, err
}

func (l *link) count(n int) {
	l.sent += int64(n)
	l.u.mu.Lock()
	l.u.sent += int64(n)
	l.u.mu.Unlock()
}

// TestOncePerCluster: five devices want an image at the same time, over a link
// that is cut in the middle of every layer: at most 1.05 times the image comes
// over it in all, and the layers that were cut go on where they ended.
func TestOncePerCluster(t *testing.T) {
	_, d := newCluster(t, 5)
	u := newUpstream(t, archive(t, "x.example/big:1", 4, 2<<20), 700<<10)
	ref := strings.TrimPrefix(u.URL, "http://") + "/big:1"
	var wg sync.WaitGroup
	for i, dev := range d {
		wg.Go(func() {
			// Some have to ask the registry what the name means, as with Always.
			if _, err := dev.pull(t, ref, engine.PullOptions{Fresh: i%2 == 0}); err != nil {
				t.Errorf("%s: %v", dev.name, err)
			}
		})
	}
	wg.Wait()
	u.mu.Lock()
	defer u.mu.Unlock()
	var given int64
	for _, dev := range d {
		given += dev.served.Load()
	}
	t.Logf("the image has %d bytes, %d came over the link, %d requests for a range; devices gave each other %d", u.total, u.sent, u.ranges, given)
	if float64(u.sent) > 1.05*float64(u.total) {
		t.Errorf("%d bytes came over the link, more than 1.05 times %d", u.sent, u.total)
	}
	if u.ranges == 0 {
		t.Error("no layer was resumed")
	}
	for _, dev := range d {
		if im, ok, err := dev.engine.Image(t.Context(), ref); err != nil || !ok || !im.Pulled {
			t.Errorf("%s has %+v, %v, %v", dev.name, im, ok, err)
		}
	}
}

// TestBrokenDevices: a device that is ready and answers nonsense, or is not ready,
// keeps nobody from an image.
func TestBrokenDevices(t *testing.T) {
	reg, d := newCluster(t, 3)
	u := newUpstream(t, archive(t, "x.example/app:1", 2, 200<<10), 0)
	ref := strings.TrimPrefix(u.URL, "http://") + "/app:1"
	d[1].broken.Store(true)
	d[2].server.CloseClientConnections()
	d[2].setReady(t, reg, false)
	if _, err := d[0].pull(t, ref, engine.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	d[1].broken.Store(false)
	d[2].setReady(t, reg, true)
	u.Close() // the registry is gone
	for _, dev := range d[1:] {
		if _, err := dev.pull(t, ref, engine.PullOptions{}); err != nil {
			t.Errorf("%s: %v", dev.name, err)
		}
	}
}

func deviceKey(t *testing.T) identity.DeviceKey {
	t.Helper()
	key, err := identity.NewDeviceKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}
