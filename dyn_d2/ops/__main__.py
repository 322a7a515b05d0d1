"""``python -m dyn_d2.ops``: compile all operators now instead of at their first use.

Exit status 1 where one cannot be compiled; the reason is printed, and slower torch code does its work.
"""

import logging
import sys

import torch

from . import channel_conv, message_passing, region_depthwise


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ready = {"channel_conv": channel_conv.load(), "message_passing": message_passing.load()}
    ready["region_depthwise"] = region_depthwise.load()
    if torch.cuda.is_available():
        ready["message_passing on GPU"] = message_passing.load("cuda")
    for name, compiled in ready.items():
        print(f"{name}: {'compiled' if compiled else 'not compiled, slower torch code runs instead'}")
    return 0 if all(ready.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
