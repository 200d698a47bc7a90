package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"

	"golang.org/x/sys/unix"
)

// shmBytes is the size of a Pod's /dev/shm, the kubelet's.
const shmBytes = 64 << 20

// Sandboxes makes and removes sandboxes below one folder.
type Sandboxes struct{ dir string }

// New returns the sandboxes kept in dir, which is made if it is not there.
func New(dir string) (*Sandboxes, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make the folder of sandboxes: %w", err)
	}
	return &Sandboxes{dir}, nil
}

// Sandbox is the paths of a Pod's namespaces. Empty ones are the host's.
type Sandbox struct {
	Net, IPC, UTS string
	// Shm is a folder to mount at /dev/shm; empty with the host's IPC.
	Shm string
}

// Options say what the Pod shares with the host.
type Options struct {
	HostNetwork, HostIPC bool
	// Hostname is the one seen inside; ignored with HostNetwork.
	Hostname string
}

type namespace struct {
	name string
	flag int
	path string
}

// Ensure makes the sandbox of the Pod uid, or what is missing of it. fresh says
// that its network namespace is new, and not yet connected.
func (s *Sandboxes) Ensure(uid string, o Options) (box Sandbox, fresh bool, err error) {
	dir := filepath.Join(s.dir, uid)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return box, false, fmt.Errorf("make a sandbox: %w", err)
	}
	var missing []namespace
	want := func(name string, flag int) string {
		n := namespace{name, flag, filepath.Join(dir, name)}
		if !pinned(n.path) {
			missing = append(missing, n)
			fresh = fresh || name == "net"
		}
		return n.path
	}
	if !o.HostNetwork {
		box.Net = want("net", unix.CLONE_NEWNET)
		box.UTS = want("uts", unix.CLONE_NEWUTS)
	}
	if !o.HostIPC {
		box.IPC = want("ipc", unix.CLONE_NEWIPC)
		box.Shm = filepath.Join(dir, "shm")
		if err := mountShm(box.Shm); err != nil {
			return box, false, err
		}
	}
	if len(missing) > 0 {
		if err := pin(missing, o.Hostname); err != nil {
			return box, false, fmt.Errorf("make namespaces: %w", err)
		}
	}
	return box, fresh, nil
}

// pinned reports whether path holds a namespace.
func pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

func mountShm(path string) error {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) == nil && st.Type == unix.TMPFS_MAGIC && mountPoint(path) {
		return nil
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("make a Pod's shared memory: %w", err)
	}
	err := unix.Mount("shm", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, fmt.Sprintf("mode=1777,size=%d", shmBytes))
	if err != nil {
		return fmt.Errorf("mount a Pod's shared memory: %w", err)
	}
	return nil
}

// mountPoint reports whether path is on another file system than its parent.
func mountPoint(path string) bool {
	var a, b unix.Stat_t
	return unix.Lstat(path, &a) == nil && unix.Lstat(filepath.Dir(path), &b) == nil && a.Dev != b.Dev
}

// pin makes the namespaces on a thread of its own and bind mounts them. The
// thread ends with the goroutine: it must not run anything of the host's.
func pin(missing []namespace, hostname string) error {
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked
		done <- pinHere(missing, hostname)
	}()
	return <-done
}

func pinHere(missing []namespace, hostname string) error {
	flags := 0
	for _, n := range missing {
		flags |= n.flag
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if flags&unix.CLONE_NEWUTS != 0 && hostname != "" {
		if err := unix.Sethostname([]byte(hostname)); err != nil {
			return fmt.Errorf("set the host name %q: %w", hostname, err)
		}
	}
	for _, n := range missing {
		f, err := os.OpenFile(n.path, os.O_CREATE|os.O_RDONLY, 0o444)
		if err != nil {
			return err
		}
		f.Close()
		src := fmt.Sprintf("/proc/self/task/%d/ns/%s", unix.Gettid(), n.name)
		if err := unix.Mount(src, n.path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin %s: %w", n.path, err)
		}
	}
	return nil
}

// Remove removes the sandbox of the Pod uid. One that is not there is removed.
func (s *Sandboxes) Remove(uid string) error {
	dir := filepath.Join(s.dir, uid)
	for _, name := range []string{"net", "uts", "ipc", "shm"} {
		err := unix.Unmount(filepath.Join(dir, name), unix.MNT_DETACH)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unpin %s of a sandbox: %w", name, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove a sandbox: %w", err)
	}
	return nil
}

// List returns the Pods that have a sandbox.
func (s *Sandboxes) List() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	uids := make([]string, 0, len(entries))
	for _, e := range entries {
		uids = append(uids, e.Name())
	}
	return uids, nil
}

// Cleanup removes all sandboxes in dir.
func Cleanup(dir string) error {
	s := &Sandboxes{dir}
	uids, err := s.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, uid := range uids {
		errs = append(errs, s.Remove(uid))
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// Path tells where the namespaces of the Pod uid are, if it has any.
func (s *Sandboxes) Path(uid string) Sandbox {
	dir := filepath.Join(s.dir, uid)
	return Sandbox{Net: filepath.Join(dir, "net"), IPC: filepath.Join(dir, "ipc"), UTS: filepath.Join(dir, "uts"), Shm: filepath.Join(dir, "shm")}
}
