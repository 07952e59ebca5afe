"""Other attacks on the same images: any that breaks significantly more than the declared gradient's best says that its gradient hides something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn

from defend.benchmarks.audit.declared import Declared
from defend.benchmarks.audit.model import LeftOut, NotTried, Rule, Seen
from defend.benchmarks.audit.rounds import Attempt, Best, contest, paired, through, to_grid, together
from defend.benchmarks.audit.scene import Scene
from defend.benchmarks.audit.spsa import spsa
from defend.benchmarks.audit.thresholds import THRESHOLDS
from defend.benchmarks.imitation import imitation, undefended
from defend.losses import excess
from defend.purifier import Backward, Purifier, identity
from defend.training.imitate import imitator
from defend.training.perturb import random_signs

_THRESHOLD = f">= {THRESHOLDS['gap'].value:g} points more, significant at {THRESHOLDS['alpha'].value:g} after Holm"
_ATHALYE = "Athalye et al., arXiv:1802.00420, section 3.1"
_CARLINI = "Carlini et al., arXiv:1902.06705, section 5"
Way = tuple[Purifier, nn.Module, Backward | None]  # a pipeline, and the gradient it is attacked through
BARE = ("pgd:steps=40", "apgd:loss=ce,steps=40")  # on another pipeline: nothing is dropped there


def rules(declared: Callable[[], Declared]) -> list[Rule]:
    def against(attempts: Callable[[Scene], Iterator[Attempt]]) -> Callable[[Scene], Seen]:
        return lambda s: contest(s, declared().best, lambda: attempts(s), spent=lambda: _queries(s, attempts))

    table = {
        "identity gradient": (
            "Does the gradient that goes straight past the purifier (BPDA) break more?", _identity, "Athalye et al., arXiv:1802.00420, section 4.1",
            "Report BPDA beside it: the declared gradient is worse than none",
        ),
        "learned gradient": (
            "Does the gradient of a network fitted to imitate the purifier break more?", _learned,
            "ours, after BPDA's stand-ins, arXiv:1802.00420, section 4.1",
            "Report the learned gradient beside it: the declared one points elsewhere",
        ),
        "finite differences": (
            "Does an attack whose gradient is measured by finite differences break more?", _spsa,
            "SPSA: Uesato et al., arXiv:1802.05666; " + _ATHALYE,
            "The declared gradient is not the slope of what is scored: mend it",
        ),
        "Square": (
            "Does a search without any gradient break more?", _square, "Andriushchenko et al., arXiv:1912.00049; " + _ATHALYE,
            "Black box beats white box: the number through the declared gradient is no robustness",
        ),
        "oblivious": (
            "Do images made against the bare classifier break more?", _oblivious, _CARLINI,
            "Who does not know the purifier breaks more than who does: mend the gradient",
        ),
        "transfer": (
            "Do images made against another pipeline break more?", _transfer, _CARLINI,
            "Report transfer from this pipeline beside it",
        ),
        "one step": ("Does a single step break more than many?", _one_step, _ATHALYE, "Iterations lead astray: the loss surface is shattered or flat"),
        "random noise": ("Does random noise break more?", _noise, _CARLINI, "Random search beats the gradient: the attack does not climb"),
    }  # fmt: skip
    made = [
        Rule(name=name, question=question, weight="attack", threshold=_THRESHOLD, source=source, advice=advice, run=against(attempts))
        for name, (question, attempts, source, advice) in table.items()
    ]
    pictures = Rule(
        name="8-bit images", question="Do the attacks' images break more once they are rounded to 8 bits?", weight="attack", threshold=_THRESHOLD,
        source="design: what is attacked is a picture of 256 levels",
        advice="The purifier treats exact numbers in another way than pictures: attack on the grid of 256 levels", run=lambda s: _pictures(s, declared().best),
    )  # fmt: skip
    rounding = Rule(
        name="8-bit drift", question="Does the declared gradient's number hold for pictures of 256 levels?", weight="sign",
        threshold=f"<= {THRESHOLDS['rounding'].value:g} point either way", source="design: rounded towards the clean image, inside the ball",
        advice="Say so beside the number, or attack on the grid of 256 levels", run=lambda s: _drift(s, declared()),
    )  # fmt: skip
    together = Rule(
        name="all together", question="Do all these attacks together, image by image, break more?", weight="attack", threshold=_THRESHOLD, source=_CARLINI,
        advice="A part of the images stands by a gradient that hides something: report the worst case of each image over all attacks",
        run=lambda s: _together(s, declared().best),
    )  # fmt: skip
    return [*made, pictures, together, rounding]


def _queries(scene: Scene, attempts: Callable[[Scene], Iterator[Attempt]]) -> str:
    """How it was run, where that needs saying: an attack without gradients has far fewer steps before a stochastic purifier, each over several draws."""
    plan = scene.plan
    if attempts is _square:
        steps, copies = _search(scene)
        return f", in {steps} steps, {steps * (2 * copies if scene.stochastic else 1)} queries an image"  # incumbent and candidate are measured anew
    if attempts is _transfer and any(len(_ways(scene, *pipeline)) > 1 for pipeline in scene.surrogates):
        return ", past a surrogate's purifier too: its own gradient is zero"
    if attempts is _spsa:
        return f", in {plan.spsa_steps} steps, {2 * plan.spsa_pairs * plan.spsa_steps} queries an image"
    return ""


def _identity(scene: Scene) -> Iterator[Attempt]:
    if scene.purifier.card.gradient == "identity":
        raise LeftOut("the declared gradient is the identity")
    return through(scene, _rival(scene), identity)


def _rival(scene: Scene) -> tuple[str, ...]:
    return f"apgd:loss=ce,steps={scene.plan.rival}", f"pgd:steps={min(40, scene.plan.rival)}"


def _learned(scene: Scene) -> Iterator[Attempt]:
    if undefended(scene.purifier):
        raise LeftOut("there is no purifier to imitate")
    if not scene.plan.images:
        raise NotTried("left out of budget=quick")
    network, scene.imitation_error = _imitation(scene)
    return through(scene, _rival(scene), network)


def _imitation(scene: Scene) -> tuple[nn.Module, float]:
    """The bench's own, so that both report the same gradient; of objects one that is fitted now."""
    if scene.bench is not None:
        found = imitation(scene.bench.parts, scene.bench.classifier, scene.bench.defense)
        return found.backward, found.error
    images, labels = scene.training(scene.plan.images)
    return imitator(scene.purifier, images, labels, scene.network, scene.seed, eps=scene.eps)


def _spsa(scene: Scene) -> Iterator[Attempt]:
    def attempt(rows: Tensor) -> Tensor:
        noise = scene.root.take(rows).fork("spsa")
        return spsa(scene.target(rows, fork="spsa"), scene.x[rows], scene.y[rows], scene.eps, noise, scene.plan.spsa_steps, scene.plan.spsa_pairs)

    yield attempt


def _square(scene: Scene) -> Iterator[Attempt]:
    steps, copies = _search(scene)
    yield lambda rows: scene.attack(f"square:queries={steps}", scene.target(rows, eot=copies), rows)


def _search(scene: Scene) -> tuple[int, int]:
    """Steps, and draws that each is measured over: the same number of queries goes into steps where noise decides nothing, lest it be drawn
    for that alone."""
    plan = scene.plan
    return (plan.queries * plan.eot, 1) if scene.steady else (plan.queries, plan.eot)


def _oblivious(scene: Scene) -> Iterator[Attempt]:
    for spec in BARE:
        yield lambda rows, s=spec: scene.attack(s, scene.elsewhere(rows, scene.bare, scene.network), rows)  # type: ignore[misc]


def _transfer(scene: Scene) -> Iterator[Attempt]:
    if not scene.surrogates:
        raise NotTried(scene.no_surrogate)
    ways = [way for pipeline in scene.surrogates for way in _ways(scene, *pipeline)]
    if not ways:
        raise NotTried("zero gradient: that of the other pipeline, and past its purifier too")
    return iter([lambda rows, s=spec, w=way: scene.attack(s, scene.elsewhere(rows, *w), rows) for way in ways for spec in BARE])


def _ways(scene: Scene, purifier: Purifier, network: nn.Module) -> list[Way]:
    """Through the surrogate's own gradient, and past its purifier where that is zero for most: a liar's copy lies too."""
    ways: list[Way] = [(purifier, network, None), (purifier, network, identity)]
    if _alive(scene, ways[0]):
        return ways[:1]
    return ways if _alive(scene, ways[1]) else []


def _alive(scene: Scene, way: Way) -> bool:
    """Has at least half of the images a gradient there?"""
    slope = scene.elsewhere(scene.some, *way).gradient(scene.points, scene.y[scene.some], excess)[0].flatten(1)
    return bool((slope.abs().amax(1) > 0).double().mean() >= 0.5)


def _one_step(scene: Scene) -> Iterator[Attempt]:
    return through(scene, ("fgsm", "pgd:steps=1,step=1"))


def _noise(scene: Scene) -> Iterator[Attempt]:
    """Corners of the ball."""

    def attempt(rows: Tensor, draw: int) -> Tensor:
        x = scene.x[rows]
        return random_signs(x, scene.eps, scene.root.take(rows).fork(f"signs {draw}"))

    for draw in range(scene.plan.noises):
        yield partial(attempt, draw=draw)


def _pictures(scene: Scene, best: Best) -> Seen:
    """The images of every declared and oblivious attack, rounded: against the same, unrounded.

    Of every attack, not the best alone: what one left standing, rounded, another may break, and the last of equals hides the others.
    """
    if 100 * best.accuracy < THRESHOLDS["gap"].value:
        return contest(scene, best, list)
    whole = best.copy()
    for attempt in _oblivious(scene):
        whole.run(attempt)
    made = [*(a.__getitem__ for a in best.made), *_oblivious(scene)]  # what is oblivious also where the declared gradient's images fell
    return contest(scene, whole, lambda: [lambda rows, a=a: to_grid(a(rows), scene.x[rows], scene.eps) for a in made], "the same, unrounded,")  # type: ignore[misc]


def _together(scene: Scene, best: Best) -> Seen:
    """Where another gradient is better on some images and worse on others, the contest of means does not see it."""
    lowest = together(best)
    gap = float((best.score - lowest).mean())
    measured = f"leave {100 * lowest.mean():.1f} %, the declared gradient's best {100 * best.accuracy:.1f} %"
    return Seen(measured=measured, value=gap, gap=gap, p=paired(scene)(lowest, best.score))


def _drift(scene: Scene, declared: Declared) -> Seen:
    best = declared.best
    moved = float(scene.score(to_grid(best.x_adv, scene.x, scene.eps)).mean()) - best.accuracy
    return Seen(measured=f"{100 * moved:+.1f} points", value=moved, ok=abs(100 * moved) <= THRESHOLDS["rounding"].value + 1e-9)
