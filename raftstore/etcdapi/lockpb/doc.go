// Package lockpb holds the messages and the service of etcd's Lock API,
// generated from etcd's v3lock.proto under its own protobuf names: etcd keeps
// its generated code in the server's module, which the daemon does not need.
//
// May be imported by raftstore/etcdapi.
package lockpb
