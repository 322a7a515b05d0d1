"""The commands of README.md and of the pages below docs/, run as they stand, at the size of a toy.

What stands in a ``bash`` block of a page is run in its order, all pages in one folder; the test appends options that
shrink data and model. Indented commands are for readers: too long, or on data that few people have. Commands on data
sets that nobody can expect here must end with the message that says where the data belong. ``make demo`` is covered by
tests/methods/tfa/test_demo_few_shot.py, ``make test`` is what runs this.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from own_folders import write_voc_folder
from PIL import Image
from sklearn.datasets import load_sample_images
from tiny_detection import CLASSES
from tool_runs import ROOT, environment
from warm_processes import run_warm

from dyn_d2.methods.tfa.cli import QUICK_OPTS

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
QUICK = QUICK_OPTS
SMALL_DATA = ["--num-train", "48", "--num-val", "6", "--quiet"]
# The table of 45 models shrinks to one that the command before it has trained.
ONE_CELL = {"ft_full,tfa_fc,tfa_cos": "tfa_cos", "1,5,10": "5", "0-4": "0", "--jobs 2": "--jobs 1"}
SMALL_CLASSIFIER = ["MODEL.RESNETS.DEPTH", "8", "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "()"]
SMALL_CLASSIFIER += ["SOLVER.SECOND_STAGE.MAX_ITER", "2", "SOLVER.SECOND_STAGE.STEPS", "[]"]
SMALL_CELLS = ["FEW_SHOT.BASE.MAX_ITER", "3", "FEW_SHOT.NOVEL.MAX_ITER", "2", "FEW_SHOT.FINETUNE.MAX_ITER", "2"]
SMALL_FSRW = ["MODEL.YOLO.SIZE", "128", "MODEL.REWEIGHTING.SUPPORT_SIZE", "64", "FEW_SHOT.FINETUNE.MAX_ITER", "4"]
SMALL_FSRW += ["FEW_SHOT.MAX_OBJECTS", "0"]  # few of the small set's images have no more objects
JOURNEYS = ("own_data",)  # tests/docs/test_own_data.py runs these
ELSEWHERE = ("make ", "source ", "export ", "DYN_D2_BACKEND=")  # CI, or nothing to see
NEEDS_DATA = ("voc.yaml", "coco.yaml", "lvis.yaml")
LEFT_BEHIND = {  # files that the commands of a page write, and more than how many bytes they have
    "README": {"pictures/photo.png": 1000},
    "gating": {"output/skipnet/routes/index.html": 10_000, "output/skipnet/scales/executed_all.png": 10_000},
    "idk_cascade": {"output/cascade/cascade.md": 100},
}
# A file of this repository as text names it; "*" stands for any characters.
FOLDERS = ("benchmarks", "configs", "datasets", "docs", "dyn_d2", "tools")
NAMED_FILE = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)}|tests)/[\w./*-]*\.(?:yaml|py|md|sh)\b")
PLACEHOLDERS = re.compile("METHOD|DATASET|NAME")  # of CONTRIBUTING.md: what somebody will add


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.S | re.M)


def _commands(page: Path) -> list[str]:
    lines = [line.strip() for block in _blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(ELSEWHERE)]


def _own_data(folder: Path) -> None:
    """my_classes.yaml over DigitScenes, as somebody's own data, and blood cells that are coloured boxes."""
    digits = folder / "datasets" / "digit_scenes"
    custom = {"NAME": "mine"}
    for part, name in (("TRAIN", "train"), ("TEST", "val")):
        custom[f"{part}_JSON"] = str(digits / "annotations" / f"instances_{name}.json")
        custom[f"{part}_IMAGES"] = str(digits / "images" / name)
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    custom |= {"BASE_CLASSES": names[:7], "NOVEL_CLASSES": names[7:]}
    content = {
        "_BASE_": str(ROOT / "configs" / "TFA" / "digit_scenes.yaml"),
        "FEW_SHOT": {"BENCHMARK": "custom", "CUSTOM": custom},
    }
    (folder / "my_classes.yaml").write_text(yaml.safe_dump(content))
    cells = write_voc_folder(folder / "BCCD_Dataset" / "BCCD", images=24)
    names = dict(zip(CLASSES, ("RBC", "WBC", "Platelets", "RBC"), strict=True))
    pictures = cells / "JPEGImages"
    (pictures / "BloodImage_00007.jpg").write_bytes((pictures / "001.jpg").read_bytes())
    for file in (cells / "Annotations").iterdir():
        text = file.read_text()
        for old, new in names.items():
            text = text.replace(f"<name>{old}<", f"<name>{new}<")
        file.write_text(text)


def _argv(command: str) -> list[str]:
    """The command as a process of this Python, with what makes it small."""
    if "benchmark few-shot" in command:
        for long, short in ONE_CELL.items():
            assert long in command or "FSRW" in command, f"the table command has changed: {command}"
            command = command.replace(long, short)
    words = shlex.split(command)
    if words[0] == "dyn-d2":
        words = ["python", "-m", "dyn_d2", *words[1:]]
    if words[0] == "torchrun":
        words = ["python", "-m", "torch.distributed.run", "--master-port", "29641", *words[1:]]
    assert words[0] == "python", f"neither dyn-d2, python nor torchrun: {command}"
    words[0] = sys.executable
    if "prepare digit-scenes" in command:
        words += SMALL_DATA
    elif "benchmarks/engine.py" in command:
        words += ["--engine", "embedded", "--iterations", "1", "--rounds", "1", "--batch", "1", *QUICK]
    elif any(name in command for name in NEEDS_DATA):
        words += ["MODEL.DEVICE", "cpu"]
    elif "benchmarks/dynamic.py" in command:
        words += ["--size", "32", "--rounds", "1", "--warm-up", "1"]
    elif "tradeoff" in command:
        words += ["--timed", "2", "--opts", *SMALL_CLASSIFIER]
    elif "SkipNet/digits.yaml" in command:
        words += SMALL_CLASSIFIER
    elif "--config-file" in words and "check-data" not in command and "show-data" not in command:
        at = words.index("OUTPUT_DIR") if "OUTPUT_DIR" in words else len(words)
        words = [*words, *(SMALL_CELLS if "bccd.yaml" in command else [])]
        words = [*words[:at], *QUICK, *(SMALL_FSRW if "FSRW" in command else []), *words[at:]]
    return words


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with small data, somebody's own, and a photo; configs are found by name."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    (folder / "datasets").mkdir()
    run = _run("dyn-d2 prepare digit-scenes", folder)
    assert run.returncode == 0, run.stderr
    _own_data(folder)
    Image.fromarray(load_sample_images().images[0][:200, :200]).save(folder / "photo.jpg")
    return folder


def _run(command: str, folder: Path) -> subprocess.CompletedProcess:
    env = {**environment(), "DETECTRON2_DATASETS": str(folder / "datasets")}
    argv = _argv(command)
    if "torch.distributed.run" in argv:
        return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    return run_warm(argv[1:], folder, env, 300)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [p for p in PAGES if _commands(p) and p.stem not in JOURNEYS], ids=lambda p: p.stem)
def test_commands_run_in_their_order(page, folder):
    for command in _commands(page):
        run = _run(command, folder)
        said = f"{command}\n{run.stdout[-1500:]}\n{run.stderr[-1500:]}"
        if any(name in command for name in NEEDS_DATA):
            assert run.returncode != 0 and "DETECTRON2_DATASETS" in run.stdout + run.stderr, said
        elif "dyn-d2 compare" in command:
            # Two evaluations of one model: the weights' hash is equal, settings such as the iterations differ.
            assert run.returncode in (0, 1) and "weights_hash" not in run.stdout, said
        else:
            assert run.returncode == 0, said
    for file, least in LEFT_BEHIND.get(page.stem, {}).items():
        assert (folder / file).stat().st_size > least
    if page.stem == "few_shot":
        assert (folder / "output" / "digits" / "benchmark.md").read_text().count("TFA w/ cos") == 1


def test_no_page_loses_its_commands():
    assert {"README", "few_shot", "own_data", "training", "troubleshooting", "gating"} <= {
        page.stem for page in PAGES if _commands(page)
    }
    assert sum(len(_commands(page)) for page in PAGES) >= 30


@pytest.mark.slow
def test_the_ten_lines_work_in_a_foreign_project():
    """They give Detectron2's own model the cosine classifier, which detects and trains."""
    (lines,) = _blocks(README, "python")
    check = """
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
assert type(model.roi_heads).__name__ == "StandardROIHeads" and model.roi_heads.box_predictor.cls_score.bias is None
truth = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[4.0, 4, 40, 40]])), gt_classes=torch.tensor([1]))
with EventStorage():
    losses = model([{"image": torch.zeros(3, 64, 64), "instances": truth}])
assert all(torch.isfinite(loss) for loss in losses.values())
model.eval()([{"image": torch.zeros(3, 64, 64)}])
"""
    run = subprocess.run([sys.executable, "-c", lines + check], env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_files_that_docs_link_to_exist():
    for page in [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "datasets/README.md", "tools/README.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 900


def test_files_that_text_and_code_name_exist():
    folders = [path for name in FOLDERS for path in (ROOT / name).rglob("*")]
    texts = [path for path in folders if path.suffix in (".md", ".py", ".sh", ".yaml")]
    named = set()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile", *texts]:
        named |= {(str(path.relative_to(ROOT)), name) for name in NAMED_FILE.findall(path.read_text())}
    assert len(named) > 100
    missing = [pair for pair in named if not PLACEHOLDERS.search(pair[1]) and not any(ROOT.glob(pair[1]))]
    assert not missing
