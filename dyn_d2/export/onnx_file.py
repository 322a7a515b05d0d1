"""A model becomes a file, which is then compared with the model."""

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dyn_d2
from dyn_d2.method import DENSE, SKIPS, methods
from dyn_d2.modeling.answers import head_classes
from dyn_d2.modeling.backbone.timm_same import use_whole_numbers
from dyn_d2.utils.errors import UserError
from dyn_d2.utils.extras import how_to_install, is_missing

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from .compare import Difference, compare
from .detectors import with_proposals
from .forms import Form, fold_norms, form_of

logger = logging.getLogger(__name__)

KEY = "dyn_d2"  # of the file's metadata
TOLERANCE = 1e-4
SMALL = 32  # side of an image of a classifier that cuts none out, as of CIFAR
LARGEST = 4096  # pixels of a side whose size is free
SHARED = 4096  # numbers of a weight that is copied where several branches share it


@dataclass
class ExportReport:
    """
    Attributes:
        file: what was written.
        described: what its metadata say, see ``docs/export.md``.
        differences: from the model, for each size that was tried; empty where nobody compared.
    """

    file: Path
    described: dict[str, Any]
    differences: list[Difference]

    def lines(self) -> list[str]:
        """In words."""
        size = os.path.getsize(self.file) / 1e6
        kind = self.described["task"] + (
            "" if self.described["gates"] is None else f", gates: {self.described['gates']}"
        )
        return [f"{self.file}: {kind}, {size:.1f} MB", *(str(difference) for difference in self.differences)]


def export_onnx(
    cfg: CfgNode,
    model: nn.Module,
    file: str | os.PathLike,
    *,
    described: dict[str, Any] | None = None,
    gates: str = SKIPS,
    size: tuple[int, int] | None = None,
    proposals: int = 0,
    check: bool = True,
) -> ExportReport:
    """Write a model as an ONNX file with one input, "image", float32 (N, C, H, W), not normalised.

    Args:
        model: a classifier, semantic segmentor or detector; it stays as it is.
        described: the "dyn_d2" entry of its checkpoint.
        gates: of a gated network: "if" for blocks that do not run where they are closed, for one image at a time;
            "dense" for all of them run and multiplied by their gates, in batches.
        size: (height, width) of all images; None for any, in steps of what the network divides them by.
        proposals: of a Faster R-CNN; 0 for as many as its config says. Fewer are faster and find less.
        check: run the file, on images of three sizes where the size is free, and compare it with the model.

    Raises:
        UserError: a package is missing, the model cannot be written as a graph, or the file gives something else.
    """
    _require("onnx", "onnxscript", *(["onnxruntime"] if check else []))
    if gates not in (SKIPS, DENSE):
        raise UserError(f"gates {gates!r}: use {SKIPS!r} or {DENSE!r}.")
    plain = copy.deepcopy(model).cpu().eval()
    fold_norms(plain)
    use_whole_numbers(plain)
    form = _form(plain, gates, proposals)
    chooses = any(method.chooses(model) for method in methods())
    form.batches = form.batches and not (chooses and gates == SKIPS)
    divisor: Any = getattr(model, "backbone", model).size_divisibility
    step = max(int(divisor or 1), 1)
    sizes = _sizes(cfg, step, size)
    program = _traced(form, gates, sizes, None if size else step)
    entries = {
        "version": dyn_d2.__version__,
        "task": form.task,
        "outputs": list(form.outputs),
        "gates": gates if chooses else None,
        "classes": _classes(form, described or {}),
        "format": cfg.INPUT.FORMAT,
        "resize": _resizing(cfg, form.task),
        "multiple_of": step,
        "at_least": min(map(min, sizes)),
        "size": None if size is None else list(size),
    }
    report = ExportReport(Path(file), entries, [])
    with written(program, Path(file), entries) as part:  # a file that is wrong replaces none
        if check:
            same = with_proposals(model, proposals)
            report.differences = [compare(same, form, str(part), each) for each in sizes]
            wrong = [difference for difference in report.differences if not difference.largest <= TOLERANCE]
            if wrong:
                raise UserError(f"the graph does not give what the model gives, so {file} is not written: {wrong[0]}.")
    return report


def _require(*packages: str) -> None:
    for package in packages:
        if is_missing(package):
            raise UserError(f"{how_to_install(package)}.")


def _form(model: nn.Module, gates: str, proposals: int) -> Form:
    problems = [problem for method in methods() if (problem := method.export_problem(model, gates))]
    if problems:
        raise UserError(f"{type(model).__name__} cannot be exported: {problems[0]}")
    try:
        return form_of(model, proposals).eval()
    except ValueError as error:
        raise UserError(f"{type(model).__name__} cannot be exported: {error}") from error


def _sizes(cfg: CfgNode, step: int, size: tuple[int, int] | None) -> list[tuple[int, int]]:
    """What is tried: the size, or three of them that the network divides, small ones as they are as good."""
    if size is not None:
        for side in size:
            if side < 1 or side % step:
                raise UserError(f"size {size[0]} {size[1]}: the network takes multiples of {step}.")
        return [size]
    if getattr(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), "classifies_images", False):
        own = cfg.INPUT.CLASSIFICATION.CROP_TEST or SMALL
    else:
        own = cfg.INPUT.MIN_SIZE_TEST or 64
    side = -(-min(own, 256) // step)
    if step > 1:  # the coarsest map of a pyramid, of stride 4 times that, has more than one place: one is no size
        side = max(side, 5)
    more = max(side // 4, 1) * step
    side *= step
    return [(side, side + more), (side, side), (side + more, side)]


def _traced(form: Form, gates: str, sizes: Sequence[tuple[int, int]], step: int | None) -> Any:
    """The program of torch.onnx. ``step``: what free sizes are multiples of; None for a fixed size."""
    channels = len(form.model.pixel_mean)
    example = 128 * torch.rand(2 if form.batches else 1, channels, *sizes[0])
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=1024)} if form.batches else {}
    if step is not None:
        for axis, name in ((2, "rows"), (3, "columns")):
            part = torch.export.Dim(name, min=min(map(min, sizes)) // step, max=LARGEST // step)
            free[axis] = step * part if step > 1 else part
    try:
        with _quiet(), torch.no_grad(), ExitStack() as stack:
            for method in methods():
                stack.enter_context(method.exporting(form.model, gates))
            traced = torch.export.export(form, (example,), dynamic_shapes=({**free},), strict=False)
            return torch.onnx.export(
                traced, (), dynamo=True, input_names=["image"], output_names=list(form.outputs), verbose=False
            )
    except Exception as error:  # torch has a type for each way in which this can fail
        logger.debug("export", exc_info=True)
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"{type(form.model).__name__} cannot be written as a graph{'' if step is None else ' of any size'}: "
            f"{first.strip().rstrip('.')}." + ("" if step is None else " A fixed size may do (--size HEIGHT WIDTH).")
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters tell much that nobody can do anything about."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch._dynamo")
    loggers = [logging.getLogger(name) for name in names]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


@contextmanager
def written(program: Any, file: Path, entries: dict[str, Any]) -> Iterator[Path]:
    """A file with the graph, which becomes ``file`` where the block ends without an error."""
    program.model.metadata_props[KEY] = json.dumps(entries)
    weights_into_branches(program.model)
    ends = set(program.model.graph.outputs)
    for node in program.model.graph.all_nodes():
        for value in node.outputs:
            if value not in ends:  # what torch calls the same size need not be: onnxruntime finds sizes by itself
                value.shape = None
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    try:
        program.save(str(part), external_data=False)
        yield part
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def weights_into_branches(model: Any) -> int:
    """Move weights that one branch of an ``If`` alone uses into that branch, and tell how many branches got some. Small
    ones that several share, such as equal biases, are copied.

    onnxruntime brings convolutions into its fast layout, and joins them with what follows, only where the weights are
    of the same graph: without this a block in a branch takes nearly twice the time.

    Args:
        model: an ``onnx_ir.Model``, which is changed.
    """
    branches = [
        attribute.as_graph()
        for node in model.graph
        for attribute in node.attributes.values()
        if attribute.type.name == "GRAPH"
    ]
    return sum(_take_weights(branch, model.graph.initializers, number) for number, branch in enumerate(branches))


def _take_weights(branch: Any, weights: Any, number: int) -> bool:
    from onnx_ir import Value

    used = {value.name: value for node in branch for value in node.inputs if value is not None}
    own = {name: value for name, value in used.items() if weights.get(name) is value}
    for name, value in own.items():
        if all(use.node.graph is branch for use in value.uses()):
            weights.pop(name)
            branch.register_initializer(value)
        elif value.const_value is not None and value.const_value.size <= SHARED:
            same = Value(
                name=f"{name}_branch{number}", shape=value.shape, type=value.type, const_value=value.const_value
            )
            branch.register_initializer(same)
            for node in branch:
                for place, given in enumerate(node.inputs):
                    if given is value:
                        node.replace_input_with(place, same)
    return bool(own)


def _classes(form: Form, described: dict[str, Any]) -> list[str]:
    """Names of the classes; empty where the checkpoint has none that fit."""
    names = list(described.get("stuff_classes" if form.task == "semantic segmentation" else "classes", ()))
    fits = form.task != "detection" or head_classes(form.model) == len(names)
    return names if fits else []


def _resizing(cfg: CfgNode, task: str) -> dict[str, int]:
    """How evaluation resizes images: the shorter side, the most of the longer one, a square cut out of the middle."""
    if task == "classification":
        keys = cfg.INPUT.CLASSIFICATION
        return {"shorter": keys.RESIZE_TEST, "crop": keys.CROP_TEST}
    return {"shorter": cfg.INPUT.MIN_SIZE_TEST, "longer": cfg.INPUT.MAX_SIZE_TEST}
