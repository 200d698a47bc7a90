package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/cluster/rollout"
	"edged/controller/node"
	"edged/internal/atomicfile"
	"edged/raftstore"
	"edged/runtime/nodestatus"
)

const (
	// The state of a rollout is a ConfigMap of kube-system.
	rolloutName = "edged-upgrade"
	rolloutKey  = "state"
	// Of a Node, written by its own device while a rollout is on.
	annotationBinary = "edged.dev/binary"         // SHA-256
	annotationSystem = "edged.dev/system"         // board, SHA-256 of the root; "none" without slots
	annotationFailed = "edged.dev/upgrade-failed" // ID of the rollout, and why
	// lookAtRollout is how often the leader looks while one is on; without one it
	// sleeps.
	lookAtRollout = time.Second
	// behind is how many entries a member may lack that counts as caught up.
	behind = 100
	// maxReleaseBytes bounds what is taken for an edged, or a system.
	maxReleaseBytes = 512 << 20
)

// binarySum is the SHA-256 of the file that this process was started from. It is
// read when somebody asks: at the start it would only be in the way.
func (d *device) binarySum() (string, error) {
	d.sumOnce.Do(func() { d.sum, d.sumErr = sumOf("/proc/self/exe") })
	return d.sum, d.sumErr
}

func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (d *device) upgradeDir() string { return filepath.Join(d.cfg.dataDir, "upgrade") }

// rolloutState reads the state from this device's replica.
func (d *device) rolloutState() (s rollout.State, ok bool, err error) {
	m, ok := registry.For[*corev1.ConfigMap](d.registry).Get(metav1.NamespaceSystem, rolloutName)
	if !ok {
		return s, false, nil
	}
	if err := json.Unmarshal([]byte(m.Data[rolloutKey]), &s); err != nil {
		return s, false, fmt.Errorf("the ConfigMap %s/%s: %w", metav1.NamespaceSystem, rolloutName, err)
	}
	if s.Format != rollout.FormatDaemon && s.Format != rollout.FormatSystem {
		return s, false, fmt.Errorf("the ConfigMap %s/%s has format %d, this daemon knows %d and %d", metav1.NamespaceSystem, rolloutName, s.Format, rollout.FormatDaemon, rollout.FormatSystem)
	}
	return s, true, nil
}

// changeRollout writes the state if it is still that of before.
func (d *device) changeRollout(ctx context.Context, before rollout.State, change func(*rollout.State)) error {
	_, err := registry.For[*corev1.ConfigMap](d.registry).Update(ctx, metav1.NamespaceSystem, rolloutName, func(m *corev1.ConfigMap) error {
		var s rollout.State
		if err := json.Unmarshal([]byte(m.Data[rolloutKey]), &s); err != nil {
			return err
		}
		if s != before {
			return errOutdated
		}
		change(&s)
		data, err := json.Marshal(s)
		m.Data[rolloutKey] = string(data)
		return err
	})
	if errors.Is(err, errOutdated) {
		return nil // the next look sees what is new
	}
	return err
}

var errOutdated = errors.New("the rollout has gone on")

// wakeUp fills a slot that only one fits in: what is new is looked up.
func wakeUp(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// watchRollout wakes whoever follows the rollout.
func (d *device) watchRollout(wake chan struct{}) (cancel func()) {
	maps := registry.For[*corev1.ConfigMap](d.registry).Subscribe(func(e registry.Event[*corev1.ConfigMap]) {
		if e.Object.Name == rolloutName && e.Object.Namespace == metav1.NamespaceSystem {
			wakeUp(wake)
		}
	})
	nodes := registry.For[*corev1.Node](d.registry).Subscribe(func(e registry.Event[*corev1.Node]) { wakeUp(wake) })
	return func() { maps(); nodes() }
}

// leadRollout takes a rollout, if there is one, from device to device until ctx
// ends.
func (d *device) leadRollout(ctx context.Context) error {
	wake := make(chan struct{}, 1)
	defer d.watchRollout(wake)()
	told := ""
	for {
		var again <-chan time.Time
		on, err := d.rolloutStep(ctx)
		if err != nil && ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			d.log.Warn("the upgrade of the cluster waits", "err", err)
		}
		if on {
			again = time.After(lookAtRollout)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-again:
		}
	}
}

// rolloutStep does what comes next; on says that there is more to come.
func (d *device) rolloutStep(ctx context.Context) (on bool, err error) {
	s, ok, err := d.rolloutState()
	if err != nil || !ok || s.Phase != rollout.Running {
		return false, err
	}
	whole, err := d.isWhole(ctx)
	if err != nil {
		return true, err
	}
	step := rollout.Decide(s, d.rolloutDevices(s), whole, d.clock.Now())
	switch step.Do {
	case rollout.Begin:
		n, ok := registry.For[*corev1.Node](d.registry).Get("", step.Device)
		if !ok {
			return true, nil
		}
		d.log.Info("a device is upgraded", "device", step.Device, "release", s.Release)
		return true, d.changeRollout(ctx, s, func(s *rollout.State) {
			s.Device, s.Since, s.Cordoned, s.Drained, s.Message = step.Device, d.clock.Now().UTC(), !n.Spec.Unschedulable, false, ""
		})
	case rollout.Cordon:
		return true, d.mark(ctx, step.Device, true, time.Time{})
	case rollout.Drain:
		return true, d.drain(ctx, step.Device)
	case rollout.Restart:
		if err := d.mark(ctx, step.Device, true, d.clock.Now().Add(rollout.Patience)); err != nil {
			return true, err
		}
		return true, d.changeRollout(ctx, s, func(s *rollout.State) { s.Drained, s.Since = true, d.clock.Now().UTC() })
	case rollout.Finish, rollout.Stop:
		// First the Node: whoever leads next does it again.
		if err := d.mark(ctx, step.Device, !s.Cordoned, time.Time{}); err != nil && !apierrors.IsNotFound(err) {
			return true, err
		}
		if step.Do == rollout.Stop {
			d.log.Warn("the upgrade of the cluster is stopped", "why", step.Why)
			return false, d.changeRollout(ctx, s, func(s *rollout.State) { s.Phase, s.Message = rollout.Stopped, step.Why })
		}
		return true, d.changeRollout(ctx, s, func(s *rollout.State) {
			s.Device, s.Cordoned, s.Drained, s.Since, s.Message = "", false, false, time.Time{}, ""
		})
	case rollout.Complete:
		d.log.Info("the cluster is upgraded", "release", s.Release)
		return false, d.changeRollout(ctx, s, func(s *rollout.State) { s.Phase, s.Message = rollout.Done, "" })
	}
	return true, nil
}

// mark says on a device's Node whether it takes Pods and, if it restarts, by when
// it is back.
func (d *device) mark(ctx context.Context, name string, cordoned bool, back time.Time) error {
	_, err := registry.For[*corev1.Node](d.registry).Update(ctx, "", name, func(n *corev1.Node) error {
		n.Spec.Unschedulable = cordoned
		if back.IsZero() {
			delete(n.Annotations, node.AnnotationBackBy)
			return nil
		}
		if n.Annotations == nil {
			n.Annotations = map[string]string{}
		}
		n.Annotations[node.AnnotationBackBy] = back.UTC().Format(time.RFC3339)
		return nil
	})
	return err
}

// isWhole says whether every member is heard and has caught up. Only the leader
// knows.
func (d *device) isWhole(ctx context.Context) (bool, error) {
	peers, err := d.store.Peers(ctx)
	if err != nil {
		return false, err
	}
	newest := uint64(0)
	for _, p := range peers {
		newest = max(newest, p.Match)
	}
	return newest > 0 && !slices.ContainsFunc(peers, func(p raftstore.PeerStatus) bool {
		return time.Since(p.LastHeard) > d.grace() || p.Match+behind < newest
	}), nil
}

func (d *device) rolloutDevices(s rollout.State) (out []rollout.Device) {
	for _, n := range registry.For[*corev1.Node](d.registry).List("") {
		if _, ours := n.Labels[nodestatus.LabelControlPlane]; !ours {
			continue
		}
		id, why, _ := strings.Cut(n.Annotations[annotationFailed], " ")
		dev := rollout.Device{
			Name: n.Name, Arch: n.Labels[corev1.LabelArchStable], Runs: n.Annotations[annotationBinary], Failed: id, FailedWhy: why,
			Ready: d.isReady(n.Name), Cordoned: n.Spec.Unschedulable, Leads: n.Name == d.cfg.nodeName,
		}
		if s.IsSystem() {
			dev.Board, dev.Runs, _ = strings.Cut(n.Annotations[annotationSystem], " ")
			if dev.Board == withoutSlots {
				dev.Board, dev.Runs = "", withoutSlots
			}
			dev.Pods = len(d.podsToMove(n.Name))
		}
		out = append(out, dev)
	}
	return out
}

// followRollout does this device's part of a rollout until ctx ends.
func (d *device) followRollout(ctx context.Context, g *errgroup.Group) error {
	wake := make(chan struct{}, 1)
	defer d.watchRollout(wake)()
	var tried string // ID of the rollout that this process has begun its part of
	for {
		var again <-chan time.Time
		if err := d.myPart(ctx, g, &tried); err != nil && ctx.Err() == nil {
			if !errors.Is(err, errTrial) { // which ends in two minutes
				d.log.Warn("this device's part of an upgrade of the cluster has to wait", "err", err)
			}
			again = time.After(5 * time.Second)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-again:
		}
	}
}

func (d *device) myPart(ctx context.Context, g *errgroup.Group, tried *string) error {
	s, ok, err := d.rolloutState()
	if err == nil && ok && s.Phase == rollout.Done {
		return os.RemoveAll(d.upgradeDir())
	}
	if err != nil || !ok || s.Phase != rollout.Running || !s.IsSystem() && s.Arch != goruntime.GOARCH {
		return err
	}
	me, ok := registry.For[*corev1.Node](d.registry).Get("", d.cfg.nodeName)
	if !ok {
		return nil
	}
	key, sum, err := d.whatRuns(s)
	if err != nil {
		return err
	}
	if me.Annotations[key] != sum {
		return d.annotate(ctx, key, sum)
	}
	failed, _, _ := strings.Cut(me.Annotations[annotationFailed], " ")
	if !s.May(d.cfg.nodeName, me.Spec.Unschedulable) || strings.HasSuffix(sum, s.SHA256) || failed == s.ID || *tried == s.ID {
		return nil
	}
	*tried = s.ID
	began, err := os.ReadFile(d.triedPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	g.Go(func() error {
		var err error
		switch {
		case s.IsSystem():
			err = d.replaceSystem(ctx, s, string(began))
		case string(began) == s.ID:
			return d.awaitOutcome(ctx, s)
		default:
			err = d.replaceDaemon(ctx, s)
		}
		if err != nil && ctx.Err() == nil {
			d.log.Error("this device is not upgraded", "err", err)
			return endOf(ctx, d.annotate(ctx, annotationFailed, s.ID+" "+err.Error()))
		}
		return nil
	})
	return nil
}

// whatRuns is what this device says of itself for a rollout, and under which key.
func (d *device) whatRuns(s rollout.State) (key, value string, err error) {
	if s.IsSystem() {
		value, err = d.systemSum(s.RootBytes)
		return annotationSystem, value, err
	}
	value, err = d.binarySum()
	return annotationBinary, value, err
}

// replaceDaemon returns when the program that replaces this daemon has begun.
func (d *device) replaceDaemon(ctx context.Context, s rollout.State) error {
	if err := d.fetchRelease(ctx, s); err != nil {
		return err
	}
	// On disk: the daemon that comes back when this fails must not begin again.
	if err := atomicfile.Write(d.triedPath(), []byte(s.ID), 0o600); err != nil {
		return err
	}
	return d.startUpgrade(s)
}

// triedPath holds the ID of the rollout that this device has begun its part of.
func (d *device) triedPath() string { return filepath.Join(d.upgradeDir(), "tried") }

// outcomeWithin is how long the program that replaces a daemon takes at most to
// tell that the old one is back.
const outcomeWithin = 3 * time.Minute

// awaitOutcome is for a daemon that finds that one before it has begun: the
// program that replaces it tells how that ended, unless it was ended itself, by a
// power cut.
func (d *device) awaitOutcome(ctx context.Context, s rollout.State) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(outcomeWithin):
	}
	me, ok := registry.For[*corev1.Node](d.registry).Get("", d.cfg.nodeName)
	now, running, err := d.rolloutState()
	if err != nil || !ok || !running || now.ID != s.ID || now.Phase != rollout.Running || now.Device != d.cfg.nodeName || strings.HasPrefix(me.Annotations[annotationFailed], s.ID+" ") {
		return nil
	}
	return endOf(ctx, d.annotate(ctx, annotationFailed, s.ID+" it was interrupted"))
}

func (d *device) annotate(ctx context.Context, key, value string) error {
	_, err := registry.For[*corev1.Node](d.registry).Update(ctx, "", d.cfg.nodeName, func(n *corev1.Node) error {
		if n.Annotations == nil {
			n.Annotations = map[string]string{}
		}
		n.Annotations[key] = value
		return nil
	})
	return err
}

// openRelease gets a binary or an upgrade from the device that has it, as an API
// server talks to a kubelet: with certificates of the cluster on both ends.
func (d *device) openRelease(ctx context.Context, source, sum string) (io.ReadCloser, error) {
	n, ok := registry.For[*corev1.Node](d.registry).Get("", source)
	if !ok {
		return nil, fmt.Errorf("the device %s, which has the upgrade, is not there", source)
	}
	i := slices.IndexFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Type == corev1.NodeInternalIP })
	if i < 0 {
		return nil, fmt.Errorf("the device %s, which has the upgrade, has no address", source)
	}
	host := net.JoinHostPort(n.Status.Addresses[i].Address, fmt.Sprint(n.Status.DaemonEndpoints.KubeletEndpoint.Port))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/edged/binary/"+sum, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: d.kubelets}).Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("get the upgrade from %s: %s", source, resp.Status)
	}
	return resp.Body, nil
}

// fetchRelease puts the binary into the folder of upgrades.
func (d *device) fetchRelease(ctx context.Context, s rollout.State) error {
	path := filepath.Join(d.upgradeDir(), s.SHA256)
	if sum, err := sumOf(path); err == nil && sum == s.SHA256 {
		return nil
	}
	in, err := d.openRelease(ctx, s.Source, s.SHA256)
	if err != nil {
		return err
	}
	defer in.Close()
	sum, err := d.keepRelease(in)
	if err == nil && sum != s.SHA256 {
		err = fmt.Errorf("%s gave another binary than it said", s.Source)
	}
	return err
}

// startUpgrade starts the program that replaces this daemon and goes on without
// it.
func (d *device) startUpgrade(s rollout.State) error {
	out, err := os.OpenFile(filepath.Join(d.upgradeDir(), "log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(binaryPath(), "upgrade", "--daemon", filepath.Join(d.upgradeDir(), s.SHA256), "--sha256", s.SHA256, "--run-dir", d.cfg.runDir, "--for-cluster", s.ID)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "NOTIFY_SOCKET=") || strings.HasPrefix(v, "WATCHDOG_")
	})
	return cmd.Run() // it leaves another one behind
}

// keepRelease writes a binary or an upgrade into the folder of upgrades, in the
// place of what is there, under the name of its SHA-256.
func (d *device) keepRelease(r io.Reader) (sum string, err error) {
	if err := errors.Join(os.RemoveAll(d.upgradeDir()), os.MkdirAll(d.upgradeDir(), 0o700)); err != nil {
		return "", err
	}
	beside := filepath.Join(d.upgradeDir(), ".new")
	f, err := os.OpenFile(beside, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(r, maxReleaseBytes+1))
	if err == nil && n > maxReleaseBytes {
		err = fmt.Errorf("more than %d MB are no edged", maxReleaseBytes>>20)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", fmt.Errorf("keep the upgrade: %w", err)
	}
	sum = hex.EncodeToString(h.Sum(nil))
	return sum, os.Rename(beside, filepath.Join(d.upgradeDir(), sum))
}

// serveBinary gives a binary or an upgrade to the other devices; d.guard has let them in.
func (d *device) serveBinary(w http.ResponseWriter, r *http.Request) {
	sum := r.PathValue("sum")
	if b, err := hex.DecodeString(sum); err != nil || len(b) != sha256.Size {
		http.NotFound(w, r)
		return
	}
	http.ServeFile(w, r, filepath.Join(d.upgradeDir(), sum))
}

// controlRollout is what `edged upgrade --cluster` asks.
func (d *device) controlRollout(mux *http.ServeMux) {
	mux.Handle("GET /v1/upgrade", controlFunc(func(http.ResponseWriter, *http.Request) (any, error) {
		s, ok, err := d.rolloutState()
		if err == nil && !ok {
			err = errors.New("no upgrade of the cluster was started")
		}
		return s, err
	}))
	mux.Handle("POST /v1/upgrade", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return d.beginRollout(r.Context(), r.Body, r.URL.Query().Get("what") == "system")
	}))
	// The program that upgrades this device tells what became of it.
	mux.Handle("POST /v1/upgrade/failed", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return struct{}{}, d.annotate(r.Context(), annotationFailed, r.URL.Query().Get("id")+" "+r.URL.Query().Get("why"))
	}))
}

func (d *device) beginRollout(ctx context.Context, in io.Reader, system bool) (rollout.State, error) {
	if old, ok, err := d.rolloutState(); err != nil {
		return old, err
	} else if ok && old.Phase == rollout.Running {
		return old, fmt.Errorf("the cluster is being upgraded to %s already", old.Release)
	}
	sum, err := d.keepRelease(in)
	if err != nil {
		return rollout.State{}, err
	}
	path := filepath.Join(d.upgradeDir(), sum)
	s := rollout.State{Format: rollout.FormatDaemon, SHA256: sum, Arch: goruntime.GOARCH, Source: d.cfg.nodeName, Phase: rollout.Running}
	if system {
		s.Format, s.Arch, s.File = rollout.FormatSystem, "", sum
		err = describeSystem(path, &s)
	} else {
		s.Release, err = releaseOf(ctx, path)
	}
	if err != nil {
		return s, errors.Join(err, os.RemoveAll(d.upgradeDir()))
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return s, err
	}
	s.ID = hex.EncodeToString(id[:])
	data, err := json.Marshal(s)
	if err != nil {
		return s, err
	}
	maps := registry.For[*corev1.ConfigMap](d.registry)
	_, err = maps.Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: rolloutName}, Data: map[string]string{rolloutKey: string(data)},
	})
	if apierrors.IsAlreadyExists(err) {
		_, err = maps.Update(ctx, metav1.NamespaceSystem, rolloutName, func(m *corev1.ConfigMap) error {
			m.Data = map[string]string{rolloutKey: string(data)}
			return nil
		})
	}
	return s, err
}
