"""A user's own data without a line of Python (USERS.md, rank 2): one command from annotations to a scored few-shot
detector, which does nothing when it is given again."""

import json
from pathlib import Path

import pytest
import yaml
from tiny_detection import tiny_opts, write_boxes
from tool_runs import run_tool, train_net_here

from dyn_d2.engine.few_shot import plan
from dyn_d2.engine.stages import train_stages

FINETUNED = "tfa_cos_split1_2shot_seed0"


def write_config(folder: Path) -> str:
    """The yaml that a user writes: the detector, the files and two lists of class names."""
    opts = tiny_opts(
        write_boxes(folder / "data"), "unused", FEW_SHOT__METHOD="tfa_cos", FEW_SHOT__SHOTS=2, SOLVER__MAX_ITER=4,
        MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0, MODEL__RPN__POST_NMS_TOPK_TEST=200, TEST__DETECTIONS_PER_IMAGE=400,
    )  # fmt: skip
    config: dict = {}
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        *path, name = key.split(".")
        node = config
        for part in path:
            node = node.setdefault(part, {})
        node[name] = yaml.safe_load(value) if value else ""
    config["FEW_SHOT"]["FINETUNE"] = {"MAX_ITER": 2, "BASE_LR": 0.001, "WARMUP_ITERS": 0}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.mark.slow
def test_one_command_from_annotations_to_results(tmp_path, monkeypatch, caplog) -> None:
    command = ("few_shot_train", "--config-file", write_config(tmp_path), "OUTPUT_DIR", str(tmp_path / "out"))
    first = run_tool(*command)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    folders = {path.parent.name for path in (tmp_path / "out").glob("*/model_final.pth")}
    assert folders == {"base_split1", FINETUNED}
    base, tuned = (json.loads((tmp_path / "out" / name / "results.json").read_text())
                   for name in ("base_split1", FINETUNED))  # fmt: skip
    assert set(base["metrics"]) == {"custom_test_split1_base"} and set(tuned["metrics"]) == {"custom_test_split1_all"}
    metrics = tuned["metrics"]["custom_test_split1_all"]["bbox"]
    assert {"AP", "bAP", "nAP"} <= metrics.keys() and metrics["AP50"] is not None
    assert tuned["batch"] == 2 and tuned["learning_rate"] == 0.001 and tuned["iterations"] == 2 and tuned["seed"] == 7
    assert tuned["few_shot"]["shots"] == 2 and tuned["versions"]["torch"]
    # The drawn objects lie beside the model, and the results name them.
    (shots,) = (tmp_path / "out" / FINETUNED / "few_shot").glob("*shot_seed0_train.json")
    drawn = json.loads(shots.read_text())
    assert {name: len(objects) for name, objects in drawn["objects"].items()} == dict.fromkeys(
        ("red", "green", "blue", "yellow"), 2
    )
    assert tuned["shots_hash"] == drawn["hash"] and base["shots_hash"] is None

    # The same command again, here: no process is started.
    monkeypatch.setattr("dyn_d2.engine.stages.run_process", lambda command: pytest.fail(" ".join(command)))
    with caplog.at_level("INFO", "dyn_d2"):
        train_stages(plan, command[2], command[3:])
    assert caplog.text.count("done already") == 2
    assert json.loads((tmp_path / "out" / FINETUNED / "results.json").read_text()) == tuned

    weights = str(tmp_path / "out" / FINETUNED / "model_final.pth")
    train_net_here(monkeypatch, "--eval-only", *command[1:3], "FEW_SHOT.STAGE", "finetune", "MODEL.WEIGHTS", weights,
                   "OUTPUT_DIR", str(tmp_path / "scored"))  # fmt: skip
    record = json.loads((tmp_path / "scored" / "results.json").read_text())
    assert record["metrics"] == tuned["metrics"] and record["weights_hash"] == tuned["weights_hash"]
    assert record["shots_hash"] == tuned["shots_hash"]
