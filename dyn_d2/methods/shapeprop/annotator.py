"""A trained model as annotator: it predicts the masks of objects whose boxes are known (Progressive Mask R-CNN,
Table 8.2)."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dyn_d2.data.partial_masks import with_masks_left
from dyn_d2.data.pseudo_masks import NONE, Record, encode, object_key, without_mask
from dyn_d2.data.sound_dicts import sound_dicts
from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, BoxMode, ImageList, Instances

logger = logging.getLogger(__name__)


@runtime_checkable
class MaskHeads(Protocol):
    """ROI heads that can predict masks of given boxes."""

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]: ...


@runtime_checkable
class MaskModel(Protocol):
    """A detector whose ``roi_heads`` may be ``MaskHeads``."""

    backbone: nn.Module
    roi_heads: nn.Module | None

    @property
    def device(self) -> torch.device: ...

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList: ...


def objects_without_masks(cfg: CfgNode) -> list[Record]:
    """Records of DATASETS.TRAIN with only those objects that have no mask, or lose it by INPUT.PARTIAL_MASKS; images
    without such an object are left out.

    Raises:
        UserError: the config has no masks, or no object lacks one.
    """
    if not cfg.MODEL.MASK_ON:
        raise UserError("MODEL.MASK_ON is False: the config of a model that predicts masks is needed.")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.PARTIAL_MASKS.PSEUDO = NONE
    records = sound_dicts(list(cfg.DATASETS.TRAIN), cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    if not isinstance(records, list):
        raise UserError(f"{', '.join(cfg.DATASETS.TRAIN)} has to be a list of records to get masks.")
    found = [{**record, "annotations": without_mask(record)} for record in with_masks_left(cfg, records)]
    found = [record for record in found if record["annotations"]]
    if not found:
        raise UserError(
            f"every object of {', '.join(cfg.DATASETS.TRAIN)} has a mask under these INPUT.PARTIAL_MASKS: there is "
            "nothing to predict."
        )
    return found


def predict_masks(cfg: CfgNode, model: nn.Module, records: Sequence[Record]) -> dict[str, Any]:
    """Masks of the given boxes, in COCO's format.

    Boxes and classes are those of the ground truth; the model's box head is not asked.

    Args:
        model: with ``roi_heads.forward_with_given_boxes``.
        records: data set dicts; every annotation gets a mask, unless the model's is empty.

    Returns:
        "images", "annotations" (bbox, segmentation as run lengths, "pseudo_mask": True) and "categories".

    Raises:
        UserError: the model cannot predict masks of given boxes.
    """
    if not isinstance(model, MaskModel) or not isinstance(model.roi_heads, MaskHeads):
        raise UserError(f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} cannot predict masks of given boxes.")
    mapper = DatasetMapper(cfg, is_train=False)
    model.eval()
    images: dict[Any, Record] = {}
    annotations: list[Record] = []
    for record in tqdm(records, desc="masks", unit=" images", delay=2):
        image_id, name = record["image_id"], record["file_name"]
        images[image_id] = {"id": image_id, "file_name": name, "width": record["width"], "height": record["height"]}
        for annotation, mask in masks_of(mapper, model, record):
            annotations.append(_annotation(len(annotations) + 1, record, annotation, mask))
    total = sum(len(record["annotations"]) for record in records)
    logger.info(f"masks for {len(annotations):,} of {total:,} objects; those of the others are empty")
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
    return {
        "images": list(images.values()),
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
    }


@torch.no_grad()
def masks_of(mapper: DatasetMapper, model: MaskModel, record: Record) -> list[tuple[Record, Any]]:
    """Annotations of one image, with the (H, W) bool masks of their boxes; those whose mask is empty are left out.

    Args:
        mapper: of images without annotations.
        model: in evaluation mode; its ``roi_heads`` are ``MaskHeads``.
    """
    heads = model.roi_heads
    assert isinstance(heads, MaskHeads)  # as who calls has seen to
    inputs = mapper({key: value for key, value in record.items() if key != "annotations"})
    height, width = inputs["image"].shape[1:]
    objects = record["annotations"]
    corners = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    boxes = Boxes(torch.tensor(corners, dtype=torch.float32))
    boxes.scale(width / record["width"], height / record["height"])
    boxes.clip((height, width))
    known = Instances((height, width), pred_boxes=boxes)
    known.pred_classes = torch.tensor([a["category_id"] for a in objects])
    known.number = torch.arange(len(objects))
    features = model.backbone(model.preprocess_image([inputs]).tensor)
    (found,) = heads.forward_with_given_boxes(features, [known[boxes.nonempty()].to(model.device)])
    found = detector_postprocess(found, record["height"], record["width"]).to("cpu")
    pairs = zip(found.number.tolist(), found.pred_masks.numpy(), strict=True)
    return [(objects[number], mask) for number, mask in pairs if mask.any()]


def _annotation(number: int, record: Record, annotation: Record, mask: Any) -> Record:
    _, box = object_key(record, annotation)
    return {
        "id": number,
        "image_id": record["image_id"],
        "category_id": annotation["category_id"] + 1,
        "bbox": list(box),
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": encode(mask),
        "pseudo_mask": True,
    }
