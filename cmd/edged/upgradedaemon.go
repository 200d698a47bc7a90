package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"edged/buildroot/pid1"
	"edged/cluster/rollout"
)

// errRestart ends the daemon so that it starts itself again from its file.
var errRestart = errors.New("restarting")

// controlRestart lets the daemon replace itself by what its file is now, as the
// same process: whoever started it does not notice, and containers go on.
func (d *device) controlRestart(mux *http.ServeMux) {
	mux.Handle("POST /v1/restart", controlFunc(func(http.ResponseWriter, *http.Request) (any, error) {
		select {
		case d.restart <- struct{}{}:
		default: // it is being done
		}
		return struct{}{}, nil
	}))
}

// awaitRestart ends the group when a restart was asked for.
func (d *device) awaitRestart(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-d.restart:
		d.log.Info("restarting", "binary", binaryPath())
		return errRestart
	}
}

// binaryPath is the file that this process was started from, also when another
// has taken its name.
func binaryPath() string {
	path, err := os.Executable()
	if err != nil {
		return ""
	}
	return path
}

// reexec does not return if it succeeds.
func reexec() error {
	return fmt.Errorf("start %s again: %w", binaryPath(), syscall.Exec(binaryPath(), os.Args, os.Environ()))
}

// daemonUpgrade replaces the binary of a daemon that runs.
type daemonUpgrade struct {
	runDir, from, sum string
	wait              time.Duration
	out               io.Writer
}

func (u daemonUpgrade) run(ctx context.Context) error {
	if pid1.RunningSlot() != "" {
		return errors.New("the binary of this system is part of its image: upgrade the image")
	}
	var before controlStatus
	if err := callControl(ctx, u.runDir, http.MethodGet, "/v1/status", nil, &before); err != nil {
		return err
	}
	if before.Binary == "" {
		return errors.New("the daemon does not know which file it was started from")
	}
	version, err := u.fetch(ctx, before.Binary+".new")
	if err != nil {
		return errors.Join(err, removeIfThere(before.Binary+".new"))
	}
	if err := swap(before.Binary); err != nil {
		return err
	}
	fmt.Fprintf(u.out, "%s is now %s, was %s; restarting the daemon\n", before.Binary, version, before.Version)
	if err := callControl(ctx, u.runDir, http.MethodPost, "/v1/restart", nil, nil); err != nil {
		return errors.Join(err, swapBack(before.Binary))
	}
	if err := u.ready(ctx, before); err != nil {
		return u.fallBack(before, err)
	}
	_, err = fmt.Fprintf(u.out, "the daemon is ready: %s\n", version)
	return err
}

// fetch puts the new binary beside the old one, sees that it is what was wanted
// and that this machine can start it, and returns its version.
func (u daemonUpgrade) fetch(ctx context.Context, to string) (version string, err error) {
	in, err := openUpgrade(ctx, u.from)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(out, sum), in)
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		return "", fmt.Errorf("write %s: %w", to, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); u.sum != "" && !strings.EqualFold(got, u.sum) {
		return "", fmt.Errorf("%s has the SHA-256 %s, not the one of --sha256", u.from, got)
	}
	if version, err = releaseOf(ctx, to); err != nil {
		return "", fmt.Errorf("%s: %w", u.from, err)
	}
	return version, nil
}

// releaseOf starts a binary to ask what it is.
func releaseOf(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	text, err := exec.CommandContext(ctx, path, "version").Output()
	release, ours := strings.CutPrefix(strings.TrimSpace(string(text)), "edged ")
	if err != nil || !ours {
		return "", fmt.Errorf("it is not an edged that this machine can start: %v", err)
	}
	return release, nil
}

// swap gives the new binary the name of the old one, which is kept: a name always
// leads to one of them, whole.
func swap(path string) error {
	if err := removeIfThere(path + ".old"); err != nil {
		return err
	}
	if err := os.Link(path, path+".old"); err != nil {
		return fmt.Errorf("keep the old binary: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

func swapBack(path string) error {
	if err := os.Rename(path+".old", path); err != nil {
		return fmt.Errorf("put the old binary back: %w", err)
	}
	return syncFolder(filepath.Dir(path))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// detached is set for the process that goes on when its parent has ended.
const detached = "EDGED_UPGRADE_DETACHED"

// runForCluster is run by itself: the daemon that starts it is replaced. What
// fails is told to the daemon that is there then.
func (u daemonUpgrade) runForCluster(ctx context.Context, id string) error {
	if os.Getenv(detached) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), detached+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return cmd.Start()
	}
	err := u.run(ctx)
	if err == nil {
		return nil
	}
	q := url.Values{"id": {id}, "why": {err.Error()}}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportFor)
	defer cancel()
	for callControl(ctx, u.runDir, http.MethodPost, "/v1/upgrade/failed?"+q.Encode(), nil, nil) != nil && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return err
}

// reportFor is how long a daemon may take to come back and hear of a failure;
// after that the leader's patience ends the matter.
const reportFor = 5 * time.Minute

// ready waits until a daemon that was started after before runs Pods.
func (u daemonUpgrade) ready(ctx context.Context, before controlStatus) error {
	ctx, cancel := context.WithTimeout(ctx, u.wait)
	defer cancel()
	for {
		var now controlStatus
		err := callControl(ctx, u.runDir, http.MethodGet, "/v1/status", nil, &now)
		switch {
		case err != nil && errors.Is(syscall.Kill(before.PID, 0), syscall.ESRCH):
			return errors.New("the new daemon has ended")
		case err != nil:
		case now.Started.Equal(before.Started):
			err = errors.New("the old daemon has not ended")
		case before.RunsPods && !now.RunsPods, before.Ready && !now.Ready:
			err = errors.New("it has started and is not ready")
		default:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the new daemon is not ready after %v: %w", u.wait, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// fallBack puts the old binary back. A new daemon that can still be asked
// restarts; one that cannot is ended, for the service manager to start the old.
func (u daemonUpgrade) fallBack(before controlStatus, cause error) error {
	if err := swapBack(before.Binary); err != nil {
		return errors.Join(cause, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if callControl(ctx, u.runDir, http.MethodPost, "/v1/restart", nil, nil) != nil {
		// The process is the one of before: a restart keeps its number.
		if target, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", before.PID)); err == nil && strings.HasPrefix(target, before.Binary) {
			_ = syscall.Kill(before.PID, syscall.SIGKILL) // it may have ended by itself
		}
	}
	return fmt.Errorf("%w; %s is the old one again", cause, before.Binary)
}

// clusterUpgrade begins a rolling upgrade, if from is not empty, and tells how it
// goes on.
func clusterUpgrade(ctx context.Context, out io.Writer, runDir, from, what string) error {
	if from == "" {
		return followUpgrade(ctx, out, runDir, "")
	}
	in, err := openUpgrade(ctx, from)
	if err != nil {
		return err
	}
	defer in.Close()
	return beginClusterUpgrade(ctx, out, runDir, in, what)
}

// beginClusterUpgrade gives the daemon what all devices are to get.
func beginClusterUpgrade(ctx context.Context, out io.Writer, runDir string, in io.Reader, what string) error {
	var s rollout.State
	if err := callControl(ctx, runDir, http.MethodPost, "/v1/upgrade?what="+what, in, &s); err != nil {
		return err
	}
	fmt.Fprintf(out, "the devices of the cluster get %s, one after the other\n", s.Release)
	return followUpgrade(ctx, out, runDir, s.ID)
}

// followUpgrade tells how a rolling upgrade goes on, that of id if it is not empty,
// until it ends. Ended early, it goes on all the same.
func followUpgrade(ctx context.Context, out io.Writer, runDir, id string) error {
	silent := time.Now()
	for told := ""; ; {
		var now rollout.State
		err := callControl(ctx, runDir, http.MethodGet, "/v1/upgrade", nil, &now)
		switch {
		case err == nil:
			silent = time.Now()
		case id == "" || time.Since(silent) > reportFor:
			return err
		}
		if id = cmp.Or(id, now.ID); err == nil && now.Device != told && now.Device != "" {
			told = now.Device
			fmt.Fprintf(out, "%s is worked on\n", now.Device)
		}
		switch {
		case err == nil && now.Phase == rollout.Done:
			_, err := fmt.Fprintf(out, "every device runs %s\n", now.Release)
			return err
		case err == nil && now.Phase == rollout.Stopped:
			return fmt.Errorf("stopped: %s; the devices after it were not touched", now.Message)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}
