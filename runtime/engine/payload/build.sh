#!/bin/sh
# Builds the programs that edged carries and packs them below payload/files/<arch>:
#   shim    ours, static, from the daemon's module
#   runc    from its own module (../runc), static, with libseccomp: needs a C compiler
#   holder  a page of C
# usage: build.sh [amd64|arm64|armv7|armv6]   (default: this machine)
# Debian: gcc pkg-config libseccomp-dev; to cross-compile also
#   arm64  gcc-aarch64-linux-gnu   libseccomp-dev:arm64
#   armv7  gcc-arm-linux-gnueabihf libseccomp-dev:armhf
#   armv6  gcc-arm-linux-gnueabi   libseccomp-dev:armel
# or that libseccomp-dev unpacked below SYSROOT (.ci/cross-deps.sh).
set -eu
cd "$(dirname "$0")"
host=$(go env GOHOSTARCH)
[ "$host" != arm ] || host=armv7
arch=${1:-$host}
case $arch in
amd64) goarch=amd64 goarm= triple=x86_64-linux-gnu ;;
arm64) goarch=arm64 goarm= triple=aarch64-linux-gnu ;;
armv7) goarch=arm goarm=7 triple=arm-linux-gnueabihf ;;
armv6) goarch=arm goarm=6 triple=arm-linux-gnueabi ;;
*) echo "build.sh: unknown architecture $arch" >&2; exit 2 ;;
esac
sysroot=
if [ "$arch" = "$host" ]; then cc=${CC:-gcc}; else cc=$triple-gcc sysroot=${SYSROOT:-}; fi
command -v "$cc" >/dev/null || { echo "build.sh: $cc is missing: install the C compiler for $arch" >&2; exit 1; }

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
target="GOOS=linux GOARCH=$goarch GOARM=$goarm"
# grpcnotrace: golang.org/x/net/trace would keep the linker from dropping dead code
flags="-trimpath -buildvcs=false -tags=grpcnotrace"

env $target CGO_ENABLED=0 go build $flags -ldflags "-s -w -buildid=" -o "$out/shim" ../shim
(
	cd ../runc
	# -L: Go's cache may hold pkg-config's answer from another checkout's sysroot
	env $target CGO_ENABLED=1 CC="$cc" CGO_LDFLAGS="-O2 -g${sysroot:+ -L$sysroot/usr/lib/$triple}" PKG_CONFIG_SYSROOT_DIR="$sysroot" PKG_CONFIG_LIBDIR="$sysroot/usr/lib/$triple/pkgconfig:$sysroot/usr/share/pkgconfig" \
		go build -trimpath -buildvcs=false -tags "seccomp netgo osusergo" \
		-ldflags "-s -w -buildid= -extldflags '-static -Wl,--build-id=none'" \
		-o "$out/runc" github.com/opencontainers/runc
)
"$cc" -Os -static -nostdlib -nostartfiles -ffreestanding -fno-stack-protector -fno-pie -no-pie \
	-Wl,--build-id=none -Wl,-z,noexecstack -s -o "$out/holder" holder/holder.c

env CGO_ENABLED=0 go run $flags ./pack "files/$arch" "$out/shim" "$out/runc" "$out/holder"
ls -l "files/$arch"
