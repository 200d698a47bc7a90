// Package etcdapi serves etcd's v3 API over a raftstore.Store, so that etcdctl,
// clientv3 and kube-apiserver take it for an etcd.
//
// [Server] serves the gRPC services KV, Watch, Lease, Maintenance, Cluster,
// Auth, Lock, Election and health, and on the same port /health, /livez,
// /readyz, /version, /metrics and the JSON gateway below /v3/.
//
// Promises: status codes, error texts and header fields are etcd's. A watch
// stream holds no more than one batch of events for its client at a time,
// however far behind the client is.
//
// What a connection speaks is told by its first bytes: without TLS, HTTP/2 is
// gRPC, which package rpc serves, and anything else is HTTP/1; with TLS, net/http
// serves both and hands gRPC requests on to google.golang.org/grpc.
//
// Goroutines: one per listener, those of rpc, gRPC and net/http, and one per watch
// stream; ended by [Server.Close]. May be imported by cmd/edged. Source of the
// contract: etcd's API reference and server/etcdserver/api/v3rpc.
package etcdapi
