"""Expand a suite into its cells, in the order of the suite. A cell becomes one record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from defend.attack import Attack
from defend.benchmarks.cell import Cell
from defend.benchmarks.component_keys import component_key, is_undefended
from defend.benchmarks.components import Components
from defend.benchmarks.controls import open_controls, with_controls
from defend.benchmarks.suite import Suite
from defend.benchmarks.surrogates import Surrogates, surrogates_for
from defend.chain import members_of
from defend.dataset import Dataset
from defend.eps import Eps, check_linf, take_eps
from defend.errors import BadParameter, Mismatch
from defend.protocols import PROTOCOLS
from defend.protocols.ladder_1 import EOT, TARGETED_DLR
from defend.purifier import LearnedPurifier, Purifier
from defend.threat_models import (
    GRADIENTS,
    NO_DEFENSE,
    Pipeline,
    attacked_pipeline,
    default_levels,
)

DEFAULT_GRADIENTS = ("identity", "declared")
EVERY_GRADIENT = ("identity", "declared", "learned")


@dataclass(frozen=True)
class View:
    """One way to attack: a level with its gradient and surrogate."""

    knowledge: str
    gradient: str | None = None
    surrogate: str | None = None


@dataclass
class Views:
    """The ways in which one attack is run, and a line for each that was skipped."""

    views: list[View] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Views) -> None:
        """Append another attack's views and notes."""
        self.views += other.views
        self.notes += other.notes


@dataclass(frozen=True)
class DefenseRow:
    """What the cells of one classifier behind one defense share."""

    suite: Suite
    components: Components
    classifier: str
    defense: str
    surrogates: Surrogates

    @property
    def purifier(self) -> Purifier:
        """Return the scored purifier."""
        return self.components.defense(self.defense)

    def attacked(self, view: View) -> Pipeline:
        """Return the pipeline that is attacked."""
        scored = Pipeline(classifier=self.classifier, defense=self.defense, gradient=view.gradient)
        return attacked_pipeline(view.knowledge, scored, view.surrogate)

    def attacks_stochastic(self, view: View) -> bool:
        """Return True if the attacked pipeline is stochastic."""
        return self.components.defense(self.attacked(view).defense).card.stochastic


def expand(suite: Suite, components: Components) -> tuple[list[Cell], list[str]]:
    """Return the cells, and a line for each pair that was skipped.

    Raises BadParameter when nothing is left to run, and Mismatch.
    """
    _check_split(suite, components)
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
            views = _views_at(row, attack, spec, step.level, GRADIENTS)
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
        views = _default_views(row, components.attack(str(take_eps(text)[0])), text)
        skipped += views.notes
        for eps in _epsilons(suite, components, text):
            for view in dict.fromkeys(views.views):
                cells.append(_cell(row, text, eps, view, suite.eot or EOT))
    return cells


def _check_split(suite: Suite, components: Components) -> None:
    images = components.data.count(suite.split)
    if suite.n > images:
        raise BadParameter(
            f"n = {suite.n}: the {suite.split} split of {suite.dataset} has {images} images;"
            f" give --n {images} or fewer"
        )


def check_shape(purifier: Purifier, data: Dataset, defense: str) -> None:
    """Raise Mismatch, which calls the purifier `defense`, if it does not take the images."""
    for member in members_of(purifier):
        size = getattr(member, "size", None) if isinstance(member, LearnedPurifier) else None
        if size not in (None, data.size):
            raise Mismatch(
                f"defense {defense} takes images of {size}x{size}, this data set has"
                f" {data.size}x{data.size}"
            )
    channels = purifier.card.channels
    if data.channels not in channels:
        raise Mismatch(
            f"defense {defense} takes images of {' or '.join(map(str, channels))} channels,"
            f" this data set has {data.channels}"
        )


def _check_surrogates(suite: Suite, components: Components) -> None:
    """Check also those that nothing will use: a name is either right or an error."""
    for surrogate in suite.surrogates:
        pipeline = Pipeline.parse(surrogate)
        components.classifier(pipeline.classifier)
        check_shape(components.defense(pipeline.defense), components.data, pipeline.defense)


def _default_views(row: DefenseRow, attack: Attack, text: str) -> Views:
    """Return the levels at which an attack runs, with a line for each at which it cannot."""
    suite = row.suite
    levels = suite.knowledge or default_levels(attack.card.access, bool(suite.surrogates))
    gradients: Sequence[str] = DEFAULT_GRADIENTS
    if suite.gradients:
        gradients = suite.gradients
    elif suite.has_every_level:
        gradients = EVERY_GRADIENT
    views = Views()
    for level in levels:
        views.add(_views_at(row, attack, text, level, gradients))
    return views


def _views_at(
    row: DefenseRow, attack: Attack, text: str, level: str, gradients: Sequence[str]
) -> Views:
    """Return the views at one level, without those that the attack cannot do there."""
    possible = _views_before_attack(row, attack, text, level, gradients)
    views = Views(notes=possible.notes)
    for view in possible.views:
        reason = _reason_to_skip(attack, row.attacks_stochastic(view), row.components.data.classes)
        if reason:
            pipeline = view.surrogate or row.defense
            views.notes.append(f"skipped {text} at {view.knowledge} for {pipeline}: {reason}")
        else:
            views.views.append(view)
    views.notes = list(dict.fromkeys(views.notes))
    return views


def _reason_to_skip(attack: Attack, stochastic: bool, classes: int) -> str:
    """Return why the attack is not run on such a pipeline; "" where it is.

    What one draw of the attacker's breaks, the draws that are scored may not.
    """
    if stochastic and attack.card.stops_early:
        return (
            "it stops at an image's first success, which before a stochastic purifier is one"
            " lucky draw, and flatters it"
        )
    return attack.unsupported(stochastic, classes)


def _views_before_attack(
    row: DefenseRow, attack: Attack, text: str, level: str, gradients: Sequence[str]
) -> Views:
    """Return the views of one level as far as the attacker's knowledge goes."""
    needs_gradient = attack.card.access == "gradient"
    if level == "query" and needs_gradient:
        note = "it needs gradients, which this attacker does not have"
        return Views(notes=[f"skipped {text} at query: {note}"])
    if level in ("oblivious", "transfer") and attack.card.stops_early:
        note = (
            "it stops at an image's first success on another pipeline, which flatters every"
            " purifier"
        )
        return Views(notes=[f"skipped {text} at {level}: {note}"])
    if level == "transfer":
        return _transfer_views(row, text, "declared" if needs_gradient else None)
    if not needs_gradient:
        return Views([View("adaptive" if level == "bpda" else level)])
    if level == "bpda":
        return Views([View("adaptive", "identity")])
    if level == "adaptive":
        return _adaptive_views(row, gradients)
    return Views([View(level, "declared")])


def _transfer_views(row: DefenseRow, text: str, gradient: str | None) -> Views:
    surrogates = row.surrogates
    if not surrogates.specs:
        note = f"skipped {text} at transfer for {row.defense}: {surrogates.note}"
        return Views(notes=[note])
    notes = [f"transfer to {row.defense}: {surrogates.note}"] if surrogates.note else []
    return Views([View("transfer", gradient, spec) for spec in surrogates.specs], notes)


def _adaptive_views(row: DefenseRow, gradients: Sequence[str]) -> Views:
    """Return adaptive through each gradient; without a purifier there is nothing to learn."""
    views = Views()
    for gradient in gradients:
        if gradient == "learned" and is_undefended(row.purifier):
            views.notes.append(
                f"skipped gradient learned for {row.defense}: there is no purifier to imitate,"
                " its gradient is the identity"
            )
        else:
            views.views.append(View("adaptive", gradient))
    return views


def _epsilons(suite: Suite, components: Components, text: str) -> tuple[Eps, ...]:
    """Return the eps of one attack. Raises BadParameter for what no image in [0, 1] can use."""
    epsilons = _chosen_epsilons(suite, components, text)
    if components.attack(str(take_eps(text)[0])).norm == "Linf":
        for eps in epsilons:
            check_linf(eps)
    return epsilons


def _chosen_epsilons(suite: Suite, components: Components, text: str) -> tuple[Eps, ...]:
    """Return eps= of the attack's spec, else the suite's, else the data set's claim eps."""
    spec, own_eps = take_eps(text)
    norm = components.attack(str(spec)).norm
    if own_eps is not None:
        return (own_eps,)
    if suite.eps is not None:
        _check_one_norm(suite, components, text)
        return suite.eps
    claim = components.data.card.claim
    if norm not in claim:
        raise BadParameter(
            f"data set {suite.dataset} has no claim eps for the norm {norm} of {text}: give"
            f" --eps, or write it as {_with_eps(text)}"
        )
    return (Eps.of(claim[norm]),)


def _check_one_norm(suite: Suite, components: Components, text: str) -> None:
    """Raise BadParameter if one list of eps would be used in two norms."""
    norms = set()
    for attack in suite.attacks:
        spec, own_eps = take_eps(attack)
        if own_eps is None:
            norms.add(components.attack(str(spec)).norm)
    if len(norms) > 1:
        raise BadParameter(
            f"--eps with attacks of two norms ({', '.join(sorted(norms))}): write eps= into each"
            f" attack, as {_with_eps(text)}"
        )


def _with_eps(attack: str) -> str:
    return f"{attack}{',' if ':' in attack else ':'}eps=0.1"


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
