"""The eps at which each attack of a suite is run."""

from __future__ import annotations

from defend.benchmarks.components import Components
from defend.benchmarks.suite import Suite
from defend.eps import Eps, check_linf, take_eps
from defend.errors import BadParameter


def epsilons_of(suite: Suite, components: Components, text: str) -> tuple[Eps, ...]:
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
