#!/usr/bin/env bash
# Make a virtual environment, with this package (editable) and one dependency group of pyproject.toml.
#
#   tools/venv.sh DIRECTORY GROUP [PYTHON]
#
# Does nothing when the directory already holds what pyproject.toml asks for. Safe to run twice at
# once. Works as root and as anybody else, and where Debian's python3-venv is missing:
#   - as root the package is installed;
#   - otherwise the environment is made without pip, and pip comes from the interpreter's own pip,
#     from the wheel that Debian keeps for its own use, or from that wheel's package, unpacked into a
#     temporary folder.
set -euo pipefail
cd "$(dirname "$0")/.."

directory=$1
group=$2
python=${3:-$(tools/python.sh || true)}
if [ -z "$python" ]; then
    echo "venv: no Python 3.10 or later on PATH (or name one: PYTHON=/path/to/python3 make ...)" >&2
    exit 1
fi
stamp=$directory/.installed
say() { echo "venv: $directory: $*" >&2; }

if command -v flock >/dev/null 2>&1; then
    exec 9>"$directory.lock"
    flock 9
fi

wanted=$(
    {
        echo "$group" "$("$python" -VV)"
        cat pyproject.toml tools/venv.sh
    } | sha256sum
)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$directory/bin/python" -c '' 2>/dev/null; then
    touch "$stamp" # for make, which only compares times
    exit 0
fi

# Put pip into an environment that has none.
bootstrap_pip() {
    local wheel temporary options
    if "$python" -m pip --python "$directory/bin/python" install --quiet pip 2>/dev/null; then
        return 0
    fi
    for wheel in /usr/share/python-wheels/pip-*.whl; do
        if [ -f "$wheel" ] && "$directory/bin/python" "$wheel/pip" install --quiet pip; then
            return 0
        fi
    done
    command -v apt-get >/dev/null 2>&1 || return 1
    say "fetching pip from Debian's python3-pip-whl, into a temporary folder"
    temporary=$(mktemp -d)
    mkdir -p "$temporary/state/lists/partial" "$temporary/cache/archives/partial"
    options=(-o "Dir::State=$temporary/state" -o "Dir::Cache=$temporary/cache" -o Debug::NoLocking=1)
    (
        cd "$temporary" &&
            apt-get "${options[@]}" update &&
            apt-get "${options[@]}" download python3-pip-whl &&
            dpkg-deb --extract python3-pip-whl_*.deb unpacked
    ) >"$temporary/log" 2>&1 || { tail -n 5 "$temporary/log" >&2; rm -rf "$temporary"; return 1; }
    local status=1
    for wheel in "$temporary"/unpacked/usr/share/python-wheels/pip-*.whl; do
        "$directory/bin/python" "$wheel/pip" install --quiet pip && status=0
    done
    rm -rf "$temporary"
    return "$status"
}

create() {
    local version
    rm -rf "$directory"
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        say "$python has no ensurepip (on Debian it comes with python$version-venv)"
        tools/apt.sh "python$version-venv" || tools/apt.sh python3-venv || true
    fi
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv "$directory"
        return
    fi
    "$python" -m venv --without-pip "$directory"
    if ! bootstrap_pip; then
        rm -rf "$directory"
        say "no pip to be had for $python. Install one of these, then try again:"
        say "  as root:    apt-get install python$version-venv"
        say "  otherwise:  a Python with pip, named by PYTHON=/path/to/python3"
        exit 1
    fi
}

if ! "$directory/bin/python" -m pip --version >/dev/null 2>&1 ||
    [ "$("$directory/bin/python" -VV)" != "$("$python" -VV)" ]; then
    say "creating it with $("$python" -V)"
    create
fi
say "installing this package and the dependency group '$group'"
rm -f "$stamp"
"$directory/bin/python" -m pip install --quiet --disable-pip-version-check 'pip>=25.1' # for --group
"$directory/bin/python" -m pip install --quiet --disable-pip-version-check --editable . --group "$group"
echo "$wanted" >"$stamp"
say "ready"
