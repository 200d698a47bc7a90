package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"edged/internal/atomicfile"
)

// Files of StateDir, all on a file system that a reboot empties:
//
//	pods/<pod uid>.json   a record, written before the Pod's link is made and
//	                      removed after the link is gone
//	resting.json          addresses freed lately, and where to search next
const (
	recordsDir  = "pods"
	restingFile = "resting.json"
	version     = 1
)

// record is what is remembered of an attached Pod.
type record struct {
	Version   int          `json:"version"`
	ID        string       `json:"id"`
	NetNS     string       `json:"netns,omitempty"`
	IfName    string       `json:"ifName,omitempty"`
	IPs       []netip.Addr `json:"ips"`
	HostPorts []HostPort   `json:"hostPorts,omitempty"`
}

// resting is the part of the pools that is not in records.
type resting struct {
	Version int                          `json:"version"`
	Cursors []netip.Addr                 `json:"cursors"`
	Freed   map[netip.Addr]time.Duration `json:"freedAtSinceBoot"`
}

// aliasPrefix begins the alias of every link of ours: "edged:<pod uid> ip,ip".
const aliasPrefix = "edged:"

func (r *record) alias() string {
	ips := make([]string, len(r.IPs))
	for i, a := range r.IPs {
		ips[i] = a.String()
	}
	return aliasPrefix + r.ID + " " + strings.Join(ips, ",")
}

// recordFromAlias is the inverse of alias. It is how a Pod is found whose file
// is gone.
func recordFromAlias(alias string) (*record, bool) {
	rest, ok := strings.CutPrefix(alias, aliasPrefix)
	if !ok {
		return nil, false
	}
	id, list, ok := strings.Cut(rest, " ")
	if !ok || checkID(id) != nil {
		return nil, false
	}
	r := &record{Version: version, ID: id}
	for s := range strings.SplitSeq(list, ",") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, false
		}
		r.IPs = append(r.IPs, a)
	}
	return r, true
}

func ours(l netlink.Link) bool { return strings.HasPrefix(l.Attrs().Alias, aliasPrefix) }

// checkID refuses what cannot be a file name and part of an alias.
func checkID(id string) error {
	if id == "" || len(id) > 100 || strings.ContainsAny(id, "/ \x00") || id[0] == '.' {
		return fmt.Errorf("%q cannot name an attachment", id)
	}
	return nil
}

func (b *Bridge) recordPath(id string) string {
	return filepath.Join(b.cfg.StateDir, recordsDir, id+".json")
}

func (b *Bridge) writeRecord(r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return atomicfile.Write(b.recordPath(r.ID), data, 0o600)
}

// recover learns what an earlier daemon left: from files, then from the links.
func (b *Bridge) recover() error {
	files, err := os.ReadDir(filepath.Join(b.cfg.StateDir, recordsDir))
	if err != nil {
		return err
	}
	for _, f := range files {
		r, err := readRecord(filepath.Join(b.cfg.StateDir, recordsDir, f.Name()))
		if err != nil {
			// A file that cannot be read is not worth a device without
			// network: the link's alias, read next, says the same.
			b.log.Warn("attachment file ignored", "file", f.Name(), "err", err)
			continue
		}
		b.adopt(r)
	}
	links, err := b.links()
	if err != nil {
		return err
	}
	for _, l := range links {
		r, ok := recordFromAlias(l.Attrs().Alias)
		if !ok || b.pods[r.ID] != nil {
			continue
		}
		b.adopt(r)
		if err := b.writeRecord(r); err != nil {
			return err
		}
	}
	b.readResting()
	return nil
}

// links are the host's ends of the veth pairs on the bridge. Other bridges may
// have some too (net/cniplugin). One that a crash left on no bridge is found by
// its record.
func (b *Bridge) links() ([]netlink.Link, error) {
	all, err := b.nl.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	return slices.DeleteFunc(all, func(l netlink.Link) bool {
		return !ours(l) || l.Type() != "veth" || l.Attrs().MasterIndex != b.index
	}), nil
}

func readRecord(path string) (*record, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, err
	}
	if r.Version != version {
		return nil, fmt.Errorf("version %d, want %d", r.Version, version)
	}
	if want := filepath.Base(path); want != r.ID+".json" || checkID(r.ID) != nil {
		return nil, fmt.Errorf("holds attachment %q", r.ID)
	}
	return r, nil
}

// adopt takes over a Pod with the addresses it has. Addresses of a CIDR that
// is no longer this device's are kept by the Pod and claimed nowhere.
func (b *Bridge) adopt(r *record) {
	for _, a := range r.IPs {
		if p := b.poolOf(a); p != nil && !p.claim(a, r.ID) {
			b.log.Error("two attachments have one address", "ip", a, "pod", r.ID, "other", p.used[a])
		}
	}
	b.pods[r.ID] = r
}

func (b *Bridge) poolOf(a netip.Addr) *pool {
	for _, p := range b.pools {
		if p.prefix.Contains(a) {
			return p
		}
	}
	return nil
}

func (b *Bridge) readResting() {
	data, err := os.ReadFile(filepath.Join(b.cfg.StateDir, restingFile))
	if err != nil {
		return // none yet
	}
	var s resting
	if err := json.Unmarshal(data, &s); err != nil || s.Version != version {
		b.log.Warn("file of resting addresses ignored", "err", err, "version", s.Version)
		return
	}
	now := sinceBoot()
	for a, since := range s.Freed {
		p := b.poolOf(a)
		if p == nil {
			continue
		}
		if _, used := p.used[a]; !used {
			p.freed[a] = since
		}
	}
	for _, p := range b.pools {
		p.prune(now)
		for _, c := range s.Cursors {
			if p.prefix.Contains(c) {
				p.cursor = c
			}
		}
	}
}

func (b *Bridge) writeResting() error {
	s := resting{Version: version, Freed: map[netip.Addr]time.Duration{}}
	now := sinceBoot()
	for _, p := range b.pools {
		p.prune(now)
		s.Cursors = append(s.Cursors, p.cursor)
		for a, since := range p.freed {
			s.Freed[a] = since
		}
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(b.cfg.StateDir, restingFile), data, 0o600)
}

// Sync detaches every Pod that is not in keep and removes links of ours that
// belong to no Pod.
func (b *Bridge) Sync(ctx context.Context, keep []string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := make(map[string]bool, len(keep))
	for _, id := range keep {
		kept[id] = true
	}
	var errs []error
	changed := false
	for id := range b.pods {
		if kept[id] {
			continue
		}
		changed = true
		if err := b.detachLocked(id); err != nil {
			errs = append(errs, err)
		}
	}
	links, err := b.links()
	errs = append(errs, err)
	for _, l := range links {
		if r, ok := recordFromAlias(l.Attrs().Alias); ok && b.pods[r.ID] != nil {
			continue
		}
		if err := b.nl.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("bridge %s: removing link %s: %w", b.cfg.Name, l.Attrs().Name, err))
		}
	}
	if changed {
		b.publishLocked()
	}
	return errors.Join(errs...)
}

// sinceBoot is a clock that no one sets and that goes on during suspend.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // does not happen on Linux; 0 makes addresses rest until next time
	}
	return time.Duration(ts.Nano())
}
