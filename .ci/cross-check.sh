#!/usr/bin/env bash
# Builds the release twice, the second time from another folder with nothing
# cached, and compares every byte. ARCHS as in cross.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
export VERSION=${VERSION:-$(git describe --tags --always --dirty)} SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
DIST=$work/first bash .ci/cross.sh
mkdir -p "$work/tree/.cache"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$work/tree"
(cd "$work/tree" && GOCACHE=$work/cache DIST=$work/second bash .ci/cross.sh)
diff -r "$work/first" "$work/second" || { echo "cross-check: two builds of $VERSION differ" >&2; exit 1; }
echo "cross-check: $(find "$work/first" -type f | wc -l) files are bit-identical in two builds"
