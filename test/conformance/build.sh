#!/bin/bash
# Builds Kubernetes' own e2e suite, its programs and its images into WORK, all
# from Go modules and Debian packages. What is there already is kept.
# usage: build.sh WORK
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/bin"; work=$(cd "$1" && pwd)
export CGO_ENABLED=0 GOFLAGS=-trimpath
cd "$here/e2e"
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}; minor=${minor%%.*}
x="-s -w"
for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  x="$x -X $p.gitVersion=$version -X $p.gitMajor=1 -X $p.gitMinor=$minor"
done
build() { [ -e "$work/bin/$1" ] || { echo "building $1"; go build -ldflags "$3" -o "$work/bin/$1" "$2"; }; }
build kubectl k8s.io/kubernetes/cmd/kubectl "$x"
[ -e "$work/bin/e2e.test" ] || { echo "building e2e.test (about ten minutes on two cores)"; go test -c -vet=off -ldflags "$x" -o "$work/bin/e2e.test" k8s.io/kubernetes/test/e2e; }
build ginkgo github.com/onsi/ginkgo/v2/ginkgo "-s -w"
build agnhost k8s.io/kubernetes/test/images/agnhost "-s -w -X main.Version=2.66.1"
build nnp k8s.io/kubernetes/test/images/nonewprivs "-s -w"
k8s=$(go list -m -f '{{.Dir}}' k8s.io/kubernetes)
[ -e "$work/bin/pause" ] || gcc -Os -Wall -static -DVERSION=3.10.2 -o "$work/bin/pause" "$k8s/build/pause/linux/pause.c"
# What the test of aggregation runs: modules of their own, as they need other
# versions of what the suite needs, too.
(cd ../aggregated && build sample-apiserver k8s.io/sample-apiserver "-s -w")
(cd ../etcd && build etcd go.etcd.io/etcd/server/v3 "-s -w")
if [ ! -e "$work/images.tar" ] || ! cmp -s "$here/images.json" "$work/images.json"; then
  mkdir -p "$work/images-src/porter"
  cp "$k8s"/test/images/agnhost/porter/localhost.* "$work/images-src/porter/" 2>/dev/null || true
  command -v readelf dpkg-deb >/dev/null || { apt-get -qq update; apt-get -qq install -y binutils dpkg; }
  apt-cache show busybox-static >/dev/null 2>&1 || apt-get -qq update
  bash "$here/rootfs.sh" "$work"
  cp "$here/images.json" "$work/images.json"
  cd "$here/../.." && go run ./test/mkimage -spec "$work/images.json" -out "$work/images.tar.new" && mv "$work/images.tar.new" "$work/images.tar"
fi
