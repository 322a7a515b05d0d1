"""``catalog://NAME``: weights that the older Detectron (Caffe2) published."""

from detectron2.utils.file_io import AliasHandler, PathManager

__all__ = ["ModelCatalog", "ModelCatalogHandler"]


class ModelCatalog:
    """Names of third-party models and where they lie.

    The ImageNet weights have their batch normalisation folded into an affine layer, so they fit NORM "FrozenBN" only
    (GN excepted). MSRA's have ``STRIDE_IN_1X1`` True, the others False; all expect ``PIXEL_STD`` [1, 1, 1].
    """

    S3_C2_DETECTRON_PREFIX = "https://dl.fbaipublicfiles.com/detectron"

    # Name -> the folder of its file.
    C2_IMAGENET_FOLDERS = {
        "MSRA/R-50": "MSRA",
        "MSRA/R-101": "MSRA",
        "FAIR/R-50-GN": "47261647",
        "FAIR/R-101-GN": "47592356",
        "FAIR/X-101-32x8d": "20171220",
        "FAIR/X-101-64x4d": "FBResNeXt",
        "FAIR/X-152-32x8d-IN5k": "25093814",
    }

    # ID/MODEL -> time stamp of its run, which is part of the address.
    C2_DETECTRON_RUNS = {
        "35857197/e2e_faster_rcnn_R-50-C4_1x": "01_33_49.iAX0mXvW",
        "35857345/e2e_faster_rcnn_R-50-FPN_1x": "01_36_30.cUF7QR7I",
        "35857890/e2e_faster_rcnn_R-101-FPN_1x": "01_38_50.sNxI7sX7",
        "36761737/e2e_faster_rcnn_X-101-32x8d-FPN_1x": "06_31_39.5MIHi1fZ",
        "35858791/e2e_mask_rcnn_R-50-C4_1x": "01_45_57.ZgkA7hPB",
        "35858933/e2e_mask_rcnn_R-50-FPN_1x": "01_48_14.DzEQe4wC",
        "35861795/e2e_mask_rcnn_R-101-FPN_1x": "02_31_37.KqyEK4tT",
        "36761843/e2e_mask_rcnn_X-101-32x8d-FPN_1x": "06_35_59.RZotkLKI",
        "35998355/rpn_R-50-C4_1x": "08_00_43.njH5oD9L",
        "35998814/rpn_R-50-FPN_1x": "08_06_03.Axg0r179",
    }

    @classmethod
    def get(cls, name: str) -> str:
        """The address of ``ImageNetPretrained/...`` or ``Caffe2Detectron/COCO/...``.

        Raises:
            RuntimeError: the catalog has no such name; the message lists those that it has.
        """
        family, _, model = name.partition("/")
        if family == "ImageNetPretrained" and model in cls.C2_IMAGENET_FOLDERS:
            file = model.partition("/")[2] + ".pkl"
            return f"{cls.S3_C2_DETECTRON_PREFIX}/ImageNetPretrained/{cls.C2_IMAGENET_FOLDERS[model]}/{file}"
        model = model.removeprefix("COCO/")
        if family == "Caffe2Detectron" and model in cls.C2_DETECTRON_RUNS:
            # One model lies in another folder than its siblings.
            kind = "rpn" if model == "35998355/rpn_R-50-C4_1x" else "generalized_rcnn"
            number, _, config = model.partition("/")
            return (
                f"{cls.S3_C2_DETECTRON_PREFIX}/{number}/12_2017_baselines/{config}.yaml.{cls.C2_DETECTRON_RUNS[model]}"
                f"/output/train/coco_2014_train%3Acoco_2014_valminusminival/{kind}/model_final.pkl"
            )
        known = [f"ImageNetPretrained/{model}" for model in cls.C2_IMAGENET_FOLDERS]
        known += [f"Caffe2Detectron/COCO/{model}" for model in cls.C2_DETECTRON_RUNS]
        raise RuntimeError(f"'{name}' is not in the model catalog, which has: {', '.join(known)}")


class ModelCatalogHandler(AliasHandler):
    """Resolves ``catalog://NAME``."""

    PREFIX = "catalog://"

    def resolve(self, name: str) -> str:
        return ModelCatalog.get(name)


PathManager.register_handler(ModelCatalogHandler())
