"""PMN on somebody's own label maps: their concept tree is that of its levels."""

from own_folders import SEMANTIC, write_label_folder

from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.hierarchy import load_hierarchy

from detectron2.utils.events import EventStorage


def keys(folder, tree, **more) -> list[str]:
    custom = {"FORMAT": "semantic", "ROOT": folder, "TRAIN": "labels", "TRAIN_IMAGES": "images", "TREE": tree, **more}
    return [str(part) for key, value in custom.items() for part in (f"DATASETS.CUSTOM.{key}", value)]


def test_the_tree_of_own_label_maps_gives_the_levels_and_trains(tmp_path):
    folder = write_label_folder(tmp_path / "labels")
    small = ["SOLVER.IMS_PER_BATCH", "2", "MODEL.POLICY.STAGE", "joint", "MODEL.POLICY.PMN.WIDTH", "8"]
    cfg = build_cfg("PMN/digit_scenes.yaml", [*keys(folder, folder / "tree.yaml", HOLD_OUT="0.5"), *small])
    assert cfg.MODEL.POLICY.PMN.LABELS == "boxes"
    assert list(load_hierarchy(cfg.MODEL.POLICY.PMN.TREE).labels("boxes")) == list(SEMANTIC)
    (folder / "tree.yaml").unlink()  # its content is in the config
    model = DynTrainer.build_model(cfg)
    batch = next(iter(DynTrainer.build_train_loader(cfg)))
    with EventStorage():
        losses = model(batch)
    assert set(losses) == {"loss_sem_seg", "loss_policy"} and all(loss.isfinite() for loss in losses.values())


def test_a_tree_of_the_command_line_stays_and_other_policies_are_left_alone(tmp_path):
    folder = write_label_folder(tmp_path / "labels")
    own = keys(folder, folder / "tree.yaml")
    found = build_cfg("PMN/digit_scenes.yaml", [*own, "MODEL.POLICY.PMN.TREE", ""]).MODEL.POLICY.PMN
    assert (found.TREE, found.LABELS) == ("", "")
    other = build_cfg("PMN/digit_scenes.yaml", [*own, "MODEL.POLICY.NAME", "all_open"]).MODEL.POLICY.PMN
    assert (other.TREE, other.LABELS) == ("digit_scenes", "")
