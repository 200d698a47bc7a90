package main

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"k8s.io/apiserver/pkg/endpoints/request"

	"edged/apiserver/registry"
)

// metrics are what the daemon counts beside what its parts know anyway. Names
// are etcd's and Kubernetes' where those count the same.
type metrics struct {
	requests *prometheus.CounterVec
	writes   *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_total", Help: "API requests by verb, group, version, resource, subresource and HTTP response code.",
		}, []string{"verb", "group", "version", "resource", "subresource", "code"}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "edged_store_writes_total", Help: "Keys that this device had written or deleted, by what is stored there: the causes of what reaches the disk.",
		}, []string{"resource"}),
	}
}

// observe counts one request. Label values come from a table of kinds and from
// fixed sets, never from what a client made up.
func (m *metrics) observe(info *request.RequestInfo, known bool, code int) {
	if !info.IsResourceRequest {
		m.requests.WithLabelValues("", "", "", "", "", strconv.Itoa(code)).Inc()
		return
	}
	if !known {
		m.requests.WithLabelValues(info.Verb, "", "", "unknown", "", strconv.Itoa(code)).Inc()
		return
	}
	m.requests.WithLabelValues(info.Verb, info.APIGroup, info.APIVersion, info.Resource, info.Subresource, strconv.Itoa(code)).Inc()
}

// countWrites wraps a store so that each successful write is counted.
func (m *metrics) countWrites(s registry.Store) registry.Store { return countedStore{s, m.writes} }

type countedStore struct {
	registry.Store
	writes *prometheus.CounterVec
}

func (c countedStore) Txn(ctx context.Context, req *pb.TxnRequest) (*pb.TxnResponse, error) {
	resp, err := c.Store.Txn(ctx, req)
	if err != nil {
		return resp, err
	}
	ops := req.Failure
	if resp.Succeeded {
		ops = req.Success
	}
	for _, op := range ops {
		switch {
		case op.GetRequestPut() != nil:
			c.writes.WithLabelValues(resourceOf(op.GetRequestPut().Key)).Inc()
		case op.GetRequestDeleteRange() != nil:
			c.writes.WithLabelValues(resourceOf(op.GetRequestDeleteRange().Key)).Inc()
		}
	}
	return resp, nil
}

// resourceOf is the second element of /registry/<resource>/...
func resourceOf(key []byte) string {
	rest, ok := strings.CutPrefix(string(key), "/registry/")
	if !ok {
		return "other"
	}
	resource, _, _ := strings.Cut(rest, "/")
	return resource
}

// metricsHandler serves what the collectors know, and Go's and the process' own
// figures.
func metricsHandler(cs ...prometheus.Collector) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(cs...)
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.InstrumentMetricHandler(reg, promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 2}))
}
