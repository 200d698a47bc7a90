// Command edged is a device of an edged cluster: Kubernetes' API, scheduler,
// controllers, node agent, container engine and network in one process.
//
// This package turns flags into a config, a config into a device, and an error
// into an exit code. It is the only one that knows pflag, and it is not
// imported by anything.
//
// main.go dispatches; each subcommand is a file of its own; run.go builds a
// device from top to bottom, runs it, and closes it in reverse.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sort"
	"syscall"
	_ "time/tzdata" // CronJobs name time zones, and boards have none

	"edged/net/cniplugin"
)

// Exit codes are a contract with scripts and service managers.
const (
	exitOK     = 0
	exitFailed = 1
	exitMisuse = 2
)

// errMisuse marks an error that the caller of the command can mend by calling
// it differently.
type errMisuse struct{ error }

func misusef(format string, args ...any) error { return errMisuse{fmt.Errorf(format, args...)} }

// env is what a subcommand may touch of the process it runs in.
type env struct {
	args           []string
	stdin          io.Reader
	stdout, stderr io.Writer
}

// command is one subcommand. run reports misuse with [misusef]; any other
// error is a failure.
type command struct {
	summary string
	run     func(ctx context.Context, e env) error
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	if cniplugin.Called(os.Args, os.Getenv) {
		os.Exit(cniplugin.Main(ctx, os.Getenv, os.Stdin, os.Stdout))
	}
	code := dispatch(ctx, env{os.Args[1:], os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

func dispatch(ctx context.Context, e env) int {
	cmds := commands()
	if len(e.args) == 0 {
		usage(e.stderr, cmds)
		return exitMisuse
	}
	name := e.args[0]
	switch name {
	case "-h", "--help", "help":
		usage(e.stdout, cmds)
		return exitOK
	case "--version":
		name = "version"
	}
	cmd, ok := cmds[name]
	if !ok {
		fmt.Fprintf(e.stderr, "edged: unknown command %q; `edged help` lists them\n", name)
		return exitMisuse
	}
	e.args = e.args[1:]
	return exitCode(e.stderr, name, cmd.run(ctx, e))
}

func exitCode(stderr io.Writer, name string, err error) int {
	var misuse errMisuse
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &misuse):
		fmt.Fprintf(stderr, "edged %s: %v\n", name, err)
		return exitMisuse
	default:
		fmt.Fprintf(stderr, "edged %s: %v\n", name, err)
		return exitFailed
	}
}

func usage(w io.Writer, cmds map[string]command) {
	fmt.Fprintf(w, "edged turns Linux machines into a Kubernetes cluster: one daemon a device.\n\nUsage: edged COMMAND [flags]\n\nCommands:\n")
	names := make([]string, 0, len(cmds))
	for n := range cmds {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		fmt.Fprintf(w, "  %-12s %s\n", n, cmds[n].summary)
	}
	fmt.Fprintf(w, "\n`edged COMMAND --help` tells a command's flags.\n")
}
