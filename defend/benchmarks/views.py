"""The ways in which one attack is run on one defense: levels, gradients and surrogates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from defend.attack import Attack
from defend.benchmarks.component_keys import is_undefended
from defend.benchmarks.components import Components
from defend.benchmarks.suite import Suite
from defend.benchmarks.surrogates import Surrogates
from defend.chain import declares_autograd
from defend.purifier import Purifier
from defend.tasks.registry import load_task
from defend.tasks.task import Task
from defend.threat_models import (
    RELAXED_GRADIENTS,
    Pipeline,
    attacked_pipeline,
    default_levels,
    gradient_kind,
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
    def task(self) -> Task:
        """Return what the attacker wants."""
        return load_task(self.suite.task)

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


def default_views(row: DefenseRow, attack: Attack, text: str) -> Views:
    """Return the levels at which an attack runs, with a line for each at which it cannot."""
    suite = row.suite
    levels = suite.knowledge or default_levels(attack.card.access, bool(suite.surrogates))
    gradients = suite.gradients or default_gradients(
        row.purifier, suite.has_every_level, attack.card.chooses_gradients
    )
    views = Views()
    for level in levels:
        views.add(views_at(row, attack, text, level, gradients))
    return views


def default_gradients(
    purifier: Purifier, every: bool, chooses_gradients: bool = False
) -> Sequence[str]:
    """Return the gradients of an adaptive attack where the suite names none.

    An attack that chooses its gradients begins at the declared one, and tries the others by itself.
    """
    if chooses_gradients:
        return ("declared",)
    gradients = EVERY_GRADIENT if every else DEFAULT_GRADIENTS
    return (*gradients, *RELAXED_GRADIENTS) if purifier.has_relaxation else gradients


def views_at(
    row: DefenseRow, attack: Attack, text: str, level: str, gradients: Sequence[str]
) -> Views:
    """Return the views at one level, without those that the attack cannot do there."""
    if reason := row.task.reason_against(attack.card.objective):
        return Views(notes=[f"skipped {text}: {reason}"])
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
    if level == "oblivious" and not row.task.needs_classifier:
        note = "without a classifier there is nothing to attack but the defense itself"
        return Views(notes=[f"skipped {text} at oblivious: {note}"])
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
    """Return adaptive through each gradient that the purifier has."""
    views = Views()
    for gradient in gradients:
        kind = gradient_kind(gradient)
        reason = _reason_for_no_gradient(kind, row)
        if reason:
            views.notes.append(f"skipped gradient {kind} for {row.defense}: {reason}")
        else:
            views.views.append(View("adaptive", gradient))
    return views


def _reason_for_no_gradient(kind: str, row: DefenseRow) -> str:
    """Return why a purifier has no gradient of this kind; "" if it has one."""
    purifier = row.purifier
    if kind == "learned" and not row.task.needs_classifier:
        return "its network is fitted on attacks on a classifier; use declared or identity"
    if kind == "learned" and is_undefended(purifier):
        return "there is no purifier to imitate, its gradient is the identity"
    if kind == "relaxed" and not purifier.has_relaxation:
        return "it declares no relaxation; use declared, identity or learned"
    if kind == "autograd" and declares_autograd(purifier):
        return "its declared gradient is that of autograd; use declared"
    return ""
