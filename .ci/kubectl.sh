#!/usr/bin/env bash
# Builds kubectl from the k8s.io/kubernetes module.
# usage: kubectl.sh OUT VERSION
set -euo pipefail
out=$(realpath -m "$1") version=$2
minor=${version#v1.}; minor=${minor%%.*}
x="-s -w"
for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  x="$x -X $p.gitVersion=$version -X $p.gitMajor=1 -X $p.gitMinor=$minor"
done
mkdir -p "$(dirname "$out")"
cd "$(dirname "$0")/../test/conformance/e2e"
echo "building kubectl $version from its module"
go build -ldflags "$x" -o "$out" k8s.io/kubernetes/cmd/kubectl
