#!/usr/bin/env bash
# Install Debian packages when that can be done without asking anybody, and say so.
#
#   tools/apt.sh PACKAGE...
#
# Exit 1 when it cannot be done (no root, no apt-get, no such package): what to do without the
# packages is for the caller to decide.
set -euo pipefail

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "apt: not installing $* (that takes root and apt-get)" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
echo "apt: installing $*" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if apt-get update >"$log" 2>&1 &&
    apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@" >>"$log" 2>&1; then
    echo "apt: installed $*" >&2
else
    echo "apt: could not install $*:" >&2
    tail -n 5 "$log" >&2
    exit 1
fi
