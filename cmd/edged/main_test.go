package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"edged": func() {
		code := dispatch(context.Background(), env{os.Args[1:], os.Stdin, os.Stdout, os.Stderr})
		if err := os.WriteFile(os.Getenv("EXITCODE"), []byte(strconv.Itoa(code)), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(code)
	}})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("EXITCODE", e.WorkDir+"/.exitcode")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// exitcode checks the exit code of the last edged.
			"exitcode": func(ts *testscript.TestScript, neg bool, args []string) {
				if got := ts.ReadFile(".exitcode"); neg || len(args) != 1 || got != args[0] {
					ts.Fatalf("exit code %s, want %v", got, args)
				}
			},
		},
	})
}

// TestKubernetesVersion: the release that edged reports is the one whose
// libraries define its objects.
func TestKubernetesVersion(t *testing.T) {
	data, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), "k8s.io/kubernetes "+kubernetesVersion+"\n") {
		t.Errorf("go.mod does not require k8s.io/kubernetes %s", kubernetesVersion)
	}
}

// TestAPIVersion: what clients compare with their own version is the release that is
// served.
func TestAPIVersion(t *testing.T) {
	v := apiVersion()
	major, minor, _ := strings.Cut(strings.TrimPrefix(kubernetesVersion, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	n, err := strconv.Atoi(minor)
	if err != nil {
		t.Fatal(err)
	}
	if v.Major != major || v.Minor != minor || v.EmulationMajor != major || v.EmulationMinor != minor || v.MinCompatibilityMajor != major || v.MinCompatibilityMinor != strconv.Itoa(n-1) ||
		v.GitVersion != kubernetesVersion+"+edged" || v.Platform == "" || v.GoVersion == "" {
		t.Errorf("%+v", v)
	}
}
