#!/usr/bin/env bash
# Builds both images twice, compares them, has other programs check them, and
# boots them under qemu-system (emulation, no KVM) in a network namespace of its
# own, which nothing leads out of.
#   CUTS   how often the Pi's power is cut (default 2)
#   FLEET  1: not that, but three machines with one card that become a cluster
set -euo pipefail
cd "$(dirname "$0")/.."
export DEBIAN_FRONTEND=noninteractive EDGED_CUTS=${CUTS:-2} EDGED_FLEET=${FLEET:-}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)} VERSION=${VERSION:-$(git describe --tags --always --dirty)}
missing=()
for t in qemu-system-x86_64:qemu-system-x86 qemu-system-aarch64:qemu-system-arm mcopy:mtools fsck.fat:dosfstools sfdisk:fdisk unsquashfs:squashfs-tools; do
  command -v "${t%:*}" >/dev/null || missing+=("${t#*:}")
done
[ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || missing+=(ovmf)
[ -e /usr/lib/ipxe/qemu/efi-virtio.rom ] || missing+=(ipxe-qemu)
[ ${#missing[@]} -eq 0 ] || { apt-get -qq update && apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export EDGED_IMAGES=$PWD/dist EDGED_UPGRADE_KEY=${UPGRADE_KEY:-$PWD/.cache/upgrade.key} PATH=$PWD/bin:$PATH
# boot runs tests of the harness.
boot() {
  CGO_ENABLED=0 go test -trimpath -c -o "$work/harness.test" ./buildroot/harness
  unshare -n sh -ec 'ip link set lo up; cd buildroot/harness; exec "$@"' sh \
    "$work/harness.test" -test.v -test.timeout "$((20 + EDGED_CUTS))m" "$@"
}
if [ "$EDGED_FLEET" ]; then
  ARCHS=arm64 bash .ci/cross.sh
  NOXZ=1 bash .ci/image.sh rpi
  boot -test.run '^TestFleet$'
  exit
fi
ARCHS="amd64 arm64" bash .ci/cross.sh
for board in rpi amd64; do
  NOXZ=1 bash .ci/image.sh "$board"
  arch=amd64
  [ "$board" = amd64 ] || arch=arm64
  NOXZ=1 DIST=$work EDGED=$PWD/dist/edged-linux-$arch bash .ci/image.sh "$board" >/dev/null
  for f in img upgrade; do
    cmp "dist/edged-$board.$f" "$work/edged-$board.$f"
  done
  image=$work/edged-$board.img
  sfdisk --verify "$image" | grep 'No errors'
  dd if="$image" of="$work/fat" bs=1M skip=1 count=160 status=none
  fsck.fat -n "$work/fat"
  dd if="$image" of="$work/root" bs=1M skip=161 count=64 status=none
  unsquashfs -l "$work/root" | grep -q bin/edged
  rm "$work"/*
done
boot
