"""The pages build into a site without a broken link, where mkdocs is at hand (`make docs` brings its own)."""

import os
import subprocess
import sys

import pytest
from tool_runs import ROOT

pytest.importorskip("mkdocstrings_handlers.python", reason="pip install 'dyn_d2[docs]'")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    for page in ("index", "architecture", "reference/dyn_d2", "tutorials/gated_backbone_in_an_existing_project"):
        assert (tmp_path / "site" / f"{page}.html").stat().st_size > 5000
