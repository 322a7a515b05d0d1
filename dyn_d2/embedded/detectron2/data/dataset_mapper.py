"""From one record of a data set to what a model takes."""

import logging
from typing import Any

import numpy as np
import torch

from detectron2.config import configurable
from detectron2.left_out import left_out

from . import detection_utils as utils
from . import transforms as T


class DatasetMapper:
    """Read the image of a record, augment image and annotations together, and convert them to tensors.

    Args:
        is_train: in inference only the image is prepared, and annotations are removed.
        augmentations: augmentations or transforms, applied in this order.
        image_format: see :func:`detection_utils.read_image`.
        use_instance_mask: whether to keep "segmentation".
        use_keypoint, keypoint_hflip_indices, precomputed_proposal_topk: left out; have to be False and None.
        instance_mask_format: "polygon" or "bitmask".
        recompute_boxes: replace boxes by the extent of the transformed masks, tighter after a crop.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ):
        if use_keypoint or precomputed_proposal_topk is not None:
            raise left_out("MODEL.KEYPOINT_ON, MODEL.LOAD_PROPOSALS", "keypoints and precomputed proposals")
        if recompute_boxes and not use_instance_mask:
            raise ValueError("DatasetMapper: recompute_boxes takes the boxes from masks: it needs use_instance_mask.")
        self.is_train, self.image_format = is_train, image_format
        self.augmentations = T.AugmentationList(augmentations)
        self.use_instance_mask, self.instance_mask_format = use_instance_mask, instance_mask_format
        self.recompute_boxes = recompute_boxes
        logging.getLogger(__name__).info(
            f"[DatasetMapper] Augmentations used in {'training' if is_train else 'inference'}: {augmentations}"
        )

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        augmentations = utils.build_augmentation(cfg, is_train)
        crops = cfg.INPUT.CROP.ENABLED and is_train
        if crops:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "precomputed_proposal_topk": 0 if cfg.MODEL.LOAD_PROPOSALS else None,
            "recompute_boxes": cfg.MODEL.MASK_ON and crops,
        }

    def _transform_annotations(self, dataset_dict: dict, transforms: T.Transform, image_shape: tuple[int, int]) -> None:
        """Replace "annotations" by "instances", without crowds and what the augmentation left empty."""
        unused = {"keypoints"} if self.use_instance_mask else {"keypoints", "segmentation"}
        annotations = [
            # A new dict each: the record belongs to the data set and is read again in the next epoch.
            utils.transform_instance_annotations(
                {k: v for k, v in annotation.items() if k not in unused}, transforms, image_shape
            )
            for annotation in dataset_dict.pop("annotations")
            if annotation.get("iscrowd", 0) == 0
        ]
        instances = utils.annotations_to_instances(annotations, image_shape, mask_format=self.instance_mask_format)
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one record.

        Args:
            dataset_dict: at least "file_name"; left unchanged.

        Returns:
            The record plus "image", uint8 (C, H, W) in ``image_format``; with "sem_seg", int64 (H, W), where it names a
            label map; in training with "instances" (gt_boxes, gt_classes, gt_masks) in place of its annotations.

        Raises:
            OSError: the image cannot be read.
            SizeMismatchError: it has another size than the record or the label map.
        """
        # Shallow is enough: nothing below writes into nested values.
        dataset_dict = dict(dataset_dict)
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)
        sem_seg = self._read_sem_seg(dataset_dict, image)

        aug_input = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)
        image_shape = aug_input.image.shape[:2]
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        if sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype(np.int64))
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image_shape)
        return dataset_dict

    @staticmethod
    def _read_sem_seg(dataset_dict: dict, image: np.ndarray) -> np.ndarray | None:
        if "sem_seg_file_name" not in dataset_dict:
            return None
        file_name = dataset_dict.pop("sem_seg_file_name")
        sem_seg = utils.read_image(file_name, "L").squeeze(2)
        if sem_seg.shape != image.shape[:2]:
            raise utils.SizeMismatchError(
                f"The label map {file_name} is {sem_seg.shape[::-1]} (width, height), its image "
                f"{dataset_dict['file_name']} is {image.shape[1::-1]}: they have to be of one size."
            )
        return sem_seg
