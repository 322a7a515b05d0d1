"""Mixed precision and memory layout on a CPU."""

import torch
from tiny_detection import tiny_opts, write_boxes

from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.trainer import DynTrainer

from detectron2.layers import Conv2d


def _train(tmp_path, **keys) -> DynTrainer:
    cfg = build_cfg(opts=tiny_opts(write_boxes(tmp_path), tmp_path / "out", **keys))
    cfg.freeze()
    trainer = DynTrainer(cfg)
    trainer.max_iter = 2
    trainer.train()
    return trainer


def test_bfloat16_in_training_only(tmp_path):
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def note(module, inputs, output):
        seen[module.training].add(output.dtype)

    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: note(module, inputs, output) if type(module) is Conv2d else None
    )
    try:
        trainer = _train(tmp_path, **{"SOLVER.AMP.ENABLED": True})
        trainer.model.eval()
        with torch.no_grad():
            trainer.model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "height": 64, "width": 64}])
    finally:
        handle.remove()
    assert torch.bfloat16 in seen[True] and seen[False] == {torch.float32}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_channels_last_reaches_the_feature_maps(tmp_path):
    layouts = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: (
            layouts.append(output.is_contiguous(memory_format=torch.channels_last))
            if type(module) is Conv2d and output.dim() == 4 and output.shape[1] > 1 and output.shape[2] > 1
            else None
        )
    )
    try:
        _train(tmp_path, **{"MODEL.CHANNELS_LAST": True})
    finally:
        handle.remove()
    assert layouts and all(layouts)
