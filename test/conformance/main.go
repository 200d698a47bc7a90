// Command conformance runs Kubernetes' own e2e suite, unchanged, against a
// cluster that the harness starts, and prints what passed.
//
// build.sh makes the suite and its images in the folder given as -work. What
// runs is said by one of: -stage, the tests that listed.txt names for it (all
// that it names if empty); -file, the conformance tests of the source files that
// match, so that the rest of an area runs too; -focus, any regular expression. An
// empty selection runs no test and is an error: ginkgo would exit 0.
//
// Two devices by default: some tests ask for two nodes, and those of Services and
// of the network only then cross from one to the other.
package main

import (
	"bufio"
	"context"
	"encoding/xml"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"edged/test/conformance/ociserve"
	"edged/test/harness"
)

// device is the harness' TB of a command: a failure ends the run.
type device struct{ cleanups []func() }

func (d *device) Helper()                           {}
func (d *device) Logf(format string, args ...any)   { log.Printf(format, args...) }
func (d *device) Errorf(format string, args ...any) { log.Printf(format, args...) }
func (d *device) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (d *device) Cleanup(f func())                  { d.cleanups = append(d.cleanups, f) }
func (d *device) end() {
	for _, f := range slices.Backward(d.cleanups) {
		f()
	}
}

type options struct {
	work, report, stage, file, focus, skip, flags string
	devices, procs                                int
	timeout                                       time.Duration
}

func main() {
	log.SetFlags(log.Ltime)
	var o options
	flag.StringVar(&o.work, "work", "test/conformance/work", "folder that build.sh made")
	flag.StringVar(&o.report, "report", "", "folder for logs and results, emptied first (default WORK/report)")
	flag.StringVar(&o.stage, "stage", "", "run the listed tests of this stage only")
	flag.StringVar(&o.file, "file", "", "run the conformance tests of the source files that match this regular expression instead of the listed ones")
	flag.StringVar(&o.focus, "focus", "", "run the tests that match this regular expression instead of the listed ones")
	flag.IntVar(&o.devices, "devices", 2, "devices in the cluster")
	flag.StringVar(&o.skip, "skip", "", "but not those that match this one")
	flag.IntVar(&o.procs, "procs", 1, "tests to run at a time")
	flag.StringVar(&o.flags, "flags", "", "more flags for edged run, separated by spaces")
	flag.DurationVar(&o.timeout, "timeout", 3*time.Hour, "bound on the whole run")
	flag.Parse()
	failed, err := run(o)
	if err != nil {
		log.Fatal("conformance: ", err)
	}
	if failed > 0 {
		os.Exit(1)
	}
}

func run(o options) (failed int, err error) {
	work, err := filepath.Abs(o.work)
	if err != nil {
		return 0, err
	}
	focus := o.focus
	if focus == "" && o.file != "" {
		focus = `\[Conformance\]`
	}
	if focus == "" {
		if focus, err = listed("test/conformance/listed.txt", o.stage); err != nil {
			return 0, err
		}
	}
	report := o.report
	if report == "" {
		report = filepath.Join(work, "report")
	}
	if report, err = filepath.Abs(report); err != nil {
		return 0, err
	}
	if err := os.RemoveAll(report); err != nil {
		return 0, err
	}
	if err := os.MkdirAll(report, 0o755); err != nil {
		return 0, err
	}
	tb := &device{}
	defer tb.end()
	devices, err := cluster(tb, o.devices, strings.Fields(o.flags))
	if err != nil {
		return 0, err
	}
	log.Printf("%d ready; importing the images", len(devices))
	for _, d := range devices {
		if _, err := d.Edged("image", "import", "--run-dir", d.RunDir(), filepath.Join(work, "images.tar")); err != nil {
			return 0, err
		}
		if err := mirror(tb, d, filepath.Join(work, "images.tar")); err != nil {
			return 0, err
		}
	}
	cmd := suite(devices[0], o, work, report, focus)
	out, err := os.Create(filepath.Join(report, "e2e.log"))
	if err != nil {
		return 0, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	log.Printf("running the suite; its output is in %s", out.Name())
	runErr := cmd.Run()
	for _, d := range devices {
		data, err := os.ReadFile(filepath.Join(d.Dir, "edged.log"))
		if err == nil {
			err = os.WriteFile(filepath.Join(report, d.Name+".log"), data, 0o644)
		}
		if err != nil {
			return 0, err
		}
	}
	passed, failed, err := summarize(filepath.Join(report, "junit_01.xml"))
	if err != nil {
		return 0, fmt.Errorf("%w (the suite ended with %v; see %s)", err, runErr, out.Name())
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if passed+failed == 0 {
		return 0, fmt.Errorf("no test matched")
	}
	return failed, nil
}

// mirror serves the images inside the device, as the mirror of all registries:
// some tests pull with the policy Always.
func mirror(tb harness.TB, d *harness.Device, images string) error {
	s, err := ociserve.Open(images)
	if err != nil {
		return err
	}
	l, err := d.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go http.Serve(l, s) // until l is closed
	tb.Cleanup(func() { l.Close() })
	file := fmt.Sprintf("mirrors:\n  \"*\":\n    endpoint: [\"http://%s\"]\n", l.Addr())
	return os.WriteFile(filepath.Join(d.DataDir(), "registries.yaml"), []byte(file), 0o600)
}

// cluster starts n devices: the first founds a cluster, the others join it by a
// token. It returns when each says that it is ready; the suite itself waits for
// their Nodes.
func cluster(tb harness.TB, n int, flags []string) ([]*harness.Device, error) {
	first := harness.Lone(tb, flags...)
	devices := []*harness.Device{first}
	if n < 2 {
		return devices, nil
	}
	token, err := first.Edged("token", "create", "--run-dir", first.RunDir())
	if err != nil {
		return nil, err
	}
	join := []string{"--join", first.Addr.String() + ":6443", "--token", strings.TrimSpace(token)}
	for i := 2; i <= n; i++ {
		d := harness.New(tb, first.Switch(), i, append(join, flags...)...)
		d.Start()
		devices = append(devices, d)
	}
	for _, d := range devices[1:] {
		d.WaitReady()
	}
	return devices, nil
}

func suite(d *harness.Device, o options, work, report, focus string) *exec.Cmd {
	ginkgo := []string{"focus=" + focus, "timeout=" + o.timeout.String(), "poll-progress-after=3m", "no-color"}
	if o.skip != "" {
		ginkgo = append(ginkgo, "skip="+o.skip)
	}
	if o.file != "" {
		ginkgo = append(ginkgo, "focus-file="+o.file)
	}
	e2e := filepath.Join(work, "bin", "e2e.test")
	flags := []string{
		"--kubeconfig=" + d.Kubeconfig(), "--provider=skeleton", "--report-dir=" + report, "--e2e-output-dir=" + report,
		"--kubectl-path=" + filepath.Join(work, "bin", "kubectl"), "--disable-log-dump", "--allowed-not-ready-nodes=0",
	}
	var argv []string
	if o.procs > 1 {
		argv = []string{filepath.Join(work, "bin", "ginkgo"), "--procs=" + strconv.Itoa(o.procs)}
		for _, g := range ginkgo {
			argv = append(argv, "--"+g)
		}
		argv = append(append(argv, e2e, "--"), flags...)
	} else {
		argv = []string{e2e}
		for _, g := range ginkgo {
			argv = append(argv, "--ginkgo."+g)
		}
		argv = append(argv, flags...)
	}
	return d.Command(context.Background(), argv...)
}

// listed joins the names of a stage in listed.txt to one expression.
func listed(path, stage string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var names []string
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		name, s, _ := strings.Cut(sc.Text(), "\t")
		if name != "" && (stage == "" || s == stage) {
			names = append(names, regexp.QuoteMeta(name)+"$")
		}
	}
	if err := sc.Err(); err != nil {
		return "", err
	}
	if len(names) == 0 {
		return "", fmt.Errorf("%s lists no test of stage %q", path, stage)
	}
	return strings.Join(names, "|"), nil
}

type junit struct {
	Suites []struct {
		Cases []struct {
			Name    string  `xml:"name,attr"`
			Status  string  `xml:"status,attr"`
			Seconds float64 `xml:"time,attr"`
			Failure *struct {
				Message string `xml:"message,attr"`
			} `xml:"failure"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

// summarize prints each test that ran, the failed ones last.
func summarize(path string) (passed, failed int, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	var j junit
	if err := xml.Unmarshal(data, &j); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", path, err)
	}
	var bad []string
	for _, s := range j.Suites {
		for _, c := range s.Cases {
			name, isTest := strings.CutPrefix(c.Name, "[It] ")
			switch {
			case !isTest || c.Status == "skipped":
			case c.Status == "passed":
				passed++
				fmt.Printf("pass %6.1fs %s\n", c.Seconds, name)
			default:
				failed++
				message := c.Status
				if c.Failure != nil {
					message, _, _ = strings.Cut(c.Failure.Message, "\n")
				}
				bad = append(bad, fmt.Sprintf("FAIL %6.1fs %s\n             %s", c.Seconds, name, message))
			}
		}
	}
	for _, b := range bad {
		fmt.Println(b)
	}
	return passed, failed, nil
}
