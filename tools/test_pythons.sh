#!/usr/bin/env bash
# Run the tests on each CPython 3.10 to 3.13 of this machine, each in an environment of its own under .venvs.
# Arguments go to pytest.
set -uo pipefail
summary=()
status=0
for version in 3.10 3.11 3.12 3.13; do
    if ! python=$(tools/pythons.sh $version 2>&1); then
        summary+=("$version: skipped. $python")
        continue
    fi
    echo "== CPython $version: $python"
    if ${MAKE:-make} --no-print-directory test VENV=.venvs/$version BASE_PYTHON="$python" TORCH=no TOOLCHAIN=no ARGS="$*"; then
        summary+=("$version: passed")
    else
        summary+=("$version: FAILED")
        status=1
    fi
done
printf '%s\n' "== Summary" "${summary[@]}"
exit $status
