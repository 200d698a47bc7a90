package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// parse reads members as "v1 v2! l3@90": voters and learners, ! for one that is
// silent, @ for how much of a log of 10000 it has; w is a learner to prefer.
func parse(s string) (out []PeerStatus, heard func(PeerStatus) time.Duration) {
	silent := map[uint64]bool{}
	for _, w := range strings.Fields(s) {
		m := PeerStatus{Learner: w[0] != 'v', Prefer: w[0] == 'w', Match: 10000}
		w, at, behind := strings.Cut(w[1:], "@")
		if behind {
			fmt.Sscan(at, &m.Match)
		}
		w, dead := strings.CutSuffix(w, "!")
		fmt.Sscan(w, &m.ID)
		silent[m.ID] = dead
		m.Name = fmt.Sprint("device-", m.ID)
		out = append(out, m)
	}
	return out, func(m PeerStatus) time.Duration {
		if silent[m.ID] {
			return time.Hour
		}
		return 0
	}
}

func TestNextChange(t *testing.T) {
	for _, tt := range []struct {
		members string
		target  int
		want    Change
	}{
		{"v1", 5, Change{}},
		{"v1 l2", 5, Change{}}, // two devices run with one voter
		{"v1 l2 l3", 5, Change{Promote: 2}},
		{"v1 v2 l3", 5, Change{Promote: 3}},
		{"v1 v2 v3", 5, Change{}},
		{"v1 v2 v3 l4", 5, Change{}}, // four devices run with three
		{"v1 v2 v3 l4 l5", 5, Change{Promote: 4}},
		{"v1 v2 v3 v4 l5", 5, Change{Promote: 5}},
		{"v1 v2 v3 v4 v5 l6 l7", 5, Change{}},
		{"v1 v2 v3 l4 l5", 3, Change{}},
		{"v1 l2 l3", 1, Change{}},
		{"v1 l2 w3", 5, Change{Promote: 3}},
		{"v1 v2 l3 w4", 5, Change{Promote: 4}},
		{"v1 l2 w3@9500", 5, Change{Promote: 3}}, // it lacks little
		{"v1 l2 l3 w4@10", 5, Change{Promote: 2}},
		{"v1 w2", 5, Change{}},
		{"v1 v2 v3 w4", 5, Change{}},
		{"v1 v2 v3! l4 w5!", 5, Change{Demote: 3}},
		{"v1 l2 l3@10", 5, Change{}},             // one alone would make it even
		{"v1 l2@9500 l3", 5, Change{Promote: 3}}, // the one that has more
		{"v1 l2 l3!", 5, Change{}},
		{"v1 v2 l3!", 5, Change{}},
		{"v1 v2 v3!", 5, Change{}},             // nobody to take its place
		{"v1 v2 v3! l4", 5, Change{Demote: 3}}, // replaced
		{"v1 v2 v3! l4@10", 5, Change{}},       // not by one that lags
		{"v1 v2! v3! l4", 5, Change{}},         // no quorum to change anything
		{"v1! v2 v3 l4", 5, Change{}},          // the leader is never silent to itself
		{"v1 v2 l4", 5, Change{Promote: 4}},    // after it was demoted
		{"v1 v2 v3 v4 v5! l6", 5, Change{Demote: 5}},
	} {
		members, heard := parse(tt.members)
		if got := NextChange(members, 1, tt.target, time.Minute, heard); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.members, got, tt.want)
		}
	}
}

// From any start the changes end, and with an odd number of voters if they can.
func TestNextChangeEnds(t *testing.T) {
	for n := 1; n <= 9; n++ {
		s := "v1"
		for i := 2; i <= n; i++ {
			s += fmt.Sprint(" l", i)
		}
		members, heard := parse(s)
		for range 100 {
			c := NextChange(members, 1, DefaultVoters, time.Minute, heard)
			if c == (Change{}) {
				break
			}
			for i := range members {
				if members[i].ID == c.Promote {
					members[i].Learner = false
				}
			}
		}
		voters := 0
		for _, m := range members {
			if !m.Learner {
				voters++
			}
		}
		if want := map[int]int{1: 1, 2: 1, 3: 3, 4: 3}[n]; voters != max(want, 0) && n < 5 || n >= 5 && voters != 5 {
			t.Errorf("%d members come to %d voters", n, voters)
		}
	}
}

// A lone founder and four that join become five voters; one that dies is
// replaced by the sixth, and has all the state when it is back.
func TestRebalance(t *testing.T) {
	c := newCluster(t, nil, "a")
	ctx := context.Background()
	put(t, c.members["a"].Store, "k", "v")
	for _, name := range []string{"b", "c", "d", "e", "f"} {
		if _, err := c.members[c.leader()].MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{memberURL(name)}, IsLearner: true}); err != nil {
			t.Fatal(err)
		}
		cfg := c.config(name, append(c.names(), name)...)
		cfg.Join = true
		c.start(cfg)
	}
	rebalance := func(grace time.Duration, want string) {
		t.Helper()
		eventually(t, want, func() bool {
			leader := c.members[c.leader()]
			if _, _, err := leader.Rebalance(ctx, DefaultVoters, grace); err != nil && !errors.Is(err, ErrLearnerNotReady) {
				t.Fatal(err)
			}
			var voters []string
			for _, m := range leader.node.view().members.Members {
				if !m.Learner {
					voters = append(voters, m.Name)
				}
			}
			slices.Sort(voters)
			return strings.Join(voters, "") == want || want == "" && len(voters) == 5
		})
	}
	rebalance(time.Hour, "")
	var dead string
	for _, name := range c.names() {
		if name != c.leader() && !c.members[name].IsLearner() {
			dead = name
			break
		}
	}
	var learner string
	for _, m := range c.members[c.leader()].node.view().members.Members {
		if m.Learner {
			learner = m.Name
		}
	}
	want := strings.ReplaceAll("abcdef", dead, "")
	cfg := c.stop(dead)
	rebalance(100*time.Millisecond, want)
	eventually(t, learner+" to know of its vote", func() bool { return !c.members[learner].IsLearner() })
	put(t, c.members[c.leader()].Store, "later", "v")
	back := c.start(cfg)
	c.same()
	eventually(t, dead+" to know that it has no vote", back.IsLearner)
}

// A founder that loses power right after others got a vote does not know that
// from its state, which is written lazily. It must not lead by its own vote while
// the others go on.
func TestFounderComesBack(t *testing.T) {
	c := newCluster(t, nil, "a")
	ctx := context.Background()
	for _, name := range []string{"b", "c"} {
		if _, err := c.members["a"].MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{memberURL(name)}, IsLearner: true}); err != nil {
			t.Fatal(err)
		}
		cfg := c.config(name, append(c.names(), name)...)
		cfg.Join = true
		c.start(cfg)
	}
	eventually(t, "three voters", func() bool {
		if _, _, err := c.members["a"].Rebalance(ctx, DefaultVoters, time.Hour); err != nil && !errors.Is(err, ErrLearnerNotReady) {
			t.Fatal(err)
		}
		return !c.members["b"].IsLearner() && !c.members["c"].IsLearner()
	})
	cfg := c.kill("a")
	put(t, c.members[c.leader()].Store, "without", "a")
	a := c.start(cfg)
	if a.Leader() == a.MemberID() && a.node.view().term <= c.members["b"].node.view().term {
		t.Errorf("a leads in term %d by its own vote", a.node.view().term)
	}
	put(t, a.Store, "with", "a")
	if got := get(t, a.Store, "without"); got != "a" {
		t.Errorf("what was written without it is %q", got)
	}
	c.same()
}
