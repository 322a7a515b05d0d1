"""The size that a member of an IDK cascade is asked at: "NAME@PIXELS"."""

from detectron2.config import CfgNode

SMALLEST, LARGEST = 32, 2048
FILE = ".pth"


def split_size(text: str) -> tuple[str, int]:
    """What stands before the last @, and the pixels after it; 0 where there is no @.

    Raises:
        ValueError: no such size.
    """
    name, at, pixels = text.rpartition("@")
    if not at:
        return text, 0
    if not (pixels.isascii() and pixels.isdigit() and SMALLEST <= int(pixels) <= LARGEST):
        raise ValueError(f"{text}: after the @ stands the side of the images in pixels, {SMALLEST} to {LARGEST}.")
    return name, int(pixels)


def split_checkpoint(text: str) -> tuple[str, int]:
    """The same of a path, which may have an @ of its own: one after ".pth" alone counts."""
    return split_size(text) if f"{FILE}@" in text else (text, 0)


def at_size(cfg: CfgNode, pixels: int, classifies: bool) -> CfgNode:
    """A config that tests at another size, all else as it was.

    Args:
        pixels: of a detector the shorter side, the limit of the longer one in proportion; of a classifier the square
            that it sees, or the shorter side where it cuts none.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if classifies:
        keys = cfg.INPUT.CLASSIFICATION
        side = keys.CROP_TEST or keys.RESIZE_TEST or pixels
        keys.RESIZE_TEST = round((keys.RESIZE_TEST or side) * pixels / side)
        keys.CROP_TEST = pixels if keys.CROP_TEST else 0
    else:
        side = cfg.INPUT.MIN_SIZE_TEST or pixels
        cfg.INPUT.MAX_SIZE_TEST = round(cfg.INPUT.MAX_SIZE_TEST * pixels / side)
        cfg.INPUT.MIN_SIZE_TEST = pixels
    cfg.freeze()
    return cfg
