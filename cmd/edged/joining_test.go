package main

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"edged/cluster/join"
	"edged/raftstore"
)

// TestNamesOfJoining: of devices that ask for one name at once one gets it, also when it
// asks again; the others are told where it is. Another name is free.
func TestNamesOfJoining(t *testing.T) {
	store, err := raftstore.Open(t.Context(), raftstore.Config{Dir: t.TempDir(), Name: "a", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	d := &device{store: store}
	request := func(name, at string) join.Request {
		return join.Request{NodeName: name, PeerURLs: []string{"https://" + at + ":2380"}}
	}
	ctx := t.Context()
	if err := d.nameIsFree(ctx, request("twin", "192.0.2.1")); err != nil {
		t.Errorf("a name that nobody asked for: %v", err)
	}
	var asking sync.WaitGroup
	answers := make([]error, 5)
	for i := range answers {
		asking.Go(func() { answers[i] = d.claimName(ctx, request("twin", "192.0.2."+string(rune('1'+i)))) })
	}
	asking.Wait()
	holder := ""
	for i, err := range answers {
		var refused *join.RequestError
		switch {
		case err == nil && holder != "":
			t.Errorf("%s and another got the name", holder)
		case err == nil:
			holder = "192.0.2." + string(rune('1'+i))
		case !errors.As(err, &refused):
			t.Errorf("asking for a name: %v", err)
		}
	}
	if holder == "" {
		t.Fatal("nobody got the name")
	}
	for _, ask := range []func(join.Request) error{
		func(r join.Request) error { return d.nameIsFree(ctx, r) },
		func(r join.Request) error { return d.claimName(ctx, r) },
	} {
		if err := ask(request("twin", holder)); err != nil {
			t.Errorf("the device that has the name asks again: %v", err)
		}
		if err := ask(request("twin", "192.0.2.9")); err == nil || !strings.Contains(err.Error(), holder) {
			t.Errorf("another: %v, want one that names %s", err, holder)
		}
		if err := ask(request("only", "192.0.2.9")); err != nil {
			t.Errorf("another name: %v", err)
		}
	}
}
