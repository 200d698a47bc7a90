// Command robust breaks clusters of three members and lets etcd's own checkers
// judge what clients saw meanwhile.
//
//	go run . -bin <edged or etcd> [-fault regexp] [-traffic regexp] [-rounds n] [-prove]
//
// A run is a fault under a traffic: the traffics of go.etcd.io/etcd/tests write,
// read, watch and compact for some seconds, the fault comes and goes, and then
// the history must be linearizable (porcupine, etcd's model), every watch as
// etcd promises (ordered, unique, atomic, reliable, resumable, bookmarkable),
// reads of old revisions right, and HashKV equal on all members. A witness that
// watches every member from revision 2 stands in for etcd's WAL files: it says
// what came to be, and that all members told the same.
//
// Members run in network namespaces that a bridge in another one joins; all of
// it, with the processes, belongs to a PID namespace whose end is theirs.
// -prove plants a fault that no store survives, disks that come back as they
// were seconds ago, and succeeds if the checkers find out.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// inside marks the process that is in namespaces of its own.
const inside = "EDGED_ROBUST_INSIDE"

type options struct {
	bin, work string
	seed      uint64
	timeout   time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "../../bin/edged", "edged, or an etcd")
	flag.StringVar(&o.work, "work", "work", "folder for data and logs; those of a clean run are removed")
	faults := flag.String("fault", "", "only faults that match this")
	traffics := flag.String("traffic", "", "only traffics that match this")
	rounds := flag.Int("rounds", 1, "how often each run is made")
	prove := flag.Bool("prove", false, "lose acknowledged writes on purpose: the checkers must find out")
	flag.Uint64Var(&o.seed, "seed", 0, "seed of what the faults draw (0: by the clock); not of the traffic, which runs in real time")
	flag.DurationVar(&o.timeout, "timeout", 3*time.Minute, "for one run and its judgement")
	flag.Parse()
	if os.Getenv(inside) == "" {
		os.Exit(enter())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano())
	}
	if err := run(ctx, o, *faults, *traffics, *rounds, *prove); err != nil {
		fmt.Fprintln(os.Stderr, "test/robust:", err)
		os.Exit(1)
	}
}

// enter runs this program again as the first process of namespaces of its own.
func enter() int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "test/robust:", err)
		return 2
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "test/robust: namespaces of its own (this needs root):", err)
		return 2
	}
	return 0
}

func run(ctx context.Context, o options, faultRE, trafficRE string, rounds int, prove bool) (err error) {
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	if _, err := os.Stat(o.bin); err != nil {
		return fmt.Errorf("-bin: %w", err)
	}
	if o.work, err = filepath.Abs(o.work); err != nil {
		return err
	}
	wantFault, err := regexp.Compile(faultRE)
	if err != nil {
		return fmt.Errorf("-fault: %w", err)
	}
	wantTraffic, err := regexp.Compile(trafficRE)
	if err != nil {
		return fmt.Errorf("-traffic: %w", err)
	}
	if err := settle(); err != nil {
		return err
	}
	todo := faults
	if prove {
		todo = []fault{lyingDisks}
	}
	fmt.Printf("seed %d\n", o.seed)
	var made, bad int
	for round := range rounds {
		for _, f := range todo {
			for _, t := range traffics {
				if !wantFault.MatchString(f.name) || !wantTraffic.MatchString(t.name) {
					continue
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				made++
				draw := rand.New(rand.NewPCG(o.seed, uint64(made)))
				start := time.Now()
				r, err := oneRun(ctx, o, f, t, round, draw)
				verdict := "clean"
				if err != nil {
					verdict = "BAD"
					bad++
				}
				fmt.Printf("%-5s %5.1fs %-11s %-11s %5d operations, %4d failed, %6d events watched, revision %d\n",
					verdict, time.Since(start).Seconds(), f.name, t.name, r.operations, r.failed, r.events, r.revision)
				if err != nil {
					fmt.Printf("      %s\n", strings.ReplaceAll(err.Error(), "\n", "\n      "))
				}
			}
		}
	}
	switch {
	case made == 0:
		return errors.New("nothing matches -fault and -traffic")
	case prove && bad < made:
		return fmt.Errorf("%d of %d runs that lost acknowledged writes were not found out", made-bad, made)
	case prove:
		fmt.Printf("all %d runs that lost acknowledged writes were found out\n", made)
		return nil
	case bad > 0:
		return fmt.Errorf("%d of %d runs are not clean", bad, made)
	}
	fmt.Printf("%d of %d runs clean\n", made, made)
	return nil
}
