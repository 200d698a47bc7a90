#!/usr/bin/env bash
# Installs the cross compilers, and puts libseccomp for each architecture below
# .cache/sysroot/<arch>. The system's own list of architectures is left alone.
# usage: cross-deps.sh amd64|arm64|armv7|armv6...
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(dpkg --print-architecture)
declare -A debian=([amd64]=amd64 [arm64]=arm64 [armv7]=armhf [armv6]=armel)
declare -A triple=([amd64]=x86-64-linux-gnu [arm64]=aarch64-linux-gnu [armv7]=arm-linux-gnueabihf [armv6]=arm-linux-gnueabi)

missing=()
command -v pkg-config >/dev/null || missing+=(pkg-config)
for arch; do
  [ "${debian[$arch]}" = "$host" ] && continue
  command -v "${triple[$arch]/x86-64/x86_64}-gcc" >/dev/null ||
    missing+=("gcc-${triple[$arch]}" "libc6-dev-${debian[$arch]}-cross")
done
bash .ci/install.sh "${missing[@]}"

for arch; do
  deb=${debian[$arch]} root=$PWD/.cache/sysroot/$arch
  [ "$deb" = "$host" ] || [ -e "$root/usr/include/seccomp.h" ] ||
    bash .ci/apt-fetch.sh "$deb" "$root" libseccomp-dev
done
