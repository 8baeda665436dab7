#!/usr/bin/env bash
# Run the unit tier on each installed Python from 3.10 to 3.13, each in an environment of its own with
# the test dependencies only; on the main one under coverage. Arguments go to pytest.
#
# A version that is not installed is named and passed over. One that is installed, but whose
# environment cannot be made, is passed over with a warning, and a failure with CI=true.
set -euo pipefail
cd "$(dirname "$0")/.."

main=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
others=()
for version in 3.10 3.11 3.12 3.13; do
    if [ "$version" != "$main" ]; then others+=("$version"); fi
done
summary=()
failed=0

# note VERSION TEXT: a line of the summary.
note() { summary+=("  python$1: $2"); }

# run VERSION COMMAND...: run it, and note how it ended.
run() {
    local version=$1 start=$SECONDS
    shift
    echo
    echo "== unit tier, Python $version"
    if "$@"; then
        note "$version" "passed in $((SECONDS - start)) s"
    else
        note "$version" "FAILED (exit $?)"
        failed=1
    fi
}

run "$main" .venv/bin/python -m coverage run -m pytest "$@"
.venv/bin/python -m coverage report || failed=1

for version in "${others[@]}"; do
    if ! python=$(tools/python.sh "$version"); then
        note "$version" "not installed"
    elif tools/venv.sh ".venv-$version" test "$python"; then
        run "$version" ".venv-$version/bin/python" -m pytest -n 2 "$@"
    elif [ "${CI:-}" = true ]; then
        note "$version" "FAILED: no environment could be made"
        failed=1
    else
        note "$version" "SKIPPED: no environment could be made"
    fi
done

echo
echo "Unit tier:"
printf '%s\n' "${summary[@]}"
exit "$failed"
