#!/usr/bin/env bash
# Makes the virtual environment $VENV with dyn_d2 and all it needs, from PyPI; `make` calls it.
# The file $VENV/ready is written last, so that an interrupted set-up is done again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

die() { echo "set-up: $*" >&2; exit 1; }

command -v "$PYTHON" >/dev/null || die "'$PYTHON' was not found: install Python 3.10 or newer, or name one with 'make PYTHON=/path/to/python3'."
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
  || die "$("$PYTHON" --version 2>&1) is too old: dyn_d2 needs Python 3.10 or newer ('make PYTHON=/path/to/python3')."
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null \
  || die "this Python cannot make virtual environments: on Debian or Ubuntu, 'apt-get install python3-venv'."
free_gb=$(df -Pk . | awk 'NR==2 {print int($4 / 1048576)}')
[ "$free_gb" -ge 8 ] || echo "set-up: only ${free_gb} GB are free here; torch with its CUDA libraries takes about 6 GB." >&2

if [ ! -x "$VENV/bin/python" ]; then
  echo "set-up: making $VENV"
  rm -rf "$VENV"
  "$PYTHON" -m venv "$VENV"
fi
echo "set-up: installing dyn_d2 and its dependencies (several GB the first time)"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[test]' \
  || die "pip failed: the lines above say why. Run the same command again to go on."

if ! "$VENV/bin/python" -c 'import cv2' 2>/dev/null; then
  # opencv-python is linked against libGL, which servers often lack; the headless build has the same functions.
  echo "set-up: opencv-python does not load here (usually libGL is missing); using opencv-python-headless"
  "$VENV/bin/python" -m pip uninstall --quiet --yes opencv-python
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check opencv-python-headless
  "$VENV/bin/python" -c 'import cv2' || die "OpenCV does not load: on Debian or Ubuntu, 'apt-get install libgl1 libglib2.0-0'."
fi
"$VENV/bin/python" -c 'import torch, torchvision.ops, pycocotools' \
  || die "the installed packages do not load: 'rm -rf $VENV' and run the same command again."
# pip builds packages where it sees no torch, so that the operators are compiled here.
"$VENV/bin/python" -m dyn_d2.ops >/dev/null 2>&1 \
  || echo "set-up: the operators were not compiled ('$VENV/bin/python -m dyn_d2.ops' says why); slower torch code runs instead"
touch "$VENV/ready"
