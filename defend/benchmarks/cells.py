"""A suite -> its cells, in the order of the suite. A cell is one record; see design: the ladder of knowledge."""

from __future__ import annotations

from dataclasses import dataclass

from defend.attack import Attack
from defend.benchmarks.parts import Parts, identity_of
from defend.benchmarks.suite import Eps, Suite, take_eps
from defend.chain import Chain
from defend.errors import BadParameter, Mismatch
from defend.purifier import LearnedPurifier
from defend.spec import parse

NO_DEFENSE = "none"


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A classifier behind a defense, both as specs; `gradient` is how an attacker differentiates the defense."""

    classifier: str
    defense: str = NO_DEFENSE
    gradient: str | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    dataset: str
    classifier: str
    defense: str
    attack: str  # as typed
    bare_attack: str  # without its eps
    knowledge: str
    gradient: str | None
    surrogate: str | None
    norm: str
    eps: Eps
    n: int
    split: str
    seed: int
    draws: int  # 1 where the defense is deterministic
    eot: int  # 1 where the attacked pipeline is deterministic

    @property
    def scored(self) -> Pipeline:
        return Pipeline(classifier=self.classifier, defense=self.defense)

    @property
    def attacked(self) -> Pipeline:
        """What the attacker attacks, as far as its knowledge goes."""
        if self.knowledge == "oblivious":
            return Pipeline(classifier=self.classifier, gradient=self.gradient)
        if self.surrogate is not None:
            *defenses, classifier = parse(self.surrogate)
            return Pipeline(classifier=str(classifier), defense="+".join(map(str, defenses)) or NO_DEFENSE, gradient=self.gradient)
        return Pipeline(classifier=self.classifier, defense=self.defense, gradient=self.gradient)

    @property
    def drops(self) -> bool:
        """Is the attacked pipeline the scored one, and asked for this cell alone? Oblivious images serve every defense."""
        return self.knowledge in ("adaptive", "query")


@dataclass(frozen=True)
class _View:
    """One way to attack: a level with its gradient and surrogate."""

    knowledge: str
    gradient: str | None = None
    surrogate: str | None = None


def expand(suite: Suite, parts: Parts) -> tuple[list[Cell], list[str]]:
    """The cells, and a line for each pair that was skipped. Raises BadParameter when nothing is left, Mismatch."""
    _check_split(suite, parts)
    cells, skipped = [], []
    for classifier in suite.classifiers:
        parts.classifier(classifier)
        for defense in suite.defenses:
            check_shape(parts, defense)
            for attack in suite.attacks:
                views, notes = _views(suite, parts.attack(str(take_eps(attack)[0])), attack)
                skipped += notes
                made = [_cell(suite, parts, classifier, defense, attack, eps, v) for eps in _epsilons(suite, parts, attack) for v in views]
                same = [c for c in made if _from_itself(c, parts)]
                skipped += [f"skipped surrogate {c.surrogate} for {defense}: it is the scored pipeline itself, which is adaptive, not transfer" for c in same]
                cells += [c for c in made if c not in same]
    if not cells:
        raise BadParameter("nothing is left to run: " + "; ".join(dict.fromkeys(skipped)))
    return cells, list(dict.fromkeys(skipped))


def _check_split(suite: Suite, parts: Parts) -> None:
    there = parts.data.count(suite.split)
    if suite.n > there:
        raise BadParameter(f"n = {suite.n}: the {suite.split} split of {suite.dataset} has {there} images; give --n {there} or fewer")


def check_shape(parts: Parts, defense: str) -> None:
    purifier = parts.defense(defense)
    takes = purifier.card.channels
    for member in purifier.members if isinstance(purifier, Chain) else (purifier,):
        size = getattr(member, "size", None) if isinstance(member, LearnedPurifier) else None
        if size not in (None, parts.data.size):
            raise Mismatch(f"defense {defense} takes images of {size}x{size}, this data set has {parts.data.size}x{parts.data.size}")
    if parts.data.channels not in takes:
        raise Mismatch(f"defense {defense} takes images of {' or '.join(map(str, takes))} channels, this data set has {parts.data.channels}")


def _views(suite: Suite, attack: Attack, text: str) -> tuple[list[_View], list[str]]:
    """The levels this attack runs at, with a line for each that it cannot."""
    needs_gradient = attack.card.access == "gradient"
    asked = suite.knowledge or (("oblivious", "adaptive") if needs_gradient else ("query",))
    views: list[_View] = []
    notes: list[str] = []
    for level in asked:
        if level == "query" and needs_gradient:
            notes.append(f"skipped {text} at query: it needs gradients, which this attacker does not have")
        elif level in ("oblivious", "transfer") and attack.card.stops_early:
            notes.append(f"skipped {text} at {level}: it stops at an image's first success on another pipeline, which flatters every purifier")
        elif level == "transfer" and not suite.surrogates:
            notes.append(f"skipped {text} at transfer: it needs --surrogate C or DEFENSE+C")
        else:
            views += _level(suite, level, needs_gradient)
    return list(dict.fromkeys(views)), notes


def _level(suite: Suite, level: str, needs_gradient: bool) -> list[_View]:
    if level == "transfer":
        return [_View(level, "declared" if needs_gradient else None, s) for s in suite.surrogates]
    if not needs_gradient:
        return [_View("adaptive" if level == "bpda" else level)]
    if level == "bpda":
        return [_View("adaptive", "identity")]
    gradients = suite.gradients or ("identity", "declared")
    return [_View(level, g) for g in gradients] if level == "adaptive" else [_View(level, "declared")]


def _epsilons(suite: Suite, parts: Parts, text: str) -> tuple[Eps, ...]:
    """Those of this attack. Raises BadParameter for what no image in [0, 1] can use."""
    found = _chosen(suite, parts, text)
    if parts.attack(str(take_eps(text)[0])).norm == "Linf" and (wide := [e.text for e in found if e.value > 1]):
        raise BadParameter(f"eps {wide[0]}: pixels are in [0, 1], so that an L-inf eps is at most 1; for grey levels write {wide[0]}/255")
    return found


def _chosen(suite: Suite, parts: Parts, text: str) -> tuple[Eps, ...]:
    """eps= in the attack's spec, else the suite's, else the claim eps of the data set for the attack's norm."""
    spec, own = take_eps(text)
    norm = parts.attack(str(spec)).norm
    if own is not None:
        return (own,)
    norms = {parts.attack(str(take_eps(a)[0])).norm for a in suite.attacks if take_eps(a)[1] is None}
    if suite.eps is not None:
        if len(norms) > 1:
            raise BadParameter(f"--eps with attacks of two norms ({', '.join(sorted(norms))}): write eps= into each attack, as {text}:eps=0.1")
        return suite.eps
    claim = parts.data.card.claim
    if norm not in claim:
        raise BadParameter(f"data set {suite.dataset} has no claim eps for the norm {norm} of {text}: give --eps or {text}:eps=...")
    return (Eps(text=f"{claim[norm]:.6g}", value=claim[norm]),)


def _cell(suite: Suite, parts: Parts, classifier: str, defense: str, attack: str, eps: Eps, view: _View) -> Cell:
    bare = str(take_eps(attack)[0])
    cell = Cell(
        dataset=suite.dataset, classifier=classifier, defense=defense, attack=attack, bare_attack=bare, knowledge=view.knowledge,
        gradient=view.gradient, surrogate=view.surrogate, norm=parts.attack(bare).norm, eps=eps, n=suite.n, split=suite.split, seed=suite.seed,
        draws=suite.draws if parts.defense(defense).card.stochastic else 1, eot=1,
    )  # fmt: skip
    parts.classifier(cell.attacked.classifier)
    check_shape(parts, cell.attacked.defense)
    stochastic = parts.defense(cell.attacked.defense).card.stochastic
    return Cell(**{**vars(cell), "eot": (suite.eot or 20) if stochastic else 1})


def _from_itself(cell: Cell, parts: Parts) -> bool:
    """Is what is transferred from what is scored?"""

    def pipeline(p: Pipeline) -> tuple[object, object]:
        return identity_of(parts.classifier(p.classifier), "classifier"), identity_of(parts.defense(p.defense), "defense")

    return cell.surrogate is not None and pipeline(cell.attacked) == pipeline(cell.scored)
