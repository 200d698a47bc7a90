package main

import (
	"maps"
	"os"
	goruntime "runtime"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"edged/internal/histogram"
	"edged/raftstore"
	"edged/raftstore/etcdapi"
)

// storeCollector tells what a store does under etcd's names
// (https://etcd.io/docs/v3.6/metrics/), so that dashboards and alarms made for
// etcd work.
func storeCollector(s *raftstore.Store) prometheus.Collector { return storeMetrics{s} }

type storeMetrics struct{ s *raftstore.Store }

// Describe tells nothing beforehand: what there is depends on the members.
func (storeMetrics) Describe(chan<- *prometheus.Desc) {}

// report sends metrics; labels are names and values in turn.
type report chan<- prometheus.Metric

func (r report) desc(name, help string, labels []string) (*prometheus.Desc, []string) {
	var names, values []string
	for i := 0; i+1 < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	return prometheus.NewDesc(name, help, names, nil), values
}

func (r report) gauge(name, help string, v float64, labels ...string) {
	d, values := r.desc(name, help, labels)
	r <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, values...)
}

func (r report) counter(name, help string, v float64, labels ...string) {
	d, values := r.desc(name, help, labels)
	r <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, values...)
}

// histogram sends one; nil is of something that never happens.
func (r report) histogram(name, help string, h *histogram.Histogram, labels ...string) {
	r.scaled(name, help, 1, h, labels...)
}

// scaled is histogram in units of which a second has so many.
func (r report) scaled(name, help string, perSecond float64, h *histogram.Histogram, labels ...string) {
	if h == nil {
		h = new(histogram.Histogram)
	}
	d, values := r.desc(name, help, labels)
	s := h.Snapshot()
	buckets := make(map[float64]uint64, len(s.Buckets))
	for bound, n := range s.Buckets {
		buckets[bound.Seconds()*perSecond] = n
	}
	r <- prometheus.MustNewConstHistogram(d, s.Count, s.Sum.Seconds()*perSecond, buckets, values...)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Collect is part of prometheus.Collector.
func (c storeMetrics) Collect(ch chan<- prometheus.Metric) {
	r, st, stats := report(ch), c.s.Status(), c.s.Stats()
	r.member(c.s, st)
	r.mvcc(c.s, st, stats)
	r.disk(stats)
	r.consensus(st, stats)
	r.network(c.s, stats)
	r.never()
}

func (r report) member(s *raftstore.Store, st raftstore.Status) {
	r.gauge("etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not.", truth(st.Leader != 0))
	r.gauge("etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise.", truth(st.Leader == st.MemberID))
	r.gauge("etcd_server_is_learner", "Whether or not this member is a learner. 1 if is, 0 otherwise.", truth(st.IsLearner))
	r.gauge("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes.", float64(s.Quota()))
	r.gauge("etcd_server_version", "Which version is running. 1 for 'server_version' label with current version.", 1, "server_version", etcdapi.Version)
	r.gauge("etcd_cluster_version", "Which version is running. 1 for 'cluster_version' label with current cluster version", 1, "cluster_version", etcdapi.ClusterVersion)
	r.gauge("etcd_server_go_version", "Which Go version server is running with. 1 for 'server_go_version' label with current version.", 1, "server_go_version", goruntime.Version())
	r.gauge("etcd_server_id", "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.", 1, "server_id", strconv.FormatUint(st.MemberID, 16))
	for _, a := range s.Alarms() {
		r.gauge("etcd_debugging_server_alarms", "Alarms for every member in cluster.", 1, "server_id", strconv.FormatUint(a.MemberID, 16), "alarm_type", a.Alarm.String())
	}
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		r.gauge("os_fd_used", "The number of used file descriptors.", float64(len(open)))
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		r.gauge("os_fd_limit", "The file descriptor limit.", float64(limit.Cur))
	}
}

func (r report) mvcc(s *raftstore.Store, st raftstore.Status, stats raftstore.Stats) {
	n, m, l := s.Counts(), stats.MVCC, stats.Leases
	r.gauge("etcd_mvcc_db_total_size_in_bytes", "Total size of the underlying database physically allocated in bytes.", float64(st.SizeBytes))
	r.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Total size of the underlying database logically in use in bytes.", float64(st.SizeBytesUsed))
	r.gauge("etcd_mvcc_db_open_read_transactions", "The number of currently open read transactions", float64(m.Reads))
	r.gauge("etcd_debugging_mvcc_current_revision", "The current revision of store.", float64(st.Revision))
	r.gauge("etcd_debugging_mvcc_compact_revision", "The revision of the last compaction in store.", float64(st.Compacted))
	r.gauge("etcd_debugging_mvcc_keys_total", "Total number of keys.", float64(n.Keys))
	r.gauge("etcd_debugging_mvcc_total_put_size_in_bytes", "The total size of put kv pairs seen by this member.", float64(m.PutBytes))
	r.counter("etcd_debugging_mvcc_db_compaction_keys_total", "Total number of db keys compacted.", float64(m.CompactedRows))
	r.gauge("etcd_debugging_mvcc_db_compaction_last", "The unix time of the last db compaction. Resets to 0 on start.", float64(m.LastCompaction))
	r.scaled("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", "Bucketed histogram of db compaction total duration.", 1000, m.Compaction)
	r.counter("etcd_mvcc_put_total", "Total number of puts seen by this member.", float64(n.Puts))
	r.counter("etcd_mvcc_delete_total", "Total number of deletes seen by this member.", float64(n.Deletes))
	r.counter("etcd_mvcc_txn_total", "Total number of txns seen by this member.", float64(n.Txns))
	r.counter("etcd_mvcc_range_total", "Total number of ranges seen by this member.", float64(m.Ranges))
	r.histogram("etcd_mvcc_hash_duration_seconds", "The latency distribution of storage hash operation.", m.Hash)
	r.histogram("etcd_mvcc_hash_rev_duration_seconds", "The latency distribution of storage hash by revision operation.", m.HashRev)
	r.histogram("etcd_server_range_duration_seconds", "The latency distributions of txn.Range", stats.Range, "success", "true")
	r.gauge("etcd_debugging_auth_revision", "The current revision of auth store.", float64(stats.AuthRevision))
	r.counter("etcd_debugging_lease_granted_total", "The total number of granted leases.", float64(l.Granted))
	r.counter("etcd_debugging_lease_revoked_total", "The total number of revoked leases.", float64(l.Revoked))
	r.counter("etcd_debugging_lease_renewed_total", "The number of renewed leases seen by the leader.", float64(l.Renewed))
	r.counter("etcd_debugging_server_lease_expired_total", "The total number of expired leases.", float64(l.Expired))
	r.histogram("etcd_debugging_lease_ttl_total", "Bucketed histogram of lease TTLs.", l.TTL)
}

func (r report) disk(stats raftstore.Stats) {
	m := stats.MVCC
	r.histogram("etcd_disk_wal_fsync_duration_seconds", "The latency distributions of fsync called by WAL.", stats.LogSync)
	r.histogram("etcd_disk_wal_write_duration_seconds", "The latency distributions of write called by WAL.", stats.LogWrite)
	r.gauge("etcd_disk_wal_write_bytes_total", "Total number of bytes written in WAL.", float64(stats.LogBytes))
	r.histogram("etcd_disk_backend_commit_duration_seconds", "The latency distributions of commit called by backend.", m.Commit)
	r.histogram("etcd_debugging_disk_backend_commit_rebalance_duration_seconds", "The latency distributions of commit.rebalance called by bboltdb backend.", m.Rebalance)
	r.histogram("etcd_debugging_disk_backend_commit_spill_duration_seconds", "The latency distributions of commit.spill called by bboltdb backend.", m.Spill)
	r.histogram("etcd_debugging_disk_backend_commit_write_duration_seconds", "The latency distributions of commit.write called by bboltdb backend.", m.Write)
	r.histogram("etcd_disk_backend_defrag_duration_seconds", "The latency distribution of backend defragmentation.", m.Defragment)
	r.histogram("etcd_disk_backend_snapshot_duration_seconds", "The latency distribution of backend snapshots.", m.Snapshot)
	r.gauge("etcd_disk_defrag_inflight", "Whether or not defrag is active on the member. 1 means active, 0 means not.", truth(m.Defragmenting))
	r.histogram("etcd_snap_db_save_total_duration_seconds", "The total latency distributions of v3 snapshot save", stats.SnapshotSave)
	r.histogram("etcd_snap_db_fsync_duration_seconds", "The latency distributions of fsyncing .snap.db file", stats.SnapshotSync)
}

func (r report) consensus(st raftstore.Status, stats raftstore.Stats) {
	r.gauge("etcd_server_proposals_applied_total", "The total number of consensus proposals applied.", float64(st.AppliedIndex))
	r.gauge("etcd_server_proposals_committed_total", "The total number of consensus proposals committed.", float64(st.CommitIndex))
	r.gauge("etcd_server_proposals_pending", "The current number of pending proposals to commit.", float64(stats.ProposalsPending))
	r.counter("etcd_server_proposals_failed_total", "The total number of failed proposals seen.", float64(stats.ProposalsFailed))
	r.counter("etcd_server_leader_changes_seen_total", "The number of leader changes seen.", float64(stats.LeaderChanges))
	r.counter("etcd_server_learner_promote_successes", "The total number of successful learner promotions while this member is leader.", float64(stats.Promotions))
	r.counter("etcd_server_heartbeat_send_failures_total", "The total number of leader heartbeat send failures (likely overloaded from slow disk).", float64(stats.LateHeartbeat))
	r.counter("etcd_server_read_indexes_failed_total", "The total number of failed read indexes seen.", float64(stats.ReadsFailed))
	r.counter("etcd_server_slow_read_indexes_total", "The total number of pending read indexes not in sync with leader's or timed out read index requests.", float64(stats.ReadsSlow))
	r.counter("etcd_server_slow_apply_total", "The total number of slow apply requests (likely overloaded from slow disk).", float64(stats.SlowApplies))
	r.gauge("etcd_server_snapshot_apply_in_progress_total", "1 if the server is applying the incoming snapshot. 0 if none.", truth(stats.Installing))
	for _, a := range stats.Apply {
		if a.Took.Snapshot().Count > 0 || a.Op == "Put" && a.OK {
			r.histogram("etcd_server_apply_duration_seconds", "The latency distributions of v2 apply called by backend.", a.Took, "version", "v3", "op", a.Op, "success", strconv.FormatBool(a.OK))
		}
	}
}

func (r report) network(s *raftstore.Store, stats raftstore.Stats) {
	self := strconv.FormatUint(s.MemberID(), 16)
	if len(stats.Peers) == 0 {
		r.gauge("etcd_network_known_peers", "The current number of known peers.", 1, "Local", self, "Remote", self)
	}
	for _, p := range stats.Peers {
		id := strconv.FormatUint(p.ID, 16)
		r.gauge("etcd_network_known_peers", "The current number of known peers.", 1, "Local", self, "Remote", id)
		r.gauge("etcd_network_active_peers", "The current number of active peer connections.", truth(p.Connected), "Local", self, "Remote", id)
		r.counter("etcd_network_peer_sent_bytes_total", "The total number of bytes sent to peers.", float64(p.Sent), "To", id)
		r.counter("etcd_network_peer_received_bytes_total", "The total number of bytes received from peers.", float64(p.Received), "From", id)
		r.counter("etcd_network_peer_sent_failures_total", "The total number of send failures from peers.", float64(p.SendFailures), "To", id)
		r.counter("etcd_network_disconnected_peers_total", "The total number of disconnected peers.", float64(p.Lost), "Local", self, "Remote", id)
	}
}

// never tells of what etcd counts and what does not happen here: a second store
// of version 2, a proxy, pauses of a compaction, snapshots of raft's in files.
func (r report) never() {
	for name, help := range map[string]string{
		"etcd_debugging_store_expires_total":        "Total number of expired keys.",
		"etcd_debugging_store_watch_requests_total": "Total number of incoming watch requests (new or reestablished).",
		"etcd_grpc_proxy_cache_hits_total":          "Total number of cache hits",
		"etcd_grpc_proxy_cache_misses_total":        "Total number of cache misses",
		"etcd_grpc_proxy_events_coalescing_total":   "Total number of events coalescing",
	} {
		r.counter(name, help, 0)
	}
	for name, help := range map[string]string{
		"etcd_debugging_store_watchers":             "Count of currently active watchers.",
		"etcd_grpc_proxy_cache_keys_total":          "Total number of keys/ranges cached",
		"etcd_grpc_proxy_watchers_coalescing_total": "Total number of current watchers coalescing",
	} {
		r.gauge(name, help, 0)
	}
	for name, help := range map[string]string{
		"etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds":    "Bucketed histogram of db compaction pause duration.",
		"etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds": "Bucketed histogram of index compaction pause duration.",
		"etcd_debugging_snap_save_marshalling_duration_seconds":            "The marshalling cost distributions of save called by snapshot.",
		"etcd_debugging_snap_save_total_duration_seconds":                  "The total latency distributions of save called by snapshot.",
		"etcd_snap_fsync_duration_seconds":                                 "The latency distributions of fsync called by snap.",
	} {
		r.histogram(name, help, nil)
	}
}

// apiCollector tells what clients ask over gRPC; extensive adds how long methods
// take, as --metrics=extensive does.
func apiCollector(s *etcdapi.Server, extensive bool) prometheus.Collector {
	return apiMetrics{s, extensive}
}

type apiMetrics struct {
	s         *etcdapi.Server
	extensive bool
}

// Describe tells nothing beforehand.
func (apiMetrics) Describe(chan<- *prometheus.Desc) {}

// Collect is part of prometheus.Collector.
func (c apiMetrics) Collect(ch chan<- prometheus.Metric) {
	r, st := report(ch), c.s.Stats()
	for _, m := range st.Methods {
		r.method(m, c.extensive)
	}
	for _, v := range st.Clients {
		const name, help = "etcd_server_client_requests_total", "The total number of client requests per client version."
		r.counter(name, help, float64(v.Unary), "type", "unary", "client_api_version", v.Version)
		r.counter(name, help, float64(v.Streams), "type", "stream", "client_api_version", v.Version)
	}
	r.counter("etcd_network_client_grpc_sent_bytes_total", "The total number of bytes sent to grpc clients.", float64(st.BytesSent))
	r.counter("etcd_network_client_grpc_received_bytes_total", "The total number of bytes received from grpc clients.", float64(st.BytesReceived))
	r.counter("etcd_server_health_success", "The total number of successful health checks", float64(st.Healthy))
	r.counter("etcd_server_health_failures", "The total number of failed health checks", float64(st.Unhealthy))
	r.gauge("etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams.", float64(st.Streams))
	r.gauge("etcd_debugging_mvcc_watcher_total", "Total number of watchers.", float64(st.Watches))
	r.gauge("etcd_debugging_mvcc_slow_watcher_total", "Total number of unsynced slow watchers.", float64(st.Slow))
	r.counter("etcd_debugging_mvcc_events_total", "Total number of events sent by this member.", float64(st.Events))
	// A watch holds no events: what was not sent is read again from the store.
	r.gauge("etcd_debugging_mvcc_pending_events_total", "Total number of pending events to be sent.", 0)
	r.histogram("etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds", "The total duration in seconds of running through the send loop watch stream response all events.", st.SendEvents)
	r.histogram("etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds", "The average duration in seconds of running through the send loop watch stream response, per event.", st.SendPerEvent)
	r.histogram("etcd_debugging_server_watch_send_loop_control_stream_duration_seconds", "The total duration in seconds of running through the send loop control stream response.", st.SendControl)
	r.histogram("etcd_debugging_server_watch_send_loop_progress_duration_seconds", "The total duration in seconds of running through the progress loop control stream response.", st.SendProgress)
}

func (r report) method(m etcdapi.MethodStats, extensive bool) {
	labels := []string{"grpc_type", m.Type, "grpc_service", m.Service, "grpc_method", m.Method}
	r.counter("grpc_server_started_total", "Total number of RPCs started on the server.", float64(m.Started), labels...)
	r.counter("grpc_server_msg_received_total", "Total number of RPC stream messages received on the server.", float64(m.Received), labels...)
	r.counter("grpc_server_msg_sent_total", "Total number of gRPC stream messages sent by the server.", float64(m.Sent), labels...)
	for code, n := range maps.All(m.Ended) {
		r.counter("grpc_server_handled_total", "Total number of RPCs completed on the server, regardless of success or failure.", float64(n), append([]string{"grpc_code", code.String()}, labels...)...)
	}
	if m.Type != "unary" {
		return
	}
	if extensive {
		r.histogram("grpc_server_handling_seconds", "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.", m.Took, labels...)
	}
	if m.Started > 0 || m.Method == "Range" {
		const name, help = "etcd_server_request_duration_seconds", "Response latency distribution in seconds for each type."
		r.histogram(name, help, m.Took, "type", m.Method, "success", "true")
		r.histogram(name, help, m.Failed, "type", m.Method, "success", "false")
	}
}
