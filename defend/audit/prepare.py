"""From what the caller names to the scene: components, images, noise. Raises DefendError for what the caller can mend."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, cast

import torch
from torch import Tensor, nn

from defend.audit.budget import budget_for
from defend.audit.context import LAYOUT, NORM, PRECISION, Bench, Context
from defend.audit.subprocess_check import purify_fresh
from defend.benchmarks import cell
from defend.benchmarks.bpda_network import check_cache
from defend.benchmarks.components import Components, check_final, check_trained
from defend.benchmarks.expand import check_shape
from defend.benchmarks.suite import component, one_eps, too_wide
from defend.benchmarks.surrogates import default_surrogate
from defend.classifier import Classifier
from defend.dataset import Dataset, Split
from defend.errors import BadParameter, suggest_names
from defend.loading import dataset_name, load, pick_device
from defend.noise import Noise
from defend.purifier import Purifier
from defend.registry import REGISTRY

AUDITED = ("test", "val")  # on training images a classifier, or a purifier, knows the answers
Pipeline = Classifier | tuple[Purifier, Classifier]


def prepare(
    spec: str | Purifier,
    dataset: str | Dataset,
    classifier: str | Classifier,
    budget: str,
    *,
    n: int | None,
    split: str,
    eps: float | str | None,
    surrogates: Sequence[str | Pipeline],
    seed: int,
    device: str,
    data_root: str | None,
) -> tuple[Context, dict[str, Any]]:
    """The scene, and what it is in words for the report."""
    check_kind(dataset, "dataset")
    if not 0 <= seed < 2**64:
        raise BadParameter(f"seed {seed}: expected a whole number >= 0")
    where = pick_device(device)
    parts = Components(dataset, data_root, where) if isinstance(dataset, str) else None
    data: Dataset = dataset if parts is None else parts.data  # type: ignore[assignment]
    made = partial(_made, data=data, device=where)
    purifier, net = made("defense", spec), made("classifier", classifier)
    bench = (
        Bench(parts, spec, classifier)
        if parts is not None and isinstance(spec, str) and isinstance(classifier, str)
        else None
    )
    surrogates, no_surrogate = _others(surrogates, bench)
    plan = budget_for(budget, purifier.card.stochastic, n)
    if bench is not None and plan.fits(purifier):
        check_cache(bench.components, bench.classifier, bench.defense)
    x, y = (t.to(where) for t in _rows(data, split, plan.n, n is not None))
    context = Context(
        purifier=purifier,
        network=net.network,
        bare=load("none", device=where),
        x=x,
        y=y,
        root=Noise.of(seed, torch.arange(len(x), device=where)),
        eps=_eps(eps, data),
        classes=data.classes,
        bench=bench,
        no_surrogate=no_surrogate,
        plan=plan,
        seed=seed,
        twin=_twin(spec, purifier, data, seed, where),
        twin_is="a fresh process"
        if isinstance(spec, str)
        else "a copy made before the audit (a spec is loaded in a fresh process)",
        training=lambda m: _training(data, m, where),
        surrogates=[_pipeline(s, made, scene_bare=load("none", device=where)) for s in surrogates],
    )
    about = {
        "defense": _named(spec, "defense"),
        "dataset": _named(dataset, "dataset"),
        "classifier": _named(classifier, "classifier"),
        "surrogates": [s if isinstance(s, str) else repr(type(s).__name__) for s in surrogates],
        "split": split,
        "n": len(x),
        "norm": NORM,
        "eps": context.eps,
        "budget": budget,
        "seed": seed,
        "device": str(where),
        "stochastic": context.stochastic,
        "declared_gradient": purifier.card.gradient,
        "eot": plan.eot,
        "draws": plan.draws,
        "trained_on": purifier.trained_on,
        "versions": {"defend": version("defend"), "torch": str(torch.__version__)},
    }
    return context, about


def _others(
    given: Sequence[str | Pipeline], bench: Bench | None
) -> tuple[Sequence[str | Pipeline], str]:
    """(the pipelines to transfer from, why there is none). Those given, or the only one; else the bench's default."""
    if given:
        return ([given] if isinstance(given, str) else given), ""
    if bench is None:
        return (), "no other pipeline was given (--surrogate C or DEFENSE+C)"
    found, why = default_surrogate(bench.components, bench.classifier, bench.defense)
    return ((found,) if found else ()), why


def _made(kind: Any, what: Any, data: Dataset, device: torch.device) -> Any:
    check_kind(what, kind)
    found = (
        load(component(what, kind), kind, dataset_name(data), device)
        if isinstance(what, str)
        else what
    )
    if getattr(found, "seed", None) is not None:
        raise BadParameter(
            f"{type(found).__name__}: seed={found.seed} says how a purifier runs, and an audit gives each image noise of its own: leave it out"
        )
    check_final(found)
    if isinstance(what, str):
        check_trained(found, what)
        found.run_as(PRECISION, LAYOUT)
    else:
        found.move(device)
    if kind == "defense":
        check_shape(found, data, what if isinstance(what, str) else type(what).__name__)
    if kind == "classifier":
        found.check_fits(data.channels, data.size, data.classes, dataset_name(data))
    return found


def check_kind(what: Any, kind: str) -> None:
    """Is it a spec, or an object of its kind? Raises BadParameter."""
    wanted = {"defense": Purifier, "classifier": Classifier, "dataset": Dataset}[kind]
    if not isinstance(what, str | wanted):
        got = (
            f"the class {what.__name__}: give {what.__name__}()"
            if isinstance(what, type)
            else f"{type(what).__name__} {what!r}"
        )
        raise BadParameter(f"{kind}: expected a spec or a {wanted.__name__} object, got {got}")


def _rows(data: Dataset, split: str, n: int, asked: bool) -> tuple[Tensor, Tensor]:
    """The first n images; all of them, where the split has fewer and nobody asked for more."""
    if split not in AUDITED:
        raise BadParameter(
            f"split {split!r}: expected {' or '.join(AUDITED)}.{suggest_names(split, AUDITED)}"
        )
    named = cast(Split, split)
    return data.rows(named, 0, n if asked else min(n, data.count(named)))


def _eps(eps: float | str | None, data: Dataset) -> float:
    if eps is None and NORM not in data.card.claim:
        raise BadParameter(
            f"data set {type(data).__name__} has no claim eps for {NORM}: give --eps"
        )
    if isinstance(eps, str) and ("," in eps or ":" in eps):
        raise BadParameter(
            f"eps {eps}: expected one number, as 0.1 or 8/255: an audit is at one eps"
        )
    value = data.card.claim[NORM] if eps is None else one_eps(eps).value
    if value > 1:
        raise BadParameter(too_wide(str(eps)))
    if value <= 0:
        raise BadParameter(f"eps {eps}: expected a number above 0, as 0.1 or 8/255")
    return float(value)


def _twin(
    spec: str | Purifier, purifier: Purifier, data: Dataset, seed: int, device: torch.device
) -> Callable[[Tensor, Tensor, str], Tensor]:
    """What the purifier gives elsewhere for images x of these rows."""
    if isinstance(spec, str):
        return partial(purify_fresh, spec, dataset_name(data), str(device), seed)
    try:
        kept = copy.deepcopy(purifier)
    except Exception as e:  # a plugin may hold what cannot be copied
        return partial(_cannot, f"{type(purifier).__name__} cannot be copied: {e}")

    def copied(x: Tensor, rows: Tensor, fork: str) -> Tensor:
        with torch.no_grad():
            return kept.purified(x.clone(), Noise.of(seed, rows).fork(fork).draw(0))

    return copied


def _cannot(reason: str, *_: Any) -> Tensor:
    raise BadParameter(reason)


def _training(data: Dataset, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    x, y = data.rows("train", 0, min(n, data.count("train")))
    return x.to(device), y.to(device)


def _pipeline(
    surrogate: str | Pipeline, made: Callable[..., Any], scene_bare: Purifier
) -> tuple[Purifier, nn.Module]:
    if isinstance(surrogate, str):
        named = cell.Pipeline.of(surrogate)
        return scene_bare if named.defense == cell.NO_DEFENSE else made(
            "defense", named.defense
        ), made("classifier", named.classifier).network
    if isinstance(surrogate, tuple):
        return made("defense", surrogate[0]), made("classifier", surrogate[1]).network
    return scene_bare, made("classifier", surrogate).network


def _named(what: Any, kind: Any) -> str:
    if isinstance(what, str):
        return what
    fields = ",".join(
        f"{k}={v}" for k, v in what.settings.items() if isinstance(v, int | float | str | bool)
    )
    name = REGISTRY.component(kind, type(what))
    return f"{name}:{fields}" if fields else name
