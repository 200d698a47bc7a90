package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"edged/test/harness"
)

const talker = `
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: edged.example/busybox:1
    command: [sh, -c, 'for i in $(seq 20000); do echo "line $i of a program that has a lot to say, and says it again"; done; echo end; exec sleep 7654322']
`

// TestLogsInMemory: with --logs-in-memory a container's log is where collectors look
// for it, but not on the disk; it is small, and outlives the daemon. Without the flag it
// is on the disk again, and nothing is left mounted.
func TestLogsInMemory(t *testing.T) {
	t.Parallel()
	d := harness.Lone(t)
	d.ImportBusybox()
	d.Stop()
	d.Start("--logs-in-memory")
	d.WaitReady()
	d.MustKubectl(talker, "create", "-f", "-")
	last := func() {
		t.Helper()
		d.Eventually(2*time.Minute, "the last line", func() error {
			if out, err := d.Kubectl("", "logs", "talker", "--tail=1"); err != nil || out != "end\n" {
				return fmt.Errorf("%q %v", out, err)
			}
			return nil
		})
	}
	last()
	where := func() string {
		t.Helper()
		out, err := d.Run("stat", "-f", "-c", "%T", "/var/log/pods")
		if err != nil {
			t.Fatalf("%v %s", err, out)
		}
		return strings.TrimSpace(out)
	}
	if got := where(); got != "tmpfs" {
		t.Errorf("the logs are on %s", got)
	}
	out, err := d.Run("sh", "-c", "cat /var/log/pods/default_talker_*/c/0.log* | wc -c")
	if size, convErr := strconv.Atoi(strings.TrimSpace(out)); err != nil || convErr != nil || size < 100<<10 || size > 600<<10 {
		t.Errorf("of 2 MB that the container said %q bytes are kept, %v", out, err)
	}

	d.Kill()
	d.Start("--logs-in-memory")
	d.WaitReady()
	last()

	d.Stop()
	d.Start()
	d.WaitReady()
	d.Eventually(time.Minute, "the logs on the disk", func() error {
		if out, err := d.Run("grep", "edged-logs", "/proc/self/mountinfo"); err == nil {
			return fmt.Errorf("without the flag there is %s", out)
		}
		return nil
	})
	d.MustKubectl(sleeperNamed("quiet"), "create", "-f", "-")
	d.Eventually(time.Minute, "a log on the disk", func() error {
		out, err := d.Run("sh", "-c", "ls /var/log/pods/default_quiet_*/c/0.log")
		if err != nil {
			return fmt.Errorf("%w %s", err, out)
		}
		return nil
	})
	d.Stop()
	d.Start("--logs-in-memory")
	d.WaitReady()
	d.Stop()
	if out, err := d.Edged("reset", "--data-dir", d.DataDir(), "--run-dir", d.RunDir()); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if out, err := d.Run("sh", "-c", "grep edged-logs /proc/self/mountinfo; ls /var/log/pods"); err != nil || out != "" {
		t.Errorf("reset left %q, %v", out, err)
	}
}

func sleeperNamed(name string) string { return fmt.Sprintf(sleeper, name, 7654323) }
