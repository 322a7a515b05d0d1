# ruff: noqa: F401, I001
"""Data sets, and the way from their records to batches."""

from detectron2.left_out import refusal_of

from . import transforms
from .build import build_batch_data_loader, build_detection_test_loader, build_detection_train_loader
from .build import get_detection_dataset_dicts, print_instances_class_histogram
from .catalog import DatasetCatalog, Metadata, MetadataCatalog
from .common import DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from . import datasets, samplers  # importing `datasets` registers the built-in ones

__getattr__ = refusal_of(__name__)
