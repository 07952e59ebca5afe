"""From what the caller names to the context of an audit."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from defend import __version__
from defend.auditing.budget import Budget, budget_for
from defend.auditing.context import NORM, BenchPipeline, Context, FreshPurifier, Surrogate
from defend.auditing.inputs import ComponentLoader, check_kind, describe, load_rows, parse_eps
from defend.auditing.subprocess_check import purify_in_subprocess
from defend.auditing.verdict import Subject
from defend.benchmarks.components import Components
from defend.benchmarks.surrogates import default_surrogate
from defend.classifier import Classifier
from defend.dataset import Dataset
from defend.errors import BadParameter
from defend.loading import dataset_name, load, pick_device
from defend.noise import Noise
from defend.purifier import Purifier
from defend.threat_models import NO_DEFENSE, Pipeline
from defend.training.data import choose_fitting_split

SurrogateInput = str | Classifier | tuple[Purifier, Classifier]  # "C", "DEFENSE+C", or objects
MAX_SEED = 2**64


@dataclass(frozen=True)
class AuditRequest:
    """The arguments of `defend.audit`."""

    spec: str | Purifier
    dataset: str | Dataset
    classifier: str | Classifier
    budget: str = "standard"
    n: int | None = None
    split: str = "test"
    eps: float | str | None = None
    surrogates: Sequence[SurrogateInput] = ()
    seed: int = 0
    device: str = "auto"
    data_root: str | None = None


def prepare(request: AuditRequest) -> tuple[Context, Subject]:
    """Return the context of the audit, and its description for the report.

    Raises DefendError for what the caller can correct.
    """
    check_kind(request.dataset, "dataset")
    if not 0 <= request.seed < MAX_SEED:
        raise BadParameter(f"seed {request.seed}: expected a whole number >= 0")
    device = pick_device(request.device)
    components, data = _load_data(request, device)
    loader = ComponentLoader(data, device)
    purifier = loader.defense(request.spec)
    classifier = loader.classifier(request.classifier)
    pipeline = _bench_pipeline(request, components)
    surrogates, no_surrogate_reason = _choose_surrogates(request, pipeline)
    budget = budget_for(request.budget, purifier.card.stochastic, request.n)
    _check_cache(pipeline, budget, purifier)
    context = _make_context(request, loader, purifier, classifier.network, budget)
    context.surrogates = [_load_surrogate(s, loader, context.no_defense) for s in surrogates]
    context.no_surrogate_reason = no_surrogate_reason
    context.bench_pipeline = pipeline
    return context, _describe_subject(request, context, classifier, surrogates)


def _make_context(
    request: AuditRequest,
    loader: ComponentLoader,
    purifier: Purifier,
    network: nn.Module,
    budget: Budget,
) -> Context:
    """Return the context, still without surrogates."""
    data, device = loader.data, loader.device
    x, y = load_rows(data, request.split, budget.n, request.n is not None)
    return Context(
        purifier=purifier,
        network=network,
        no_defense=load(NO_DEFENSE, device=device),
        x=x.to(device),
        y=y.to(device),
        noise=Noise.of(request.seed, torch.arange(len(x), device=device)),
        eps=parse_eps(request.eps, data),
        classes=data.classes,
        budget=budget,
        seed=request.seed,
        fresh=_fresh_purifier(request, purifier, data, device),
        training_images=partial(_load_training_images, data, device),
    )


def _load_data(request: AuditRequest, device: torch.device) -> tuple[Components | None, Dataset]:
    """Return the data set, with the bench's components for it if a spec names it."""
    if isinstance(request.dataset, Dataset):
        return None, request.dataset
    components = Components(request.dataset, request.data_root, device)
    return components, components.data


def _bench_pipeline(request: AuditRequest, components: Components | None) -> BenchPipeline | None:
    """Return the pipeline as the bench loads it, or None if some of it is an object."""
    if components is None:
        return None
    if not isinstance(request.spec, str) or not isinstance(request.classifier, str):
        return None
    return BenchPipeline(components, request.classifier, request.spec)


def _choose_surrogates(
    request: AuditRequest, pipeline: BenchPipeline | None
) -> tuple[Sequence[SurrogateInput], str]:
    """Return the pipelines to transfer from, and the reason if there is none.

    They are the caller's (a single one needs no list), or else the bench's default.
    """
    surrogates = request.surrogates
    if isinstance(surrogates, str):
        surrogates = (surrogates,)
    if surrogates:
        return surrogates, ""
    if pipeline is None:
        return (), "no other pipeline was given (--surrogate C or DEFENSE+C)"
    default = default_surrogate(pipeline.components, pipeline.classifier, pipeline.defense)
    return default.specs, default.note


def _check_cache(pipeline: BenchPipeline | None, budget: Budget, purifier: Purifier) -> None:
    """Raise BadParameter if a network is to be fitted and could not be kept."""
    if pipeline is not None and budget.fits_network(purifier):
        pipeline.components.bpda.check_cache(pipeline.classifier, pipeline.defense)


def _fresh_purifier(
    request: AuditRequest, purifier: Purifier, data: Dataset, device: torch.device
) -> FreshPurifier:
    """Return a purifier that sees nothing of the audit: in another process, or a copy."""
    if isinstance(request.spec, str):
        return FreshPurifier(
            partial(
                purify_in_subprocess, request.spec, dataset_name(data), str(device), request.seed
            ),
            "a fresh process",
        )
    description = "a copy made before the audit (a spec is loaded in a fresh process)"
    try:
        fresh_copy = copy.deepcopy(purifier)
    except Exception as e:  # a plugin may hold what cannot be copied
        reason = f"{type(purifier).__name__} cannot be copied: {e}"
        return FreshPurifier(partial(_raise_not_copied, reason), description)
    return FreshPurifier(partial(_purify_with_copy, fresh_copy, request.seed), description)


def _purify_with_copy(
    fresh_copy: Purifier, seed: int, x: Tensor, rows: Tensor, stream: str
) -> Tensor:
    with torch.no_grad():
        return fresh_copy.purified(x.clone(), Noise.of(seed, rows).fork(stream).draw(0))


def _raise_not_copied(reason: str, *_: Any) -> Tensor:
    raise BadParameter(reason)


def _load_training_images(data: Dataset, device: torch.device, n: int) -> tuple[Tensor, Tensor]:
    split = choose_fitting_split(data)
    x, y = data.rows(split, 0, min(n, data.count(split)))
    return x.to(device), y.to(device)


def _load_surrogate(
    surrogate: SurrogateInput, loader: ComponentLoader, no_defense: Purifier
) -> Surrogate:
    if isinstance(surrogate, tuple):
        defense, classifier = surrogate
        return Surrogate(loader.defense(defense), loader.classifier(classifier).network)
    if not isinstance(surrogate, str):
        return Surrogate(no_defense, loader.classifier(surrogate).network)
    pipeline = Pipeline.parse(surrogate)
    purifier = no_defense
    if pipeline.defense != NO_DEFENSE:
        purifier = loader.defense(pipeline.defense)
    return Surrogate(purifier, loader.classifier(pipeline.classifier).network)


def _describe_subject(
    request: AuditRequest,
    context: Context,
    classifier: Classifier,
    surrogates: Sequence[SurrogateInput],
) -> Subject:
    purifier, budget = context.purifier, context.budget
    return Subject(
        defense=describe(request.spec, "defense"),
        dataset=describe(request.dataset, "dataset"),
        classifier=describe(request.classifier, "classifier"),
        surrogates=[_describe_surrogate(s) for s in surrogates],
        split=request.split,
        n=len(context.x),
        norm=NORM,
        eps=context.eps,
        budget=request.budget,
        seed=request.seed,
        device=str(context.x.device),
        stochastic=context.stochastic,
        declared_gradient=purifier.card.gradient,
        eot=budget.eot,
        draws=budget.score_draws,
        trained_on=purifier.trained_on,
        classifier_trained_on=classifier.trained_on,
        versions={"defend": __version__, "torch": str(torch.__version__)},
    )


def _describe_surrogate(surrogate: SurrogateInput) -> str:
    return surrogate if isinstance(surrogate, str) else repr(type(surrogate).__name__)
