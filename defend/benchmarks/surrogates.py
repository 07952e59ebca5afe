"""What a transfer attack is made on: the pipelines that were given, or the one that stands for the defense."""

from __future__ import annotations

from defend import weights
from defend.benchmarks.components import Components
from defend.benchmarks.suite import Suite
from defend.chain import members_of
from defend.learned import Learned
from defend.spec import Spec, parse
from defend.weights import ZooEntry


def surrogates_of(
    suite: Suite, components: Components, classifier: str, defense: str
) -> tuple[tuple[str, ...], str]:
    """(the surrogates, why there is none of the defense's own kind or in what it differs).

    Those given; and where none is given, or by a protocol whatever is given, the default: a weak one must not take its place.
    """
    if suite.surrogates and suite.protocol is None:
        return suite.surrogates, ""
    found, why = default_surrogate(components, classifier, defense)
    if found is None and any(_names(given)[:-1] == _names(defense) for given in suite.surrogates):
        return suite.surrogates, ""
    return tuple(dict.fromkeys((*suite.surrogates, *([found] if found else [])))), why


def default_surrogate(
    components: Components, classifier: str, defense: str
) -> tuple[str | None, str]:
    """A purifier trained anew, as the zoo marks it, before the same classifier; where nothing is trained, the same purifier before
    another classifier of that data set. (None, why) where there is none; beside one of other fields, what they are."""
    members = members_of(components.defense(defense))
    if not any(isinstance(m, Learned) for m in members):
        other = _another_classifier(components, classifier)
        if other is None:
            return (
                None,
                f"no other classifier of {components.dataset_name} is in a zoo: give --surrogate {defense}+C",
            )
        return f"{defense}+{other.component}:weights={other.name}", ""
    specs, differs = [], []
    for spec, member in zip(parse(defense), members, strict=True):
        if not isinstance(member, Learned):
            specs.append(str(spec))
            continue
        entry = _trained_anew(member, components.dataset_name)
        if entry is None:
            return (
                None,
                f"no zoo has weights of {spec.name} on {components.dataset_name} marked `surrogate`: give --surrogate DEFENSE+C",
            )
        kept = tuple(p for p in spec.params if p[0] != "weights" and p[0] not in entry.fields)
        specs.append(str(Spec(spec.name, tuple(sorted((*kept, ("weights", entry.name)))))))
        if unlike := _unlike(entry, member):
            differs.append(f"{entry.name}, the nearest marked `surrogate`, has {', '.join(unlike)}")
    return "+".join([*specs, classifier]), "; ".join(differs)


def _trained_anew(member: Learned, dataset: str) -> ZooEntry | None:
    """The zoo's surrogate weights of the same component: those with the most alike, fields and training data."""
    own = set(member.weights_sha256.values())
    marked = [
        e
        for e in weights.zoo().values()
        if e.surrogate
        and (e.kind, e.component, e.dataset) == ("defense", member.component, dataset)
    ]
    return min(
        (e for e in marked if e.sha256 not in own),
        key=lambda e: len(_unlike(e, member)),
        default=None,
    )


def _unlike(entry: ZooEntry, member: Learned) -> list[str]:
    """The fields that differ, and what it was trained on: grid=2 (not 1). A twin trained on other images says less than one trained alike."""
    mine, its = (
        {**member.settings, "trained_on": member.trained_on},
        {**entry.fields, "trained_on": entry.trained_on},
    )
    return [
        f"{k}={v} (not {mine[k]})" for k, v in sorted(its.items()) if k in mine and mine[k] != v
    ]


def _another_classifier(components: Components, classifier: str) -> ZooEntry | None:
    """Those marked as surrogates first, then defaults, then by name."""
    own = set(components.classifier(classifier).weights_sha256.values())
    there = [
        e
        for e in weights.zoo().values()
        if (e.kind, e.dataset) == ("classifier", components.dataset_name) and e.sha256 not in own
    ]
    return min(there, key=lambda e: (not e.surrogate, not e.default, e.name), default=None)


def _names(spec: str) -> list[str]:
    return [member.name for member in parse(spec)]
