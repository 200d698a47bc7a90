#!/usr/bin/env bash
# Builds dist/: edged for every architecture, static, and what a release carries
# beside it (see buildroot/release).
#   ARCHS   which architectures (default all four)
#   DIST    where to (default dist)
#   NOPACK=1   the binaries alone
#   BUNDLE_IMAGES, BUNDLE_MANIFESTS   archives and files for the offline bundles
set -euo pipefail
cd "$(dirname "$0")/.."
read -ra archs <<<"${ARCHS:-amd64 arm64 armv7 armv6}"
dist=$(realpath -m "${DIST:-dist}")
version=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo unknown)}
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
export SOURCE_DATE_EPOCH CGO_ENABLED=0 GOFLAGS=-trimpath

bash .ci/cross-deps.sh "${archs[@]}"
mkdir -p "$dist"
for arch in "${archs[@]}"; do
  case $arch in
  amd64 | arm64) goarch=$arch goarm= ;;
  armv7) goarch=arm goarm=7 ;;
  armv6) goarch=arm goarm=6 ;;
  *) echo "cross: unknown architecture $arch" >&2; exit 2 ;;
  esac
  SYSROOT=$PWD/.cache/sysroot/$arch bash runtime/engine/payload/build.sh "$arch" >/dev/null
  GOOS=linux GOARCH=$goarch GOARM=$goarm go build -tags grpcnotrace -buildvcs=false \
    -ldflags "-s -w -buildid= -X main.version=$version" -o "$dist/edged-linux-$arch" ./cmd/edged
  echo "dist: edged-linux-$arch"
done
[ ! "${NOPACK:-}" ] || exit 0
LIBSECCOMP_VERSION=$(dpkg-query -W -f '${Version}' libseccomp-dev)
export LIBSECCOMP_VERSION
go run ./buildroot/release -dist "$dist" -version "$version" -payload runtime/engine/payload/files \
  $(for f in ${BUNDLE_IMAGES:-}; do echo "-image $f"; done) $(for f in ${BUNDLE_MANIFESTS:-}; do echo "-manifest $f"; done) "${archs[@]}"
