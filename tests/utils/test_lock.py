"""One writer for each folder."""

import subprocess
import sys

import pytest

from dyn_d2.utils.lock import FolderInUse, hold_folder

HOLDER = """
import sys
from dyn_d2.utils.lock import hold_folder
hold_folder(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_is_refused_until_the_holder_dies(tmp_path):
    folder = tmp_path / "output"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=rf"process {holder.pid} is writing to .*OUTPUT_DIR"):
            hold_folder(folder)
    finally:
        holder.kill()
        holder.communicate()
    hold_folder(folder)
    hold_folder(folder)
