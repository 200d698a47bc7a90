#!/usr/bin/env bash
# Installs the Debian packages that building and testing need, if any is not
# there. On another system, have these commands and headers at hand.
set -euo pipefail
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need gcc gcc
need zstd zstd
need unshare util-linux
need nsenter util-linux
need ip iproute2
need mkfs.ext4 e2fsprogs
need busybox busybox-static
need socat socat
need curl curl
need nft nftables
need fsck.fat dosfstools
need mtype mtools
need sfdisk fdisk
[ -e /usr/include/seccomp.h ] || missing+=(libseccomp-dev)
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
bash "$(dirname "$0")/install.sh" "${missing[@]}"
