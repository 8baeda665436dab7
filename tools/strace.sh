#!/usr/bin/env bash
# Fault F14 (a disk that fails) needs strace, which makes a system call return an error. Get it where
# that can be done; else say which tests will skip. Never fails: the tests decide what a skip means.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v strace >/dev/null 2>&1; then
    exit 0
fi
if ! tools/apt.sh strace; then
    echo "strace is missing: the tests of a failing disk (F14) will skip, and say so" >&2
fi
