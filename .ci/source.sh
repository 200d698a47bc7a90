#!/usr/bin/env bash
# Builds dist/edged-<version>-vendor.tar.gz, which builds without a network: the
# commit, its modules in vendor/, and the programs inside edged as cross.sh left
# them. For buildroot/external; usage: source.sh, after make cross.
set -euo pipefail
cd "$(dirname "$0")/.."
dist=$(realpath -m "${DIST:-dist}")
version=${VERSION:-$(git describe --tags --always --dirty)}
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct)}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/edged-$version
mkdir -p "$tree" "$dist"
git archive HEAD | tar -x -C "$tree"
cp -r runtime/engine/payload/files/. "$tree/runtime/engine/payload/files"
(cd "$tree" && go mod vendor && GOFLAGS=-mod=vendor GOPROXY=off go list -tags grpcnotrace -deps ./cmd/edged >/dev/null)
tar -C "$work" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go-w -c "edged-$version" |
  gzip -9n >"$dist/edged-$version-vendor.tar.gz"
ls -l "$dist/edged-$version-vendor.tar.gz"
