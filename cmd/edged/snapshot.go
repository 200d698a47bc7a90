package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"edged/internal/atomicfile"
	"edged/raftstore"
)

const snapshotUsage = `Usage: edged snapshot save FILE      write the cluster's state to a file, as etcdctl does
       edged snapshot restore FILE   make this device, which must be stopped, the only member of a
                                     new cluster that holds what the file holds

Flags:
`

// controlSnapshot is the handler behind `edged snapshot save`.
func controlSnapshot(mux *http.ServeMux, store *raftstore.Store) {
	mux.Handle("GET /v1/snapshot", controlFunc(func(w http.ResponseWriter, _ *http.Request) (any, error) {
		snap, err := store.Snapshot()
		if err != nil {
			return nil, err
		}
		sum := sha256.New()
		_, err = snap.WriteTo(io.MultiWriter(w, sum))
		if err == nil {
			_, err = w.Write(sum.Sum(nil))
		}
		if err = errors.Join(err, snap.Close()); err != nil {
			// What was sent has no hash behind it: the other side notices.
			panic(http.ErrAbortHandler)
		}
		return nil, nil
	}))
}

func runSnapshot(ctx context.Context, e env) error {
	var c config
	flags := pflag.NewFlagSet("snapshot", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() {}
	c.folderFlags(flags)
	if err := flags.Parse(e.args); err == pflag.ErrHelp {
		_, err = fmt.Fprint(e.stdout, snapshotUsage, flags.FlagUsages())
		return err
	} else if err != nil {
		return misusef("%w; `edged snapshot --help` tells its use", err)
	}
	if err := c.readFile(flags); err != nil {
		return err
	}
	args := flags.Args()
	if len(args) == 2 && args[0] == "save" {
		return saveSnapshot(ctx, e, c.runDir, args[1])
	}
	if len(args) == 2 && args[0] == "restore" {
		return restoreSnapshot(e, c.dataDir, args[1])
	}
	return misusef("%q: want save FILE or restore FILE", strings.Join(args, " "))
}

// saveSnapshot writes beside the file first: what has its name is whole.
func saveSnapshot(ctx context.Context, e env, runDir, file string) (err error) {
	part := file + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(part))
		}
	}()
	err = callControl(ctx, runDir, http.MethodGet, "/v1/snapshot", nil, io.Writer(f))
	if err == nil {
		err = checkHash(f)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(part, file); err != nil {
		return err
	}
	if err := atomicfile.SyncDir(filepath.Dir(file)); err != nil {
		return err
	}
	_, err = fmt.Fprintln(e.stdout, file)
	return err
}

// checkHash reads a snapshot back: what is behind it must be its hash.
func checkHash(f *os.File) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if size < sha256.Size {
		return errors.New("the snapshot was cut short")
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, size-sha256.Size)); err != nil {
		return err
	}
	var want [sha256.Size]byte
	if _, err := f.ReadAt(want[:], size-sha256.Size); err != nil {
		return err
	}
	if [sha256.Size]byte(sum.Sum(nil)) != want {
		return errors.New("the snapshot was cut short")
	}
	return nil
}

func restoreSnapshot(e env, dataDir, file string) error {
	unlock, err := lockDataDir(dataDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := raftstore.Restore(raftstore.RestoreConfig{Dir: filepath.Join(dataDir, "store"), Snapshot: file}); err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%s holds what %s holds; start it with `edged run`, and let the other devices join anew\n", dataDir, file)
	return err
}

const recoverUsage = `Usage: edged recover --force-new-cluster

Makes this device, which must be stopped, the only member of its cluster: for
when most of the devices with a vote are lost for good. It keeps everything that
this device's log holds. The other devices must be reset before they join again.

Flags:
`

func runRecover(_ context.Context, e env) error {
	var c config
	var force bool
	flags := pflag.NewFlagSet("recover", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() {}
	c.folderFlags(flags)
	flags.BoolVar(&force, "force-new-cluster", false, "yes, the other devices are lost")
	if err := flags.Parse(e.args); err == pflag.ErrHelp {
		_, err = fmt.Fprint(e.stdout, recoverUsage, flags.FlagUsages())
		return err
	} else if err != nil {
		return misusef("%w; `edged recover --help` tells its use", err)
	}
	if !force || flags.NArg() > 0 {
		return misusef("want --force-new-cluster and nothing else; `edged recover --help` tells what it does")
	}
	if err := c.readFile(flags); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(c.dataDir, "store")); err != nil {
		return fmt.Errorf("--data-dir: %s holds no store: %w", c.dataDir, err)
	}
	unlock, err := lockDataDir(c.dataDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := raftstore.ForceNew(filepath.Join(c.dataDir, "store"), "", nil); err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%s is a cluster of its own; start it with `edged run`, and reset the other devices before they join\n", c.dataDir)
	return err
}
