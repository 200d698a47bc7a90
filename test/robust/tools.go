//go:build tools

package main

import _ "go.etcd.io/etcd/server/v3" // the peer: go build -o work/etcd go.etcd.io/etcd/server/v3
