#!/usr/bin/env bash
# Find a CPython that really runs (a version manager's shim may exist and refuse).
#   pythons.sh 3.12    print the path of a CPython 3.12 that can make virtual environments
#   pythons.sh best    the same for the best version: 3.11, for which PyTorch is pinned, else python3, else any from 3.10
# Without one: print a sentence on what is missing, to stderr, and exit with 1.
set -euo pipefail

probe='import sys
v = sys.version_info
if sys.implementation.name != "cpython" or v < (3, 10): sys.exit(1)
print("%d.%d %s" % (v[0], v[1], sys.executable))'

without_venv=  # a Python of the right version that cannot make environments: worth a word if no other is found

try() { # try NAME [VERSION]: print the path if NAME runs, is of that version and can make environments
    local found
    found=$("$1" -c "$probe" 2>/dev/null) || return 1
    [ -z "${2:-}" ] || [ "${found%% *}" = "$2" ] || return 1
    if ! "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        without_venv=${found%% *}
        return 1
    fi
    echo "${found#* }"
}

try_version() { # try_version 3.X: on the PATH, Debian's own, or pyenv's
    local candidate
    for candidate in "python$1" python3 "/usr/bin/python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        if try "$candidate" "$1"; then return 0; fi
    done
    return 1
}

case ${1:?} in
    best) try_version 3.11 || try python3 || try_version 3.12 || try_version 3.13 || try_version 3.10 ;;
    *) try_version "$1" ;;
esac && exit 0

wanted="CPython ${1/best/3.10 or later}"
if [ -n "$without_venv" ]; then
    echo "CPython $without_venv has no venv module: on Debian and Ubuntu, apt install python$without_venv-venv." >&2
else
    echo "$wanted is needed, and none that runs was found on the PATH or among pyenv's." >&2
fi
exit 1
