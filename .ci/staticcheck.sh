#!/usr/bin/env bash
# Runs staticcheck, built from its module and kept in .cache.
set -euo pipefail
cd "$(dirname "$0")/.."
version=v0.8.2
bin=$PWD/.cache/staticcheck-$version
if [ ! -x "$bin" ]; then
  mkdir -p .cache
  GOBIN=$PWD/.cache go install "honnef.co/go/tools/cmd/staticcheck@$version"
  mv .cache/staticcheck "$bin"
fi
exec "$bin" "$@"
