"""Printing, checking and flattening of results, {task: {metric: number}}."""

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the metrics of each task as two comma-separated lines, without those of single classes ("AP-dog")."""
    logger = logging.getLogger(__name__)
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info(f"copypaste: {task}={metrics}")
            continue
        overall = {name: value for name, value in metrics.items() if "-" not in name}
        values = ",".join(f"{value:.4f}" for value in overall.values())
        for line in (f"Task: {task}", ",".join(overall), values):
            logger.info(f"copypaste: {line}")


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare with ``cfg.TEST.EXPECTED_RESULTS``, rows [task, metric, value, tolerance].

    Returns:
        True. When a metric is missing, not finite or off by more than its tolerance, the process exits with status 1.
    """
    logger = logging.getLogger(__name__)
    wrong = []
    for task, metric, expected, tolerance in cfg.TEST.EXPECTED_RESULTS:
        actual = results.get(task, {}).get(metric)
        if actual is None or not math.isfinite(actual) or abs(actual - expected) > tolerance:
            wrong.append(f"{task} {metric}: expected {expected} +- {tolerance}, got {actual}")
    if wrong:
        logger.error("Results are not as expected:\n" + "\n".join(wrong) + "\nAll: " + pprint.pformat(results))
        sys.exit(1)
    if cfg.TEST.EXPECTED_RESULTS:
        logger.info("Results are as expected.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts as one, with keys joined by "/"."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{inner}": number for inner, number in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
