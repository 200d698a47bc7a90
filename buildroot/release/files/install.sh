#!/bin/sh
# Installs edged from this folder, without a network: sh install.sh
#   PREFIX   where the binary goes (default /usr/local)
#   ROOT     install below this folder and start nothing
set -eu
cd "$(dirname "$0")"
prefix=${PREFIX:-/usr/local} root=${ROOT:-}
[ -n "$root" ] || [ "$(id -u)" = 0 ] || { echo "install.sh: must be root" >&2; exit 1; }

mkdir -p "$root$prefix/bin" "$root/var/lib/edged/images" "$root/var/lib/edged/manifests" "$root/etc/edged"
chmod 0700 "$root/var/lib/edged"
# Beside, then renamed: a running daemon keeps its file until it restarts.
cp edged "$root$prefix/bin/.edged.new"
chmod 0755 "$root$prefix/bin/.edged.new"
mv "$root$prefix/bin/.edged.new" "$root$prefix/bin/edged"
for f in images/* manifests/*; do
	[ ! -f "$f" ] || cp "$f" "$root/var/lib/edged/$f"
done
[ ! -f config.yaml ] || [ -e "$root/etc/edged/config.yaml" ] || cp config.yaml "$root/etc/edged/config.yaml"

put() { # what, where, mode
	mkdir -p "$root$(dirname "$2")"
	sed "s|@BIN@|$prefix/bin/edged|" "$1" >"$root$2"
	chmod "$3" "$root$2"
}
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
	put edged.service /etc/systemd/system/edged.service 0644
	systemctl daemon-reload
	systemctl enable edged
	systemctl restart edged
elif [ -e "$root/sbin/openrc-run" ]; then
	put edged.openrc /etc/init.d/edged 0755
	if [ -z "$root" ]; then
		rc-update add edged default
		rc-service edged restart
	fi
elif [ -n "$root" ]; then
	put edged.service /etc/systemd/system/edged.service 0644
else
	echo "install.sh: neither systemd nor OpenRC runs here: start \`$prefix/bin/edged run\` yourself" >&2
fi
echo "edged is installed in $root$prefix/bin"
