package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"edged/buildroot/pid1"
	"edged/buildroot/slot"
)

// upgradeKeys holds the public keys of whom this image takes upgrades from, one
// a line.
const upgradeKeys = "/etc/edged/upgrade.pub"

// runUpgrade writes a new system to the slot that is not running and lets the
// next start try it.
func runUpgrade(ctx context.Context, e env) error {
	fs := pflag.NewFlagSet("upgrade", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.Usage = func() {}
	image := fs.String("image", "", "`file` or URL of the upgrade (edged-<board>.upgrade)")
	root := fs.String("root", "", "`folder` where the device's own root is mounted: for a privileged Pod with hostPID")
	daemon := fs.String("daemon", "", "`file` or URL of another edged: replace the daemon alone, on a system without slots; containers go on")
	cluster := fs.Bool("cluster", false, "give --image or --daemon to every device of the cluster, one after the other; without either, tell how it goes")
	forCluster := fs.String("for-cluster", "", "")
	if err := fs.MarkHidden("for-cluster"); err != nil {
		return err
	}
	sum := fs.String("sha256", "", "what the SHA-256 of --daemon must be, in hexadecimal")
	wait := fs.Duration("wait", time.Minute, "how long a new daemon may take to be ready before the old one is put back")
	runDir := fs.String("run-dir", "/run/edged", "`folder` with the daemon's control socket")
	stay := fs.Bool("no-reboot", false, "write the other slot and let the next restart, whenever it comes, try it")
	if err := fs.Parse(e.args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			_, err := fmt.Fprintf(e.stdout, "Usage: edged upgrade --image F [flags]    the system of a device with slots\n       edged upgrade --daemon F [flags]   the daemon alone\n       edged upgrade --cluster [--image F | --daemon F]   all devices, one after the other\n\n%s", fs.FlagUsages())
			return err
		}
		return misusef("%w; `edged upgrade --help` lists the flags", err)
	}
	if fs.NArg() > 0 || *image != "" && *daemon != "" || *image == "" && *daemon == "" && !*cluster || *cluster && (*sum != "" || *stay) {
		return misusef("want --image, or --daemon, or --cluster with one of them, and nothing else")
	}
	if *cluster && *image == "" {
		return clusterUpgrade(ctx, e.stdout, *runDir, *daemon, "daemon")
	}
	if *daemon != "" {
		u := daemonUpgrade{runDir: *runDir, from: *daemon, sum: *sum, wait: *wait, out: e.stdout}
		if *forCluster != "" {
			return u.runForCluster(ctx, *forCluster)
		}
		return u.run(ctx)
	}
	// Opened before the root changes: a file's name is the caller's.
	in, err := openUpgrade(ctx, *image)
	if err != nil {
		return err
	}
	defer in.Close()
	if *root != "" {
		if err := errors.Join(syscall.Chroot(*root), os.Chdir("/")); err != nil {
			return fmt.Errorf("--root: %w", err)
		}
	}
	if *cluster {
		return beginClusterUpgrade(ctx, e.stdout, *runDir, in, "system")
	}
	running := pid1.RunningSlot()
	if running == "" {
		return errors.New("this system has no slots: it is not edged's image; `edged upgrade --daemon` replaces the daemon alone")
	}
	argument, err := writeUpgrade(e.stdout, in, running)
	if err != nil {
		return err
	}
	if *stay {
		return nil
	}
	return pid1.Restart(argument)
}

func openUpgrade(ctx context.Context, from string) (io.ReadCloser, error) {
	if !strings.HasPrefix(from, "http://") && !strings.HasPrefix(from, "https://") {
		return os.Open(from)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", from, resp.Status)
	}
	return resp.Body, nil
}

func writeUpgrade(out io.Writer, in io.Reader, running string) (argument string, err error) {
	keys, err := readKeys(upgradeKeys)
	if err != nil {
		return "", err
	}
	board, err := boardName()
	if err != nil {
		return "", err
	}
	disk, size, err := pid1.OpenRootDisk(os.O_RDWR)
	if err != nil {
		return "", err
	}
	defer disk.Close()
	show := progress(out, "written")
	m, err := slot.Apply(in, keys, slot.Target{Disk: disk, SizeBytes: size, Running: running, Board: board, Progress: show})
	if err != nil {
		return "", err
	}
	boot, v, err := slot.Boot(disk, size)
	if err != nil {
		return "", err
	}
	if argument, err = slot.Try(boot, v, slot.Other(running)); err != nil {
		return "", err
	}
	_, err = fmt.Fprintf(out, "slot %s holds %s and is tried at the next start\n", slot.Other(running), m.Version)
	return argument, err
}

// boardName is the board that the running system was made for.
func boardName() (string, error) {
	text, err := os.ReadFile("/usr/share/edged/board")
	return strings.TrimSpace(string(text)), err
}

func readKeys(path string) (keys []ed25519.PublicKey, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Fields(string(data)) {
		k, err := hex.DecodeString(line)
		if err != nil || len(k) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("%s: %q is not an ed25519 key in hexadecimal", path, line)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// progress prints a line for every tenth.
func progress(out io.Writer, what string) func(done, total int64) {
	last := int64(0)
	return func(done, total int64) {
		if tenth := 10 * done / max(total, 1); tenth > last {
			last = tenth
			// A terminal that is gone stops no upgrade.
			_, _ = fmt.Fprintf(out, "%s %d %% of %d MB\n", what, 10*tenth, total>>20)
		}
	}
}
