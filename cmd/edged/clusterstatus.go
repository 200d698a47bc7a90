package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	corev1 "k8s.io/api/core/v1"

	"edged/apiserver/registry"
	"edged/cluster/clock"
	"edged/runtime/nodestatus"
)

const (
	// deviceStatusPath is where a device tells another how it is, on its API's port.
	deviceStatusPath = "/edged/v1/status"
	// askDevice is how long a device that is there takes to answer at most.
	askDevice = 2 * time.Second
)

// deviceStatus is a device of the cluster as `edged status` shows it.
type deviceStatus struct {
	Node    string `json:"node"`
	Address string `json:"address"`
	Role    string `json:"role"`
	// Ready is the Node's, as kubectl shows it.
	Ready bool `json:"ready"`
	// Reached says that the device itself answered; without, what follows is
	// not known.
	Reached      bool   `json:"reached"`
	Version      string `json:"version,omitempty"`
	AppliedIndex uint64 `json:"appliedIndex,omitempty"`
	// Lag is how many entries of the log it has yet to apply.
	Lag uint64 `json:"lag"`
	// ClockOffset is how far its clock is ahead of this device's.
	ClockOffset time.Duration `json:"clockOffsetNanoseconds"`
	// Metered says that it is quiet, since some device is metered.
	Metered bool `json:"metered,omitempty"`
	// Clock is what it says of its clock: synchronised by NTP, set, or unset.
	Clock string `json:"clock,omitempty"`
	// SystemClockOff is how far its system's clock, which its Pods see, is ahead of
	// what the devices agree on.
	SystemClockOff time.Duration `json:"systemClockOffNanoseconds,omitempty"`
	DiskBytes      int64         `json:"diskBytes,omitempty"`
	DiskFree       int64         `json:"diskFreeBytes,omitempty"`
	MemoryBytes    int64         `json:"memoryBytes,omitempty"`
	MemoryFree     int64         `json:"memoryFreeBytes,omitempty"`
	Containers     int           `json:"containers"`
	NoSpace        bool          `json:"diskFull,omitempty"`
	Time           time.Time     `json:"time,omitzero"`
	CommitIndex    uint64        `json:"commitIndex,omitempty"`
	RunsPods       bool          `json:"runsPods"`
	// ReadsSealed says that its daemon reads sealed Secrets.
	ReadsSealed  bool   `json:"readsSealed,omitempty"`
	UnknownCause string `json:"cause,omitempty"` // why it was not reached
}

// clusterStatus is `edged status`: this device's own, and the cluster's.
type clusterStatus struct {
	controlStatus
	Devices []deviceStatus `json:"devices"`
}

// serveDeviceStatus tells the others how this device is.
func (d *device) serveDeviceStatus(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	// A client that is gone needs no answer.
	_ = json.NewEncoder(w).Encode(d.deviceStatus())
}

// deviceStatus is what this device knows of itself.
func (d *device) deviceStatus() deviceStatus {
	st, own := d.store.Status(), d.status()
	s := deviceStatus{
		Node: d.cfg.nodeName, Reached: true, Version: version, AppliedIndex: st.AppliedIndex, CommitIndex: st.CommitIndex, NoSpace: st.NoSpace,
		Containers: own.Containers, RunsPods: own.RunsPods, MemoryBytes: own.MemoryBytes, Time: d.clock.Now(), ReadsSealed: true,
	}
	s.Metered = d.quiet.Load()
	at := d.clock.Status()
	s.Clock = at.Quality.String()
	s.SystemClockOff, _ = at.Wrong()
	if r, err := nodestatus.RoomOf(d.cfg.dataDir); err == nil {
		s.DiskBytes, s.DiskFree, s.MemoryFree = r.Disk, r.DiskFree, r.MemoryAvailable
	}
	return s
}

// clusterStatus asks all devices at once how they are.
func (d *device) clusterStatus(ctx context.Context) (clusterStatus, error) {
	list, err := d.store.MemberList(ctx, &pb.MemberListRequest{})
	if err != nil {
		return clusterStatus{}, err
	}
	out := clusterStatus{controlStatus: d.status(), Devices: make([]deviceStatus, len(list.Members))}
	leader, witnesses := d.store.Leader(), d.witnesses(ctx)
	var asking sync.WaitGroup
	for i, m := range list.Members {
		asking.Go(func() {
			s := d.askDevice(ctx, m)
			s.Node, s.Role, s.Ready = m.Name, roleOf(m, leader, witnesses), d.isReady(m.Name)
			s.Address = d.addressOf(m)
			out.Devices[i] = s
		})
	}
	asking.Wait()
	var head uint64
	for _, s := range out.Devices {
		head = max(head, s.CommitIndex, s.AppliedIndex)
	}
	for i := range out.Devices {
		if s := &out.Devices[i]; s.Reached {
			s.Lag = head - s.AppliedIndex
		}
	}
	slices.SortFunc(out.Devices, func(a, b deviceStatus) int { return cmp.Compare(a.Node, b.Node) })
	return out, nil
}

func roleOf(m *pb.Member, leader uint64, witnesses []uint64) string {
	role := "voter"
	switch {
	case m.ID == leader:
		role = "leader"
	case m.IsLearner:
		role = "learner"
	}
	if slices.Contains(witnesses, m.ID) {
		role += " (witness)"
	}
	return role
}

// addressOf is where a device is, by its Node, or by where it is reached as a
// member of the store.
func (d *device) addressOf(m *pb.Member) string {
	if n, ok := registry.For[*corev1.Node](d.registry).Get("", m.Name); ok {
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				return a.Address
			}
		}
	}
	for _, text := range m.PeerURLs {
		if u, err := url.Parse(text); err == nil {
			return u.Hostname()
		}
	}
	return ""
}

// askDevice asks one device. Its API has the port that this one's has.
func (d *device) askDevice(ctx context.Context, m *pb.Member) deviceStatus {
	if m.ID == d.store.MemberID() {
		return d.deviceStatus()
	}
	ctx, cancel := context.WithTimeout(ctx, askDevice)
	defer cancel()
	s, err := d.fetchStatus(ctx, net.JoinHostPort(d.addressOf(m), fmt.Sprint(d.cfg.parsed.api.Port())))
	if err != nil {
		return deviceStatus{UnknownCause: err.Error()}
	}
	return s
}

func (d *device) fetchStatus(ctx context.Context, host string) (s deviceStatus, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+deviceStatusPath, nil)
	if err != nil {
		return s, err
	}
	sent, began := d.clock.Now(), time.Now()
	resp, err := d.kubelets.RoundTrip(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return s, fmt.Errorf("it answered %s", resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&s); err != nil {
		return s, fmt.Errorf("its answer: %w", err)
	}
	s.Reached, s.ClockOffset = true, s.Time.Sub(sent.Add(time.Since(began)/2))
	return s, nil
}

// table prints the cluster for people.
func (c clusterStatus) table(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "NODE\tADDRESS\tROLE\tREADY\tLAG\tCONTAINERS\tCLOCK\tDISK FREE\tMEMORY FREE\tVERSION")
	for _, s := range c.Devices {
		name := s.Node
		if name == "" {
			name = "(joining)"
		}
		if !s.Reached {
			fmt.Fprintf(w, "%s\t%s\t%s\t%v\t-\t-\t-\t-\t-\t-\n", name, s.Address, s.Role, s.Ready)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%v\t%d\t%d\t%s\t%s\t%s\t%s\n", name, s.Address, s.Role, s.Ready, s.Lag, s.Containers, offset(s.ClockOffset),
			share(s.DiskFree, s.DiskBytes), share(s.MemoryFree, s.MemoryBytes), s.Version)
	}
	for _, s := range c.Devices {
		if s.NoSpace {
			fmt.Fprintf(w, "The disk of %s is full: it refuses writes until there is room.\n", s.Node)
		}
		if s.SystemClockOff.Abs() > clock.Bound {
			fmt.Fprintf(w, "The clock of %s is %s off what the devices agree on: its Pods see that, the cluster does not. Set it, or give it a time server.\n", s.Node, offset(s.SystemClockOff))
		}
		if s.UnknownCause != "" {
			fmt.Fprintf(w, "%s did not answer: %s\n", s.Node, s.UnknownCause)
		}
	}
	if len(c.Devices) == 2 && slices.ContainsFunc(c.Devices, func(s deviceStatus) bool { return s.Role == "learner" }) {
		fmt.Fprintln(w, "Of two devices one has the vote: without the other all goes on, without it nothing can be changed. A witness or a third device mends that.")
	}
	if c.Role == "without a leader" {
		fmt.Fprintln(w, "There is no leader: writes are refused until most of the devices that vote are reached.")
	}
	return w.Flush()
}

// offset shows a clock's offset as closely as it was measured.
func offset(d time.Duration) string {
	if d.Abs() < 50*time.Millisecond {
		return "+0s"
	}
	return fmt.Sprintf("%+.1fs", d.Seconds())
}

func share(free, all int64) string {
	if all == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f of %.1f GB", float64(free)/1e9, float64(all)/1e9)
}
