"""Concept trees: what the labels of one or several data sets have in common, from the root to the finest class.

The methods that use a tree and the IoU by level of the evaluation all read the same ones. A tree is a yaml file
(format: ``files.py``); those in ``trees/`` go by name.
"""

from .files import load_hierarchy, save_hierarchy, shipped_hierarchies, written_out
from .tree import Hierarchy, HierarchyError

__all__ = ["Hierarchy", "HierarchyError", "load_hierarchy", "save_hierarchy", "shipped_hierarchies", "written_out"]
