"""Which optimizer trains."""

from torch.optim import Adam, Optimizer

from detectron2.config import CfgNode


def chosen_optimizer(cfg: CfgNode, sgd: Optimizer) -> Optimizer:
    """``sgd``, or what SOLVER.OPTIMIZER names over the same groups of parameters, rates and decays.

    Raises:
        ValueError: an unknown name, or clipped gradients, which only SGD has here.
    """
    name = cfg.SOLVER.OPTIMIZER
    if name == "SGD":
        return sgd
    if name != "Adam":
        raise ValueError(f"SOLVER.OPTIMIZER is {name!r}: use SGD or Adam.")
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        raise ValueError("SOLVER.OPTIMIZER Adam does not clip gradients: set SOLVER.CLIP_GRADIENTS.ENABLED False.")
    groups = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in sgd.param_groups]
    return Adam(groups, lr=cfg.SOLVER.BASE_LR)
