package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
)

// TB is what the harness needs of a test, so that commands can use it too.
type TB interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
}

// machine is a set of namespaces kept alive by a process that does nothing:
// PID 1 of its PID namespace, so that killing it kills all that run in it.
type machine struct {
	name   string
	cgroup string // below every controller's root, "" for none
	port   string // of the switch
	cmd    *exec.Cmd
	pid    int // of PID 1, as the host sees it
}

// starter starts processes from one OS thread that never ends: a parent-death
// signal fires when the starting thread dies, not the process.
var starter = sync.OnceValue(func() chan func() {
	ch := make(chan func())
	go func() {
		goruntime.LockOSThread()
		for f := range ch {
			f()
		}
	}()
	return ch
})

func startBound(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	done := make(chan error)
	starter() <- func() { done <- cmd.Start() }
	return <-done
}

// boot makes the namespaces and runs setup, a shell script, inside them before
// anything else does.
func boot(name string, isolateCgroups bool, setup string) (*machine, error) {
	m := &machine{name: name}
	args := []string{"--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"}
	join := ""
	if isolateCgroups {
		m.cgroup = "edged-test/" + name
		args = append(args, "--cgroup")
		join = joinCgroups(m.cgroup)
		setup = remountCgroups + setup
	}
	script := join + "exec unshare " + strings.Join(args, " ") + ` sh -ec "$1"`
	m.cmd = exec.Command("sh", "-ec", script, "sh", setup+"\necho ready\nwhile :; do sleep 1000000; done")
	var stderr bytes.Buffer
	m.cmd.Stderr = &stderr
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := startBound(m.cmd); err != nil {
		return nil, err
	}
	line := make([]byte, 6)
	if _, err := out.Read(line); err != nil || string(line) != "ready\n" {
		m.cmd.Process.Kill()
		m.cmd.Wait()
		return nil, fmt.Errorf("boot %s: %q: %s", name, line, stderr.String())
	}
	if m.pid, err = onlyChild(m.cmd.Process.Pid); err != nil {
		m.halt()
		return nil, err
	}
	return m, nil
}

// joinCgroups is a script that puts the shell into a cgroup of every v1
// controller and of v2. A v1 cpuset has to be given CPUs before a process.
func joinCgroups(cgroup string) string {
	return `for c in /sys/fs/cgroup/*; do
  [ -e "$c/cgroup.procs" ] || continue
  d=$c
  for part in ` + strings.ReplaceAll(cgroup, "/", " ") + `; do
    mkdir -p "$d/$part"
    for f in cpuset.cpus cpuset.mems; do
      [ ! -e "$d/$f" ] || [ -e "$d/cgroup.controllers" ] || cat "$d/$f" > "$d/$part/$f"
    done
    d=$d/$part
  done
  echo $$ > "$d/cgroup.procs"
done
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mkdir -p /sys/fs/cgroup/` + cgroup + `
  echo $$ > /sys/fs/cgroup/` + cgroup + `/cgroup.procs
fi
`
}

// remountCgroups mounts each hierarchy afresh, so that the machine's own
// cgroup is the root that it sees.
const remountCgroups = `list=$(mktemp)
while read -r _ _ _ _ at opts rest; do
  case $rest in
    *"- cgroup "*) type=cgroup;; *"- cgroup2 "*) type=cgroup2;; *) continue;;
  esac
  case $at in /sys/fs/cgroup*) ;; *) continue;; esac
  o=${rest##* }
  echo "$type $at $o"
done < /proc/self/mountinfo > "$list"
while read -r type at o; do
  umount "$at"
  if [ $type = cgroup ]; then
    case $at in */systemd) o=none,name=systemd;; *) o=${at##*/};; esac
    mount -t cgroup -o "$o" cgroup "$at"
  else
    mount -t cgroup2 cgroup2 "$at"
  fi
done < "$list"
rm -f "$list"
`

func onlyChild(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// command runs argv inside the machine.
func (m *machine) command(ctx context.Context, argv ...string) *exec.Cmd {
	args := []string{"-t", strconv.Itoa(m.pid), "-m", "-n", "-u", "-p"}
	if m.cgroup != "" {
		args = append(args, "-C")
	}
	return exec.CommandContext(ctx, "nsenter", append(append(args, "--"), argv...)...)
}

// halt cuts the power: every process of the machine dies with its PID 1.
func (m *machine) halt() {
	m.cmd.Process.Signal(syscall.SIGKILL)
	m.cmd.Wait()
	deadline := time.Now().Add(20 * time.Second)
	for _, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", m.pid)); err == nil && m.pid != 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
		_, err = os.Stat(fmt.Sprintf("/proc/%d/ns/net", m.pid))
	}
}

// pids lists the processes of the machine as the host numbers them.
func (m *machine) pids() ([]int, error) {
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", m.pid))
	if err != nil {
		return nil, err
	}
	pidns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", m.pid))
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		if n, err := os.Readlink(d + "/ns/mnt"); err == nil && n == ns && pid != m.pid {
			pids = append(pids, pid)
		} else if n, err := os.Readlink(d + "/ns/pid"); err == nil && n == pidns && pid != m.pid {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// removeCgroups removes the machine's cgroups after its processes are gone.
func (m *machine) removeCgroups() error {
	if m.cgroup == "" {
		return nil
	}
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + m.cgroup)
	if _, err := os.Stat("/sys/fs/cgroup/" + m.cgroup); err == nil {
		roots = append(roots, "/sys/fs/cgroup/"+m.cgroup)
	}
	var errs []error
	for _, root := range roots {
		errs = append(errs, removeCgroupTree(root))
		os.Remove(filepath.Dir(root)) // shared by all machines: fails until the last
	}
	return errors.Join(errs...)
}

func removeCgroupTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroupTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	// A cgroup stays busy for a moment after its last process was reaped.
	for deadline := time.Now().Add(5 * time.Second); ; {
		err := syscall.Rmdir(dir)
		if err == nil || !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// inNetNS runs f on a thread that is in the machine's network namespace.
func (m *machine) inNetNS(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		// The thread is thrown away (never unlocked) unless it got home.
		goruntime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			errc <- err
			return
		}
		defer home.Close()
		there, err := netns.GetFromPid(m.pid)
		if err != nil {
			errc <- err
			return
		}
		defer there.Close()
		if err := netns.Set(there); err != nil {
			errc <- err
			return
		}
		err = f()
		if netns.Set(home) == nil {
			goruntime.UnlockOSThread()
		}
		errc <- err
	}()
	return <-errc
}

// dial connects from inside the machine. The socket belongs to the namespace
// it was made in, wherever it is used afterwards.
func (m *machine) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = m.inNetNS(func() error {
		var d net.Dialer
		d.FallbackDelay = -1 // a racing dialer would leave this thread's namespace
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}
