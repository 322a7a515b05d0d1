"""Tests of gating; the helpers beside this file are imported by name."""
