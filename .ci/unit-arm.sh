#!/usr/bin/env bash
# Runs the unit tests of packages that need no kernel of their own under
# qemu-user, for arm64 and arm (GOARM=6, what every 32-bit board runs).
# GOARCHES  which (default "arm64 arm")
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0 GOFLAGS=-trimpath
command -v qemu-arm-static >/dev/null || bash .ci/install.sh qemu-user-static
packages=(./raftstore/wal ./raftstore/mvcc ./internal/atomicfile ./apiserver/codec ./controller/gc ./controller/loop ./scheduler/... ./buildroot/fat ./buildroot/disk ./buildroot/slot ./buildroot/pid1)
for goarch in ${GOARCHES:-arm64 arm}; do
  case $goarch in arm64) qemu=qemu-aarch64-static ;; arm) qemu=qemu-arm-static ;; esac
  GOARCH=$goarch GOARM=6 go test -short -timeout 10m -exec "$qemu" "${packages[@]}"
done
