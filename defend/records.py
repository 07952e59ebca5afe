"""One record for each cell, made of its units; and the run folder's list of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from defend.benchmarks.bpda_network import bpda_network
from defend.benchmarks.cell import Cell
from defend.benchmarks.components import Components, component_key
from defend.benchmarks.flags import flags
from defend.benchmarks.query_curve import accuracy_after, still_falls
from defend.benchmarks.units import NumericSettings, Unit
from defend.errors import BadParameter
from defend.files import write
from defend.hashing import cache_key
from defend.stats import interval

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

RECORDS = "records.json"
_IDENTITY = (
    "dataset",
    "classifier",
    "defense",
    "attack",
    "knowledge",
    "gradient",
    "surrogate",
    "norm",
    "eps",
    "n",
    "split",
    "seed",
    "draws",
    "eot",
    "precision",
    "layout",
    "threads",
    "pipeline",
)


_NEEDED = {*_IDENTITY, "robust_accuracy", "flags", "settings", "error", "units"} - {
    "precision",
    "layout",
    "threads",
    "pipeline",
}  # these came later


def record(
    cell: Cell,
    components: Components,
    frame: NumericSettings,
    keys: Sequence[str],
    units: Sequence[Unit | None],
    provenance: dict[str, Any],
    error: str | None,
) -> dict[str, Any]:
    """A failed cell has nulls and its error, never a part of n."""
    there = [u for u in units if u is not None]
    whole = error is None and len(there) == len(units)
    measured = (
        _finite(_measured(cell, components, there)) if whole else dict.fromkeys(_measured_keys())
    )
    where = there[0].header["provenance"] if there else provenance
    return {
        **_what(cell, components),
        "precision": frame.precision,
        "layout": frame.layout,
        "threads": frame.threads,
        **measured,
        **{k: where[k] for k in ("versions", "commit", "device")},
        "units": list(keys),
        "error": None if whole else error or "a unit is missing",
    }


def _what(cell: Cell, components: Components) -> dict[str, Any]:
    classifier, defense, attack = (
        components.classifier(cell.classifier),
        components.defense(cell.defense),
        components.attack(cell.bare_attack),
    )
    behind = (
        components.classifier(cell.attacked.classifier),
        components.defense(cell.attacked.defense),
    )
    attacked = {"classifier": behind[0].settings, "defense": behind[1].settings}
    scored = {"classifier": classifier.settings, "defense": defense.settings}
    return {
        "dataset": cell.dataset,
        "classifier": cell.classifier,
        "defense": cell.defense,
        "attack": cell.attack,
        "knowledge": cell.knowledge,
        "gradient": cell.gradient,
        "surrogate": cell.surrogate,
        "norm": cell.norm,
        "eps": cell.eps.value,
        "eps_text": cell.eps.text,
        "n": cell.n,
        "split": cell.split,
        "images": components.data.count(cell.split),
        "seed": cell.seed,
        "draws": cell.draws,
        "eot": cell.eot,
        "access": attack.card.access,
        "stochastic": defense.card.stochastic,
        "declared_gradient": defense.card.gradient,
        "trained_on": defense.trained_on,
        "protocol": cell.protocol,
        "settings": {
            **scored,
            "attack": attack.settings,
            "dataset": components.data.settings,
            "attacked": attacked,
        },
        "weights": {
            name: digest
            for part in (classifier, defense, *behind)
            for name, digest in part.weights_sha256.items()
        },
        "pipeline": {
            "classifier": _short(component_key(classifier, "classifier")),
            "defense": _short(component_key(defense, "defense")),
        },
    }


def _short(key_inputs: Any) -> str:
    """Settings and weights of what is scored, whatever they are called: trained anew, it is another."""
    return cache_key({"": key_inputs})[:12]


def _measured_keys() -> tuple[str, ...]:
    accuracies = (
        "clean_accuracy",
        "robust_accuracy",
        "ci_low",
        "ci_high",
        "all_draws_correct",
        "majority",
    )
    return (
        *accuracies,
        "accuracy_after",
        "gradient_error",
        "flags",
        "seconds",
        "purify_images_per_second",
        "forwards",
        "backwards",
    )


def _measured(cell: Cell, components: Components, units: Sequence[Unit]) -> dict[str, Any]:
    score, clean = (
        torch.cat([u.tensors[name] for u in units]).double() for name in ("score", "clean_score")
    )
    per_image = score.mean(1)
    low, high = interval(score.numpy(), cell.seed)
    costs = [u.header["costs"] for u in units]
    queries = components.attack(cell.bare_attack).settings.get("queries")
    noisy = components.defense(
        cell.defense
    ).card.stochastic  # "first wrong" is a minimum of noisy measurements there
    searched = (
        units if cell.drops and not noisy else []
    )  # elsewhere it is of another pipeline than the one that is scored
    values = (
        clean.mean(1).mean().item(),
        per_image.mean().item(),
        low,
        high,
        (score.min(1).values == 1).double().mean().item(),
        (per_image > 0.5).double().mean().item(),
        accuracy_after(searched, queries),
        _gradient_error(cell, components),
        flags(cell, components, costs, still_falls(searched, queries)),
        sum(c["seconds"] for c in costs),
        _rate(units),
        *(sum(c[k] for c in costs) / cell.n for k in ("forwards", "backwards")),
    )
    return dict(zip(_measured_keys(), values, strict=True))


def _finite(measured: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: null, and a flag that says why."""
    wild = {k: v for k, v in measured.items() if isinstance(v, float) and not math.isfinite(v)}
    return (
        measured
        | dict.fromkeys(wild)
        | {"flags": [*measured["flags"], *(f"{k} is no number: {v}" for k, v in wild.items())]}
    )


def _gradient_error(cell: Cell, components: Components) -> float | None:
    """Of the network that imitates the purifier, relative to the purifier's change; None where none was used."""
    at = cell.attacked
    return (
        bpda_network(components, at.classifier, at.defense).error
        if at.gradient == "learned"
        else None
    )


def _rate(units: Sequence[Unit]) -> float:
    """Images purified per second, over all units."""
    images: list[int] = [u.header["stop"] - u.header["start"] for u in units]
    seconds: float = sum(
        n / u.header["costs"]["purify_images_per_second"]
        for n, u in zip(images, units, strict=True)
    )
    return sum(images) / seconds


def keep(run_dir: Path, records: Sequence[dict[str, Any]]) -> None:
    """The folder's records: these replace earlier ones of the same cells, the others stay. Units that a protocol asked for stay its own."""
    with _locked(run_dir):
        asked = {identity(r): r for r in read_records(run_dir) if r.get("protocol")}
        new = {identity(r): _still_of(asked.get(identity(r)), r) for r in records}
        old = [r for r in read_records(run_dir) if identity(r) not in new]
        write(
            run_dir / RECORDS,
            "[\n"
            + ",\n".join(json.dumps(r, allow_nan=False) for r in [*old, *new.values()])
            + "\n]\n",
        )


def _still_of(before: Mapping[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    return (
        now | {"protocol": before["protocol"]}
        if before and not now["protocol"] and before["units"] == now["units"]
        else now
    )


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Two runs in one folder keep each other's records. Where the system has no flock, the later one wins."""
    with (run_dir / ".lock").open("w") as f:
        if fcntl is not None:
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def read_records(run_dir: Path) -> list[dict[str, Any]]:
    """Raises BadParameter for a list of something else, as an older version may have written."""
    file = Path(run_dir) / RECORDS
    try:
        there = json.loads(file.read_text()) if file.exists() else []
    except ValueError:
        file.replace(
            file.with_name(f"{RECORDS}.damaged")
        )  # the units make it again; the other cells' are still to be read there
        return []
    rows = there if isinstance(there, list) else [there]
    lacking = sorted(
        {name for r in rows for name in _NEEDED if not isinstance(r, dict) or name not in r}
    )
    if lacking:
        raise BadParameter(
            f"{file}: expected records of `defend bench`, and these lack {', '.join(lacking)}."
            " Move that file away and run the bench again: units that still fit are used again."
        )
    return rows


def identity(r: Mapping[str, Any]) -> str:
    """Which cell a record is of: of two with the same, the later one counts."""
    return json.dumps([r.get(k) for k in _IDENTITY])
