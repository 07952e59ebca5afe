"""Find ART's attack classes by name, and refuse those that attack no images within an eps ball."""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_args

from art.attacks import evasion
from art.attacks.attack import EvasionAttack
from art.estimators import LossGradientsMixin
from art.estimators.classification import ClassGradientsMixin

from defend.attacks.art_estimator import make_dummy_estimator
from defend.errors import BadParameter, UnknownName, suggest_names

Access = Literal["gradient", "scores", "labels"]

REFUSED = {  # part of the class name -> why it is refused
    "AdversarialPatch": "it makes a patch",
    "AdversarialTexture": "it makes a texture",
    "CompositeAdversarialAttack": "it changes colours and angles",
    "FeatureAdversaries": "it needs guide images",
    "FrameSaliency": "it takes videos",
    "GRAPHITE": "it makes a sticker",
    "LaserAttack": "it makes a beam of light",
    "LowProFool": "it takes tables",
    "Malware": "it takes programs",
    "OverTheAirFlickering": "it takes videos",
    "Overload": "it takes object detectors",
    "SNAL": "it takes object detectors",
    "ShadowAttack": "its budget is a smoothness",
    "SpatialTransformation": "it moves and turns images",
    "TargetedUniversal": "it needs target labels",
    "TensorFlow": "it takes TensorFlow models",
    "Wasserstein": "its budget is a Wasserstein distance",
}


def find_attack_class(name: str) -> Any:
    """Return ART's evasion attack of this class name. Raises UnknownName, BadParameter."""
    attacks = _evasion_attacks()
    if name not in attacks:
        raise UnknownName(
            f"art: expected the class name of an evasion attack of ART, got {name!r}."
            f"{suggest_names(name, attacks)}"
        )
    for part, reason in REFUSED.items():
        if part in name:
            raise BadParameter(
                f"art:name={name}: expected an attack that perturbs an image within an eps ball, "
                f"got {name}: {reason}"
            )
    attack_class = attacks[name]
    requirements = attack_class._estimator_requirements
    if not EvasionAttack.is_estimator_valid(make_dummy_estimator(), requirements):
        needed = sorted(str(getattr(r, "__name__", r)) for r in requirements)
        raise BadParameter(
            f"art:name={name}: expected an attack on image classifiers, "
            f"got one that needs {', '.join(needed)}"
        )
    return attack_class


def _evasion_attacks() -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(evasion).items()
        if inspect.isclass(value) and issubclass(value, EvasionAttack)
    }


def resolve_access(name: str, attack_class: Any, access: str | None) -> str:
    """Return what the attack may see. Raises BadParameter.

    access: the user's choice, which is required unless ART says that the attack needs gradients.
    """
    requirements = attack_class._estimator_requirements
    needs_gradients = LossGradientsMixin in requirements or ClassGradientsMixin in requirements
    if access is None and needs_gradients:
        return "gradient"
    if access not in get_args(Access):
        raise BadParameter(
            f"art:name={name}: expected access=scores, access=labels or access=gradient, since ART "
            f"does not say what this attack looks at, got access={access or 'none'}"
        )
    if needs_gradients and access != "gradient":
        raise BadParameter(
            f"art:name={name}: expected access=gradient, since it needs gradients, got {access}"
        )
    return str(access)


def art_parameters(attack_class: Any) -> dict[str, Any]:
    """Return ART's parameters with their defaults, without `self` and the estimator."""
    parameters = list(inspect.signature(attack_class.__init__).parameters.values())
    return {parameter.name: parameter.default for parameter in parameters[2:]}
