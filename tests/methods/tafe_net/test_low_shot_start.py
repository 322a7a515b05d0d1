"""The recipe of configs/TAFENet/low_shot.yaml learns, where the published start diverges or stands still."""

import math

import numpy as np
import pytest
import torch
from tool_runs import ROOT

from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.utils.seeds import seed_all

CLASSES, SHOWN, STEPS = 12, 36, 40


def write_features(path, scale: float) -> list[str]:
    """Own data whose classes are clouds of features, as few-shot ImageNet's: not negative, 32 numbers."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), 8)
    centres = rng.normal(size=(CLASSES, 32))
    features = scale * np.maximum(centres[labels] + 0.5 * rng.normal(size=(len(labels), 32)), 0)
    for name in ("train", "test"):
        np.savez(path / f"{name}.npz", features=features.astype(np.float32), labels=np.array([f"c{i}" for i in labels]))
    keys = ["ZERO_SHOT.CUSTOM.TRAIN", str(path / "train.npz"), "ZERO_SHOT.CUSTOM.TEST", str(path / "test.npz")]
    return [*keys, "ZERO_SHOT.CUSTOM.UNSEEN", "['c10', 'c11']"]


def train(cfg) -> list[dict[str, float]]:
    seed_all("low shot", 0)
    model = DynTrainer.build_model(cfg)
    optimizer = DynTrainer.build_optimizer(cfg, model)
    batches = iter(DynTrainer.build_train_loader(cfg))
    found = []
    for _ in range(STEPS):
        losses = model(next(batches))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        found.append({name: loss.item() for name, loss in losses.items()})
        if not all(map(math.isfinite, found[-1].values())):
            break
    return found


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("beta", [0.1, 0.0])
def test_low_shot_yaml_learns_at_any_scale_of_features(tmp_path, scale, beta) -> None:
    keys = [*write_features(tmp_path, scale), "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", str(SHOWN)]
    keys += ["SOLVER.REFERENCE_BATCH", str(SHOWN), "MODEL.TAFE_NET.FC_DIMS", "[64, 64, 64]"]
    keys += ["MODEL.TAFE_NET.CLASSIFIER_DIMS", "[64]", "MODEL.TAFE_NET.TASK_HIDDEN", "64"]
    keys += ["MODEL.TAFE_NET.EMBEDDING_WEIGHT", str(beta)]
    cfg = build_cfg(str(ROOT / "configs" / "TAFENet" / "low_shot.yaml"), keys)
    assert cfg.SOLVER.BASE_LR == 0.1 and cfg.SOLVER.TASK_LR_FACTOR == 0.1  # as published
    losses = train(cfg)
    assert len(losses) == STEPS
    assert np.mean([loss["loss_cls"] for loss in losses[-5:]]) < 0.6 * math.log(CLASSES - 2)


def test_the_published_start_throws_the_weights_off() -> None:
    """Why: the length of the TAFE, by which its cosine's gradient is divided, is nearly 0."""
    from dyn_d2.methods.tafe_net.meta_arch import _init_fan_in, _init_published
    from dyn_d2.methods.tafe_net.task_weights import MetaLearner, PredictionNetwork, embedding_loss, hinged_cosine

    torch.manual_seed(0)
    features, tasks = torch.rand(4, 64), torch.rand(4, 64)
    gradients = {}
    for init in (_init_published, _init_fan_in):
        network = PredictionNetwork((64,), [], [256] * 3, [], 0.0)
        learner = MetaLearner(64, 256, 3, 256, network.widths)
        init(learner, network)
        embedded, weights = learner(tasks)
        logits, tafe = network(features, weights)
        tafe.retain_grad()
        embedding_loss(hinged_cosine(tafe, embedded), torch.arange(4)).backward()
        length = tafe.norm(dim=-1).mean().item()
        gradients[init] = tafe.grad.norm().item(), length, logits.abs().max().item()
    published, fan_in = gradients[_init_published], gradients[_init_fan_in]
    assert published[1] < 1e-5 < 1 < fan_in[1]
    assert published[0] > 1e4 * fan_in[0]
    assert published[2] < 1e-6  # of the other loss, nothing comes back
