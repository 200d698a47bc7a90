#!/usr/bin/env bash
# Builds dist/edged-<board>.img, .img.xz and .upgrade. usage: image.sh rpi|amd64
#   DIST         where to (default dist)
#   UPGRADE_KEY  file with the signing key's seed in hexadecimal; without it, one
#                is made in .cache: good for trying, not for a fleet
#   EDGED        the binary to put on it (default: built)
#   CONFIG       edged.yaml to put on it
#   PRELOAD      archives of container images to bring along
#   NOXZ=1       do not pack it
set -euo pipefail
cd "$(dirname "$0")/.."
board=${1:?rpi or amd64}
case $board in
rpi) arch=arm64 ;;
amd64) arch=amd64 ;;
*) echo "image: no board $board" >&2; exit 2 ;;
esac
dist=$(realpath -m "${DIST:-dist}")
export VERSION=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo unknown)}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)} CGO_ENABLED=0 GOFLAGS=-trimpath
missing=()
for t in mksquashfs:squashfs-tools mke2fs:e2fsprogs xz:xz-utils; do
  command -v "${t%:*}" >/dev/null || missing+=("${t#*:}")
done
bash .ci/install.sh "${missing[@]}"

key=${UPGRADE_KEY:-.cache/upgrade.key}
if [ ! -e "$key" ]; then
  mkdir -p .cache
  (umask 077 && od -An -tx1 -N32 /dev/urandom | tr -d ' \n' >"$key")
fi
debian=$PWD/.cache/debian/$arch
[ -e "$debian/sbin/e2fsck.static" ] || bash .ci/apt-fetch.sh "$arch" "$debian" e2fsck-static ca-certificates
if [ "$board" = rpi ]; then
  kernel=$(cd buildroot/image/kernel && go list -m -f '{{.Dir}}' github.com/gokrazy/kernel.rpi)
  [ -n "$kernel" ] || { (cd buildroot/image/kernel && go mod download); kernel=$(cd buildroot/image/kernel && go list -m -f '{{.Dir}}' github.com/gokrazy/kernel.rpi); }
  firmware=$(cd buildroot/image/kernel && go list -m -f '{{.Dir}}' github.com/gokrazy/firmware)
else
  kernel=$debian firmware=$debian/usr/lib/systemd/boot/efi
  [ -e "$firmware/systemd-bootx64.efi" ] || bash .ci/apt-fetch.sh "$arch" "$debian" systemd-boot-efi
  # The kernel itself is what the metapackage depends on today.
  [ -d "$debian/lib/modules" ] ||
    bash .ci/apt-fetch.sh "$arch" "$debian" "$(bash .ci/apt-fetch.sh --depends "$arch" linux-image-cloud-amd64 | grep '^linux-image-6')"
fi
mkdir -p "$dist"
init=$(mktemp)
trap 'rm -f "$init"' EXIT
# Built anew, as one of an older commit may lie there.
if [ ! "${EDGED:-}" ]; then
  EDGED=$dist/edged-linux-$arch
  NOPACK=1 ARCHS=$arch DIST=$dist bash .ci/cross.sh
fi
GOOS=linux GOARCH=$arch go build -buildvcs=false -ldflags "-s -w -buildid=" -o "$init" ./buildroot/init
go run ./buildroot/image -board "$board" -edged "$EDGED" -init "$init" -kernel "$kernel" -firmware "$firmware" -debian "$debian" \
  -version "$VERSION" -key "$key" -config "${CONFIG:-}" \
  $(for f in ${PRELOAD:-}; do echo "-preload $f"; done) -out "$dist/edged-$board.img"
if [ ! "${NOXZ:-}" ]; then
  xz -T1 -9 -kf "$dist/edged-$board.img"
  size=$(stat -c %s "$dist/edged-$board.img.xz")
  # Without what a fleet's owner adds.
  [ "$size" -le 40000000 ] || [ "${PRELOAD:-}" ] || { echo "image: $board has $size bytes as .xz, more than 40 MB" >&2; exit 1; }
fi
(cd "$dist" && ls -l "edged-$board".*)
