"""Levels that modules took: in files, pictures and the page."""

import json
import re

import numpy as np
import pytest
from route_tables import route_table

from dyn_d2.gating.reports.level_figures import draw_level_use, draw_levels, last_module, taken_levels
from dyn_d2.gating.reports.route_figures import draw_routes
from dyn_d2.gating.reports.route_page import write_page
from dyn_d2.gating.reports.routes import RouteTable, summarise

UNITS = {f"res{2 + i // 2}.{i % 2}": 1 for i in range(6)}
NAMES = [f"level {i}" for i in range(11)]


def table(images: int = 20, labels: bool = True) -> RouteTable:
    """Ten of eleven levels, in the last four of six units; what has stopped takes none."""
    found = route_table(UNITS, images, labels=labels)
    random = np.random.default_rng(1)
    stops = random.integers(2, 7, images)
    opened = np.arange(6) < stops[:, None]
    taken = (random.random((images, 4, 11)) < 0.3) & opened[:, 2:, None]
    taken[:, :, 4] = False
    found.bits = np.concatenate([np.packbits(opened[:, i : i + 1], axis=1) for i in range(6)], 1)
    found.level_names, found.level_modules = np.array(NAMES), np.array(list(UNITS)[2:])
    found.level_bits = np.packbits(taken, axis=2).reshape(images, -1)
    found.taken = taken
    return found


def test_tables_give_back_what_was_packed(tmp_path):
    made = table()
    np.testing.assert_array_equal(made.levels(), made.taken)
    made.save(tmp_path / "routes.npz")
    read = RouteTable.load(tmp_path / "routes.npz")
    np.testing.assert_array_equal(read.levels(), made.taken)
    for n in range(20):
        expected = {i: np.flatnonzero(made.taken[n, :, i]).tolist() for i in range(11) if made.taken[n, :, i].any()}
        assert dict(taken_levels(read, n)) == expected
        firsts = [modules[0] for _, modules in taken_levels(read, n)]
        assert firsts == sorted(firsts)
        assert last_module(read, n) == sum(made.opened(i)[n, 0] for i in range(2, 6))
    use = summarise(read)["levels"]
    assert use["level 4"]["rate"] == 0
    assert use["level 2"]["modules"]["res3.1"] == pytest.approx(100 * made.taken[:, 1, 2].mean())


def test_files_without_levels_are_read(tmp_path):
    made = route_table(UNITS)
    arrays = {name: value for name, value in vars(made).items() if not name.startswith("level_")}
    np.savez(tmp_path / "old.npz", format=1, **arrays)
    assert len(RouteTable.load(tmp_path / "old.npz").level_names) == 0
    assert summarise(made)["levels"] == {}


def test_pictures_and_page(tmp_path):
    made = table()
    drawn = draw_routes(made, tmp_path)
    assert drawn["levels by module"].endswith("level_use.png") and drawn["levels of some images"].endswith("levels.png")
    write_page({"run": made}, tmp_path / "index.html", 2)
    page = (tmp_path / "index.html").read_text()
    (run,) = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))["runs"]
    assert [level["name"] for level in run["levels"]] == NAMES and len(run["levels"][0]["modules"]) == 4
    for index, photo in run["photos"].items():
        assert [(level, modules) for level, modules in photo["levels"]] == taken_levels(made, int(index))


def test_images_without_labels_and_levels_that_nobody_took(tmp_path):
    made = table(5, labels=False)
    assert draw_levels(made, tmp_path / "levels.png", 3).is_file()
    made.level_bits[:] = 0
    assert draw_levels(made, tmp_path / "none.png", 3).is_file()
    with pytest.raises(ValueError, match="no module took any level"):
        draw_level_use(made, tmp_path / "use.png")
