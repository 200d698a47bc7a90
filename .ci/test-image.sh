#!/usr/bin/env bash
# Builds both images twice, compares them, has other programs check them, and
# boots them under qemu-system (emulation, no KVM) in a network namespace of its
# own, which nothing leads out of.
#   BOOT   empty: do not boot them
#   CUTS   n: not that, but the power of two Raspberry Pis cut n times under load
#   FLEET  1: not that, but three machines with one card that become a cluster, lose one
#          and are upgraded; lose or upgrade: half of it
set -euo pipefail
cd "$(dirname "$0")/.."
export EDGED_CUTS=${CUTS:-} EDGED_FLEET=${FLEET:-}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)} VERSION=${VERSION:-$(git describe --tags --always --dirty)}
missing=()
tools=(mcopy:mtools fsck.fat:dosfstools sfdisk:fdisk unsquashfs:squashfs-tools)
if [ "${BOOT-1}" ]; then
  tools+=(qemu-system-x86_64:qemu-system-x86 qemu-system-aarch64:qemu-system-arm)
  [ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || missing+=(ovmf)
  [ -e /usr/lib/ipxe/qemu/efi-virtio.rom ] || missing+=(ipxe-qemu)
fi
for t in "${tools[@]}"; do
  command -v "${t%:*}" >/dev/null || missing+=("${t#*:}")
done
bash .ci/install.sh "${missing[@]}"
work=$(mktemp -d)
# phase begins one, and tells how long all before took.
phase() { now=$*; echo "== $SECONDS s: $now"; }
phase begin
# ended leaves nothing, and says of a failure last what the tests said of it: the
# consoles of the machines are long.
ended() {
  local status=$?
  if [ $status != 0 ]; then
    grep -hE '^ +[a-z_]+\.go:[0-9]+: |^--- FAIL' "$work/boot.log" 2>/dev/null | tail -n 20 >&2
    echo "test-image: FAILED after $SECONDS s in: $now" >&2
  fi
  rm -rf "$work"
}
trap ended EXIT
export EDGED_IMAGES=$PWD/dist EDGED_UPGRADE_KEY=${UPGRADE_KEY:-$PWD/.cache/upgrade.key} PATH=$PWD/bin:$PATH
# boot runs tests of the harness, two machines at a time: an emulated one has work
# for little more than one processor.
boot() {
  CGO_ENABLED=0 go test -trimpath -c -o "$work/harness.test" ./buildroot/harness
  # 10.0.2.2 and .15: see Founder. QEMU takes what comes from 127.0.0.1 for the host's.
  unshare -n sh -ec 'ip link set lo up; ip address add 10.0.2.2/32 dev lo
    ip route add local 10.0.2.15/32 dev lo src 127.0.0.1 table local; cd buildroot/harness; exec "$@"' sh \
    "$work/harness.test" -test.v -test.parallel 2 -test.timeout "$((30 + ${CUTS:-0}))m" "$@" 2>&1 | tee "$work/boot.log"
}
if [ "$EDGED_FLEET$EDGED_CUTS" ]; then
  phase build the image
  NOXZ=1 bash .ci/image.sh rpi
  phase boot it
  boot -test.run "^Test${FLEET:+Fleet}${CUTS:+Cuts}\$"
  exit
fi
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
  unsquashfs -o $(($(start 2) * 512)) -l "$image" | grep bin/edged >/dev/null # to its end: -q would stop unsquashfs
  rm "$work"/*
done
if [ "${BOOT-1}" ]; then
  phase boot them
  boot
fi
phase done
