package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/buildroot/pid1"
	"edged/buildroot/slot"
	"edged/cluster/rollout"
	"edged/internal/atomicfile"
)

const (
	// withoutSlots is what a device says whose system is not edged's image.
	withoutSlots = "none"
	// takes is how often a device asks for an upgrade whose transfer was cut.
	takes = 3
)

// errTrial means that the running slot is not the one that is kept yet.
var errTrial = errors.New("the new system is on trial")

// systemSum is "board sum" of the system that runs, sum being the SHA-256 of the
// first rootBytes of its root, or withoutSlots. A slot on trial has not said yet.
func (d *device) systemSum(rootBytes int64) (string, error) {
	running := pid1.RunningSlot()
	if running == "" {
		return withoutSlots, nil
	}
	d.systemMu.Lock()
	defer d.systemMu.Unlock()
	if d.system != "" && d.systemBytes == rootBytes {
		return d.system, nil
	}
	board, err := boardName()
	if err != nil {
		return "", err
	}
	disk, size, err := pid1.OpenRootDisk(os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer disk.Close()
	trial, sum, err := slot.Running(readOnly{disk}, size, running, rootBytes)
	if err != nil {
		return "", err
	}
	if trial {
		return "", errTrial
	}
	d.system, d.systemBytes = board+" "+sum, rootBytes
	return d.system, nil
}

// readOnly is a disk that nobody may write to.
type readOnly struct{ *os.File }

func (readOnly) WriteAt([]byte, int64) (int, error) { return 0, os.ErrPermission }

// describeSystem fills in what an upgrade's manifest says, if its signature is by
// a key that this device's image trusts. Each device verifies it again, with the
// contents.
func describeSystem(path string, s *rollout.State) error {
	if pid1.RunningSlot() == "" {
		return errors.New("this system has no slots: it is not edged's image; start the upgrade of systems on a device that has")
	}
	keys, err := readKeys(upgradeKeys)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := slot.ReadManifest(f, keys)
	if err != nil {
		return err
	}
	root, ok := m.Root()
	if !ok {
		return fmt.Errorf("the upgrade has no %s", slot.RootName)
	}
	s.Release, s.Board, s.SHA256, s.RootBytes = m.Version, m.Board, root.SHA256, root.Size
	return nil
}

// replaceSystem writes the upgrade to the other slot and restarts the machine.
// began is what the file of the last attempt holds: when it is of this rollout and of
// another boot, the machine is back and runs its old system.
func (d *device) replaceSystem(ctx context.Context, s rollout.State, began string) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	if id, at, _ := strings.Cut(began, " "); id == s.ID && at != boot {
		return errors.New("it came back with its old system: the new one was not ready in time, or could not start")
	}
	var argument string
	for take := 1; ; take++ {
		argument, err = d.takeSystem(ctx, s)
		if err == nil || take == takes || errors.Is(err, slot.ErrSignature) || ctx.Err() != nil {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(take) * 5 * time.Second):
		}
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.upgradeDir(), 0o700); err != nil {
		return err
	}
	if err := atomicfile.Write(d.triedPath(), []byte(s.ID+" "+boot), 0o600); err != nil {
		return err
	}
	d.log.Info("restarting into the other slot", "release", s.Release)
	return pid1.Restart(argument)
}

// takeSystem streams the upgrade from the device that has it into the other slot.
func (d *device) takeSystem(ctx context.Context, s rollout.State) (argument string, err error) {
	var in io.ReadCloser
	if s.Source == d.cfg.nodeName {
		in, err = os.Open(filepath.Join(d.upgradeDir(), s.File))
	} else {
		in, err = d.openRelease(ctx, s.Source, s.File)
	}
	if err != nil {
		return "", err
	}
	defer in.Close()
	return writeUpgrade(io.Discard, in, pid1.RunningSlot())
}

// bootID tells one boot of the machine from the next.
func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text)), err
}

// podsToMove are the Pods that a device gives away before it restarts: those that
// a controller makes anew elsewhere. What is bound to the device comes back with it.
// Without another device to go to, all stay.
func (d *device) podsToMove(device string) (out []*corev1.Pod) {
	room := false
	for _, n := range registry.For[*corev1.Node](d.registry).List("") {
		room = room || n.Name != device && !n.Spec.Unschedulable && d.isReady(n.Name)
	}
	if !room {
		return nil
	}
	for _, p := range registry.For[*corev1.Pod](d.registry).List("") {
		owner := metav1.GetControllerOf(p)
		switch {
		case p.Spec.NodeName != device, owner == nil, owner.Kind == "DaemonSet":
		case p.Status.Phase == corev1.PodSucceeded, p.Status.Phase == corev1.PodFailed:
		default:
			out = append(out, p)
		}
	}
	return out
}

// drain asks for the eviction of a device's Pods, as `kubectl drain` does. What a
// PodDisruptionBudget refuses is asked for again at the next look.
func (d *device) drain(ctx context.Context, device string) error {
	for _, p := range d.podsToMove(device) {
		if p.DeletionTimestamp != nil {
			continue
		}
		_, err := d.registry.CreateSubresource(ctx, corev1.Resource("pods"), p.Namespace, p.Name, "eviction", &policyv1.Eviction{
			ObjectMeta:    metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name},
			DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}},
		}, registry.CreateOptions{})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && !apierrors.IsTooManyRequests(err) {
			return fmt.Errorf("evict Pod %s/%s from %s: %w", p.Namespace, p.Name, device, err)
		}
	}
	return nil
}
