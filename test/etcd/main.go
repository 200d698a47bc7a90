// Command etcd runs etcd's own tests, and those of Kubernetes' storage layer,
// against `edged store` in the place of an etcd binary.
//
//	go run . -work work [-suite common|e2e|k8s] [-focus regexp] [-all]
//
// Each test is a process of its own in a network namespace of its own: the
// suites count ports from 20000, and a test that fails or skips makes those
// after it skip. Anything but PASS is not passed. Without -all the tests of
// listed.txt are run. build.sh makes what is needed below -work; the output of
// each test goes to <work>/logs.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

type test struct{ suite, name string }

type outcome struct {
	test
	verdict string
	took    time.Duration
}

// runner is what the flags say.
type runner struct {
	work, bin string
	timeout   time.Duration
	logs      string
}

func main() {
	work := flag.String("work", "work", "folder that build.sh filled")
	bin := flag.String("bin", "", "folder with etcd, etcdctl and etcdutl (default <work>/bin)")
	suite := flag.String("suite", "", "only this suite")
	focus := flag.String("focus", "", "only tests that match this")
	all := flag.Bool("all", false, "all tests of the suites, not only those of listed.txt")
	jobs := flag.Int("jobs", 2, "how many at a time")
	timeout := flag.Duration("timeout", 4*time.Minute, "for one test")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	failed, err := run(ctx, *work, *bin, *suite, *focus, *all, *jobs, *timeout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "test/etcd:", err)
		os.Exit(2)
	}
	if failed > 0 {
		os.Exit(1)
	}
}

func run(ctx context.Context, work, bin, suite, focus string, all bool, jobs int, timeout time.Duration) (failed int, err error) {
	if work, err = filepath.Abs(work); err != nil {
		return 0, err
	}
	if bin == "" {
		bin = filepath.Join(work, "bin")
	} else if bin, err = filepath.Abs(bin); err != nil {
		return 0, err
	}
	r := &runner{work, bin, timeout, filepath.Join(work, "logs")}
	match, err := regexp.Compile(focus)
	if err != nil {
		return 0, fmt.Errorf("-focus: %w", err)
	}
	var tests []test
	if all {
		tests, err = r.everything(suite)
	} else {
		tests, err = listed()
	}
	if err != nil {
		return 0, err
	}
	tests = slices.DeleteFunc(tests, func(t test) bool { return suite != "" && t.suite != suite || !match.MatchString(t.name) })
	return r.runAll(ctx, tests, jobs), nil
}

func listed() ([]test, error) {
	data, err := os.ReadFile("listed.txt")
	if err != nil {
		return nil, err
	}
	var out []test
	for line := range strings.Lines(string(data)) {
		suite, name, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if ok {
			out = append(out, test{suite, name})
		}
	}
	return out, nil
}

// everything asks the test binaries what they hold.
func (r *runner) everything(suite string) ([]test, error) {
	var out []test
	for _, s := range []string{"common", "e2e", "k8s"} {
		if suite != "" && suite != s {
			continue
		}
		list := exec.Command(filepath.Join(r.work, s+".test"), "-test.list", ".")
		data, err := list.Output()
		if err != nil {
			return nil, fmt.Errorf("list suite %s: %w", s, err)
		}
		for line := range strings.Lines(string(data)) {
			if name := strings.TrimSpace(line); strings.HasPrefix(name, "Test") {
				out = append(out, test{s, name})
			}
		}
	}
	return out, nil
}

// dir is a folder for a test to run in: beside the fixtures, and of its own,
// since some leave data where they run.
func (r *runner) dir(name string) string { return filepath.Join(r.work, "run", name) }

func (r *runner) runAll(ctx context.Context, tests []test, jobs int) (failed int) {
	queue := make(chan test)
	results := make(chan outcome)
	var workers sync.WaitGroup
	for i := range jobs {
		workers.Go(func() {
			for t := range queue {
				start := time.Now()
				verdict := r.runOne(ctx, t, fmt.Sprintf("edged-etcd-%d-%d", os.Getpid(), i))
				results <- outcome{t, verdict, time.Since(start)}
			}
		})
	}
	go func() {
		defer close(results)
		defer workers.Wait()
		defer close(queue)
		for _, t := range tests {
			select {
			case queue <- t:
			case <-ctx.Done():
				return
			}
		}
	}()
	counts := map[string]int{}
	for o := range results {
		fmt.Printf("%-4s %6.1fs %s %s\n", o.verdict, o.took.Seconds(), o.suite, o.name)
		counts[o.verdict]++
	}
	n := len(tests)
	fmt.Printf("%d of %d passed, %d skipped, %d failed\n", counts["PASS"], n, counts["SKIP"], n-counts["PASS"]-counts["SKIP"])
	return n - counts["PASS"]
}

// runOne runs a test in a namespace that is gone afterwards, with everything
// that the test may have left in it.
func (r *runner) runOne(ctx context.Context, t test, ns string) string {
	out, err := r.inNamespace(ctx, t, ns)
	log := filepath.Join(r.logs, t.suite, t.name+".log")
	if werr := os.MkdirAll(filepath.Dir(log), 0o755); werr == nil {
		werr = os.WriteFile(log, out, 0o644)
		err = errors.Join(err, werr)
	}
	switch {
	case bytes.Contains(out, []byte("--- SKIP: "+t.name+" ")):
		return "SKIP"
	case err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.name+" ")):
		return "FAIL"
	}
	return "PASS"
}

func (r *runner) inNamespace(ctx context.Context, t test, ns string) ([]byte, error) {
	if err := ip("netns", "add", ns); err != nil {
		return nil, err
	}
	defer func() {
		for _, pid := range pids(ns) {
			// What a failed test left behind.
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = ip("netns", "del", ns)
	}()
	if err := ip("-n", ns, "link", "set", "lo", "up"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	args := []string{"netns", "exec", ns, filepath.Join(r.work, t.suite+".test"), "-test.v", "-test.run", "^" + t.name + "$"}
	if t.suite != "k8s" {
		args = append(args, "-bin-dir="+r.bin)
	}
	cmd := exec.CommandContext(ctx, "ip", args...)
	cmd.Dir = r.dir(ns)
	if err := os.MkdirAll(cmd.Dir, 0o755); err != nil {
		return nil, err
	}
	defer os.RemoveAll(cmd.Dir)
	cmd.Env = append(os.Environ(), "EDGED_STORE_BIN="+filepath.Join(r.bin, "etcd"))
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.Bytes(), err
}

func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func pids(ns string) []int {
	out, err := exec.Command("ip", "netns", "pids", ns).Output()
	if err != nil {
		return nil
	}
	var all []int
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		var pid int
		if _, err := fmt.Sscan(s.Text(), &pid); err == nil && pid > 1 {
			all = append(all, pid)
		}
	}
	return all
}
