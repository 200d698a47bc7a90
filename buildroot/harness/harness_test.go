package harness

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"edged/buildroot/fat"
	"edged/buildroot/pid1"
	"edged/buildroot/slot"
	"edged/internal/ociimage"
)

const config = "kubeconfig: boot\nedged:\n  node-label: [room=cellar]\n"

// helloArchive is an image of examples/hello for a board, with mounts and lookup beside it.
func helloArchive(t *testing.T, goarch string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "hello"), 0o755))
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "hello"), "edged/examples/hello", "edged/buildroot/harness/mounts", "edged/buildroot/harness/lookup")
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

// wide bounds what a machine does at its leisure: emulated, on a host that has other work.
const wide = 10 * time.Minute

// hello runs a Pod of the preloaded image and sees it run.
func hello(a *API) {
	a.t.Helper()
	if _, err := a.Kubectl("", "run", "hello", "--image=example.org/hello:v1", "--image-pull-policy=Never"); err != nil {
		a.t.Fatal(err)
	}
	a.PodPhase("hello", "Running", wide)
}

// propagates has a Pod mount what another container sees, by way of the device:
// the root and the data partition are shared mounts.
func propagates(a *API) {
	a.t.Helper()
	container := func(name, propagation string) string {
		return fmt.Sprintf(`{"name":%q,"image":"example.org/hello:v1","imagePullPolicy":"Never","command":["/mounts",%[1]q,"/m"],
"securityContext":{"privileged":true},"volumeMounts":[{"name":"m","mountPath":"/m","mountPropagation":%[2]q}]}`, name, propagation)
	}
	manifest := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"mounts"},"spec":{"restartPolicy":"Never","containers":[%s,%s],
"volumes":[{"name":"m","hostPath":{"path":"/var/lib/mounts","type":"DirectoryOrCreate"}}]}}`, container("make", "Bidirectional"), container("see", "HostToContainer"))
	if _, err := a.Kubectl(manifest, "create", "-f", "-"); err != nil {
		a.t.Fatal(err)
	}
	a.PodPhase("mounts", "Succeeded", wide)
}

// finds has a Pod look up a name, a Service's short one say, and connect to it.
func finds(a *API, name, port string) {
	a.t.Helper()
	if _, err := a.Kubectl("", "run", "lookup", "--image=example.org/hello:v1", "--image-pull-policy=Never", "--restart=Never", "--command", "--", "/lookup", name, port); err != nil {
		a.t.Fatal(err)
	}
	a.PodPhase("lookup", "Succeeded", wide)
}

func grown(t *testing.T, m *Machine) {
	t.Helper()
	m.WaitFor(0, "edged-init: making an empty data partition", wide)
}

// TestAMD64 boots by UEFI and systemd-boot, with a damaged data partition and without
// a network, and stays up; told to make the partition anew, it runs a Pod, has the names
// of the world from the server that its card names, upgrades from slot a to b, and then takes a broken system, from which it comes back by itself;
// it ends when its power button is pressed.
func TestAMD64(t *testing.T) {
	t.Parallel()
	m := New(t, Options{Board: "amd64", MemoryMB: 512, Config: config, Preload: []string{helloArchive(t, "amd64")}, Offline: true,
		Manifest: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: from-the-card, namespace: default}\n"})
	m.damage()
	m.On()
	m.WaitFor(0, "edged-init: NO DATA PARTITION", wide)
	m.WaitFor(0, "edged-init: no link has an address yet", wide)
	m.Cut()
	if n := m.count("edged-init: edged .*, slot a"); n != 1 {
		t.Errorf("it started %d times: the watchdog (softdog) does not wait for a network", n)
	}
	m.o.Offline, m.o.Config = false, config+"data: recreate\nnetwork: {dns: [10.0.2.2]}\n"
	names := serveNames(t)
	m.writeConfig()
	m.On()
	m.WaitFor(0, "edged-init: the daemon is ready", wide)
	grown(t, m)
	a := m.API(wide)
	a.NodeReady(wide)
	poll(t, wide, "the manifest of the card", func() error {
		_, err := a.Kubectl("", "get", "configmap", "from-the-card")
		return err
	})
	hello(a)
	propagates(a)
	finds(a, worldName, names)

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

	m.PressPower()
	m.WaitFor(mark, "edged-init: the power button was pressed", wide)
	m.WaitFor(mark, "edged-init: power off", wide)
	m.Ended(wide)
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
	manifest := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"upgrade-%s"},"spec":{"nodeName":%q,"restartPolicy":"Never","hostPID":true,"hostNetwork":true,
"containers":[{"name":"upgrade","image":"example.org/hello:v1","imagePullPolicy":"Never","securityContext":{"privileged":true},
"command":["/host/bin/edged","upgrade","--root","/host","--image","http://10.0.2.2:%s/"%s],"volumeMounts":[{"name":"host","mountPath":"/host"}]}],
"volumes":[{"name":"host","hostPath":{"path":"/"}}]}}`, name, a.node, port, more)
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
// acknowledged write is there.
func TestPi(t *testing.T) {
	t.Parallel()
	var n tally
	c := newCutter(t, helloArchive(t, "arm64"), &n)
	propagates(c.a)
	finds(c.a, "kubernetes", "443")
	for round := range 2 {
		c.cut(round)
	}
	c.a.NodeReady(wide)
	c.a.PodPhase("hello", "Running", wide)
	if c.m.disk.Lost == 0 {
		t.Error("no cut took a write: nothing was shown")
	}
}

// TestPiUpgrade has a machine join a cluster by the address and the token of its card,
// labelled and tainted as that says. Then the harness's firmware reads tryboot.txt once:
// the new slot is kept when it is ready; one whose root cannot be mounted is left by
// itself.
func TestPiUpgrade(t *testing.T) {
	t.Parallel()
	founder := NewFounder(t)
	token := founder.Token(wide)
	m := New(t, Options{Board: "rpi", MemoryMB: 384, Reachable: true, Preload: []string{helloArchive(t, "arm64")},
		Config: "kubeconfig: boot\njoin: ['" + hostAddress + ":6443']\ntoken: " + token + "\nlabels: {room: cellar}\ntaints: ['dedicated=io:NoSchedule']\n"})
	m.On()
	m.WaitFor(0, "edged-init: the daemon is ready", wide)
	a := m.API(wide)
	a.NodeReady(wide)
	joined(t, m, a, founder, token)
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

// joined looks at what became of the card's join, token, labels and taints.
func joined(t *testing.T, m *Machine, a *API, founder *Founder, token string) {
	t.Helper()
	members, err := founder.edged("member", "list")
	must(t, err)
	if !strings.Contains(members, m.Name(wide)) {
		t.Errorf("the founder's cluster has no %s:\n%s", m.Name(wide), members)
	}
	text, err := m.Boot().ReadFile(pid1.ConfigName)
	must(t, err)
	if strings.Contains(string(text), token) {
		t.Error("the token is still on the boot partition")
	}
	var node struct {
		Metadata struct{ Labels map[string]string }
		Spec     struct {
			Taints []struct{ Key, Value, Effect string }
		}
	}
	must(t, a.Do(http.MethodGet, "/api/v1/nodes/"+m.Name(wide), nil, &node))
	if node.Metadata.Labels["room"] != "cellar" || !strings.Contains(fmt.Sprint(node.Spec.Taints), "{dedicated io NoSchedule}") {
		t.Errorf("the Node has the labels %v and the taints %v", node.Metadata.Labels, node.Spec.Taints)
	}
}

// TestPi3B boots from the SD card of an emulated board, by its own device tree,
// with its network on USB, a static address, and its clock at 1970 until a time server
// tells; at the next start it goes on from the last known time. Its console is asked
// whether it is Ready and not its API: QEMU's USB network stops passing packets to a
// board at times, and does not begin again.
func TestPi3B(t *testing.T) {
	t.Parallel()
	serveTime(t)
	m := New(t, Options{Board: "rpi", Machine: "raspi3b", MemoryMB: 1024, Config: config + `
network:
  links: [{name: usb0, address: 10.0.2.15/24, gateway: 10.0.2.2}]
ntp: [10.0.2.2]
`})
	m.On()
	m.WaitFor(0, "edged-init: the clock was at 1970-01-01 ", wide)
	grown(t, m)
	m.WaitFor(0, "edged-init: the daemon is ready", wide)
	m.WaitFor(0, `msg="the Node is Ready"`, wide)
	m.API(wide) // the kubeconfig is on the card
	m.WaitFor(0, `edged-init: usb0 has 10\.0\.2\.15/24`, wide)
	m.WaitFor(0, `edged-init: the clock was off by \S+ \(10\.0\.2\.2\)`, wide)

	mark := m.Mark()
	m.Cut()
	m.On()
	built := m.WaitFor(mark, "edged-init: the clock was at 1970-01-01 .* and goes on from (.*)", wide)[1]
	known := m.WaitFor(mark, "edged-init: the clock was at 2.* and goes on from (.*)", wide)[1]
	if known <= built {
		t.Errorf("of %s and %s, what the data partition knew last is not the later", built, known)
	}
}

// worldName is what [serveNames] knows.
const worldName = "cellar.test"

// serveNames is a DNS server where QEMU's networks have 10.0.2.2 lead; worldName is that
// address, with a listener at the port that is returned.
func serveNames(t *testing.T) (port string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:53")
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var ended sync.WaitGroup
	ended.Go(func() {
		for buf := make([]byte, 512); ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if err := m.Unpack(buf[:n]); err != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Additionals = true, nil
			switch q := m.Questions[0]; {
			case q.Name.String() != worldName+".":
				m.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeA:
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 60}, Body: &dnsmessage.AResource{A: [4]byte{10, 0, 2, 2}},
				}}
			}
			answer, err := m.Pack()
			if err != nil {
				t.Errorf("answer %s: %v", m.Questions[0].Name, err)
				continue
			}
			_, _ = conn.WriteTo(answer, from) // a wire may lose it
		}
	})
	ended.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
	t.Cleanup(func() {
		conn.Close()
		l.Close()
		ended.Wait()
	})
	_, port, err = net.SplitHostPort(l.Addr().String())
	must(t, err)
	return port
}

// serveTime is an NTP server where QEMU's networks have 10.0.2.2 lead.
func serveTime(t *testing.T) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:123")
	must(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		const epoch = 2208988800 // 1970 in seconds since 1900
		for buf := make([]byte, 512); ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if n < 48 {
				continue
			}
			answer := make([]byte, 48)
			answer[0], answer[1] = 4<<3|4, 1 // version 4, server, stratum 1
			copy(answer[24:], buf[40:48])
			now := time.Now()
			for _, at := range []int{32, 40} {
				binary.BigEndian.PutUint32(answer[at:], uint32(now.Unix()+epoch))
				binary.BigEndian.PutUint32(answer[at+4:], uint32(uint64(now.Nanosecond())<<32/1e9))
			}
			_, _ = conn.WriteTo(answer, from) // a wire may lose it
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-ended
	})
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
