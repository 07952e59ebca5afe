"""Other attacks on the same images: any that breaks significantly more than the declared gradient's best says that its gradient hides something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn

from defend.audit.comparison import Attempt, Best, contest, paired, through, to_grid, together
from defend.audit.context import Context
from defend.audit.declared import Declared
from defend.audit.spsa import spsa
from defend.audit.thresholds import THRESHOLDS
from defend.audit.verdict import Check, CheckResult, NotApplicable, NotTried
from defend.benchmarks.bpda_network import bpda_network, is_undefended
from defend.losses import excess
from defend.purifier import Backward, Purifier, identity
from defend.training.bpda_network import fit_bpda_network
from defend.training.perturbations import random_signs

_THRESHOLD = f">= {THRESHOLDS['gap'].value:g} points more, significant at {THRESHOLDS['alpha'].value:g} after Holm"
_ATHALYE = "Athalye et al., arXiv:1802.00420, section 3.1"
_CARLINI = "Carlini et al., arXiv:1902.06705, section 5"
Way = tuple[
    Purifier, nn.Module, Backward | None
]  # a pipeline, and the gradient it is attacked through
BARE = ("pgd:steps=40", "apgd:loss=ce,steps=40")  # on another pipeline: nothing is dropped there


def checks(declared: Callable[[], Declared]) -> list[Check]:
    def against(
        attempts: Callable[[Context], Iterator[Attempt]],
    ) -> Callable[[Context], CheckResult]:
        return lambda s: contest(
            s, declared().best, lambda: attempts(s), spent=lambda: _queries(s, attempts)
        )

    table = {
        "identity gradient": (
            "Does the gradient that goes straight past the purifier (BPDA) break more?",
            _identity,
            "Athalye et al., arXiv:1802.00420, section 4.1",
            "Report BPDA beside it: the declared gradient is worse than none",
        ),
        "learned gradient": (
            "Does the gradient of a network fitted to imitate the purifier break more?",
            _learned,
            "ours, after BPDA's stand-ins, arXiv:1802.00420, section 4.1",
            "Report the learned gradient beside it: the declared one points elsewhere",
        ),
        "finite differences": (
            "Does an attack whose gradient is measured by finite differences break more?",
            _spsa,
            "SPSA: Uesato et al., arXiv:1802.05666; " + _ATHALYE,
            "The declared gradient is not the slope of what is scored: mend it",
        ),
        "Square": (
            "Does a search without any gradient break more?",
            _square,
            "Andriushchenko et al., arXiv:1912.00049; " + _ATHALYE,
            "Black box beats white box: the number through the declared gradient is no robustness",
        ),
        "oblivious": (
            "Do images made against the bare classifier break more?",
            _oblivious,
            _CARLINI,
            "Who does not know the purifier breaks more than who does: mend the gradient",
        ),
        "transfer": (
            "Do images made against another pipeline break more?",
            _transfer,
            _CARLINI,
            "Report transfer from this pipeline beside it",
        ),
        "one step": (
            "Does a single step break more than many?",
            _one_step,
            _ATHALYE,
            "Iterations lead astray: the loss surface is shattered or flat",
        ),
        "random noise": (
            "Does random noise break more?",
            _noise,
            _CARLINI,
            "Random search beats the gradient: the attack does not climb",
        ),
    }
    made = [
        Check(
            name=name,
            question=question,
            weight="attack",
            threshold=_THRESHOLD,
            source=source,
            advice=advice,
            run=against(attempts),
        )
        for name, (question, attempts, source, advice) in table.items()
    ]
    pictures = Check(
        name="8-bit images",
        question="Do the attacks' images break more once they are rounded to 8 bits?",
        weight="attack",
        threshold=_THRESHOLD,
        source="design: what is attacked is a picture of 256 levels",
        advice="The purifier treats exact numbers in another way than pictures: attack on the grid of 256 levels",
        run=lambda s: _pictures(s, declared().best),
    )
    rounding = Check(
        name="8-bit drift",
        question="Does the declared gradient's number hold for pictures of 256 levels?",
        weight="sign",
        threshold=f"<= {THRESHOLDS['rounding'].value:g} point either way",
        source="design: rounded towards the clean image, inside the ball",
        advice="Say so beside the number, or attack on the grid of 256 levels",
        run=lambda s: _drift(s, declared()),
    )
    together = Check(
        name="all together",
        question="Do all these attacks together, image by image, break more?",
        weight="attack",
        threshold=_THRESHOLD,
        source=_CARLINI,
        advice="A part of the images stands by a gradient that hides something: report the worst case of each image over all attacks",
        run=lambda s: _together(s, declared().best),
    )
    return [*made, pictures, together, rounding]


def _queries(context: Context, attempts: Callable[[Context], Iterator[Attempt]]) -> str:
    """How it was run, where that needs saying: an attack without gradients has far fewer steps before a stochastic purifier, each over several draws."""
    plan = context.budget
    if attempts is _square:
        steps, copies = _search(context)
        return f", in {steps} steps, {steps * (2 * copies if context.stochastic else 1)} queries an image"  # incumbent and candidate are measured anew
    if attempts is _transfer and any(
        len(_ways(context, *pipeline)) > 1 for pipeline in context.surrogates
    ):
        return ", past a surrogate's purifier too: its own gradient is zero"
    if attempts is _spsa:
        return f", in {plan.spsa_steps} steps, {2 * plan.spsa_pairs * plan.spsa_steps} queries an image"
    return ""


def _identity(context: Context) -> Iterator[Attempt]:
    if context.purifier.card.gradient == "identity":
        raise NotApplicable("the declared gradient is the identity")
    return through(context, _rival(context), identity)


def _rival(context: Context) -> tuple[str, ...]:
    return f"apgd:loss=ce,steps={context.plan.rival}", f"pgd:steps={min(40, context.plan.rival)}"


def _learned(context: Context) -> Iterator[Attempt]:
    if is_undefended(context.purifier):
        raise NotApplicable("there is no purifier to imitate")
    if not context.budget.images:
        raise NotTried("left out of budget=quick")
    network, context.imitation_error = _imitation(context)
    return through(context, _rival(context), network)


def _imitation(context: Context) -> tuple[nn.Module, float]:
    """The bench's own, so that both report the same gradient; of objects one that is fitted now."""
    if context.bench is not None:
        found = bpda_network(
            context.bench.components, context.bench.classifier, context.bench.defense
        )
        return found.backward, found.error
    images, labels = context.training(context.budget.images)
    return fit_bpda_network(
        context.purifier, images, labels, context.network, context.seed, eps=context.eps
    )


def _spsa(context: Context) -> Iterator[Attempt]:
    def attempt(rows: Tensor) -> Tensor:
        noise = context.root.take(rows).fork("spsa")
        return spsa(
            context.target(rows, fork="spsa"),
            context.x[rows],
            context.y[rows],
            context.eps,
            noise,
            context.budget.spsa_steps,
            context.budget.spsa_pairs,
        )

    yield attempt


def _square(context: Context) -> Iterator[Attempt]:
    steps, copies = _search(context)
    yield lambda rows: context.attack(
        f"square:queries={steps}", context.target(rows, eot=copies), rows
    )


def _search(context: Context) -> tuple[int, int]:
    """Steps, and draws that each is measured over: the same number of queries goes into steps where noise decides nothing, lest it be drawn
    for that alone."""
    plan = context.budget
    return (plan.queries * plan.eot, 1) if context.steady else (plan.queries, plan.eot)


def _oblivious(context: Context) -> Iterator[Attempt]:
    for spec in BARE:
        yield lambda rows, s=spec: context.attack(
            s, context.elsewhere(rows, context.bare, context.network), rows
        )  # type: ignore[misc]


def _transfer(context: Context) -> Iterator[Attempt]:
    if not context.surrogates:
        raise NotTried(context.no_surrogate)
    ways = [way for pipeline in context.surrogates for way in _ways(context, *pipeline)]
    if not ways:
        raise NotTried("zero gradient: that of the other pipeline, and past its purifier too")
    return iter(
        [
            lambda rows, s=spec, w=way: context.attack(s, context.elsewhere(rows, *w), rows)
            for way in ways
            for spec in BARE
        ]
    )


def _ways(context: Context, purifier: Purifier, network: nn.Module) -> list[Way]:
    """Through the surrogate's own gradient, and past its purifier where that is zero for most: a liar's copy lies too."""
    ways: list[Way] = [(purifier, network, None), (purifier, network, identity)]
    if _alive(context, ways[0]):
        return ways[:1]
    return ways if _alive(context, ways[1]) else []


def _alive(context: Context, way: Way) -> bool:
    """Has at least half of the images a gradient there?"""
    slope = (
        context.elsewhere(context.some, *way)
        .gradient(context.points, context.y[context.some], excess)[0]
        .flatten(1)
    )
    return bool((slope.abs().amax(1) > 0).double().mean() >= 0.5)


def _one_step(context: Context) -> Iterator[Attempt]:
    return through(context, ("fgsm", "pgd:steps=1,step=1"))


def _noise(context: Context) -> Iterator[Attempt]:
    """Corners of the ball."""

    def attempt(rows: Tensor, draw: int) -> Tensor:
        x = context.x[rows]
        return random_signs(x, context.eps, context.root.take(rows).fork(f"signs {draw}"))

    for draw in range(context.budget.noises):
        yield partial(attempt, draw=draw)


def _pictures(context: Context, best: Best) -> CheckResult:
    """The images of every declared and oblivious attack, rounded: against the same, unrounded.

    Of every attack, not the best alone: what one left standing, rounded, another may break, and the last of equals hides the others.
    """
    if 100 * best.accuracy < THRESHOLDS["gap"].value:
        return contest(context, best, list)
    whole = best.copy()
    for attempt in _oblivious(context):
        whole.run(attempt)
    made = [
        *(a.__getitem__ for a in best.made),
        *_oblivious(context),
    ]  # what is oblivious also where the declared gradient's images fell
    return contest(
        context,
        whole,
        lambda: [lambda rows, a=a: to_grid(a(rows), context.x[rows], context.eps) for a in made],
        "the same, unrounded,",
    )  # type: ignore[misc]


def _together(context: Context, best: Best) -> CheckResult:
    """Where another gradient is better on some images and worse on others, the contest of means does not see it."""
    lowest = together(best)
    gap = float((best.score - lowest).mean())
    measured = f"leave {100 * lowest.mean():.1f} %, the declared gradient's best {100 * best.accuracy:.1f} %"
    return CheckResult(measured=measured, value=gap, gap=gap, p=paired(context)(lowest, best.score))


def _drift(context: Context, declared: Declared) -> CheckResult:
    best = declared.best
    moved = float(context.score(to_grid(best.x_adv, context.x, context.eps)).mean()) - best.accuracy
    return CheckResult(
        measured=f"{100 * moved:+.1f} points",
        value=moved,
        ok=abs(100 * moved) <= THRESHOLDS["rounding"].value + 1e-9,
    )
