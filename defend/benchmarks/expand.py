"""A suite -> its cells, in the order of the suite. A cell is one record; see design: the ladder of knowledge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from defend.attack import Attack
from defend.benchmarks.bpda_network import is_undefended
from defend.benchmarks.cell import NO_DEFENSE, Pipeline, attacked_by
from defend.benchmarks.cell import Cell as Cell
from defend.benchmarks.components import Components, component_key
from defend.benchmarks.controls import left_open, with_controls
from defend.benchmarks.suite import GRADIENTS, Eps, Suite, take_eps, too_wide
from defend.benchmarks.surrogates import surrogates_of
from defend.chain import members_of
from defend.dataset import Dataset
from defend.errors import BadParameter, Mismatch
from defend.protocols.ladder_1 import EOT, TARGETED_DLR, ladder_1
from defend.purifier import LearnedPurifier, Purifier


@dataclass(frozen=True)
class ThreatModel:
    """One way to attack: a level with its gradient and surrogate."""

    knowledge: str
    gradient: str | None = None
    surrogate: str | None = None


@dataclass(frozen=True)
class DefenseRow:
    """What the cells of one classifier behind one defense share."""

    suite: Suite
    components: Components
    classifier: str
    defense: str
    surrogates: tuple[str, ...]
    about_surrogate: str  # why there is none of the defense's own kind, or in what it differs

    @property
    def purifier(self) -> Purifier:
        return self.components.defense(self.defense)


def expand(suite: Suite, components: Components) -> tuple[list[Cell], list[str]]:
    """The cells, and a line for each pair that was skipped. Raises BadParameter when nothing is left, Mismatch."""
    _check_split(suite, components)
    _check_surrogates(suite, components)
    cells: list[Cell] = []
    skipped: list[str] = []
    for classifier in suite.classifiers:
        components.classifier(classifier)
        for defense in suite.defenses:
            check_shape(components.defense(defense), components.data, defense)
            row = DefenseRow(
                suite,
                components,
                classifier,
                defense,
                *surrogates_of(suite, components, classifier, defense),
            )
            made = [*_of_protocol(row, skipped), *_of_attacks(row, skipped)]
            same = [c for c in made if _from_itself(c, components)]
            skipped += [
                f"skipped surrogate {c.surrogate} for {defense}: it is the scored pipeline itself, which is adaptive, not transfer"
                for c in same
            ]
            cells += with_controls(
                [c for c in (_once(made) if suite.protocol else made) if c not in same],
                suite,
                components,
            )
    if not cells:
        raise BadParameter("nothing is left to run: " + "; ".join(dict.fromkeys(skipped)))
    return cells, list(dict.fromkeys(skipped))


def _once(cells: Iterable[Cell]) -> list[Cell]:
    """An attack that is given beside the protocol that runs it already is the protocol's."""
    found: dict[Cell, Cell] = {}
    for cell in cells:
        found.setdefault(
            replace(
                cell, protocol=None, attack=cell.bare_attack, eps=Eps(text="", value=cell.eps.value)
            ),
            cell,
        )
    return list(found.values())


def _of_protocol(row: DefenseRow, skipped: list[str]) -> Iterator[Cell]:
    """Every step of ladder-1 in every norm in which the data set has a claim eps. Raises BadParameter where it has none."""
    suite, components = row.suite, row.components
    if suite.protocol is None:
        return
    claim = components.data.card.claim
    if not claim:
        raise BadParameter(
            f"protocol {suite.protocol}: the data set {suite.dataset} has no claim eps; give --attack and --eps instead"
        )
    if components.data.classes < TARGETED_DLR:
        skipped.append(
            f"skipped targeted APGD-DLR: it needs {TARGETED_DLR} classes, {suite.dataset} has {components.data.classes}"
        )
    first = "Linf" if "Linf" in claim else next(iter(claim))
    for norm, eps in claim.items():
        for step in ladder_1(
            norm, row.purifier.card.stochastic, components.data.classes, norm == first
        ):
            views, notes = _at_level(
                row,
                components.attack(str(take_eps(step.attack)[0])),
                step.attack,
                step.knowledge,
                GRADIENTS,
            )
            skipped.extend(notes)
            yield from (
                _cell(row, step.attack, step.eps or Eps.of(eps), v, EOT, suite.protocol)
                for v in views
            )


def _of_attacks(row: DefenseRow, skipped: list[str]) -> Iterator[Cell]:
    """The attacks that the suite names; controls without a number are made by `with_controls`."""
    suite, components = row.suite, row.components
    for attack in suite.attacks:
        if attack in left_open(suite):
            continue
        views, notes = _views(row, components.attack(str(take_eps(attack)[0])), attack)
        skipped += notes
        yield from (
            _cell(row, attack, eps, v, suite.eot or EOT)
            for eps in _epsilons(suite, components, attack)
            for v in views
        )


def _check_split(suite: Suite, components: Components) -> None:
    there = components.data.count(suite.split)
    if suite.n > there:
        raise BadParameter(
            f"n = {suite.n}: the {suite.split} split of {suite.dataset} has {there} images; give --n {there} or fewer"
        )


def check_shape(purifier: Purifier, data: Dataset, defense: str) -> None:
    """Raises Mismatch, which calls the purifier `defense`."""
    takes = purifier.card.channels
    for member in members_of(purifier):
        size = getattr(member, "size", None) if isinstance(member, LearnedPurifier) else None
        if size not in (None, data.size):
            raise Mismatch(
                f"defense {defense} takes images of {size}x{size}, this data set has {data.size}x{data.size}"
            )
    if data.channels not in takes:
        raise Mismatch(
            f"defense {defense} takes images of {' or '.join(map(str, takes))} channels, this data set has {data.channels}"
        )


def _check_surrogates(suite: Suite, components: Components) -> None:
    """Those that nothing will use too: a name is either right or an error."""
    for surrogate in suite.surrogates:
        named = Pipeline.of(surrogate)
        components.classifier(named.classifier)
        check_shape(components.defense(named.defense), components.data, named.defense)


def _views(row: DefenseRow, attack: Attack, text: str) -> tuple[list[ThreatModel], list[str]]:
    """The levels this attack runs at, with a line for each that it cannot."""
    suite, needs_gradient = row.suite, attack.card.access == "gradient"
    asked = suite.knowledge or (
        *(("oblivious", "adaptive") if needs_gradient else ("query",)),
        *(("transfer",) if suite.surrogates else ()),
    )
    gradients = suite.gradients or (
        ("identity", "declared", "learned") if suite.every_level else ("identity", "declared")
    )
    found = [_at_level(row, attack, text, level, gradients) for level in asked]
    return list(dict.fromkeys(v for views, _ in found for v in views)), [
        line for _, notes in found for line in notes
    ]


def _at_level(
    row: DefenseRow, attack: Attack, text: str, level: str, gradients: Sequence[str]
) -> tuple[list[ThreatModel], list[str]]:
    """Without those that the attack cannot do against the pipeline that it meets there."""
    views, notes = _ways(row, attack, text, level, gradients)
    refused = {
        v: why
        for v in views
        if (why := _refused(attack, _stochastic(row, v), row.components.data.classes))
    }
    notes += [
        f"skipped {text} at {v.knowledge} for {v.surrogate or row.defense}: {why}"
        for v, why in refused.items()
    ]
    return [v for v in views if v not in refused], list(dict.fromkeys(notes))


def _refused(attack: Attack, stochastic: bool, classes: int) -> str:
    """Why it is not run; nothing where it is."""
    if (
        stochastic and attack.card.stops_early
    ):  # what one draw of the attacker's breaks, the draws that score may not
        return "it stops at an image's first success, which before a stochastic purifier is one lucky draw, and flatters it"
    return attack.unsupported(stochastic, classes)


def _stochastic(row: DefenseRow, view: ThreatModel) -> bool:
    """Is what is attacked?"""
    at = attacked_by(view.knowledge, row.classifier, row.defense, view.gradient, view.surrogate)
    return row.components.defense(at.defense).card.stochastic


def _ways(
    row: DefenseRow, attack: Attack, text: str, level: str, gradients: Sequence[str]
) -> tuple[list[ThreatModel], list[str]]:
    needs_gradient = attack.card.access == "gradient"
    if level == "query" and needs_gradient:
        return [], [
            f"skipped {text} at query: it needs gradients, which this attacker does not have"
        ]
    if level in ("oblivious", "transfer") and attack.card.stops_early:
        return [], [
            f"skipped {text} at {level}: it stops at an image's first success on another pipeline, which flatters every purifier"
        ]
    if level == "transfer":
        if not row.surrogates:
            return [], [f"skipped {text} at transfer for {row.defense}: {row.about_surrogate}"]
        notes = [f"transfer to {row.defense}: {row.about_surrogate}"] if row.about_surrogate else []
        return [
            ThreatModel(level, "declared" if needs_gradient else None, s) for s in row.surrogates
        ], notes
    if not needs_gradient:
        return [ThreatModel("adaptive" if level == "bpda" else level)], []
    if level == "bpda":
        return [ThreatModel("adaptive", "identity")], []
    return (
        _through(row, gradients) if level == "adaptive" else ([ThreatModel(level, "declared")], [])
    )


def _through(row: DefenseRow, gradients: Sequence[str]) -> tuple[list[ThreatModel], list[str]]:
    """Adaptive through each gradient; behind no purifier there is nothing to learn."""
    nothing = "learned" in gradients and is_undefended(row.purifier)
    views = [ThreatModel("adaptive", g) for g in gradients if not (nothing and g == "learned")]
    return views, [
        f"skipped gradient learned for {row.defense}: there is no purifier to imitate, its gradient is the identity"
    ] if nothing else []


def _epsilons(suite: Suite, components: Components, text: str) -> tuple[Eps, ...]:
    """Those of this attack. Raises BadParameter for what no image in [0, 1] can use."""
    found = _chosen(suite, components, text)
    if components.attack(str(take_eps(text)[0])).norm == "Linf" and (
        wide := [e.text for e in found if e.value > 1]
    ):
        raise BadParameter(too_wide(wide[0]))
    return found


def _chosen(suite: Suite, components: Components, text: str) -> tuple[Eps, ...]:
    """eps= in the attack's spec, else the suite's, else the claim eps of the data set for the attack's norm."""
    spec, own = take_eps(text)
    norm = components.attack(str(spec)).norm
    if own is not None:
        return (own,)
    norms = {
        components.attack(str(take_eps(a)[0])).norm for a in suite.attacks if take_eps(a)[1] is None
    }
    if suite.eps is not None:
        if len(norms) > 1:
            raise BadParameter(
                f"--eps with attacks of two norms ({', '.join(sorted(norms))}): write eps= into each attack, as {_with_eps(text)}"
            )
        return suite.eps
    claim = components.data.card.claim
    if norm not in claim:
        raise BadParameter(
            f"data set {suite.dataset} has no claim eps for the norm {norm} of {text}: give --eps, or write it as {_with_eps(text)}"
        )
    return (Eps.of(claim[norm]),)


def _with_eps(attack: str) -> str:
    return f"{attack}{',' if ':' in attack else ':'}eps=0.1"


def _cell(
    row: DefenseRow, attack: str, eps: Eps, view: ThreatModel, eot: int, protocol: str | None = None
) -> Cell:
    suite, components, bare = row.suite, row.components, str(take_eps(attack)[0])
    cell = Cell(
        dataset=suite.dataset,
        classifier=row.classifier,
        defense=row.defense,
        attack=attack,
        bare_attack=bare,
        knowledge=view.knowledge,
        gradient=view.gradient,
        surrogate=view.surrogate,
        norm=components.attack(bare).norm,
        eps=eps,
        n=suite.n,
        split=suite.split,
        seed=suite.seed,
        draws=suite.draws if row.purifier.card.stochastic else 1,
        eot=1,
        protocol=protocol,
    )
    components.classifier(cell.attacked.classifier)
    check_shape(components.defense(cell.attacked.defense), components.data, cell.attacked.defense)
    return replace(
        cell, eot=eot if components.defense(cell.attacked.defense).card.stochastic else 1
    )


def _from_itself(cell: Cell, components: Components) -> bool:
    """Is what is transferred from what is scored?"""

    def pipeline(p: Pipeline) -> tuple[object, object]:
        members = [component_key(m, "defense") for m in members_of(components.defense(p.defense))]
        return component_key(components.classifier(p.classifier), "classifier"), [
            m for m in members if m["component"] != NO_DEFENSE
        ]

    return cell.surrogate is not None and pipeline(cell.attacked) == pipeline(cell.scored)
