#!/usr/bin/env bash
# Build the sdist and the wheel into dist/, then try the wheel where nothing of the checkout can help it.
#   build_dist.sh PYTHON
set -euo pipefail
python=$1 constraints=file://${PWD// /%20}/constraints.txt # a URL, since pip splits at spaces
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=$constraints PIP_BUILD_CONSTRAINT=$constraints

echo "Build: the sdist, and the wheel from it, into dist/ (half a minute)."
rm -rf dist
log=$(mktemp)
"$python" -m build >"$log" 2>&1 || { cat "$log"; exit 1; }
rm -f "$log"
ls -1 dist

echo "Build: every source that is run must be in the wheel."
"$python" - dist/*.whl <<'EOF'
import pathlib, sys, zipfile

wheel = set(zipfile.ZipFile(sys.argv[1]).namelist())
want = {f"convbackprop/{p}" for s in ("*.cu", "*.cuh", "*.py") for p in map(str, pathlib.Path("cuda_src").rglob(s))}
want |= {str(p) for s in ("*.py", "*.h", "*.cpp", "*.cu", "py.typed") for p in pathlib.Path("convbackprop").rglob(s)}
missing = sorted(want - wheel)
sys.exit("not in the wheel: " + ", ".join(missing) if missing else 0)
EOF

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
echo "Build: installing the wheel into an empty environment outside the checkout."
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install -qq dist/*.whl
cd "$scratch"
unset PYTHONPATH CONVBACKPROP_CACHE_DIR
export XDG_CACHE_HOME=$scratch/cache # nothing compiled earlier
"$scratch/venv/bin/convbackprop" doctor
"$scratch/venv/bin/convbackprop" check forward/naive --problem 1,1,16,16,1,3,3
echo "Build: the wheel works."
