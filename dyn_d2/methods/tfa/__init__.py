"""TFA (Wang et al. 2020): two-stage fine-tuning with a cosine classifier.

Wang, Huang, Darrell, Gonzalez and Yu, Frustratingly Simple Few-Shot Object Detection, ICML 2020.

Equation, table and figure numbers in this package are those of chapter 7 of Wang, X.: The Design of Dynamic Neural
Networks for Efficient Learning and Inference, PhD thesis, UC Berkeley, 2020 (below: Wang 2020).
"""

from dyn_d2.method import DETECTRON2_FREEZE_AT, FewShotMethod, Method, register_method

from detectron2.config import CfgNode

from . import config, cosine_box  # noqa: F401  the parts register themselves


@register_method
class TFA(Method):
    name = "tfa"
    few_shot_methods = {
        # All published configs of this baseline have the cosine layer, though the paper does not say so.
        "ft_full": FewShotMethod("FRCN+ft-full", 2, classifier="cosine", freeze_at=DETECTRON2_FREEZE_AT),
        "ft_full_fc": FewShotMethod("FRCN+ft-full w/ fc", 2, variant=True, freeze_at=DETECTRON2_FREEZE_AT),
        "ft_heads": FewShotMethod("FRCN+ft, backbone as in base", 2, classifier="cosine", variant=True),
        "tfa_fc": FewShotMethod("TFA w/ fc", 3, frozen=True),
        # Of LVIS the base models and the novel stage were published with a cosine layer as well.
        "tfa_cos": FewShotMethod("TFA w/ cos", 4, True, "cosine", base_classifier={"lvis": "cosine"}),
    }
    ranges = config.RANGES

    def add_keys(self, cfg: CfgNode) -> None:
        config.add_keys(cfg)
