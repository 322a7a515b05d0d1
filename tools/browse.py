#!/usr/bin/env python3
"""The command `dyn-d2 browse` as a script; --help says what it does."""

from dyn_d2.cli import tool

if __name__ == "__main__":
    tool("browse")
