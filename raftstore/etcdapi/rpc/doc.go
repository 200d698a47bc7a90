// Package rpc serves gRPC over HTTP/2 connections without TLS, for a fraction of
// what google.golang.org/grpc's own server takes for a small call: no goroutine
// is made for it, its context is one allocation, and answers that are ready
// together leave in one write, and that to a ping with those.
//
// It is not a client, knows no compression, and is told by its caller that a
// connection speaks HTTP/2.
//
// Types: [Server] is a grpc.ServiceRegistrar: generated code registers services on
// it as on a grpc.Server; [Server.ServeConn] serves a connection until it ends.
//
// Promises: the statuses and texts of errors are google.golang.org/grpc's. A
// handler's context ends when its client gives up, its deadline passes or its
// connection ends.
//
// Bounds: a connection holds 64 KiB of what its client has yet to read, beside
// control frames and answers of calls, for which its reader stops reading; a
// request's headers are at most 64 KiB, its messages Config.MaxRecvBytes. A
// stream's messages wait in its window of 64 KiB until the handler takes them.
//
// Goroutines: one per connection (the caller of ServeConn), one per call being
// answered, which stays for the next one for a while, and one per stream; all end
// with [Server.Close].
//
// May be imported by raftstore/etcdapi. Sources: RFC 9113 and 7541, gRPC's
// PROTOCOL-HTTP2.md and A8 (keepalive), grpc's internal/transport for what is
// refused and how.
package rpc
