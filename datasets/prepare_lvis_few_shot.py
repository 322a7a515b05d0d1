#!/usr/bin/env python3
"""Sample K-shot sets of the lvis benchmark or import the published lists; --help explains."""

import sys

import dyn_d2  # noqa: F401  chooses the engine
from dyn_d2.data.few_shot.prepare import main

if __name__ == "__main__":
    sys.exit(main("lvis"))
