// Package registrytest makes a registry with the real kinds for tests of what
// is built on it: controllers, scheduler, agent, proxy.
//
// It is not for production: its store keeps everything in memory.
//
// New starts a registry and ends it with the test; NewWith lets the test keep
// the MemStore, the clock or the admission chain in its hands.
//
// Promises: the cache checks at the end of the test that nobody changed a
// shared object, and panics if so. Goroutines: the registry's, ended at
// cleanup. May be imported by: tests.
//
// Sources: net/http/httptest, for the shape.
package registrytest

import (
	"context"
	"errors"
	"testing"

	"edged/apiserver/kinds"
	"edged/apiserver/registry"
)

// New returns a running registry over an empty store.
func New(t testing.TB) *registry.Registry {
	t.Helper()
	return NewWith(t, registry.Config{})
}

// NewWith is New with parts of the configuration given: Store and Kinds are
// filled in if they are missing.
func NewWith(t testing.TB, cfg registry.Config) *registry.Registry {
	t.Helper()
	if cfg.Store == nil {
		cfg.Store = NewMemStore()
	}
	if cfg.Kinds == nil {
		cfg.Kinds = kinds.All(kinds.Config{})
	}
	cfg.VerifyCache = true
	r, err := registry.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("registry.Run: %v", err)
		}
	})
	if err := r.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return r
}
