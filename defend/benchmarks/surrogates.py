"""What a transfer attack is made on: the given pipelines, or the one that stands for a defense."""

from __future__ import annotations

from dataclasses import dataclass

from defend.benchmarks.components import Components
from defend.benchmarks.suite import Suite
from defend.chain import members_of
from defend.learned import Learned
from defend.spec import Spec, Value, parse
from defend.threat_models import NO_CLASSIFIER
from defend.weights import zoo
from defend.weights.zoo import ZooEntry, as_json


@dataclass(frozen=True)
class Surrogates:
    """Pipelines as "C" or "DEFENSE+C"."""

    specs: tuple[str, ...]
    note: str = ""  # why there is none of the defense's own kind, or in what it differs


def surrogates_for(
    suite: Suite, components: Components, classifier: str, defense: str
) -> Surrogates:
    """Return the user's surrogates.

    Under a protocol, or if none is given, add the default, so that a weak surrogate cannot
    replace it.
    """
    if suite.surrogates and suite.protocol is None:
        return Surrogates(suite.surrogates)
    default = default_surrogate(components, classifier, defense)
    same_purifier = [s for s in suite.surrogates if _names(s)[:-1] == _names(defense)]
    if not default.specs and same_purifier:
        return Surrogates(suite.surrogates)
    specs = dict.fromkeys((*suite.surrogates, *default.specs))
    return Surrogates(tuple(specs), default.note)


def default_surrogate(components: Components, classifier: str, defense: str) -> Surrogates:
    """Return a purifier trained anew, as the zoo marks it, before the same classifier.

    Where nothing is trained, the same purifier before another classifier of the data set.
    """
    members = members_of(components.defense(defense))
    if not any(isinstance(member, Learned) for member in members):
        return _before_another_classifier(components, classifier, defense)
    specs: list[str] = []
    differences: list[str] = []
    for spec, member in zip(parse(defense), members, strict=True):
        if not isinstance(member, Learned):
            specs.append(str(spec))
            continue
        entry = _trained_anew(member, components.dataset_name)
        if entry is None:
            return Surrogates(
                (),
                f"no zoo has weights of {spec.name} on {components.dataset_name} marked"
                " `surrogate`: give --surrogate DEFENSE+C",
            )
        specs.append(str(_with_weights(spec, entry, member)))
        if different := _different_fields(entry, member):
            text = ", ".join(different)
            differences.append(f"{entry.name}, the nearest marked `surrogate`, has {text}")
    return Surrogates(("+".join([*specs, classifier]),), "; ".join(differences))


def _before_another_classifier(components: Components, classifier: str, defense: str) -> Surrogates:
    if classifier == NO_CLASSIFIER:
        return Surrogates((), f"give another codec: --surrogate DEFENSE, such as {defense}:...")
    other = _another_classifier(components, classifier)
    if other is None:
        return Surrogates(
            (),
            f"no other classifier of {components.dataset_name} is in a zoo:"
            f" give --surrogate {defense}+C",
        )
    return Surrogates((f"{defense}+{other.component}:weights={other.name}",))


def _with_weights(spec: Spec, entry: ZooEntry, member: Learned) -> Spec:
    """Return the spec with the entry's weights, without the fields that they decide.

    It is used as the member is: at the same noise level, with as many steps.
    """
    decided = {"weights", *entry.fields} - member.uses
    params = {name: value for name, value in spec.params if name not in decided}
    params["weights"] = entry.name
    for name in member.uses:
        value = getattr(member, name)
        if isinstance(value, Value):
            params[name] = value
    return Spec(spec.name, tuple(sorted(params.items())))


def _trained_anew(member: Learned, dataset: str) -> ZooEntry | None:
    """Return the surrogate weights of the same component that differ in the fewest fields."""
    own_weights = set(member.weights_sha256.values())
    wanted = ("defense", member.architecture or member.component, dataset)
    entries = [
        entry
        for entry in zoo.read_zoos().values()
        if entry.surrogate and (entry.kind, entry.architecture, entry.dataset) == wanted
    ]
    others = [entry for entry in entries if entry.sha256 not in own_weights]
    return min(others, key=lambda entry: len(_different_fields(entry, member)), default=None)


def _different_fields(entry: ZooEntry, member: Learned) -> list[str]:
    """Return the fields that differ, as grid=2 (not 1), and what it was trained on.

    The trained values of uses are left out, because the surrogate is used as the member is. A
    network trained on other images says less than one trained alike.
    """
    own = {**member.settings, "trained_on": member.trained_on[0]}
    fields = {**entry.fields, "trained_on": entry.trained_on}
    return [
        f"{name}={value} (not {own[name]})"
        for name, value in sorted(fields.items())
        if name in own and name not in member.uses and as_json(own[name]) != value
    ]


def _another_classifier(components: Components, classifier: str) -> ZooEntry | None:
    """Return another classifier's weights: marked surrogates first, then defaults, then by name."""
    own_weights = set(components.classifier(classifier).weights_sha256.values())
    others = [
        entry
        for entry in zoo.read_zoos().values()
        if (entry.kind, entry.dataset) == ("classifier", components.dataset_name)
        and entry.sha256 not in own_weights
    ]
    return min(others, key=lambda e: (not e.surrogate, not e.default, e.name), default=None)


def _names(spec: str) -> list[str]:
    return [member.name for member in parse(spec)]
