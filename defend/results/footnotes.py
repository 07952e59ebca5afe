"""Lines below a table: how to read its numbers, and which pipelines transfer attacks attacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt

from defend.protocols.evidence import MIN_IMAGES
from defend.records import Record
from defend.tasks.registry import DEFAULT, load_task
from defend.threat_models import gradient_kind

SMOKE_TEST = 200  # images, up to which a run is a smoke test


def make_footnotes(records: Sequence[Record]) -> tuple[str, ...]:
    """Return the lines that say how to read the numbers of these records."""
    return (*_of_images(records), *_of_attacks(records), *_of_samples(records))


def make_level_footnotes(records: Sequence[Record]) -> tuple[str, ...]:
    """Return the lines that say how to read a table by level of these records."""
    levels = (
        "Each level is the worst case of each image over all attacks of that level that were run,"
        " adaptive over all gradients; all attacks: the worst case over everything."
    )
    return (
        *_of_images(records),
        levels,
        *_without_relaxation(records),
        *_of_samples(records),
    )


def _of_images(records: Sequence[Record]) -> Iterator[str]:
    yield from _units(records)
    yield from _thresholds(records)
    yield from _other_data(records)
    yield from _constant_answers(records)
    yield from _repeated_images(records)
    if any(not r.stochastic and load_task(r.task).may_drop for r in records):
        yield (
            "Behind a deterministic defense an image that is wrong without an attack counts as"
            " wrong under attack too."
        )


def _of_attacks(records: Sequence[Record]) -> Iterator[str]:
    if any(r.knowledge == "adaptive" for r in records):
        yield (
            "worst: image by image, over the gradients that were run. BPDA: through the gradient"
            " identity, which skips the purifier."
        )
    yield from _fitted_elsewhere(records)
    yield from _relaxed(records)
    yield from _without_relaxation(records)
    yield (
        "fwd+bwd: forward and backward passes of the pipeline for each image, of the most expensive"
        " attack of the row."
    )


def _of_samples(records: Sequence[Record]) -> Iterator[str]:
    yield from _draws(records)
    yield from _few_images(records)


def _units(records: Sequence[Record]) -> Iterator[str]:
    """Yield what the numbers of each task are, and what their intervals cover."""
    units = set()
    for task in map(load_task, dict.fromkeys(r.task for r in records)):
        units.add(task.unit)
        if task.unit == "share":
            what = "that are right" if task.name == DEFAULT else f"{task.score_means} ({task})"
            yield (
                f"Percent of all n images {what}. An accuracy under attack is an upper bound:"
                " a stronger attack can only lower it."
            )
        else:
            yield (
                f"{task.score_means} in {task.unit}, mean over images ({task}). Under attack it is"
                " an upper bound: a stronger attack can only lower it."
            )
    if "share" in units:
        yield (
            "Intervals are 95 % over images (Wilson; bootstrap where each image has several draws)"
            " and cover sampling alone."
        )
    else:
        yield "Intervals are 95 % over images (bootstrap) and cover sampling alone."


def _thresholds(records: Sequence[Record]) -> Iterator[str]:
    if any(r.thresholds for r in records):
        yield (
            "Thresholds are those at which 1 and .1 % of the impostors among clean images of val"
            " are accepted behind the same defense; they are held under attack. The FAR that"
            " they reach on the scored images stands beside. A threshold that accepts fewer than"
            " 10 impostors of val is flagged: it may be off by a third and more."
        )


def _other_data(records: Sequence[Record]) -> Iterator[str]:
    """Yield which weights are for other images than those of the table."""
    names: dict[str, None] = {}
    for record in records:
        for weights, dataset in record.other_data.items():
            names[f"{weights} for {dataset}, and the images are of {record.dataset}"] = None
    if names:
        yield f"Weights for another data set: {'; '.join(names)}."


def _constant_answers(records: Sequence[Record]) -> Iterator[str]:
    """Yield which pipelines are right on no more clean images than one constant answer is."""
    pipelines: dict[float, dict[str, None]] = {}
    for record in records:
        clean, share = record.clean_accuracy, record.largest_class
        if record.task != DEFAULT or clean is None or share is None or clean > share:
            continue
        text = f"{100 * clean:.1f} % of {record.defense} before {record.classifier}"
        pipelines.setdefault(share, {})[text] = None
    for share, texts in pipelines.items():
        yield (
            f"Clean accuracies that are not above {100 * share:.1f} %, the share of the most"
            f" frequent label, which a constant answer reaches: {'; '.join(texts)}."
        )


def _fitted_elsewhere(records: Sequence[Record]) -> Iterator[str]:
    """Yield on which images learned gradients were fitted, if not on those of train."""
    splits = {r.fitting_split: r.dataset for r in records if r.fitting_split not in (None, "train")}
    for split, dataset in splits.items():
        yield (
            f"learned: the network that imitates a purifier was fitted on images of {split}, as"
            f" {dataset} has no train."
        )


def _relaxed(records: Sequence[Record]) -> Iterator[str]:
    """Yield how the column `relaxed` is read."""
    if "relaxed" in {gradient_kind(r.gradient) for r in _adaptive(records) if r.gradient}:
        yield (
            "relaxed: adaptive through the relaxation that the purifier declares, image by image"
            " over its temperatures."
        )


def _without_relaxation(records: Sequence[Record]) -> Iterator[str]:
    """Yield which approximate purifiers could not be attacked through a relaxation."""
    names = dict.fromkeys(r.defense_label for r in _adaptive(records) if r.relaxation is False)
    if names:
        yield (
            f"No relaxation is declared by {', '.join(names)}: a step without a derivative has an"
            " approximate gradient, and an attack through a relaxation of it may break more."
        )


def _adaptive(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if r.knowledge == "adaptive" and r.access == "gradient"]


def _draws(records: Sequence[Record]) -> Iterator[str]:
    draws = sorted({r.draws for r in records if r.stochastic})
    if draws:
        yield (
            f"Stochastic defenses: mean over {' or '.join(map(str, draws))} draws of each image;"
            " the worst attack of an image is selected on one set of draws and scored on another,"
            " so that a worst case may lie a little above the smallest number of its row."
        )


def _few_images(records: Sequence[Record]) -> Iterator[str]:
    few = sorted({r.n for r in records if r.n < MIN_IMAGES})
    groups = {
        "a smoke test": [n for n in few if n <= SMOKE_TEST],
        f"below the {MIN_IMAGES:,} images of a claim": [n for n in few if n > SMOKE_TEST],
    }
    clauses = [f"n = {', '.join(map(str, ns))}: {what}" for what, ns in groups.items() if ns]
    if clauses:
        yield f"{'; '.join(clauses)}."


def _repeated_images(records: Sequence[Record]) -> Iterator[str]:
    """Yield which images show the same thing again, and whether the numbers allow for it."""
    samples = dict.fromkeys(
        (r.dataset, r.split, r.n, r.distinct_images, r.sample is not None) for r in records
    )
    for dataset, split, n, distinct, is_counted in samples:
        if distinct < n:
            yield (
                f"The first {n:,} {split} images of {dataset} show {distinct:,} things, some again:"
                f" {_allow_for_copies(n, distinct, is_counted)}."
            )


def _allow_for_copies(n: int, distinct: int, is_counted: bool) -> str:
    """Return what the numbers make of images that show the same thing."""
    if is_counted:
        return "each thing counts once, in accuracies and in their intervals and p-values"
    return (
        "they are not independent, and intervals and p-values of these older records, which take"
        f" them for it, are too narrow by up to {widening(n, distinct):.2f} times"
    )


def widening(n: int, distinct: int) -> float:
    """Return how much wider an interval over n images is if only `distinct` are independent.

    The images are the distinct ones in turn, and each is right or wrong as its copies are.
    """
    copies, remainder = divmod(n, distinct)
    squares = remainder * (copies + 1) ** 2 + (distinct - remainder) * copies**2
    return sqrt(squares / n)


def list_surrogates(records: Sequence[Record]) -> tuple[str, ...]:
    """Return a line for each pipeline that transfer attacks attacked in place of a defense."""
    lines = (
        f"{r.defense_label} before {r.classifier_label}: {r.surrogate}"
        for r in records
        if r.surrogate
    )
    return tuple(dict.fromkeys(lines))
