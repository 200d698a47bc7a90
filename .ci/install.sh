#!/usr/bin/env bash
# Installs Debian packages; without any, it does nothing. usage: install.sh PACKAGE...
set -euo pipefail
[ $# -gt 0 ] || exit 0
export DEBIAN_FRONTEND=noninteractive
opts=(-qq -o Acquire::Retries=3)
fail() { echo "$1; these packages are needed: ${*:2}" >&2; exit 1; }
command -v apt-get >/dev/null || fail "this system has no apt-get" "$@"
apt-get "${opts[@]}" update || fail "apt-get update failed" "$@"
apt-get "${opts[@]}" install -y --no-install-recommends "$@" >/dev/null || fail "apt-get install failed" "$@"
