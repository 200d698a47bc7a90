package recorder_test

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/apiserver/registry/registrytest"
)

func start(t *testing.T) (*registry.Registry, *recorder.Recorder) {
	reg := registrytest.New(t)
	rec := recorder.New(reg, "tester", "n1", nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = rec.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return reg, rec
}

func about(name string) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "default", Name: name, UID: "u-" + "x"}
}

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

// Equal events are one object.
func TestEqualEventsCount(t *testing.T) {
	reg, rec := start(t)
	for range 5 {
		rec.Event(about("a"), "Normal", "Started", "went up")
	}
	rec.Component("other").Event(about("a"), "Normal", "Started", "went up")
	events := registry.For[*corev1.Event](reg)
	await(t, "two events, one of count 5", func() bool {
		l := events.List("default")
		return len(l) == 2 && l[0].Count+l[1].Count == 6
	})
}

// An object that never comes to rest costs a bounded number of writes.
func TestBounds(t *testing.T) {
	reg, rec := start(t)
	before := reg.Revision()
	for i := range 100 {
		rec.Eventf(about("a"), "Warning", "Failed", "attempt %d", i)
	}
	rec.Event(about("last"), "Normal", "End", "end")
	events := registry.For[*corev1.Event](reg)
	await(t, "the last event is written", func() bool {
		for _, e := range events.List("default") {
			if e.Reason == "End" {
				return true
			}
		}
		return false
	})
	l := events.List("default")
	if len(l) != 12 { // ten of their own, one combined, the last
		t.Errorf("%d event objects, want 12", len(l))
	}
	combined := 0
	for _, e := range l {
		if strings.HasPrefix(e.Message, "(combined from similar events): ") {
			combined++
		}
	}
	if combined != 1 {
		t.Errorf("%d combined events, want 1", combined)
	}
	if writes := reg.Revision() - before; writes > 26 {
		t.Errorf("100 events cost %d writes, want at most 26", writes)
	}
}
