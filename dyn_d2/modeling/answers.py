"""What a model says about itself: the platform asks here, and needs to know no model.

Detectron2's own models are understood as they are. Others may answer by attributes of their own, all optional:

    ``head_classes``: int, or None for a model whose classes are no rows of a head.
    ``open_for_images(cfg) -> list[str] | None``: called once on a trained detector that is to see single images, no
        data set; gets what it needs beside its weights and returns the class names of its rows, or None where its
        checkpoint has them. Raises ValueError where that is not to be had.
    ``label_maps(inputs, output, classes) -> list[LabelMap]``: of a semantic segmentor, all maps to show of one image,
        of which ``classes`` is the one that every segmentor has; see ``evaluation.label_figures``.
    ``sees_no_images``: text, why a model has no use for images alone.
    ``graph_outputs(images) -> dict[str, Tensor]``: of an image classifier, its "scores" (N, K) for images
        (N, C, H, W) that are not normalised yet, in a way that torch.export can trace.
    ``export_problem() -> str | None``: of a model or its head, why it cannot be exported, as a whole sentence.
    ``keep_features(cfg, loader) -> str``: from now on compute what the frozen parts give of each view only once
        (FEATURE_CACHE), and have the training ``loader`` leave the images out; or change nothing and say why not.
    ``label_set_problem(datasets, one_per_batch) -> str | None``: of a semantic segmentor or its head, which knows the
        labels of its data sets itself: what is wrong with training on these, whose batches have images of one of them
        (or of any).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from dyn_d2.evaluation.label_figures import LabelMap

    from detectron2.config import CfgNode


def head_classes(model: Any) -> int | None:
    """Classes that the model's head predicts, background not counted; None for models without such a head, or whose
    classes are no rows of it."""
    if hasattr(model, "head_classes"):
        return model.head_classes
    predictor = getattr(getattr(model, "roi_heads", None), "box_predictor", None)
    if predictor is not None:
        return predictor.cls_score.out_features - 1
    return getattr(model, "num_classes", None)


@contextmanager
def any_score(model: nn.Module) -> Iterator[None]:
    """Inside the block detections of any score count. An untrained model rarely reaches the score threshold; without it
    there is something to evaluate."""
    owners: list[Any] = [module for module in model.modules() if hasattr(module, "test_score_thresh")]
    before = [owner.test_score_thresh for owner in owners]
    for owner in owners:
        owner.test_score_thresh = 0.0
    try:
        yield
    finally:
        for owner, threshold in zip(owners, before, strict=True):
            owner.test_score_thresh = threshold


def open_for_images(model: Any, cfg: "CfgNode") -> list[str] | None:
    """Have a trained detector ready for single images; its class names, or None where it needs nothing.

    Raises:
        ValueError: it lacks something; the message names the remedy.
    """
    return model.open_for_images(cfg) if hasattr(model, "open_for_images") else None


def label_maps(model: Any, inputs: dict[str, Any], output: dict[str, Any], classes: "LabelMap") -> "list[LabelMap]":
    """The maps of one image to show, ``classes`` among them.

    Args:
        inputs: "image" (C, h, w) as it went in, "height" and "width" of the image as it is, perhaps "dataset".
        output: of the semantic segmentor, for this image.
    """
    return model.label_maps(inputs, output, classes) if hasattr(model, "label_maps") else [classes]


def exported_problem(model: Any) -> str | None:
    """Why a model cannot be exported, as itself or its head says; None where they say nothing."""
    parts: list[Any] = [model, getattr(model, "sem_seg_head", None), getattr(model, "roi_heads", None)]
    for part in parts:
        if hasattr(part, "export_problem"):
            problem = part.export_problem()
            if problem:
                return problem
    return None


def knows_its_labels(model: Any) -> bool:
    """Whether a semantic segmentor, or its head, knows the labels of its data sets itself."""
    return any(hasattr(part, "label_set_problem") for part in (model, model.sem_seg_head))


def label_set_problems(model: Any, datasets: Sequence[str], one_per_batch: bool) -> list[str] | None:
    """What a semantic segmentor has against training on ``datasets``; None where it leaves that to the number of its
    classes.

    Args:
        one_per_batch: whether all images of a batch are of one data set.
    """
    for part in (model, model.sem_seg_head):
        if hasattr(part, "label_set_problem"):
            problem = part.label_set_problem(datasets, one_per_batch)
            return [problem] if problem else []
    return None
