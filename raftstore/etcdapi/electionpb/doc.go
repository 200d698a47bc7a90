// Package electionpb holds the messages and the service of etcd's Election API,
// generated from etcd's v3election.proto under its own protobuf names: etcd
// keeps its generated code in the server's module, which the daemon does not
// need.
//
// May be imported by raftstore/etcdapi.
package electionpb
