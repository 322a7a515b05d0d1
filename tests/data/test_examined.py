"""Images that were found sound are not opened again, as long as they are what they were."""

import os

from PIL import Image

from dyn_d2.data.examined import Examined


def test_what_is_unchanged_is_known(tmp_path) -> None:
    files = []
    for name in "abc":
        path = tmp_path / f"{name}.png"
        Image.new("RGB", (4, 3)).save(path)
        files.append((str(path), name, 4, 3))
    assert Examined(tmp_path / "cache").others(files) == files
    Examined(tmp_path / "cache").add(files[:2])
    Examined(tmp_path / "cache").add(files[:1])
    known = Examined(tmp_path / "cache")
    assert known.others(files) == files[2:]
    assert known.others([(files[0][0], "a", 5, 3)])  # the record has another size
    Image.new("RGB", (4, 3), (9, 9, 9)).save(files[0][0])
    os.utime(files[0][0], (1, 1))
    assert known.others(files) == [files[0], files[2]]
    os.remove(files[1][0])
    assert known.others(files) == files


def test_a_damaged_list_is_none(tmp_path) -> None:
    (tmp_path / "examined_images.json").write_text('{"')
    file = (str(tmp_path / "gone.png"), 1, 4, 3)
    examined = Examined(tmp_path)
    examined.add([file])  # it is not there: nothing to know
    assert examined.others([file]) == [file]
