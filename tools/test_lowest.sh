#!/usr/bin/env bash
# Installs dyn_d2 with the lowest version of each lower bound in pyproject.toml into $VENV and runs the short tests there;
# `make test-lowest` calls it. Arguments go to pytest. PYTHON should be the lowest supported one, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv-lowest}

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
sed -nE 's/^ +"([A-Za-z0-9_.-]+)>=([0-9][^"]*)".*/\1==\2/p' pyproject.toml > "$VENV/lowest.txt"
echo "lowest: $(tr '\n' ' ' < "$VENV/lowest.txt")"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$VENV/lowest.txt" --editable '.[test,all]'
if ! "$VENV/bin/python" -c 'import cv2' 2>/dev/null; then  # no libGL here
  "$VENV/bin/python" -m pip uninstall --quiet --yes opencv-python
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
    "opencv-python-headless==$(sed -n 's/^opencv-python==//p' "$VENV/lowest.txt")"
fi
OMP_NUM_THREADS=1 exec "$VENV/bin/python" -m pytest -n 2 --dist loadscope -m "not slow" "$@"
