"""Expand a suite into its cells, in the order of the suite. A cell becomes one record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from defend.benchmarks.cell import Cell
from defend.benchmarks.component_keys import component_key
from defend.benchmarks.components import Components
from defend.benchmarks.controls import open_controls, with_controls
from defend.benchmarks.suite import Suite
from defend.benchmarks.suite_eps import epsilons_of
from defend.benchmarks.surrogates import surrogates_for
from defend.benchmarks.views import DefenseRow, View, default_views, views_at
from defend.chain import members_of
from defend.dataset import Dataset
from defend.eps import Eps, take_eps
from defend.errors import BadParameter, Mismatch, count_of
from defend.protocols import PROTOCOLS
from defend.protocols.ladder_1 import EOT
from defend.protocols.protocol import TARGETED_DLR
from defend.purifier import LearnedPurifier, Purifier
from defend.tasks.registry import load_task
from defend.tasks.task import Task
from defend.threat_models import NO_DEFENSE, Pipeline


def expand(suite: Suite, components: Components) -> tuple[list[Cell], list[str]]:
    """Return the cells, and a line for each pair that was skipped.

    Raises BadParameter when nothing is left to run, and Mismatch.
    """
    _check_split(suite, components)
    check_task(load_task(suite.task), components.data, suite.dataset)
    _check_surrogates(suite, components)
    cells: list[Cell] = []
    skipped: list[str] = []
    for classifier in suite.classifiers:
        components.classifier(classifier)
        for defense in suite.defenses:
            check_shape(components.defense(defense), components.data, defense)
            surrogates = surrogates_for(suite, components, classifier, defense)
            row = DefenseRow(suite, components, classifier, defense, surrogates)
            cells += _expand_row(row, skipped)
    if not cells:
        reasons = "; ".join(dict.fromkeys(skipped))
        raise BadParameter(f"nothing is left to run: {reasons}")
    return cells, list(dict.fromkeys(skipped))


def _expand_row(row: DefenseRow, skipped: list[str]) -> list[Cell]:
    """Return the cells of one classifier behind one defense, controls included."""
    candidates = [*_protocol_cells(row, skipped), *_attack_cells(row, skipped)]
    if row.suite.protocol:
        candidates = _without_repeats(candidates)
    cells = []
    for cell in candidates:
        if _transfers_from_itself(cell, row.components):
            skipped.append(
                f"skipped surrogate {cell.surrogate} for {row.defense}: it is the scored"
                " pipeline itself, which is adaptive, not transfer"
            )
        else:
            cells.append(cell)
    return with_controls(cells, row.suite, row.components)


def _without_repeats(cells: Iterable[Cell]) -> list[Cell]:
    """Drop an attack that is given beside the protocol that runs it already."""
    first: dict[Cell, Cell] = {}
    for cell in cells:
        eps = Eps(text="", value=cell.eps.value)
        anonymous = replace(cell, protocol=None, attack=cell.bare_attack, eps=eps)
        first.setdefault(anonymous, cell)
    return list(first.values())


def _protocol_cells(row: DefenseRow, skipped: list[str]) -> list[Cell]:
    """Return every attack of the protocol in every norm in which the data set has a claim eps.

    Raises BadParameter where it has none.
    """
    suite, data = row.suite, row.components.data
    if suite.protocol is None:
        return []
    protocol, claim = PROTOCOLS[suite.protocol], data.card.claim
    if not claim:
        raise BadParameter(
            f"protocol {suite.protocol}: the data set {suite.dataset} has no claim eps;"
            " give --attack and --eps instead"
        )
    if data.classes < TARGETED_DLR:
        skipped.append(
            f"skipped targeted APGD-DLR: it needs {TARGETED_DLR} classes, {suite.dataset} has"
            f" {data.classes}"
        )
    first_norm = "Linf" if "Linf" in claim else next(iter(claim))
    stochastic = row.purifier.card.stochastic
    cells: list[Cell] = []
    for norm, claim_eps in claim.items():
        for step in protocol.attacks_on(stochastic, data.classes, unbounded=norm == first_norm):
            spec = step.spec(norm)
            attack = row.components.attack(spec)
            views = views_at(row, attack, spec, step.level, step.gradients)
            skipped += views.notes
            eps = step.eps or Eps.of(claim_eps)
            for view in views.views:
                cells.append(_cell(row, spec, eps, view, protocol.eot, protocol.name))
    return cells


def _attack_cells(row: DefenseRow, skipped: list[str]) -> list[Cell]:
    """Return the cells of the suite's attacks; `with_controls` makes controls without a number."""
    suite, components = row.suite, row.components
    cells: list[Cell] = []
    for text in suite.attacks:
        if text in open_controls(suite):
            continue
        views = default_views(row, components.attack(str(take_eps(text)[0])), text)
        skipped += views.notes
        for eps in epsilons_of(suite, components, text):
            for view in dict.fromkeys(views.views):
                cells.append(_cell(row, text, eps, view, suite.eot or EOT))
    return cells


def _check_split(suite: Suite, components: Components) -> None:
    images = components.data.count(suite.split)
    if suite.n > images:
        raise BadParameter(
            f"n = {suite.n}: the {suite.split} split of {suite.dataset} has"
            f" {count_of(images, 'image')}; give --n {images} or fewer"
        )


def check_task(task: Task, data: Dataset, dataset: str) -> None:
    """Raise Mismatch if the task needs labels that the data set does not have."""
    if task.needs_labels and not data.labelled:
        raise Mismatch(
            f"task {task} needs labels, the data set {dataset} has none; use --task"
            " reconstruction, or a data set with classes"
        )


def check_shape(purifier: Purifier, data: Dataset, defense: str) -> None:
    """Raise Mismatch, which calls the purifier `defense`, if it does not take the images."""
    for member in members_of(purifier):
        size = getattr(member, "size", None) if isinstance(member, LearnedPurifier) else None
        if size is not None and (size != data.size or not data.uniform):
            raise Mismatch(
                f"defense {defense} takes images of {size}x{size}, this data set has"
                f" {_describe_sizes(data)}"
            )
    channels = purifier.card.channels
    if data.channels not in channels:
        raise Mismatch(
            f"defense {defense} takes images of {' or '.join(map(str, channels))} channels,"
            f" this data set has {data.channels}"
        )


def _describe_sizes(data: Dataset) -> str:
    if data.uniform:
        return f"{data.size}x{data.size}"
    return f"images of several sizes, up to {data.size} pixels; crop them, as by :size=SIDE"


def _check_surrogates(suite: Suite, components: Components) -> None:
    """Check also those that nothing will use: a name is either right or an error."""
    for surrogate in suite.surrogates:
        pipeline = Pipeline.parse(surrogate)
        components.classifier(pipeline.classifier)
        check_shape(components.defense(pipeline.defense), components.data, pipeline.defense)


def _cell(
    row: DefenseRow,
    attack: str,
    eps: Eps,
    view: View,
    eot: int,
    protocol: str | None = None,
) -> Cell:
    """Return one cell. Raises Mismatch if the attacked pipeline does not take the images."""
    suite, components = row.suite, row.components
    bare_attack = str(take_eps(attack)[0])
    attacked = row.attacked(view)
    components.classifier(attacked.classifier)
    check_shape(components.defense(attacked.defense), components.data, attacked.defense)
    return Cell(
        dataset=suite.dataset,
        classifier=row.classifier,
        defense=row.defense,
        attack=attack,
        bare_attack=bare_attack,
        knowledge=view.knowledge,
        gradient=view.gradient,
        surrogate=view.surrogate,
        norm=components.attack(bare_attack).norm,
        eps=eps,
        n=suite.n,
        split=suite.split,
        seed=suite.seed,
        draws=suite.draws if row.purifier.card.stochastic else 1,
        eot=eot if row.attacks_stochastic(view) else 1,
        protocol=protocol,
        task_spec=suite.task,
    )


def _transfers_from_itself(cell: Cell, components: Components) -> bool:
    """Return True if the surrogate is the scored pipeline."""
    if cell.surrogate is None:
        return False
    attacked = _identity(cell.attacked, components)
    return attacked == _identity(cell.scored, components)


def _identity(pipeline: Pipeline, components: Components) -> tuple[object, object]:
    """Return what a pipeline is, whatever its spelling, without members that do nothing."""
    members = members_of(components.defense(pipeline.defense))
    keys = [component_key(member, "defense") for member in members]
    active = [key for key in keys if key["component"] != NO_DEFENSE]
    return components.key("classifier", pipeline.classifier), active
