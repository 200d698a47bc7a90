#!/usr/bin/env bash
# Builds what main.go needs below $1: etcdctl and etcdutl, the suites' test
# binaries, and a wrapper named etcd around the edged binary $2.
set -euo pipefail
work=$(mkdir -p "$1" && cd "$1" && pwd)
edged=$(realpath "$2")
cd "$(dirname "$0")"
export CGO_ENABLED=0 GOFLAGS=-trimpath
mkdir -p "$work/bin" "$work/run"
go build -o "$work/bin/etcdctl" go.etcd.io/etcd/etcdctl/v3
go build -o "$work/bin/etcdutl" go.etcd.io/etcd/etcdutl/v3
for suite in common e2e; do
	go test -c -tags e2e -o "$work/$suite.test" "go.etcd.io/etcd/tests/v3/$suite"
done
if [ -d k8s ]; then (cd k8s && go test -c -o "$work/k8s.test" k8s.io/apiserver/pkg/storage/etcd3); fi
ln -sfn "$(go list -m -f '{{.Dir}}' go.etcd.io/etcd/tests/v3)/fixtures" "$work/run/fixtures"
printf '#!/bin/sh\nexec %q store "$@"\n' "$edged" > "$work/bin/etcd"
chmod +x "$work/bin/etcd"
