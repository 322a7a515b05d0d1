"""How a member of an IDK cascade is asked: "NAME@PIXELS" at another size, "FILE.pth@PIXELS,KEY=VALUE,..." with other
keys too."""

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


def split_checkpoint(text: str) -> tuple[str, str]:
    """A file, and what stands after its @; the path may have an @ of its own, one after ".pth" alone counts."""
    before, at, how = text.rpartition(f"{FILE}@")
    return (before + FILE, how) if at else (text, "")


def parsed(how: str, text: str) -> tuple[int, list[str]]:
    """The pixels, 0 for none, and KEY VALUE ... of what stands after the @.

    Args:
        text: the whole, for messages.

    Raises:
        ValueError: neither pixels nor KEY=VALUE.
    """
    pixels, opts = 0, list[str]()
    for number, part in enumerate(how.split(",") if how else ()):
        key, equals, value = part.partition("=")
        if equals:
            opts += [key.strip(), value.strip()]
        elif number == 0:
            pixels = split_size(f"@{part}")[1]
        else:
            raise ValueError(f"{text}: {part!r} after the @ is no KEY=VALUE.")
    return pixels, opts


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
