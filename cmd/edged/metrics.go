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
	"edged/raftstore"
	"edged/raftstore/etcdapi"
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
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 2})
}

// storeCollector tells a store's state under etcd's names
// (https://etcd.io/docs/v3.6/metrics/).
func storeCollector(s *raftstore.Store) prometheus.Collector { return storeMetrics{s} }

type storeMetrics struct{ s *raftstore.Store }

var (
	descHasLeader  = prometheus.NewDesc("etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not.", nil, nil)
	descIsLeader   = prometheus.NewDesc("etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise.", nil, nil)
	descApplied    = prometheus.NewDesc("etcd_server_proposals_applied_total", "The total number of consensus proposals applied.", nil, nil)
	descSize       = prometheus.NewDesc("etcd_mvcc_db_total_size_in_bytes", "Total size of the underlying database physically allocated in bytes.", nil, nil)
	descSizeInUse  = prometheus.NewDesc("etcd_mvcc_db_total_size_in_use_in_bytes", "Total size of the underlying database logically in use in bytes.", nil, nil)
	descRevision   = prometheus.NewDesc("etcd_debugging_mvcc_current_revision", "The current revision of store.", nil, nil)
	descCompaction = prometheus.NewDesc("etcd_debugging_mvcc_compact_revision", "The revision of the last compaction in store.", nil, nil)
	descIsLearner  = prometheus.NewDesc("etcd_server_is_learner", "Whether or not this member is a learner. 1 if is, 0 otherwise.", nil, nil)
	descCommitted  = prometheus.NewDesc("etcd_server_proposals_committed_total", "The total number of consensus proposals committed.", nil, nil)
	descPuts       = prometheus.NewDesc("etcd_mvcc_put_total", "Total number of puts seen by this member.", nil, nil)
	descDeletes    = prometheus.NewDesc("etcd_mvcc_delete_total", "Total number of deletes seen by this member.", nil, nil)
	descTxns       = prometheus.NewDesc("etcd_mvcc_txn_total", "Total number of txns seen by this member.", nil, nil)
	descKeys       = prometheus.NewDesc("etcd_debugging_mvcc_keys_total", "Total number of keys.", nil, nil)
	descVersion    = prometheus.NewDesc("etcd_server_version", "Which version is running. 1 for 'server_version' label with current version.", []string{"server_version"}, nil)
	descCluster    = prometheus.NewDesc("etcd_cluster_version", "Which version is running. 1 for 'cluster_version' label with current cluster version", []string{"cluster_version"}, nil)
	descQuota      = prometheus.NewDesc("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes.", nil, nil)
	descServerID   = prometheus.NewDesc("etcd_server_id", "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.", []string{"server_id"}, nil)
)

func (c storeMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descHasLeader, descIsLeader, descApplied, descSize, descSizeInUse, descRevision, descCompaction, descIsLearner, descCommitted, descPuts, descDeletes, descTxns, descKeys, descVersion, descCluster, descQuota, descServerID} {
		ch <- d
	}
}

func (c storeMetrics) Collect(ch chan<- prometheus.Metric) {
	st := c.s.Status()
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge(descHasLeader, truth(st.Leader != 0))
	gauge(descIsLeader, truth(st.Leader == st.MemberID))
	ch <- prometheus.MustNewConstMetric(descApplied, prometheus.CounterValue, float64(st.AppliedIndex))
	gauge(descSize, float64(st.SizeBytes))
	gauge(descSizeInUse, float64(st.SizeBytesUsed))
	gauge(descRevision, float64(st.Revision))
	gauge(descCompaction, float64(st.Compacted))
	gauge(descIsLearner, truth(st.IsLearner))
	gauge(descQuota, float64(c.s.Quota()))
	n := c.s.Counts()
	gauge(descKeys, float64(n.Keys))
	for d, v := range map[*prometheus.Desc]float64{
		descCommitted: float64(st.CommitIndex), descPuts: float64(n.Puts), descDeletes: float64(n.Deletes), descTxns: float64(n.Txns),
	} {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v)
	}
	for d, label := range map[*prometheus.Desc]string{
		descVersion: etcdapi.Version, descCluster: etcdapi.ClusterVersion, descServerID: strconv.FormatUint(st.MemberID, 16),
	} {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, 1, label)
	}
}
