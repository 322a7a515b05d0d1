"""benchmarks/export.py sets gates and counts what they let run; exporting and timing are not tested here."""

import pytest
import torch
from tool_runs import load_benchmark

from dyn_d2.export.compare import trial_image


@pytest.mark.slow
def test_gates_are_open_for_the_share_and_images_differ():
    tool = load_benchmark("export")
    gated, plain = tool.build(18)
    images = [tool._varied(trial_image(3, (64, 64)), number) for number in range(4)]
    tool.set_share(gated, images, 0.5)
    with torch.no_grad():
        opened = torch.tensor([[bool(v[0]) for v in gated([{"image": x}])[0]["route"].open.values()] for x in images])
    assert (opened.float().mean(0) - 0.5).abs().max() <= 0.25 and len({tuple(row.tolist()) for row in opened}) > 1
    shares = [tool.flops_share(gated, image) for image in images]
    assert all(0.1 < share < 1.01 for share in shares)
    names = plain.state_dict().keys()
    assert names == {name for name in gated.state_dict() if ".policy." not in name}
