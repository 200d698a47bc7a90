package harness

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Founder is the first device of a cluster, for machines to join: a daemon on the
// host. Machines reach it where their network has the host, and it reaches a
// [Options.Reachable] machine at that machine's own address; test-image.sh leads both
// to the loopback link of the tests' network namespace. The Pods' networks of
// the two are apart: no tunnel leads through what QEMU forwards.
type Founder struct {
	t   testing.TB
	dir string
	exe string
}

const (
	hostAddress  = "10.0.2.2"  // of the host, to a machine on QEMU's user network
	guestAddress = "10.0.2.15" // of the machine, by its DHCP
)

// NewFounder starts it and ends it with the test.
func NewFounder(t testing.TB) *Founder {
	t.Helper()
	exe := filepath.Join(imagesDir(t), "edged-linux-"+runtime.GOARCH)
	dir, err := os.MkdirTemp("", "founder") // t.TempDir is too long for sockets
	must(t, err)
	f := &Founder{t: t, dir: dir, exe: exe}
	// Its mounts go with it. QEMU leads hostAddress to 127.0.0.1, and listens itself at
	// guestAddress.
	daemon := exec.Command("unshare", "--mount", f.exe, "run", "--node-name", "founder", "--node-ip", hostAddress, "--set-clock", "never", "--node-taint", "founder:NoSchedule",
		"--api-listen", "127.0.0.1:6443", "--peer-listen", "127.0.0.1:2380", "--kubelet-listen", "127.0.0.1:10250",
		"--data-dir", filepath.Join(dir, "data"), "--run-dir", filepath.Join(dir, "run"))
	daemon.SysProcAttr = endWithTest
	var said bytes.Buffer
	daemon.Stdout, daemon.Stderr = &said, &said
	must(t, daemon.Start())
	t.Cleanup(func() {
		_ = daemon.Process.Kill() // it may have ended by itself
		_ = daemon.Wait()
		if t.Failed() {
			t.Logf("the founder:\n%s", said.String())
		}
		must(t, os.RemoveAll(dir))
	})
	return f
}

// Token waits until there is a cluster, and makes one with which a machine joins it.
func (f *Founder) Token(limit time.Duration) (token string) {
	f.t.Helper()
	poll(f.t, limit, "a token of the founder", func() (err error) {
		token, err = f.edged("token", "create")
		return err
	})
	return strings.TrimSpace(token)
}

func (f *Founder) edged(args ...string) (string, error) {
	out, err := exec.Command(f.exe, append(args, "--run-dir", filepath.Join(f.dir, "run"))...).Output()
	return string(out), err
}
