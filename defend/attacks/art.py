"""Any evasion attack of the Adversarial Robustness Toolbox (Nicolae et al., arXiv:1807.01069), run against the same pipeline.

    art:name=ProjectedGradientDescent,max_iter=40,step=1/16        art:name=SquareAttack,access=scores,max_iter=1000

ART sees the whole pipeline as one network, the purifier and its gradient inside, so nothing of it is purified twice. An attack that
takes eps and a norm is given both; the results of all are projected onto the ball, so what a minimal-norm attack (DeepFool, Carlini
and Wagner, HopSkipJump) finds beyond eps does not count. ART's own defaults hold where a field is not given. Some of its attacks
move away from the predicted class, not from the label, and return the clean image where they fail: read their numbers at `query`
and `adaptive`, where what is attacked is what is scored.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from art.attacks import evasion
from art.attacks.attack import EvasionAttack
from art.estimators import LossGradientsMixin
from art.estimators.classification import ClassGradientsMixin, PyTorchClassifier
from torch import Tensor, nn

from defend.attack import Attack, AttackCard
from defend.errors import BadParameter, BrokenAttack, DefendError, UnknownName, near, one_line
from defend.noise import Noise
from defend.norms import Norm, project
from defend.spec import typed
from defend.target import Target

Access = Literal["gradient", "scores", "labels"]
_OURS = {
    "eps",
    "norm",
    "targeted",
    "verbose",
    "summary_writer",
}  # they come with the call, or stay as the benchmark needs them
_NO_BALL = {
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
_TO_THE_END = {  # every image gets every step; the others stop at an image's first success, or begin with the right ones alone
    "BasicIterativeMethod",
    "FastGradientMethod",
    "MomentumIterativeMethod",
    "ProjectedGradientDescent",
    "ProjectedGradientDescentNumpy",
    "ProjectedGradientDescentPyTorch",
}
_OF_PROBABILITIES = ("SimBA", "VirtualAdversarialMethod")


def ArtAttack(name: str, access: Access | None = None, norm: str = "", **fields: Any) -> Attack:
    """Any evasion attack of ART, by class name: art:name=ProjectedGradientDescent,max_iter=40.

    access: what it may see (gradient, scores, labels): derived where ART requires gradients, else required. norm: Linf or L2, ART's
    default first. step: ART's eps_step as a fraction of eps. Other fields are ART's own parameters. Raises BadParameter, UnknownName.
    """
    kind = _attack_class(name)
    made = _component(name, _access(name, kind, access))
    given = {key: float(v) if isinstance(v, Fraction) else v for key, v in fields.items()}
    attack: Attack = made(**typed(made, {"norm": norm, **given}, f"attack 'art:name={name}'"))
    return attack


def _attack_class(name: str) -> Any:
    known = {
        n: c
        for n, c in vars(evasion).items()
        if inspect.isclass(c) and issubclass(c, EvasionAttack)
    }
    if name not in known:
        raise UnknownName(f"art: {name!r} is no evasion attack of ART.{near(name, known)}")
    if reason := next((why for part, why in _NO_BALL.items() if part in name), None):
        raise BadParameter(
            f"art:name={name}: {reason}; what is measured here is a perturbation of an image within an eps ball"
        )
    found: Any = known[name]
    if not EvasionAttack.is_estimator_valid(_toy(), found._estimator_requirements):
        wanted = ", ".join(
            sorted(str(getattr(r, "__name__", r)) for r in found._estimator_requirements)
        )
        raise BadParameter(f"art:name={name}: it attacks no image classifier (it needs {wanted})")
    return found


def _access(name: str, kind: Any, given: str | None) -> str:
    differentiates = any(
        r in (LossGradientsMixin, ClassGradientsMixin) for r in kind._estimator_requirements
    )
    if given not in get_args(Access) and not (given is None and differentiates):
        raise BadParameter(
            f"art:name={name}: ART does not say what it looks at; add access=scores, access=labels or access=gradient"
        )
    if differentiates and given not in (None, "gradient"):
        raise BadParameter(f"art:name={name}: it needs gradients; access={given} cannot hold")
    return given or "gradient"


def _parameters(kind: Any) -> dict[str, Any]:
    """ART's parameters and their defaults, without the estimator."""
    _, _, *rest = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in rest}


@cache
def _component(name: str, access: str) -> Any:
    """A component whose fields are ART's parameters: their names and types are checked, and the record holds all in force."""
    kind = _attack_class(name)
    takes = _parameters(kind)
    euclidean_first = takes.get("norm") == 2 or (
        "norm" not in takes and "eps" not in takes and "Inf" not in name
    )
    norms: tuple[Norm, ...] = ("L2", "Linf") if euclidean_first else ("Linf", "L2")
    own = {
        k: v
        for k, v in takes.items()
        if k not in _OURS and isinstance(v, bool | int | float | str | None)
    }
    own |= {"step": None} if {"eps", "eps_step"} <= takes.keys() else {}
    return type(
        name,
        (_FromArt,),
        {
            "__doc__": inspect.getdoc(kind),
            "__module__": __name__,
            "__annotations__": {"name": str, "access": str}
            | {k: Any if v is None else type(v) for k, v in own.items()},
            "card": AttackCard(
                paper="arXiv:1807.01069",
                access=access,
                norms=norms,
                per_image=False,
                stops_early=name not in _TO_THE_END,
            ),  # type: ignore[arg-type]
            "kind": kind,
            "name": name,
            "access": access,
            **own,
        },
    )


class _FromArt(Attack):
    """Abstract: what all attacks of ART share."""

    kind: ClassVar[Any]

    @property
    def settings(self) -> dict[str, Any]:
        """Without ART's eps_step where step stands for it."""
        mine = super().settings
        return (
            mine if mine.get("step") is None else {k: v for k, v in mine.items() if k != "eps_step"}
        )

    def validate(self) -> None:
        self._make(_toy(), 1.0)

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        if eps == 0 or len(x) == 0:
            return x.clone()
        pipeline = _Pipeline(target, self.card.access, type(self).__name__)
        classes = pipeline(x[:1]).shape[1]
        with torch.inference_mode(False), torch.enable_grad(), _on(x.device), _seeded(noise):
            attack = self._make(_estimator(pipeline, x, classes), float(eps))
            found = self._generate(
                attack, x.cpu().numpy(), F.one_hot(y, classes).float().cpu().numpy()
            )
        return project(
            torch.from_numpy(np.asarray(found, np.float32)).to(x.device), x, eps, self.norm
        )

    def _make(self, estimator: PyTorchClassifier, eps: float) -> Any:
        takes = _parameters(self.kind)
        values = {k: v for k, v in self.settings.items() if k in takes and k != "norm"}
        values |= {
            k: v
            for k, v in {
                "eps": eps,
                "norm": np.inf if self.norm == "Linf" else 2,
                "targeted": False,
                "verbose": False,
            }.items()
            if k in takes
        }
        if (step := self.settings.get("step")) is not None:
            values["eps_step"] = step * eps
        try:
            return self.kind(estimator, **values)
        except (TypeError, ValueError, IndexError) as e:
            raise BadParameter(f"art:name={type(self).__name__}: {one_line(e)}") from None

    def _generate(self, attack: Any, x: np.ndarray, y: np.ndarray) -> Any:
        try:
            # the saliency map attack takes labels for targets
            return (
                attack.generate(x=x)
                if type(self).__name__ == "SaliencyMapMethod"
                else attack.generate(x=x, y=y)
            )
        except ImportError as e:
            raise BadParameter(
                f"art:name={type(self).__name__}: {e}. ART does not install it: pip install {e.name}"
            ) from None
        except DefendError:
            raise
        except Exception as e:  # ART raises anything
            raise BrokenAttack(
                f"art:name={type(self).__name__}: {type(e).__name__}: {one_line(e)}"
            ) from e


class _Pipeline(nn.Module):
    """A target as ART sees it: images in [0, 1] -> logits; one-hot labels where it may see no more; probabilities where it insists.

    Every call draws afresh, for each of its rows: ART says not which image a row is. Where ART differentiates, a stochastic pipeline
    gives the mean logits over `eot` draws. The networks are no submodules: ART cannot train, move or reset them.
    """

    def __init__(self, target: Target, access: str, name: str) -> None:
        super().__init__()
        self._seen = (target,)
        self._access, self._name, self._calls = access, name, 0

    def forward(self, x: Tensor) -> Tensor:
        (target,) = self._seen
        x = x.float()  # some of ART's attacks compute in float64
        if torch.is_grad_enabled() and x.requires_grad:
            return self._differentiable(target, x)
        logits = Target(
            target.classifier, target.purifier, self._fresh(target, len(x)), counts=target.counts
        ).logits(x)
        if self._access == "labels":
            return F.one_hot(logits.argmax(1), logits.shape[1]).to(x.dtype)
        return logits.softmax(1) if self._name in _OF_PROBABILITIES else logits

    def _differentiable(self, target: Target, x: Tensor) -> Tensor:
        if self._access != "gradient":
            raise BadParameter(
                f"art:name={self._name}: it asked for gradients; write access=gradient"
            )
        copies = 1 if target.deterministic else target.eot
        noise = self._fresh(target, len(x) * copies)

        def logits(x: Tensor) -> Tensor:
            many = target.classifier(target.purified(x, noise, copies))
            return cast(Tensor, many.unflatten(0, (len(x), copies)).mean(1))

        def count(kind: str) -> None:
            target.counts[kind] += len(x) * copies

        return cast(Tensor, _ForImages.apply(x, logits, count))  # type: ignore[no-untyped-call]

    def _fresh(self, target: Target, rows: int) -> Noise:
        self._calls += 1
        return (
            target.noise.take(slice(0, 1))
            .fork(f"call {self._calls}")
            .nth(torch.arange(rows, device=target.noise.device)[None])
        )


class _ForImages(torch.autograd.Function):
    """logits(x), differentiated for x alone: ART's backward passes leave nothing on the parameters."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, logits: Callable[[Tensor], Tensor], count: Callable[[str], None]
    ) -> Tensor:
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.logits, ctx.count = logits(ctx.x), count
        count("forwards")
        return cast(Tensor, ctx.logits.detach())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        ctx.count("backwards")
        if not ctx.logits.requires_grad:
            return torch.zeros_like(ctx.x), None, None
        return (
            torch.autograd.grad(ctx.logits, ctx.x, g, retain_graph=True, materialize_grads=True)[0],
            None,
            None,
        )  # ART asks class by class


def _estimator(model: nn.Module, x: Tensor, classes: int) -> PyTorchClassifier:
    # The sum of the losses: under their mean an image's gradient would shrink with the batch, and ART's guards against 0 would count.
    loss = nn.CrossEntropyLoss(reduction="sum")
    kind = "gpu" if x.is_cuda else "cpu"
    return PyTorchClassifier(
        model,
        loss,
        tuple(x.shape[1:]),
        classes,
        clip_values=(0.0, 1.0),
        preprocessing=None,
        device_type=kind,
    )


@cache
def _toy() -> PyTorchClassifier:
    """Enough for ART's checks of parameters."""
    return _estimator(nn.Flatten(), torch.zeros(1, 3, 32, 32), 4)


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """ART knows only the current GPU."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


class _Following(np.random.RandomState):
    """What `np.random.RandomState()` is during an attack: ART's HopSkipJump and BoundaryAttack would take fresh entropy there."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(np.random.randint(2**31) if seed is None else seed)


@contextmanager
def _seeded(noise: Noise) -> Iterator[None]:
    """The global generators seeded from the first image's noise, and put back."""
    seed = int(
        noise.take(slice(0, 1)).uniform(torch.zeros(1, 1, dtype=torch.float32, device=noise.device))
        * 2**24
    )
    kept, kept_np, own = random.getstate(), np.random.get_state(), np.random.RandomState
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(gpus)):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            np.random.RandomState = _Following  # type: ignore[misc]
            yield
        finally:
            np.random.RandomState = own  # type: ignore[misc]
            np.random.set_state(kept_np)
            random.setstate(kept)
