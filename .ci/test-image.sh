#!/usr/bin/env bash
# Builds both images twice, compares them, has other programs check them, and
# boots them under qemu-system (emulation, no KVM) in a network namespace of its
# own, which nothing leads out of.
#   CUTS   n: not that, but the power of two Raspberry Pis cut n times under load
#   FLEET  1: not that, but three machines with one card that become a cluster, lose one
#          and are upgraded; lose or upgrade: half of it
set -euo pipefail
cd "$(dirname "$0")/.."
export DEBIAN_FRONTEND=noninteractive EDGED_CUTS=${CUTS:-} EDGED_FLEET=${FLEET:-}
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
# boot runs tests of the harness, two machines at a time: an emulated one has work
# for little more than one processor.
boot() {
  CGO_ENABLED=0 go test -trimpath -c -o "$work/harness.test" ./buildroot/harness
  unshare -n sh -ec 'ip link set lo up; cd buildroot/harness; exec "$@"' sh \
    "$work/harness.test" -test.v -test.parallel 2 -test.timeout "$((30 + ${CUTS:-0}))m" "$@"
}
if [ "$EDGED_FLEET$EDGED_CUTS" ]; then
  NOXZ=1 bash .ci/image.sh rpi
  boot -test.run "^Test${FLEET:+Fleet}${CUTS:+Cuts}\$"
  exit
fi
# phase tells how long the one before took.
phase() { echo "== $SECONDS s: $*"; }
phase build the binaries
NOPACK=1 ARCHS="amd64 arm64" bash .ci/cross.sh
for board in rpi amd64; do
  phase "build the image of $board twice and look at it"
  arch=amd64
  [ "$board" = amd64 ] || arch=arm64
  export EDGED=$PWD/dist/edged-linux-$arch NOXZ=1
  bash .ci/image.sh "$board"
  DIST=$work bash .ci/image.sh "$board" >/dev/null
  for f in img upgrade; do
    cmp "dist/edged-$board.$f" "$work/edged-$board.$f"
  done
  image=$work/edged-$board.img
  sfdisk --verify "$image" | grep 'No errors'
  start() { sfdisk -d "$image" | sed -n "s/.*$board.img$1 : start= *\([0-9]*\),.*/\1/p"; }
  dd if="$image" of="$work/fat" bs=512 skip="$(start 1)" count=$(($(start 2) - $(start 1))) status=none
  fsck.fat -n "$work/fat"
  unsquashfs -o $(($(start 2) * 512)) -l "$image" | grep -q bin/edged
  rm "$work"/*
done
phase boot them
boot
phase done
