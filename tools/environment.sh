#!/usr/bin/env bash
# Make or update the virtual environment DIR: the package (editable), its development tools and, on CPython 3.11
# and with TORCH=yes, PyTorch.     TORCH=yes environment.sh DIR [PYTHON]
set -euo pipefail
dir=$1 python=${2:-}
stamp=$dir/.installed # written at the end
unfinished=$dir/.unfinished

# One at a time: a second make waits, and finds the work done.
exec 9<constraints.txt
if command -v flock >/dev/null; then flock 9; fi
if [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt setup.py ] && [ "$stamp" -nt constraints.txt ]; then exit 0; fi

if [ ! -e "$stamp" ]; then
    if [ -e "$dir" ] && [ ! -e "$unfinished" ]; then
        echo "$dir exists and was not made by this Makefile: remove it, or use it with PYTHON=$dir/bin/python." >&2
        exit 1
    fi
    python=${python:-$(tools/pythons.sh best)}
    rm -rf "$dir"
    mkdir -p "$dir"
    touch "$unfinished"
    echo "Environment: making $dir with $("$python" --version) (seconds)."
    "$python" -m venv "$dir"
fi
mv -f "$stamp" "$unfinished" 2>/dev/null || true

extras=dev,data,plot,stats others=()
what="the package and its tools (about a minute)"
if [ "${TORCH:-yes}" = yes ] && "$dir/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    extras+=,examples,onnx
    others+=(expecttest) # other people's tests
    what="the package, its tools and PyTorch (a minute or two, longer where PyTorch comes with its CUDA libraries)"
fi
echo "Environment: installing $what."
# The two variables pin what the editable build itself installs, for older and for newer versions of pip.
constraints=file://${PWD// /%20}/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=$constraints PIP_BUILD_CONSTRAINT=$constraints
"$dir/bin/python" -m pip install -qq -e ".[$extras]" "${others[@]}"
mv -f "$unfinished" "$stamp"
touch "$stamp"
echo "Environment: ready."
