package registry_test

import (
	"context"
	"fmt"
	goruntime "runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"edged/apiserver/kinds"
	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
)

func BenchmarkCreatePod(b *testing.B) {
	r := registrytest.New(b)
	pods := registry.For[*corev1.Pod](r)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := pods.Create(b.Context(), pod(fmt.Sprintf("p%d", i), "n1")); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkUpdatePodStatus(b *testing.B) {
	r := registrytest.New(b)
	pods := registry.For[*corev1.Pod](r)
	if _, err := pods.Create(b.Context(), pod("p", "n1")); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := pods.UpdateStatus(b.Context(), "ns", "p", func(p *corev1.Pod) error { p.Status.Message = fmt.Sprint(i); return nil }); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkListThousandPods(b *testing.B) {
	r := registrytest.New(b)
	pods := registry.For[*corev1.Pod](r)
	for i := range 1000 {
		if _, err := pods.Create(b.Context(), pod(fmt.Sprintf("p%d", i), "n1")); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.List(b.Context(), podsRes, "ns", registry.ListOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCacheMemory reports the heap that a cached Pod takes.
func BenchmarkCacheMemory(b *testing.B) {
	const n = 2000
	for b.Loop() {
		store := registrytest.NewMemStore()
		r := registrytest.NewWith(b, registry.Config{Store: store})
		pods := registry.For[*corev1.Pod](r)
		for i := range n {
			if _, err := pods.Create(b.Context(), pod(fmt.Sprintf("p%d", i), "n1")); err != nil {
				b.Fatal(err)
			}
		}
		heap := func() uint64 {
			goruntime.GC()
			var m goruntime.MemStats
			goruntime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before := heap()
		plain, err := registry.New(registry.Config{Store: store, Kinds: kinds.All(kinds.Config{})})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- plain.Run(ctx) }()
		if err := plain.WaitReady(ctx); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(heap()-before)/n, "B/pod")
		cancel()
		<-done
	}
}
