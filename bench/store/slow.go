package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// syncDelay is what a slow card adds to each sync.
const syncDelay = 20 * time.Millisecond

// slowNode is a file or folder of a file system that is another one's, but for
// syncs: they take syncDelay longer. Neither server is told; both are static
// binaries, into which no library could be loaded instead.
type slowNode struct{ fs.LoopbackNode }

// Fsync is part of fs.NodeFsyncer.
func (n *slowNode) Fsync(ctx context.Context, f fs.FileHandle, flags uint32) syscall.Errno {
	time.Sleep(syncDelay)
	if s, ok := f.(fs.FileFsyncer); ok {
		return s.Fsync(ctx, flags)
	}
	return 0
}

// slowDiskCommand is this program's other task: it mounts a folder, with slow syncs, at
// another until its standard input ends. A process of its own, because the clients'
// work would make syncs slower still.
const slowDiskCommand = "slow-disk"

// startSlowDisk starts a process that mounts the folder from at to.
func startSlowDisk(from, to string) (unmount func() error, err error) {
	for _, dir := range []string{from, to} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, slowDiskCommand, from, to)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	unmount = func() error {
		in.Close()
		return cmd.Wait()
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // it says so when it is there
		return nil, errors.Join(fmt.Errorf("mount the slow disk: %w", err), unmount())
	}
	return unmount, nil
}

// runSlowDisk is what that process does.
func runSlowDisk(from, to string) error {
	unmount, err := mountSlow(from, to)
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, unmount())
}

func mountSlow(from, to string) (unmount func() error, err error) {
	root := &fs.LoopbackRoot{Path: from}
	root.NewNode = func(root *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return &slowNode{fs.LoopbackNode{RootData: root}}
	}
	var st syscall.Stat_t
	if err := syscall.Stat(from, &st); err != nil {
		return nil, err
	}
	root.Dev = uint64(st.Dev)
	top := root.NewNode(root, nil, "", &st)
	root.RootNode = top
	long := time.Minute
	srv, err := fs.Mount(to, top, &fs.Options{AttrTimeout: &long, EntryTimeout: &long, MountOptions: fuse.MountOptions{DirectMount: true, FsName: "slow"}})
	if err != nil {
		return nil, fmt.Errorf("mount the slow disk: %w", err)
	}
	return srv.Unmount, nil
}

// slow measures puts where each sync takes 20 ms more.
func (b *bench) slow(ctx context.Context, s *server) (err error) {
	mount := filepath.Join(s.disk.mount, "slow")
	unmount, err := startSlowDisk(filepath.Join(s.disk.mount, "slow-files"), mount)
	if err != nil {
		return err
	}
	defer func() {
		if uerr := unmount(); err == nil {
			err = uerr
		}
	}()
	m, err := start(s.binary, mount, "slow", 17379, "")
	if err != nil {
		return err
	}
	defer m.stop(syscall.SIGKILL)
	c, err := client(m.endpoint)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := ready(ctx, m, c, time.Now()); err != nil {
		return err
	}
	value := strings.Repeat("v", 256)
	for _, n := range []int{1, 1000} {
		l, err := load(ctx, m, n, b.seconds, func(ctx context.Context, c *clientv3.Client, i int) error {
			_, err := c.Put(ctx, key(i), value)
			return err
		})
		if err != nil {
			return err
		}
		b.addLoad(s, fmt.Sprintf("puts, each sync 20 ms longer, %d clients", n), map[int]float64{1000: 2}[n], l)
	}
	return nil
}
