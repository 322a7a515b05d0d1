"""The CamVid table of docs/layer_cascade.md against its own numbers and the record."""

import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROW = re.compile(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \| (\d+) % \| (\d+) % \|", re.MULTILINE)


def test_shares_follow_from_the_multiply_adds() -> None:
    rows = {row[0]: [float(value) for value in row[1:]] for row in ROW.findall((DOCS / "layer_cascade.md").read_text())}
    dense, plain = rows["none"][1], rows["the network without cascade, trained as long"][1]
    assert len(rows) == 6
    for _, cost, of_dense, of_plain in rows.values():
        assert of_dense == pytest.approx(100 * cost / dense, abs=0.6)
        assert of_plain == pytest.approx(100 * cost / plain, abs=0.6)
    for point in json.loads((DOCS / "results" / "layer_cascade_camvid.json").read_text())["dsn"]:
        miou, cost, *_ = rows["none" if point["dense"] else re.sub(r"[^\d.]", "", point["point"])]
        assert miou == pytest.approx(point["metric"]["value"], abs=0.06)
        assert cost == pytest.approx(point["routes"]["GFLOPs"], abs=0.006)
