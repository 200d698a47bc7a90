#!/usr/bin/env bash
# Unpacks Debian packages of any architecture below a folder, with a package
# list of its own: the system's is neither read nor changed. apt checks the
# signatures. Leaves each package's name, version and hash in OUT.packages.
# usage: apt-fetch.sh DEBIAN-ARCH OUT PACKAGE...
#        apt-fetch.sh --depends DEBIAN-ARCH PACKAGE    what it depends on
set -euo pipefail
depends=
[ "$1" != --depends ] || { depends=$3; set -- "$2" ""; }
deb=$1 out=$2
shift 2
. /etc/os-release
apt=$(realpath -m "$(dirname "$0")/../.cache/apt/$deb")
mkdir -p "$apt"/{state/lists/partial,cache/archives/partial}
: >"$apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${DEBIAN_MIRROR:-http://deb.debian.org/debian} $VERSION_CODENAME main" >"$apt/sources.list"
opts=(-qq -o Acquire::Retries=3 -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache"
  -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o "APT::Architecture=$deb" -o "APT::Architectures=$deb"
  -o APT::Sandbox::User=root)
find "$apt/state/lists" -name '*_Packages*' -mmin -720 | grep . >/dev/null || apt-get "${opts[@]}" update
if [ "$depends" ]; then
  apt-cache "${opts[@]}" depends "$depends" | sed -n 's/^ *Depends: //p'
  exit
fi
out=$(realpath -m "$out")
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && apt-get "${opts[@]}" download "$@")
for p in "$work"/*.deb; do
  dpkg-deb -x "$p" "$out"
  echo "$(dpkg-deb -W --showformat '${Package} ${Version}' "$p") $(sha256sum <"$p" | cut -d' ' -f1)" >>"$out.packages"
done
