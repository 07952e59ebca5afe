"""Run any evasion attack of the Adversarial Robustness Toolbox (ART) against the same pipeline.

Source: Nicolae et al., arXiv:1807.01069.

    art:name=ProjectedGradientDescent,max_iter=40,step=1/16
    art:name=SquareAttack,access=scores,max_iter=1000

ART sees the whole pipeline as one network, the purifier and its gradient inside, so no image is
purified twice. An attack that takes eps and a norm gets both. Every result is projected onto the
ball, so a minimal-norm attack (DeepFool, Carlini and Wagner, HopSkipJump) gains nothing by going
beyond eps. Fields that are not set have ART's own defaults. Some of ART's attacks move away from
the predicted class instead of the label, and return the clean image if they fail: trust their
numbers at `query` and `adaptive` only, where the attacked pipeline is the scored one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from defend.attack import Attack, AttackCard
from defend.attacks.art_classes import Access, art_parameters, find_attack_class, resolve_access
from defend.attacks.art_estimator import TargetModule, make_dummy_estimator, make_estimator
from defend.attacks.art_random_state import seeded_generators
from defend.errors import BadParameter, BrokenAttack, DefendError, MissingPackage, one_line
from defend.noise import Noise
from defend.norms import Norm, leave_clean, project
from defend.spec import typed_params
from defend.target import Target

# ART's parameters that are no fields: they come with the call, or the benchmark fixes them.
HIDDEN_PARAMETERS = {"eps", "norm", "targeted", "verbose", "summary_writer"}

# These attacks take every step for every image. The others stop at an image's first success, or
# attack only the images that are right.
RUNS_ALL_STEPS = {
    "BasicIterativeMethod",
    "FastGradientMethod",
    "MomentumIterativeMethod",
    "ProjectedGradientDescent",
    "ProjectedGradientDescentNumpy",
    "ProjectedGradientDescentPyTorch",
}


def ArtAttack(name: str, access: Access | None = None, norm: str = "", **fields: Any) -> Attack:
    """Return ART's evasion attack of this class name.

    access: what the attack may see (gradient, scores, labels); required unless ART says that the
    attack needs gradients. norm: Linf or L2; ART's default if not set. step: ART's eps_step as a
    fraction of eps. Other fields are ART's own parameters. Raises BadParameter, UnknownName.
    """
    component = _make_component(name, resolve_access(name, find_attack_class(name), access))
    params: dict[str, Any] = {"norm": norm}
    for key, value in fields.items():
        params[key] = float(value) if isinstance(value, Fraction) else value
    attack: Attack = component(**typed_params(component, params, f"attack 'art:name={name}'"))
    return attack


@cache
def _make_component(name: str, access: str) -> Any:
    """Return an attack component whose fields are ART's parameters.

    So their names and types are checked, and the record holds all values in force.
    """
    attack_class = find_attack_class(name)
    defaults = _field_defaults(attack_class)
    annotations: dict[str, Any] = {"name": str, "access": str}
    for key, default in defaults.items():
        annotations[key] = Any if default is None else type(default)
    card = AttackCard(
        paper="arXiv:1807.01069",
        access=access,  # type: ignore[arg-type]
        norms=_norms(name, attack_class),
        per_image=False,
        stops_early=name not in RUNS_ALL_STEPS,
    )
    namespace = {
        "__doc__": inspect.getdoc(attack_class),
        "__module__": __name__,
        "__annotations__": annotations,
        "card": card,
        "attack_class": attack_class,
        "name": name,
        "access": access,
        **defaults,
    }
    return type(name, (_ArtComponent,), namespace)


def _field_defaults(attack_class: Any) -> dict[str, Any]:
    """Return the defaults of ART's scalar parameters, and `step` if it can replace eps_step."""
    parameters = art_parameters(attack_class)
    defaults = {}
    for key, default in parameters.items():
        if key not in HIDDEN_PARAMETERS and isinstance(default, bool | int | float | str | None):
            defaults[key] = default
    if {"eps", "eps_step"} <= parameters.keys():
        defaults["step"] = None
    return defaults


def _norms(name: str, attack_class: Any) -> tuple[Norm, ...]:
    """Return both norms, ART's default first: L2 for attacks that know neither norm nor eps."""
    parameters = art_parameters(attack_class)
    if "norm" in parameters:
        is_l2_first = parameters["norm"] == 2
    else:
        is_l2_first = "eps" not in parameters and "Inf" not in name
    return ("L2", "Linf") if is_l2_first else ("Linf", "L2")


class _ArtComponent(Attack):
    """Run an attack of ART. Abstract: `_make_component` adds card and fields."""

    attack_class: ClassVar[Any]

    @property
    def settings(self) -> dict[str, Any]:
        """Return the fields with their values, without ART's eps_step if `step` replaces it."""
        settings = super().settings
        if settings.get("step") is not None:
            settings.pop("eps_step", None)
        return settings

    def validate(self) -> None:
        self._create(make_dummy_estimator(), 1.0)

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        if eps == 0 or len(x) == 0:
            return x.clone()
        model = TargetModule(target, self.card.access, type(self).__name__)
        classes = model(x[:1]).shape[1]
        one_hot = F.one_hot(y, classes).float().cpu().numpy()
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            _current_gpu(x.device),
            seeded_generators(noise),
        ):
            attack = self._create(make_estimator(model, x, classes), float(eps))
            generated = self._generate(attack, x.cpu().numpy(), one_hot)
        x_adv = torch.from_numpy(np.asarray(generated, np.float32)).to(x.device)
        x_adv = project(x_adv, x, eps, self.norm)
        return leave_clean(x_adv, x, eps, self.norm, noise.fork("leave clean"))

    def _create(self, estimator: PyTorchClassifier, eps: float) -> Any:
        """Return ART's attack object. Raises BadParameter if ART refuses the parameters."""
        try:
            return self.attack_class(estimator, **self._art_arguments(eps))
        except ImportError as e:
            raise _describe_missing(type(self).__name__, e) from None
        except Exception as e:  # ART may raise any exception
            is_named = isinstance(e, TypeError | ValueError)
            reason = one_line(e) if is_named else f"{type(e).__name__}: {one_line(e)}"
            raise BadParameter(f"art:name={type(self).__name__}: {reason}") from None

    def _art_arguments(self, eps: float) -> dict[str, Any]:
        """Return the arguments for ART's class: our fields, and what comes with the call."""
        accepted = art_parameters(self.attack_class)
        arguments = {
            **self.settings,
            "eps": eps,
            "norm": np.inf if self.norm == "Linf" else 2,
            "targeted": False,
            "verbose": False,
        }
        if arguments.get("step") is not None:
            arguments["eps_step"] = arguments["step"] * eps
        return {key: value for key, value in arguments.items() if key in accepted}

    def _generate(self, attack: Any, x: np.ndarray, y: np.ndarray) -> Any:
        """Return ART's adversarial images for x and one-hot labels y.

        Raises BadParameter if a library is missing, BrokenAttack if ART fails.
        """
        name = type(self).__name__
        try:
            if name == "SaliencyMapMethod":  # it would take y for the target classes
                return attack.generate(x=x)
            return attack.generate(x=x, y=y)
        except ImportError as e:
            raise _describe_missing(name, e) from None
        except DefendError:
            raise
        except Exception as e:  # ART may raise any exception
            raise BrokenAttack(f"art:name={name}: {type(e).__name__}: {one_line(e)}") from e


def _describe_missing(name: str, error: ImportError) -> MissingPackage:
    """Return the error for a library that one of ART's attacks imports and ART does not install."""
    command = f"pip install {error.name.partition('.')[0]}" if error.name else "install it"
    return MissingPackage(f"art:name={name}: {one_line(error)}. ART does not install it: {command}")


@contextmanager
def _current_gpu(device: torch.device) -> Iterator[None]:
    """Make a GPU the current one, since ART knows no other."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield
