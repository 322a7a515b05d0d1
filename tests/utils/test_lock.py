"""One writer for each folder."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from tool_runs import environment
from warm_processes import run_warm

from dyn_d2.utils.lock import FolderInUse, hold_folder, is_held, one_at_a_time, released_after, wait_until_free

HOLDER = """
import sys
from dyn_d2.utils.lock import hold_folder
hold_folder(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
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


WRITER = """
import sys, time
from dyn_d2.utils.lock import one_at_a_time
with one_at_a_time(sys.argv[1] + ".lock"):
    for _ in range(20):
        with open(sys.argv[1], "a") as file:
            file.write(sys.argv[2])
        time.sleep(0.001)
"""


@pytest.mark.slow
def test_processes_are_inside_one_after_another(tmp_path):
    file, script = tmp_path / "letters", tmp_path / "writer.py"
    script.write_text(WRITER)
    with ThreadPoolExecutor(2) as both:
        writers = [both.submit(run_warm, [script, file, letter], tmp_path, environment(), 300) for letter in "ab"]
    assert [writer.result().returncode for writer in writers] == [0, 0]
    assert file.read_text() in (20 * "a" + 20 * "b", 20 * "b" + 20 * "a")


def test_an_error_opens_the_lock(tmp_path):
    with pytest.raises(KeyError), one_at_a_time(tmp_path / "lock"):
        raise KeyError
    with one_at_a_time(tmp_path / "lock"):
        pass


def test_folders_of_a_block_are_free_after_it(tmp_path):
    hold_folder(tmp_path / "kept")
    with pytest.raises(KeyError), released_after():
        hold_folder(tmp_path / "kept")
        hold_folder(tmp_path / "given_back")
        assert is_held(tmp_path / "given_back")
        raise KeyError
    assert is_held(tmp_path / "kept") and not is_held(tmp_path / "given_back") and not is_held(tmp_path / "never")
    wait_until_free(tmp_path / "given_back", 60)
    wait_until_free(tmp_path / "kept", 0)
