package main

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"edged/cluster/backup"
)

// snapshotFlags are those of scheduled snapshots.
func (c *config) snapshotFlags(fs *pflag.FlagSet) {
	fs.DurationVar(&c.snapshotInterval, "snapshot-interval", 0, "`duration` between snapshots of the cluster's state, taken by the leader when something changed (0: none); the same on all devices")
	fs.IntVar(&c.snapshotKeep, "snapshot-keep", 5, "how many of them to keep")
	fs.StringVar(&c.snapshotDir, "snapshot-dir", "", "`folder` for them, or NODE: or NODE:/folder for one of another device (default <data-dir>/snapshots)")
	fs.StringSliceVar(&c.snapshotAccept, "snapshot-accept", nil, "`folder` outside of --data-dir in which other devices may keep their snapshots here; may be repeated")
}

// leastInterval keeps a slip of the pen from wearing out a card.
const leastInterval = time.Minute

func (c *config) validateSnapshots() error {
	if c.snapshotInterval != 0 && c.snapshotInterval < leastInterval {
		return misusef("--snapshot-interval: %v is less than %v", c.snapshotInterval, leastInterval)
	}
	if c.snapshotKeep < 1 {
		return misusef("--snapshot-keep: %d: want to keep one at least", c.snapshotKeep)
	}
	node, dir, elsewhere := strings.Cut(c.snapshotDir, ":")
	switch {
	case elsewhere && !strings.Contains(node, "/"):
		if msgs := validation.IsDNS1123Subdomain(node); len(msgs) > 0 {
			return misusef("--snapshot-dir: %q is no device's name: %s", node, msgs[0])
		}
		if dir != "" && !filepath.IsAbs(dir) {
			return misusef("--snapshot-dir: %q on %s is not a folder's whole path", dir, node)
		}
		c.parsed.snapshotNode, c.parsed.snapshotDir = node, dir
	case c.snapshotDir != "":
		abs, err := filepath.Abs(c.snapshotDir)
		if err != nil {
			return misusef("--snapshot-dir: %w", err)
		}
		c.parsed.snapshotDir = abs
	}
	for _, dir := range c.snapshotAccept {
		if !filepath.IsAbs(dir) {
			return misusef("--snapshot-accept: %q is not a folder's whole path", dir)
		}
	}
	return nil
}

// openBackups makes the schedule of snapshots, if there is to be one.
func (d *device) openBackups() {
	c := d.cfg
	if c.snapshotInterval == 0 {
		return
	}
	var place backup.Place
	switch dir := c.parsed.snapshotDir; {
	case c.parsed.snapshotNode != "" && c.parsed.snapshotNode != c.nodeName:
		place = backup.Remote{Node: c.parsed.snapshotNode, Dir: dir, Dial: d.dialKubelet}
	case dir != "":
		place = backup.NewFolder(dir)
	default:
		place = backup.NewFolder(filepath.Join(c.dataDir, backup.DefaultFolder))
	}
	d.backups = backup.New(backup.Config{
		Interval: c.snapshotInterval, Keep: c.snapshotKeep, Place: place, Now: d.clock.Now, Logger: d.log,
		Revision: func() int64 { return d.store.Status().Revision },
		Take:     func() (backup.Snapshot, error) { return d.store.Snapshot() },
	})
}

// dialKubelet finds the port at which a device serves others.
func (d *device) dialKubelet(node string) (base string, t http.RoundTripper, err error) {
	host, err := d.kubeletHost(node)
	return "https://" + host, d.kubelets, err
}

// kubeletPort is what the kubelet's port serves: the kubelet API, and a place for
// the snapshots of other devices. Callers are checked by guard.
func (d *device) kubeletPort() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", &d.node)
	mux.HandleFunc("GET /edged/binary/{sum}", d.serveBinary)
	mux.Handle(backup.Path, &backup.Server{DataDir: d.cfg.dataDir, Allowed: d.cfg.snapshotAccept, Logger: d.log})
	return mux
}

// backupStatus is what came of the schedule on this device, nil for nothing yet.
func (d *device) backupStatus() *backup.Status {
	if d.backups == nil {
		return nil
	}
	st := d.backups.Status()
	if st.Newest == nil && st.Failures == 0 {
		return nil // another device leads
	}
	return &st
}

func printBackups(w io.Writer, st *backup.Status) {
	if st == nil {
		return
	}
	if st.Newest != nil {
		fmt.Fprintf(w, "Newest snapshot: %s in %s\n", st.Newest.Name, st.Place)
	}
	if st.Failures > 0 {
		fmt.Fprintf(w, "Snapshots fail (%d times in a row): %s\n", st.Failures, st.Error)
	}
}

var (
	descSnapshotTaken    = prometheus.NewDesc("edged_snapshot_newest_timestamp_seconds", "When the newest scheduled snapshot was taken, on the device that leads.", nil, nil)
	descSnapshotFailures = prometheus.NewDesc("edged_snapshot_failures", "How many scheduled snapshots failed since the last that succeeded, on the device that leads.", nil, nil)
)

// backupMetrics tells of scheduled snapshots; nothing where none are taken.
type backupMetrics struct{ d *device }

func (backupMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- descSnapshotTaken
	ch <- descSnapshotFailures
}

func (m backupMetrics) Collect(ch chan<- prometheus.Metric) {
	st := m.d.backupStatus()
	if st == nil {
		return
	}
	if st.Newest != nil {
		ch <- prometheus.MustNewConstMetric(descSnapshotTaken, prometheus.GaugeValue, float64(st.Newest.Taken.Unix()))
	}
	ch <- prometheus.MustNewConstMetric(descSnapshotFailures, prometheus.GaugeValue, float64(st.Failures))
}
