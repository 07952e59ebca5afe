"""What a record says of its units: scores with intervals, what tasks measure beside, and costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defend.cell_numbers.query_curve import QueryCurve
from defend.cell_numbers.search_rounds import read_rounds
from defend.records import Measured
from defend.stats import per_cluster
from defend.tasks.task import Summary, Task
from defend.unit_files import CLEAN_DETAIL, DETAIL, TARGET_REACHED, Unit

Clusters = NDArray[np.int64] | None


def measure_units(
    task: Task,
    seed: int,
    units: Sequence[Unit],
    curve: QueryCurve | None,
    clusters: Clusters = None,
) -> dict[str, Any]:
    """Return the fields of a record that its units decide, in the order of their ranges.

    curve: of a search by queries, None for other attacks. clusters (n,): which images show the same
    thing. Each thing counts once in the scores; what a task measures beside is over all images.
    """
    score, clean = (_join(units, name).double() for name in ("score", "clean_score"))
    describe = _shares if task.unit == "share" else _values
    return {
        **describe(task, seed, score, clean, clusters),
        **_measure_details(task, seed, units, clusters),
        "accuracy_after": curve.accuracy_at_marks() if curve else None,
        "rounds": read_rounds(units, clusters),
        **_sum_costs(units, len(score)),
    }


def make_curve(
    task: Task,
    is_search: bool,
    queries: int | None,
    units: Sequence[Unit],
    clusters: Clusters = None,
) -> QueryCurve | None:
    """Return the curve of a search of the scored pipeline itself, if that is deterministic.

    Behind noise, "first wrong" is a minimum of noisy measurements. It is a class that was wrong. A
    targeted search says when a target was reached instead. is_search: the attacked pipeline is the
    scored one, it is deterministic, and the attack is not targeted.
    """
    if not (is_search and task.may_drop):
        return None
    return QueryCurve.of_units(units, queries, clusters)


def _join(units: Sequence[Unit], name: str) -> Tensor:
    return torch.cat([unit.tensors[name] for unit in units])


def _shares(
    task: Task, seed: int, score: Tensor, clean: Tensor, clusters: Clusters
) -> dict[str, Any]:
    """Return what is said of scores (n, draws) of 0 and 1."""
    summary = task.summarise(score.numpy(), seed, clusters)

    def share(right: Tensor) -> float:
        """Return the mean of one value (n,) for each image."""
        return torch.from_numpy(per_cluster(right.numpy(), clusters)).mean().item()

    return {
        "clean_accuracy": share(clean.mean(1)),
        "robust_accuracy": summary.value,
        "ci_low": summary.low,
        "ci_high": summary.high,
        "all_draws_correct": share(score.min(1).values == 1),
        "majority": share(score.mean(1) > 0.5),
    }


def _values(
    task: Task, seed: int, score: Tensor, clean: Tensor, clusters: Clusters
) -> dict[str, Any]:
    """Return what is said of scores (n, draws) in another unit."""
    return {
        name: _measured(task.summarise(values.numpy(), seed, clusters))
        for name, values in (("score", score), ("clean_score", clean))
    }


def _measure_details(
    task: Task, seed: int, units: Sequence[Unit], clusters: Clusters
) -> dict[str, Any]:
    """Return what the task measures beside its score, with its thresholds and its curve."""
    attacked, clean = (_details(units, prefix) for prefix in (DETAIL, CLEAN_DETAIL))
    if not attacked:
        return {"measures": _targets_reached(task, seed, units, clusters)}
    measures = task.measure(attacked, clean, seed)
    return {
        "measures": {name: _measured(summary) for name, summary in measures.items()},
        "curve": task.curve(attacked, clean),
        "thresholds": units[0].header.get("thresholds", {}),
    }


def _targets_reached(
    task: Task, seed: int, units: Sequence[Unit], clusters: Clusters
) -> dict[str, Measured]:
    """Return the share of images that a targeted attack brought to their targets, if it is one."""
    if not all(TARGET_REACHED in unit.tensors for unit in units):
        return {}
    reached = _join(units, TARGET_REACHED)[:, None].float()
    return {"target_reached": _measured(task.summarise(reached.numpy(), seed, clusters))}


def _measured(summary: Summary) -> Measured:
    return Measured(value=summary.value, low=summary.low, high=summary.high)


def _details(units: Sequence[Unit], prefix: str) -> dict[str, NDArray[np.generic]]:
    """Return the details (n, draws, ...) whose tensors have this prefix."""
    names = [name for name in units[0].tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): _join(units, name).numpy() for name in names}


def _sum_costs(units: Sequence[Unit], n: int) -> dict[str, Any]:
    costs = [unit.header["costs"] for unit in units]
    return {
        "seconds": sum(c["seconds"] for c in costs),
        "purify_images_per_second": _purify_rate(units),
        "forwards": sum(c["forwards"] for c in costs) / n,
        "backwards": sum(c["backwards"] for c in costs) / n,
    }


def _purify_rate(units: Sequence[Unit]) -> float:
    """Return images purified per second, over all units."""
    images, seconds = 0, 0.0
    for unit in units:
        count = unit.header["stop"] - unit.header["start"]
        images += count
        seconds += count / unit.header["costs"]["purify_images_per_second"]
    return images / seconds
