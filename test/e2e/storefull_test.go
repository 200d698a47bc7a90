package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"edged/test/harness"
)

// loneStore is an `edged store` whose data is on a tmpfs of its own, which ends with
// it; its port is a Unix socket.
type loneStore struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	client http.Client
}

func startLoneStore(t *testing.T, sizeMiB, ballastMiB int) *loneStore {
	s := &loneStore{t: t, dir: t.TempDir()}
	if err := os.Mkdir(filepath.Join(s.dir, "disk"), 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(s.dir, "s")
	s.client.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	s.client.Timeout = 10 * time.Second
	script := fmt.Sprintf(`set -e
ip link set lo up
mount -t tmpfs -o size=%dm tmpfs disk
fallocate -l %dM disk/ballast
exec "$0" store --name=m --data-dir=disk/m --listen-client-urls="unix://$1" --advertise-client-urls=http://localhost:2379`, sizeMiB, ballastMiB)
	s.cmd = exec.Command("unshare", "--mount", "--net", "sh", "-c", script, harness.Edged(), socket)
	s.cmd.Dir = s.dir
	var log bytes.Buffer
	s.cmd.Stdout, s.cmd.Stderr = &log, &log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		if err := s.cmd.Wait(); err != nil && !t.Failed() {
			t.Errorf("the store ended: %v", err)
		}
		if t.Failed() {
			t.Logf("%s", log.String())
		}
	})
	s.eventually("the store answering", func() bool { return s.call("kv/put", `{"key":"`+b64("old")+`"}`, nil) == "" })
	return s
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// call makes a request of etcd's JSON API and returns the error that it is answered
// with, "" for none.
func (s *loneStore) call(method, body string, out any) string {
	resp, err := s.client.Post("http://store/v3/"+method, "application/json", strings.NewReader(body))
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	var failed struct{ Message string }
	if err := json.Unmarshal(data, &failed); err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Sprintf("%d: %s", resp.StatusCode, data)
	}
	if out != nil {
		if err := json.Unmarshal(data, out); err != nil {
			return err.Error()
		}
	}
	return ""
}

func (s *loneStore) must(method, body string, out any) {
	s.t.Helper()
	if why := s.call(method, body, out); why != "" {
		s.t.Errorf("%s on a full disk: %s", method, why)
	}
}

func (s *loneStore) alarms() int {
	var list struct{ Alarms []struct{ Alarm string } }
	if s.call("maintenance/alarm", `{"action":"GET"}`, &list) != "" {
		return -1
	}
	return len(list.Alarms)
}

func (s *loneStore) healthy() bool {
	resp, err := s.client.Get("http://store/health")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (s *loneStore) eventually(what string, f func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("after 30 s: no %s", what)
		}
	}
}

// TestStoreOnFullDisk: a file system that is really full raises etcd's NOSPACE alarm.
// Writes are refused with etcd's words, everything else goes on, for as long as it
// takes to delete all there is, and nobody has to do anything when there is room.
func TestStoreOnFullDisk(t *testing.T) {
	s := startLoneStore(t, 32, 12)
	draw := rand.New(rand.NewPCG(1, 1))
	value := make([]byte, 100<<10)
	var refusal string
	written := 0
	for ; refusal == ""; written++ {
		if written == 400 {
			t.Fatal("40 MB were written to a disk of 32")
		}
		for i := range value {
			value[i] = byte(draw.Uint32())
		}
		refusal = s.call("kv/put", fmt.Sprintf(`{"key":%q,"value":%q}`, b64(fmt.Sprintf("k%03d", written)), b64(string(value))), nil)
	}
	written--
	if !strings.Contains(refusal, "database space exceeded") {
		t.Errorf("refused with %q", refusal)
	}
	s.eventually("alarm", func() bool { return s.alarms() == 1 })
	if s.healthy() {
		t.Error("/health does not tell")
	}
	var got struct{ Count string }
	s.must("kv/range", fmt.Sprintf(`{"key":%q,"range_end":%q,"count_only":true}`, b64("k"), b64("l")), &got)
	if got.Count != fmt.Sprint(written) {
		t.Errorf("%s keys are there, %d were acknowledged", got.Count, written)
	}
	for i := range written {
		var del struct {
			Header  struct{ Revision string }
			Deleted string
		}
		s.must("kv/deleterange", fmt.Sprintf(`{"key":%q}`, b64(fmt.Sprintf("k%03d", i))), &del)
		if i%20 == 0 {
			s.must("kv/compaction", fmt.Sprintf(`{"revision":%s,"physical":true}`, del.Header.Revision), nil)
		}
	}
	if why := s.call("kv/put", `{"key":"`+b64("more")+`"}`, nil); !strings.Contains(why, "database space exceeded") {
		t.Errorf("without room a write is answered with %q", why)
	}
	if err := os.Remove(fmt.Sprintf("/proc/%d/root%s/disk/ballast", s.cmd.Process.Pid, s.dir)); err != nil {
		t.Fatal(err)
	}
	s.eventually("writing again", func() bool { return s.call("kv/put", `{"key":"`+b64("after")+`"}`, nil) == "" })
	s.eventually("end of the alarm", func() bool { return s.alarms() == 0 })
	if !s.healthy() {
		t.Error("not healthy with room")
	}
}
