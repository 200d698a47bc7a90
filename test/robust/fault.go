package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/tests/v3/robustness/client"
	"golang.org/x/sys/unix"
)

// fault is something that happens to a cluster and is over when inject returns:
// every member runs, nothing is in the way.
type fault struct {
	name string
	// disks says that members need disks of their own, which can get full.
	disks bool
	// dark says that no witness may be there for a while: history is not
	// compacted meanwhile, since what all witnesses miss cannot be judged.
	dark   bool
	flags  []string
	inject func(ctx context.Context, c *cluster, draw *rand.Rand, clients *client.ClientSet) error
}

// short keeps so little of the log that who was away needs the whole state.
var short = []string{"--snapshot-count=100", "--snapshot-catchup-entries=100"}

// faults are what `make test-robust` does.
var faults = []fault{
	{name: "kill", inject: kill},
	{name: "kill-all", dark: true, inject: killAll},
	{name: "pause", flags: short, inject: pause},
	{name: "partition", flags: short, inject: partition},
	{name: "one-way", inject: oneWay},
	{name: "disk-full", disks: true, inject: diskFull},
	{name: "membership", flags: short, inject: membership},
}

// wait lets time pass: how long a fault lasts is part of the fault.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// kill ends the leader, and the one that follows it as leader.
func kill(ctx context.Context, c *cluster, draw *rand.Rand, _ *client.ClientSet) error {
	for range 2 {
		m, err := c.leader(ctx)
		if err != nil {
			return err
		}
		m.kill()
		wait(ctx, time.Duration(draw.IntN(1500))*time.Millisecond)
		if err := m.start(); err != nil {
			return err
		}
		if err := c.waitAll(ctx); err != nil {
			return err
		}
	}
	return nil
}

// killAll ends all members at once, as a power cut of the place would.
func killAll(ctx context.Context, c *cluster, draw *rand.Rand, _ *client.ClientSet) error {
	for _, m := range c.all {
		m.signal(syscall.SIGKILL)
	}
	for _, m := range c.all {
		m.kill()
	}
	for _, i := range draw.Perm(members) {
		if err := c.all[i].start(); err != nil {
			return err
		}
	}
	return c.waitAll(ctx)
}

// pause stops the leader for longer than an election takes, and lets it go on
// in the belief that it leads.
func pause(ctx context.Context, c *cluster, draw *rand.Rand, _ *client.ClientSet) error {
	m, err := c.leader(ctx)
	if err != nil {
		return err
	}
	m.signal(syscall.SIGSTOP)
	wait(ctx, 2*time.Second+time.Duration(draw.IntN(1000))*time.Millisecond)
	m.signal(syscall.SIGCONT)
	return c.waitAll(ctx)
}

// partition cuts the leader off from the others; clients still reach it.
func partition(ctx context.Context, c *cluster, draw *rand.Rand, _ *client.ClientSet) error {
	m, err := c.leader(ctx)
	if err != nil {
		return err
	}
	var cut, mend []string
	for _, o := range m.others() {
		cut = append(cut, deafen(m, o), deafen(o, m))
		mend = append(mend, hear(m, o), hear(o, m))
	}
	return through(ctx, c, cut, mend, 2*time.Second+time.Duration(draw.IntN(1000))*time.Millisecond)
}

// oneWay lets the leader hear the others and them not hear it, or the reverse.
func oneWay(ctx context.Context, c *cluster, draw *rand.Rand, _ *client.ClientSet) error {
	m, err := c.leader(ctx)
	if err != nil {
		return err
	}
	mute := draw.IntN(2) == 0
	var cut, mend []string
	for _, o := range m.others() {
		from, to := o, m
		if mute {
			from, to = m, o
		}
		cut = append(cut, deafen(from, to))
		mend = append(mend, hear(from, to))
	}
	return through(ctx, c, cut, mend, 2*time.Second+time.Duration(draw.IntN(1000))*time.Millisecond)
}

func through(ctx context.Context, c *cluster, cut, mend []string, d time.Duration) error {
	err := commands(cut...)
	wait(ctx, d)
	if err := errors.Join(err, commands(mend...)); err != nil {
		return err
	}
	return c.waitAll(ctx)
}

// diskFull leaves a member no room, sees that it can still be read, and makes
// room again. An etcd ends by itself then, and is started again.
func diskFull(ctx context.Context, c *cluster, draw *rand.Rand, clients *client.ClientSet) error {
	m := c.all[draw.IntN(members)]
	if draw.IntN(2) == 0 {
		lead, err := c.leader(ctx)
		if err != nil {
			return err
		}
		m = lead
	}
	ballast := filepath.Join(m.dir(), "ballast")
	if err := fill(ballast); err != nil {
		return err
	}
	if err := m.useUp(ctx, draw, clients); err != nil {
		return err
	}
	wait(ctx, 1500*time.Millisecond)
	err := m.readable(ctx)
	if c.plain {
		err = errors.Join(err, c.alarmed(ctx))
	}
	if err := errors.Join(err, os.Remove(ballast), m.revive()); err != nil {
		return err
	}
	if err := c.disarm(ctx); err != nil {
		return err
	}
	return c.waitAll(ctx)
}

// useUp writes large values at a member until it refuses one, a part of what the
// checkers judge: a server sets room aside for its log, which small ones would
// not use up for long.
func (m *member) useUp(ctx context.Context, draw *rand.Rand, clients *client.ClientSet) error {
	cl, err := clients.NewClient([]string{m.endpoint()})
	if err != nil {
		return err
	}
	defer cl.Close()
	pad := make([]byte, 256<<10)
	for i := range pad {
		pad[i] = byte('a' + draw.IntN(26)) // nothing that a log could pack well
	}
	for i := range 64 {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		_, err := cl.Put(ctx, "ballast", fmt.Sprint(i, string(pad)))
		cancel()
		if err != nil {
			break
		}
	}
	return nil
}

// fill takes all room on a disk.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	at := int64(0)
	for step := int64(st.Bavail) * st.Bsize; step >= 4096; {
		if err := unix.Fallocate(int(f.Fd()), 0, at, step); err != nil {
			step /= 2
			continue
		}
		at += step
	}
	return nil
}

// readable says that a member that runs answers from its own replica.
func (m *member) readable(ctx context.Context) error {
	select {
	case <-m.ended:
		return nil
	default:
	}
	cl, err := dial(m.endpoint())
	if err != nil {
		return err
	}
	defer cl.Close()
	return until(ctx, m.name()+" with a full disk cannot be read", func(ctx context.Context) error {
		_, err := cl.Get(ctx, "key", clientv3.WithSerializable())
		return err
	})
}

// alarmed says that the members tell of a full disk.
func (c *cluster) alarmed(ctx context.Context) error {
	cl, err := dial(c.endpoints()...)
	if err != nil {
		return err
	}
	defer cl.Close()
	return until(ctx, "no alarm tells of the full disk", func(ctx context.Context) error {
		list, err := cl.AlarmList(ctx)
		if err == nil && len(list.Alarms) == 0 {
			err = errors.New("there is none")
		}
		return err
	})
}

// disarm takes back alarms until there are none: an edged does it by itself, but for
// those of a member that was killed meanwhile.
func (c *cluster) disarm(ctx context.Context) error {
	cl, err := dial(c.endpoints()...)
	if err != nil {
		return err
	}
	defer cl.Close()
	return until(ctx, "disarm", func(ctx context.Context) error {
		list, err := cl.AlarmList(ctx)
		if err != nil {
			return err
		}
		for _, a := range list.Alarms {
			if _, err := cl.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: a.MemberID, Alarm: a.Alarm}); err != nil {
				return err
			}
		}
		return nil
	})
}

// membership removes a follower, and takes it in again with an empty disk: as a
// learner first, then as a voter.
func membership(ctx context.Context, c *cluster, draw *rand.Rand, _ *client.ClientSet) error {
	lead, err := c.leader(ctx)
	if err != nil {
		return err
	}
	m := lead.others()[draw.IntN(members-1)]
	var rest []string
	for _, o := range m.others() {
		rest = append(rest, o.endpoint())
	}
	cl, err := dial(rest...)
	if err != nil {
		return err
	}
	defer cl.Close()
	if err := until(ctx, "remove "+m.name(), func(ctx context.Context) error { return remove(ctx, cl, m) }); err != nil {
		return err
	}
	m.kill()
	if err := os.RemoveAll(m.data()); err != nil {
		return err
	}
	if err := until(ctx, "add "+m.name(), func(ctx context.Context) error { return add(ctx, cl, m) }); err != nil {
		return err
	}
	m.state = "existing"
	if err := m.start(); err != nil {
		return err
	}
	if err := until(ctx, "promote "+m.name(), func(ctx context.Context) error { return promote(ctx, cl, m) }); err != nil {
		return err
	}
	return c.waitAll(ctx)
}

func find(ctx context.Context, cl *clientv3.Client, m *member) (id uint64, learner bool, err error) {
	list, err := cl.MemberList(ctx)
	if err != nil {
		return 0, false, err
	}
	for _, x := range list.Members {
		if len(x.PeerURLs) > 0 && x.PeerURLs[0] == m.peer() {
			return x.ID, x.IsLearner, nil
		}
	}
	return 0, false, nil
}

func remove(ctx context.Context, cl *clientv3.Client, m *member) error {
	id, _, err := find(ctx, cl, m)
	if err != nil || id == 0 {
		return err
	}
	_, err = cl.MemberRemove(ctx, id)
	return err
}

func add(ctx context.Context, cl *clientv3.Client, m *member) error {
	id, _, err := find(ctx, cl, m)
	if err != nil || id != 0 {
		return err
	}
	_, err = cl.MemberAddAsLearner(ctx, []string{m.peer()})
	return err
}

func promote(ctx context.Context, cl *clientv3.Client, m *member) error {
	id, learner, err := find(ctx, cl, m)
	if err != nil || !learner {
		return err
	}
	_, err = cl.MemberPromote(ctx, id)
	return err
}

// lyingDisks is no fault that a store can survive: all members lose power and
// their disks come back as they were some time ago. It shows that the checkers
// find acknowledged writes that are gone.
var lyingDisks = fault{name: "lying-disks", dark: true, inject: func(ctx context.Context, c *cluster, draw *rand.Rand, _ *client.ClientSet) error {
	for _, m := range c.all {
		m.signal(syscall.SIGSTOP)
	}
	var errs []error
	for _, m := range c.all {
		if out, err := exec.Command("cp", "-a", m.data(), m.data()+".past").CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("copy %s: %w: %s", m.data(), err, out))
		}
	}
	for _, m := range c.all {
		m.signal(syscall.SIGCONT)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	wait(ctx, time.Second)
	for _, m := range c.all {
		m.kill()
		if err := os.RemoveAll(m.data()); err != nil {
			return err
		}
		if err := os.Rename(m.data()+".past", m.data()); err != nil {
			return err
		}
		if err := m.start(); err != nil {
			return err
		}
	}
	return c.waitAll(ctx)
}}
