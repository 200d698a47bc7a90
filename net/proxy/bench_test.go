package proxy_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"edged/net/bridge"
	"edged/net/nft"
	"edged/net/proxy"
)

// BenchmarkUpdate is the budget of 10 ms: one endpoint of 1000 Services x 10
// changes. EDGED_BENCH_SERVICES makes it smaller or larger.
func BenchmarkUpdate(b *testing.B) {
	count := 1000
	if s := os.Getenv("EDGED_BENCH_SERVICES"); s != "" {
		fmt.Sscan(s, &count)
	}
	n := network()
	ct, err := bridge.OpenConntrack()
	if err != nil {
		b.Fatal(err)
	}
	defer ct.Close()
	p, err := proxy.New(proxy.Config{Network: n, Table: nft.Open(), Conntrack: ct})
	if err != nil {
		b.Fatal(err)
	}
	defer nft.Open().Remove()
	var s proxy.State
	for i := range count {
		svc := service(fmt.Sprintf("svc-%04d", i), fmt.Sprintf("10.43.%d.%d", 1+i/250, 1+i%250))
		svc.Spec.Ports = svc.Spec.Ports[:1]
		var pods []pod
		for k := range 10 {
			pods = append(pods, pod{ip: fmt.Sprintf("10.42.%d.%d", 10+k, 1+i%250)})
		}
		s.Services = append(s.Services, svc)
		sl := slice(svc, false, pods...)
		for k := range sl.Endpoints {
			sl.Endpoints[k].NodeName = nil // elsewhere, by their addresses
		}
		s.Slices = append(s.Slices, sl)
	}
	start := time.Now()
	if err := p.Apply(s); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(time.Since(start).Milliseconds()), "first-ms")
	k := 0
	for b.Loop() {
		k++
		i := k % count
		changed := s.Slices[i].DeepCopy()
		changed.Endpoints[k%10].Addresses = []string{fmt.Sprintf("10.42.99.%d", 1+k%250)}
		if k%2 == 0 { // or one fewer: another chain
			changed.Endpoints = changed.Endpoints[:9]
		}
		s.Slices[i] = changed
		if err := p.Apply(s); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/1000, "ms/update")
}
