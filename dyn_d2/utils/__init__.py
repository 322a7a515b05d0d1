"""Leaf helpers; nothing in here imports detectron2."""
