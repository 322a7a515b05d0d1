"""Annotations of other programs as a json in COCO's format: ``dyn-d2 convert``.

The readers are our own: of the libraries tried on the same small files (docs/own_data.md), each left something out that
a detector learns from. What is read in no other way comes from Datumaro, an extra.
"""

from .formats import READERS, read
from .items import Found, Item, Shape
from .write import Converted, coco_of_items

__all__ = ["READERS", "Converted", "Found", "Item", "Shape", "coco_of_items", "read"]
