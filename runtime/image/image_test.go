package image_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"edged/runtime/engine"
	"edged/runtime/image"
)

// registry is the outside world: images that are there, and pulls that take time
// or fail.
type registry struct {
	mu      sync.Mutex
	present map[string]bool
	fails   map[string]error
	takes   time.Duration
	pulls   int
	ended   int // by their context
}

func (r *registry) Image(_ context.Context, ref string) (engine.Image, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fails["inspect "+ref]; err != nil {
		return engine.Image{}, false, err
	}
	return engine.Image{ID: ref}, r.present[ref], nil
}

func (r *registry) Pull(ctx context.Context, ref string, _ engine.PullOptions) (engine.Image, error) {
	r.mu.Lock()
	r.pulls++
	err := r.fails[ref]
	r.mu.Unlock()
	select {
	case <-time.After(r.takes):
		return engine.Image{ID: ref, SizeBytes: 42}, err
	case <-ctx.Done():
		r.mu.Lock()
		r.ended++
		r.mu.Unlock()
		return engine.Image{}, ctx.Err()
	}
}

func (r *registry) counts() (pulls, ended int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pulls, r.ended
}

func (r *registry) fail(ref string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fails[ref] = err
}

type recorder struct{ events []string }

func (r *recorder) event(eventType, reason, message string) {
	r.events = append(r.events, eventType+" "+reason+" "+message)
}

func check(t *testing.T, err error, reason, message string) {
	t.Helper()
	var e *image.Error
	if reason == "" {
		if err != nil {
			t.Errorf("err %v", err)
		}
		return
	}
	if !errors.As(err, &e) || e.Reason != reason || !strings.Contains(e.Message, message) {
		t.Errorf("err %v, want %s with %q", err, reason, message)
	}
}

func TestPolicies(t *testing.T) {
	outside := &registry{present: map[string]bool{"here": true}, fails: map[string]error{
		"gone": errors.New("not found"), "inspect broken": errors.New("bad disk"),
	}}
	tests := []struct {
		image   string
		policy  corev1.PullPolicy
		reason  string
		message string
		events  []string
	}{
		{"here", corev1.PullIfNotPresent, "", "", []string{`Normal Pulled Container image "here" already present on machine`}},
		{"here", corev1.PullNever, "", "", []string{`Normal Pulled`}},
		{"here", corev1.PullAlways, "", "", []string{`Normal Pulling Pulling image "here"`, `Normal Pulled Successfully pulled image "here" in `}},
		{"new", corev1.PullIfNotPresent, "", "", []string{`Normal Pulling`, `Normal Pulled Successfully pulled image "new"`}},
		{"new", corev1.PullNever, "ErrImageNeverPull", `Container image "new" is not present with pull policy of Never`, []string{`Warning ErrImageNeverPull`}},
		{"gone", corev1.PullIfNotPresent, "ErrImagePull", "not found", []string{`Normal Pulling`, `Warning Failed Failed to pull image "gone": not found`}},
		{"broken", corev1.PullIfNotPresent, "ImageInspectError", `Failed to inspect image "broken": bad disk`, []string{`Warning InspectFailed`}},
		{"Not a name", corev1.PullAlways, "InvalidImageName", `Failed to apply default image tag "Not a name": couldn't parse image name "Not a name": `, []string{`Warning InspectFailed`}},
	}
	for _, tc := range tests {
		t.Run(tc.image+" "+string(tc.policy), func(t *testing.T) {
			var rec recorder
			img, err := image.New(image.Config{Engine: outside}).Ensure(context.Background(), image.Request{
				PodUID: "u", Image: tc.image, Policy: tc.policy, Event: rec.event,
			})
			check(t, err, tc.reason, tc.message)
			if err == nil && img.ID != tc.image {
				t.Errorf("image %+v", img)
			}
			if len(rec.events) != len(tc.events) {
				t.Fatalf("events %q", rec.events)
			}
			for i, want := range tc.events {
				if !strings.HasPrefix(rec.events[i], want) {
					t.Errorf("event %q, want %q", rec.events[i], want)
				}
			}
		})
	}
}

// A failure backs off for its Pod alone, doubles, is told with its cause, and is
// forgotten after a success.
func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outside := &registry{fails: map[string]error{"x": errors.New("no route")}}
		p := image.New(image.Config{Engine: outside})
		ensure := func(pod string) error {
			_, err := p.Ensure(context.Background(), image.Request{PodUID: pod, Image: "x", Policy: corev1.PullIfNotPresent})
			return err
		}
		check(t, ensure("a"), "ErrImagePull", "no route")
		check(t, ensure("a"), "ImagePullBackOff", `Back-off pulling image "x": ErrImagePull: no route`)
		check(t, ensure("b"), "ErrImagePull", "no route")
		time.Sleep(10 * time.Second)
		check(t, ensure("a"), "ErrImagePull", "no route")
		time.Sleep(19 * time.Second)
		check(t, ensure("a"), "ImagePullBackOff", "")
		time.Sleep(time.Second)
		if pulls, _ := outside.counts(); pulls != 3 {
			t.Errorf("%d pulls", pulls)
		}
		p.Forget("a")
		check(t, ensure("a"), "ErrImagePull", "no route")
		outside.fail("x", nil)
		time.Sleep(10 * time.Second)
		check(t, ensure("a"), "", "")
		outside.fail("x", errors.New("again"))
		check(t, ensure("a"), "ErrImagePull", "again")
	})
}

// Ten who want one image share one pull; another image does not wait for it.
func TestSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outside := &registry{takes: time.Minute}
		p := image.New(image.Config{Engine: outside})
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				img, err := p.Ensure(context.Background(), image.Request{PodUID: fmt.Sprint(i), Image: "big", Policy: corev1.PullAlways})
				if err != nil || img.ID != "big" {
					t.Errorf("%+v, %v", img, err)
				}
			})
		}
		wg.Go(func() {
			began := time.Now()
			_, err := p.Ensure(context.Background(), image.Request{Image: "other", Policy: corev1.PullAlways})
			if err != nil || time.Since(began) > time.Minute {
				t.Errorf("other: %v after %v", err, time.Since(began))
			}
		})
		wg.Go(func() {
			_, err := p.Ensure(context.Background(), image.Request{Image: "big", AuthKey: "secret", Policy: corev1.PullAlways})
			if err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		if pulls, _ := outside.counts(); pulls != 3 {
			t.Errorf("%d pulls, want 3", pulls)
		}
	})
}

// A pull outlives the first who waited for it, and ends with the last.
func TestLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outside := &registry{takes: time.Hour}
		p := image.New(image.Config{Engine: outside})
		for _, wait := range []time.Duration{time.Minute, 2 * time.Minute} {
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), wait)
				defer cancel()
				_, err := p.Ensure(ctx, image.Request{PodUID: "u", Image: "x", Policy: corev1.PullAlways})
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("err %v", err)
				}
			}()
		}
		time.Sleep(90 * time.Second)
		synctest.Wait()
		if pulls, ended := outside.counts(); pulls != 1 || ended != 0 {
			t.Errorf("after one has left: %d pulls, %d ended", pulls, ended)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, ended := outside.counts(); ended != 1 {
			t.Errorf("after all have left: %d ended", ended)
		}
	})
}
