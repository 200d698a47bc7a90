#!/bin/sh
# Puts edged.img together by genimage.
set -eu
board=$2
here=$(dirname "$0")
cfg=$here/genimage-$board.cfg
case $board in
rpi*)
	# Device trees and firmware are as many as the board has.
	files=
	for f in "$BINARIES_DIR"/*.dtb "$BINARIES_DIR"/rpi-firmware/*; do
		[ -f "$f" ] && files="$files\"${f#"$BINARIES_DIR"/}\", "
	done
	cfg=$BINARIES_DIR/genimage.cfg
	sed "s|#BOOT_FILES#|$files|" "$here/genimage-$board.cfg" >"$cfg"
	;;
esac
exec support/scripts/genimage.sh -c "$cfg"
