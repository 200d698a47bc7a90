#!/bin/sh
# The root stays read-only; what edged writes is on the data partition.
set -eu
target=$1 board=$2
fstab=$target/etc/fstab
grep -q LABEL=edged-data "$fstab" 2>/dev/null ||
	printf 'LABEL=edged-data\t/var/lib/edged\text4\tnoatime,commit=30\t0\t2\n' >>"$fstab"
mkdir -p "$target/var/lib/edged"
if [ "$board" = x86_64 ]; then
	install -D -m 0644 "$(dirname "$0")/x86_64/grub.cfg" "$BINARIES_DIR/efi-part/EFI/BOOT/grub.cfg"
fi
