"""dyn-d2 slim on tiny networks of all tasks: stages, control, report; plans and refusals."""

import json

import pytest
import torch
from semantic_sets import squares  # noqa: F401  a fixture
from tiny_detection import CLASSES, tiny_opts, write_boxes
from tiny_tasks import task_opts
from toy_gated import ask

from dyn_d2.checkpoint.model import model_of
from dyn_d2.config.derive import build_cfg
from dyn_d2.config.read import read_cfg
from dyn_d2.engine.training import train_in_this_process
from dyn_d2.gating.calibration import calibrate, executed_share, unlabelled_batches
from dyn_d2.gating.reports.slim import report, summary, table
from dyn_d2.gating.slim import Slimming, gated_form, slim
from dyn_d2.utils.errors import UserError

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

CLASSIFIER = [
    "MODEL.META_ARCHITECTURE", "ImageClassifier", "MODEL.BACKBONE.NAME", "build_gated_cifar_resnet_backbone",
    "MODEL.RESNETS.DEPTH", "14", "MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.OUT_FEATURES", "['res4']",
    "MODEL.BACKBONE.FREEZE_AT", "0", "DATASETS.TRAIN", "('few_digits',)", "DATASETS.TEST", "('few_digits',)",
]  # fmt: skip


@pytest.fixture
def digits():
    records = DatasetCatalog.get("digits_train")[:16]
    DatasetCatalog.register("few_digits", lambda: records)
    metadata = MetadataCatalog.get("digits_train").as_dict()
    MetadataCatalog.get("few_digits").set(**{key: value for key, value in metadata.items() if key != "name"})
    yield
    DatasetCatalog.remove("few_digits")
    MetadataCatalog.remove("few_digits")


def common(folder, **more) -> list[str]:
    keys = {
        "MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": "", "MODEL.POLICY.BUDGET.SHARE": 0.8, "SOLVER.MAX_ITER": 3,
        "SOLVER.IMS_PER_BATCH": 4, "SOLVER.AUTO_SCALE": False, "SOLVER.WARMUP_ITERS": 0, "SOLVER.PREFLIGHT": False,
        "SOLVER.BASE_LR": 0.01, "DATALOADER.NUM_WORKERS": 0, "SLIM.IMAGES": 4, "SEED": 1, "OUTPUT_DIR": folder / "out",
        **{key.replace("__", "."): value for key, value in more.items()},
    }  # fmt: skip
    return [str(part) for pair in keys.items() for part in pair]


def save_plain(folder, opts: list[str]) -> str:
    """A trained network without gates, as far as its file tells."""
    cfg = read_cfg("", opts)
    torch.manual_seed(0)
    path = folder / "plain.pth"
    torch.save({"model": build_model(cfg).state_dict()}, path)
    return str(path)


def names(folder) -> set[str]:
    return {path.parent.name for path in folder.glob("*/model_final.pth")}


@pytest.mark.usefixtures("digits")
def test_a_classifier_is_trained_slimmed_and_compared(tmp_path):
    opts = [*CLASSIFIER, *common(tmp_path, SLIM__PLAIN__MAX_ITER=2, SOLVER__MAX_ITER=6)]
    done = slim("", opts, train=train_in_this_process)
    assert names(tmp_path / "out") == {"plain", "sp", "fixed", "control_1", "control"}
    for gated, control, iterations in (("sp", "control_1", 2), ("fixed", "control", 4)):
        a, b = (build_cfg(str(tmp_path / "out" / name / "config.yaml")).SOLVER for name in (gated, control))
        assert a.MAX_ITER == b.MAX_ITER == iterations
        assert (a.BASE_LR, a.STEPS, a.LR_SCHEDULER_NAME) == (b.BASE_LR, b.STEPS, b.LR_SCHEDULER_NAME)
    assert done.gated.cfg.MODEL.POLICY.THRESHOLD == pytest.approx(done.calibrated.threshold)
    assert done.calibrated.share <= 0.8
    found = report(done, tmp_path / "out", batches=(1,), timed=1)
    assert set(found["networks"]) == {"gated", "control (no gates, as many iterations)", "start (no gates)"}
    assert (tmp_path / "out" / "slim.png").is_file() and (tmp_path / "out" / "routes" / "index.html").is_file()
    assert json.loads((tmp_path / "out" / "slim.json").read_text())["threshold"] == done.calibrated.threshold
    assert found["networks"]["start (no gates)"]["routes"]["gates_percent"] == 0

    def never(arguments: list[str]) -> None:
        pytest.fail(f"trained again: {arguments}")

    assert slim("", opts, train=never).calibrated == done.calibrated


def test_a_detector_from_its_own_plain_checkpoint(tmp_path):
    data = write_boxes(tmp_path / "data", 4)
    opts = tiny_opts(data, tmp_path / "out")
    opts = [*opts, *common(tmp_path, FEW_SHOT__STAGE="joint", MODEL__WEIGHTS=save_plain(tmp_path, opts)),
            "MODEL.ROI_HEADS.NUM_CLASSES", str(len(CLASSES)), "FEW_SHOT.BENCHMARK", "custom"]  # fmt: skip
    done = slim("", opts, train=train_in_this_process)
    assert done.gated.cfg.MODEL.META_ARCHITECTURE == "DynamicRCNN" and done.start is None
    assert done.gated.cfg.MODEL.BACKBONE.NAME == "build_gated_fpn_backbone"
    assert names(tmp_path / "out") == {"sp", "fixed", "control_1", "control"}
    found = report(done, tmp_path / "out", batches=(1,), timed=1)
    assert found["share_of_model"] > found["share_of_network"] - 0.01  # heads are the same


def test_a_segmentor_on_a_network_of_timm(tmp_path, squares):  # noqa: F811
    pytest.importorskip("timm")
    classes = len(MetadataCatalog.get(squares[0]).stuff_classes)
    opts = [
        *task_opts("semantic_fpn"), "MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.TIMM.NORM", "BN",
        "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "test_resnet",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(classes), "DATASETS.TRAIN", f"('{squares[0]}',)",
        "DATASETS.TEST", f"('{squares[0]}',)", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
        *common(tmp_path, SLIM__PLAIN__MAX_ITER=1, MODEL__POLICY__BUDGET__SHARE=0.99),
    ]  # fmt: skip
    done = slim("", opts, train=train_in_this_process)
    assert done.gated.cfg.MODEL.META_ARCHITECTURE == "DynamicSegmentor"
    assert done.gated.cfg.MODEL.GATED.BOTTOM_UP == "build_gated_timm_backbone"
    model, _ = model_of(done.gated.cfg, str(done.gated.weights))
    assert executed_share(model, unlabelled_batches(done.gated.cfg, 4)) <= 1.01


@pytest.mark.usefixtures("digits")
def test_calibration_finds_the_smallest_threshold_that_keeps_the_budget(tmp_path):
    cfg = read_cfg("", [*CLASSIFIER, *common(tmp_path), "MODEL.POLICY.NAME", "convnet_aig"])
    torch.manual_seed(1)
    model = build_model(cfg)
    for gate in model.backbone.policy.gates:  # probabilities that differ from image to image
        torch.nn.init.normal_(gate.scores.weight, std=4.0)
    batches = unlabelled_batches(cfg, 16, 5)
    assert [len(batch) for batch in batches] == [5, 5, 5, 1]
    found = calibrate(model, batches, 0.7, steps=12)
    policy = model.backbone.policy
    assert policy.threshold == found.threshold and executed_share(model, batches) == pytest.approx(found.share)
    assert found.share <= 0.7
    policy.threshold = found.threshold - 0.02
    assert executed_share(model, batches) > found.share
    with pytest.raises(UserError, match="run whatever the gates say"):
        calibrate(model, batches, 0.05)


def test_plain_networks_get_the_gated_form_and_gated_ones_stay():
    cfg = read_cfg("", ["MODEL.META_ARCHITECTURE", "RetinaNet",
                        "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"])  # fmt: skip
    form = dict(zip(gated_form(cfg)[::2], gated_form(cfg)[1::2], strict=True))
    assert form["MODEL.META_ARCHITECTURE"] == "DynamicRetinaNet"
    assert form["MODEL.BACKBONE.NAME"] == "build_gated_retinanet_fpn_backbone"
    assert form["MODEL.GATED.BOTTOM_UP"] == "build_gated_resnet_backbone"
    assert form["MODEL.POLICY.NAME"] == "skipnet_rnn"
    again = read_cfg("", [*gated_form(cfg), "MODEL.POLICY.NAME", "cdb"])
    assert gated_form(again) == []


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("policy", ["skipnet_rnn", "skipnet_ffgate2", "cdb"])
def test_blocks_of_a_trained_network_run_at_the_start_whichever_policy_is_named(policy, tmp_path):
    plain = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.META_ARCHITECTURE", "ImageClassifier"]
    plain += ["MODEL.RESNETS.OUT_FEATURES", "['res5']", "DATASETS.TRAIN", "('few_digits',)"]
    plain += ["DATASETS.TEST", "('few_digits',)"]
    opts = [*plain, *common(tmp_path, SLIM__PLAIN__MAX_ITER=1), "MODEL.POLICY.NAME", policy]
    gates = build_model(Slimming.of("", opts).cfg).backbone.policy
    trace = ask(gates.eval(), [torch.rand(4, unit.channels, 8, 8) for unit in gates.units])
    assert all(step.decision.open.all() for step in trace.steps)
    small = [*CLASSIFIER, *common(tmp_path, SLIM__PLAIN__MAX_ITER=1), "MODEL.POLICY.NAME", policy]
    named = Slimming.of("", small).cfg.MODEL.POLICY
    assert (named.CDB if policy == "cdb" else named.SKIPNET).INIT_BIAS == 2.0
    assert Slimming.of("", [*opts, "MODEL.POLICY.SKIPNET.INIT_BIAS", "0.5"]).cfg.MODEL.POLICY.SKIPNET.INIT_BIAS == 0.5


@pytest.mark.usefixtures("digits")
def test_a_frozen_backbone_is_slimmed_only_where_the_command_asks_for_it(tmp_path):
    frozen = tmp_path / "frozen.yaml"
    frozen.write_text("MODEL:\n  BACKBONE:\n    FREEZE_AT: 5\n")
    at = CLASSIFIER.index("MODEL.BACKBONE.FREEZE_AT")
    opts = [*CLASSIFIER[:at], *CLASSIFIER[at + 2 :], *common(tmp_path, SLIM__PLAIN__MAX_ITER=1)]
    with pytest.raises(UserError, match=r"FREEZE_AT is 5: the whole backbone is frozen"):
        Slimming.of(str(frozen), opts)
    for given in ("2", "5"):
        assert Slimming.of(str(frozen), [*opts, "MODEL.BACKBONE.FREEZE_AT", given]).learning == ["sp"]
    frozen.write_text("MODEL:\n  FREEZE: [backbone.stem, backbone.res*]\n")
    opts = [*CLASSIFIER, *common(tmp_path, SLIM__PLAIN__MAX_ITER=1)]
    with pytest.raises(UserError, match=r"MODEL.FREEZE is \['backbone.stem', .*: the whole backbone is frozen"):
        Slimming.of(str(frozen), opts)
    for names in ("[]", "['backbone.stem','backbone.res*']", "['backbone.res2']"):
        assert Slimming.of(str(frozen), [*opts, "MODEL.FREEZE", names]).learning == ["sp"]


@pytest.mark.usefixtures("digits")
def test_what_cannot_be_slimmed_says_so_before_anything_is_trained(tmp_path):
    good = [*CLASSIFIER, *common(tmp_path, SLIM__PLAIN__MAX_ITER=1)]
    for wrong, message in (
        (["MODEL.POLICY.BUDGET.SHARE", "0.0"], "BUDGET.SHARE is 0.* in \\(0, 1\\)"),
        (
            ["MODEL.POLICY.NAME", "random_skip"],
            "random_skip, whose decisions have no probabilities.*: gates that can keep a budget are cdb",
        ),
        (
            ["MODEL.POLICY.NAME", "blockdrop"],
            "blockdrop, whose own training begins with the plain network \\(`dyn-d2 stages` runs pretrain, joint",
        ),
        (["SOLVER.FIXED_STAGE.MAX_ITER", "10"], "FIXED_STAGE.MAX_ITER would give the gated network another schedule"),
        (["SLIM.PLAIN.MAX_ITER", "0"], "MODEL.WEIGHTS is empty"),
        (["SOLVER.MAX_ITER", "2"], "SOLVER.MAX_ITER is 2"),
        (["MODEL.FREEZE", "['backbone']"], "MODEL.FREEZE is \\['backbone'\\], which freezes the gates too"),
        (["DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        (["MODEL.POLICY.PLAN", "['hrl','fixed']"], "from a network without gates skipnet_rnn starts with its stage sp"),
    ):
        with pytest.raises(UserError, match=message):
            Slimming.of("", [*good, *wrong])
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth does not exist"):
        Slimming.of("", [*good, "MODEL.WEIGHTS", "nowhere.pth"])


@pytest.mark.usefixtures("digits")
def test_learning_stages_share_their_iterations_and_the_budget_does_not_touch_the_control(tmp_path):
    opts = [*CLASSIFIER, *common(tmp_path, SLIM__PLAIN__MAX_ITER=1, SOLVER__MAX_ITER=30, SLIM__LEARN_SHARE=0.4)]
    opts += ["MODEL.POLICY.NAME", "skipnet_rnn", "MODEL.POLICY.PLAN", "['sp','hrl','fixed']"]
    task = Slimming.of("", opts)
    assert task.learning == ["sp", "hrl"]
    found = [dict(zip(keys[::2], keys[1::2], strict=True)) for keys in task.schedules()]
    assert [keys["SOLVER.MAX_ITER"] for keys in found] == [6, 6, 18]
    other = Slimming.of("", [*opts, "MODEL.POLICY.BUDGET.SHARE", "0.5"])
    start, other_start = task.plain(), other.plain()
    assert start.fingerprint() == other_start.fingerprint()
    assert task.control(0, start).fingerprint() == other.control(0, other_start).fingerprint()
    assert task.learn(0, start).fingerprint() != other.learn(0, other_start).fingerprint()
    file = tmp_path / "own.yaml"
    file.write_text("SOLVER: {WEIGHT_DECAY: 0.001, FIXED_STAGE: {WEIGHT_DECAY: 0.05}}\n")
    task = Slimming.of(str(file), opts)
    trainings = task.fixed(task.learn(0, None), 0.5), task.control(2, None)
    assert [training.cfg.SOLVER.WEIGHT_DECAY for training in trainings] == [0.001, 0.001]


@pytest.mark.usefixtures("digits")
def test_every_training_is_scaled_to_the_batch(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(
        "SOLVER: {REFERENCE_BATCH: 32, IMS_PER_BATCH: 32, MAX_ITER: 450, BASE_LR: 0.01}\n"
        "SLIM: {PLAIN: {MAX_ITER: 400, BASE_LR: 0.02, WARMUP_ITERS: 10}}\n"
    )
    keys = ["MODEL.POLICY.NAME", "skipnet_rnn", "MODEL.POLICY.BUDGET.SHARE", "0.8", "OUTPUT_DIR", str(tmp_path / "out")]
    small = ["SOLVER.IMS_PER_BATCH", "8"]
    for more, iterations, rate, warmup, later in (
        ([], 400, 0.02, 10, 148),
        (small, 1600, 0.005, 40, 594),
        ([*small, "SLIM.PLAIN.MAX_ITER", "7"], 7, 0.005, 40, 594),
    ):
        task = Slimming.of(str(file), [*CLASSIFIER, *keys, *more])
        solver = task.plain().cfg.SOLVER
        assert (solver.MAX_ITER, solver.BASE_LR, solver.WARMUP_ITERS) == (iterations, pytest.approx(rate), warmup)
        assert task.learn(0, None).cfg.SOLVER.MAX_ITER == later


def test_the_summary_by_hand():
    def record(value: float, gflops: float, milliseconds: float, executed: float) -> dict:
        return {
            "metric": {"name": "AP", "value": value}, "routes": {"GFLOPs": gflops, "executed_percent": executed},
            "milliseconds": {"1": {"median": milliseconds}},
        }  # fmt: skip

    gated, control = record(40.5, 0.6, 7.0, 60.0), record(41.0, 1.0, 10.0, 100.0)
    found = summary(gated, control)
    assert found["difference"] == pytest.approx(-0.5) and found["share_of_network"] == 0.6
    assert found["share_of_time"]["1"] == pytest.approx(0.7) and found["realised"]["1"] == pytest.approx(0.75)
    assert "-0.50 AP at 60.0%" in table({"gated": gated, "control": control}, found)
