package sim

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "play this seed alone, and print every event")
	seedsFlag = flag.Int("seeds", 50, "how many seeds to play")
)

// model is one key: its value, "" for none.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		var keys []string
		by := map[string][]porcupine.Operation{}
		for _, o := range history {
			k := o.Input.(Op).Key
			if by[k] == nil {
				keys = append(keys, k)
			}
			by[k] = append(by[k], o)
		}
		var out [][]porcupine.Operation
		for _, k := range keys {
			out = append(out, by[k])
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		value, op := state.(string), input.(Op)
		switch op.Kind {
		case Get:
			return !op.Answered || op.Got == value, value
		case Put:
			return true, op.Value
		case Delete:
			return true, ""
		default:
			if value == op.Old {
				return !op.Answered || op.Swapped, op.Value
			}
			return !op.Answered || !op.Swapped, value
		}
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, _ any) string {
		return fmt.Sprintf("%+v", input)
	},
}

func linearizable(ops []Op) porcupine.CheckResult {
	var history []porcupine.Operation
	for _, op := range ops {
		if !op.Answered && op.Kind == Get {
			continue
		}
		end := int64(math.MaxInt64)
		if op.Answered {
			end = int64(op.Return)
		}
		history = append(history, porcupine.Operation{ClientId: op.Client, Input: op, Call: int64(op.Call), Return: end})
	}
	return porcupine.CheckOperationsTimeout(model, history, time.Minute)
}

// folder is on a file system in memory if there is one: the store syncs.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "sim-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func play(t *testing.T, seed uint64, trace *bytes.Buffer) Result {
	t.Helper()
	dir, err := os.MkdirTemp(folder(t), "")
	if err != nil {
		t.Fatal(err)
	}
	opt := Options{Seed: seed, Dir: dir}
	if trace != nil {
		opt.Trace = trace
	}
	r := Run(opt)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if r.Err != nil {
		t.Errorf("seed %d: %v\nreplay: go test ./raftstore/sim -run TestSeeds -seed %d", seed, r.Err, seed)
	} else if got := linearizable(r.Ops); got != porcupine.Ok {
		t.Errorf("seed %d: linearizable: %v\nreplay: go test ./raftstore/sim -run TestSeeds -seed %d", seed, got, seed)
	}
	return r
}

// TestSeeds plays fresh seeds; one that fails is named and plays again exactly.
func TestSeeds(t *testing.T) {
	if *seedFlag != 0 {
		var trace bytes.Buffer
		r := play(t, *seedFlag, &trace)
		t.Logf("%s%+v", trace.Bytes(), summary(r))
		return
	}
	n := *seedsFlag
	if testing.Short() {
		n = 10
	}
	var sum Result
	for range n {
		r := play(t, rand.Uint64()>>16|1, nil)
		if t.Failed() {
			return
		}
		sum.Events += r.Events
		sum.Elections += r.Elections
		sum.Crashes += r.Crashes
		sum.Again += r.Again
		sum.Snapshots += r.Snapshots
		sum.Changes += r.Changes
		sum.Acknowledged += r.Acknowledged
	}
	t.Logf("%d seeds: %s", n, summary(sum))
	// A seed brings about two of the rarest; of a few seeds some bring none.
	least := n
	if n < 200 {
		least = n / 4
	}
	for what, got := range map[string]int{
		"elections": sum.Elections, "proposals made again": sum.Again, "crashes": sum.Crashes, "snapshots": sum.Snapshots, "changes of the membership": sum.Changes, "acknowledged writes": sum.Acknowledged / 50,
	} {
		if got < least {
			t.Errorf("only %d %s in %d seeds: the simulation does not test what it should", got, what, n)
		}
	}
}

func summary(r Result) string {
	return fmt.Sprintf("%d events, %d elections, %d proposals made again, %d crashes, %d snapshots, %d changes of the membership, %d writes acknowledged",
		r.Events, r.Elections, r.Again, r.Crashes, r.Snapshots, r.Changes, r.Acknowledged)
}

// TestSameSeedSameRun: event by event.
func TestSameSeedSameRun(t *testing.T) {
	for seed := uint64(1); seed <= 3; seed++ {
		var a, b bytes.Buffer
		ra, rb := play(t, seed, &a), play(t, seed, &b)
		if ra.Digest != rb.Digest {
			la, lb := bytes.Split(a.Bytes(), []byte("\n")), bytes.Split(b.Bytes(), []byte("\n"))
			for i := range la {
				if i >= len(lb) || !bytes.Equal(la[i], lb[i]) {
					t.Fatalf("seed %d differs at event %d:\n%s\n%s", seed, i, la[i], lb[min(i, len(lb)-1)])
				}
			}
		}
		if ra.Events < 5000 {
			t.Errorf("seed %d: only %d events", seed, ra.Events)
		}
	}
}
