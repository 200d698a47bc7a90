package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"edged/net/bridge"
	"edged/net/cni"
	"edged/net/mesh"
	"edged/net/nft"
	"edged/runtime/engine"
	"edged/runtime/sandbox"
	"edged/runtime/volume"
)

// runReset removes everything that edged made on this machine: containers,
// mounts, namespaces, links, rules, cgroups, and its two folders' content.
func runReset(ctx context.Context, e env) error {
	var c config
	var keep bool
	help, err := c.parse("reset", e.args, func(fs *pflag.FlagSet) {
		c.folderFlags(fs)
		fs.BoolVar(&keep, "keep-data", false, "leave the data-dir: the cluster's state, images and volumes")
	})
	if err != nil {
		return err
	}
	if help != "" {
		_, err := fmt.Fprint(e.stdout, help)
		return err
	}
	for _, dir := range []*string{&c.dataDir, &c.runDir} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(c.dataDir, "version")); errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(c.runDir); errors.Is(err, os.ErrNotExist) {
			return nil // nothing of edged's is here
		}
	}
	unlock, err := lockDataDir(c.dataDir)
	if err != nil {
		return fmt.Errorf("%w; stop the daemon first", err)
	}
	defer unlock()
	return reset(ctx, c.dataDir, c.runDir, keep)
}

// leaveCluster ends what a device ran for a cluster that it is no more of, and
// leaves its data.
func leaveCluster(ctx context.Context, c *config) error {
	unlock, err := lockDataDir(c.dataDir)
	if err != nil {
		return err
	}
	defer unlock()
	return reset(context.WithoutCancel(ctx), c.dataDir, c.runDir, true)
}

func reset(ctx context.Context, dataDir, runDir string, keepData bool) error {
	p := paths{dataDir, runDir}
	uids, err := podUIDs(p)
	if err != nil {
		return err
	}
	table := nft.Open()
	defer table.Close()
	// Containers first: they hold everything else.
	if err := engine.Cleanup(ctx, p.engine()); err != nil {
		return fmt.Errorf("remove containers: %w", err)
	}
	// While the Pods' namespaces are there.
	errs := []error{
		cni.Cleanup(ctx, p.cni()),
		mesh.Cleanup(ctx), bridge.Cleanup(ctx, bridge.DefaultName, p.bridge()), table.Remove(), nft.Withdraw(), sandbox.Cleanup(p.sandboxes()),
		volume.Cleanup(podDataOf(p, keepData), p.podRun()), keepLogsOnDisk(), removeLogs(uids),
	}
	// Not while something is mounted there: it is others'.
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := removeDir(runDir); err != nil {
		return err
	}
	if keepData {
		return nil
	}
	return empty(dataDir)
}

func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, f.Name())))
	}
	return errors.Join(errs...)
}

// removeDir removes a folder, or empties one on which a file system is mounted.
func removeDir(dir string) error {
	err := os.RemoveAll(dir)
	if errors.Is(err, unix.EBUSY) {
		err = empty(dir)
	}
	return err
}

// podDataOf is the folder of Pods' data to remove; with the data kept, one that
// is not there.
func podDataOf(p paths, keep bool) string {
	if keep {
		return filepath.Join(p.runDir, "no-data")
	}
	return p.podData()
}

// podUIDs lists the Pods that left something on this device.
func podUIDs(p paths) (map[string]bool, error) {
	uids := map[string]bool{}
	for _, dir := range []string{p.podData(), p.podRun(), p.sandboxes()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, f := range entries {
			uids[f.Name()] = true
		}
	}
	return uids, nil
}

// removeLogs removes the logs of this edged's Pods, not those of another
// kubelet that the machine may have.
func removeLogs(uids map[string]bool) error {
	entries, err := os.ReadDir(logRoot)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range entries {
		if i := strings.LastIndexByte(f.Name(), '_'); i >= 0 && uids[f.Name()[i+1:]] {
			errs = append(errs, os.RemoveAll(filepath.Join(logRoot, f.Name())))
		}
	}
	return errors.Join(errs...)
}
