#!/usr/bin/env bash
# Print the path of a Python interpreter that works; exit 1 without a word when there is none.
#
#   tools/python.sh          the main one: $PYTHON, else python3, else the newest, from 3.10 on
#   tools/python.sh 3.12     that version, from PATH or from pyenv
#
# A name on PATH is not enough: pyenv's shims answer to every version it has, and fail for those that
# are not switched on. So each candidate is run. The path printed is the real interpreter's, never
# that of a virtual environment, so that an environment can be made again from inside itself.
set -euo pipefail

# real VERSION COMMAND: the path of COMMAND's interpreter, if it is CPython VERSION ("" = 3.10 or later).
real() {
    "$2" -c '
import sys
wanted = sys.argv[1]
version = sys.version_info[:2]
fits = "%d.%d" % version == wanted if wanted else version >= (3, 10)
if not fits or sys.implementation.name != "cpython":
    sys.exit(1)
print(getattr(sys, "_base_executable", None) or sys.executable)
' "$1" 2>/dev/null
}

# candidates NAME VERSION: every NAME on PATH, then pyenv's installed ones of VERSION, newest first.
candidates() {
    type -aP "$1" || true
    if [ -n "$2" ] && command -v pyenv >/dev/null 2>&1; then
        printf '%s\n' "$(pyenv root)/versions/$2".*/bin/"$1" | sort --version-sort --reverse
    fi
}

# first VERSION NAME: print the first candidate that works.
first() {
    local candidate
    while read -r candidate; do
        if real "$1" "$candidate"; then return 0; fi
    done < <(candidates "$2" "$1")
    return 1
}

if [ $# -gt 0 ]; then
    first "$1" "python$1"
elif [ -n "${PYTHON:-}" ]; then
    real "" "$PYTHON" || { echo "PYTHON=$PYTHON: no CPython 3.10 or later" >&2; exit 1; }
else
    first "" python3 || first 3.13 python3.13 || first 3.12 python3.12 ||
        first 3.11 python3.11 || first 3.10 python3.10
fi
