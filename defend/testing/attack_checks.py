"""What every attack must do. Each check takes one fresh instance and asserts one thing.

Small on purpose: CPU, eight 3x8x8 images, and linear classifiers, whose worst perturbation is known in closed form.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from itertools import product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.attack import Attack
from defend.errors import BadParameter
from defend.noise import Noise
from defend.norms import norm_of, tolerance
from defend.purifier import Card, Purifier
from defend.target import Target
from defend.testing.rng import global_states
from defend.testing.runner import Check, NotApplicable

N = 8
EPS = {
    "Linf": 0.05,
    "L2": 0.4,
}  # moves the margin of every image by three standard deviations, without meeting the box
ROWS = torch.arange(N)


class Clear(Purifier):
    """x' = x."""

    card = Card(paper="none: for checks", gradient="exact", stochastic=False)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x.clone()


class Jitter(Purifier):
    """x' = x + N(0, .02^2), not clipped: for images away from black and white."""

    card = Card(paper="none: for checks", gradient="exact", stochastic=True)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x + 0.02 * noise.normal(x)


SETTINGS: tuple[tuple[type[Purifier], bool], ...] = (
    (Clear, False),
    (Clear, True),
    (Jitter, True),
)  # purifier; is it scored?


def settings_of(attack: Attack) -> tuple[tuple[type[Purifier], bool], ...]:
    """Those it takes: an attack may refuse stochastic pipelines, in one clear line."""
    one = ROWS[:1]
    try:
        attacked(
            rebuilt(attack),
            images()[:1],
            half_wrong(images()[:1]),
            target(Jitter, True, rows=one),
            rows=one,
        )
    except BadParameter:
        return SETTINGS[:2]
    return SETTINGS


def linear(classes: int = 2) -> nn.Sequential:
    """Logits W (x - 1/2): centred on the images, so that margins are of both signs."""
    layer = nn.utils.skip_init(nn.Linear, 192, classes).requires_grad_(
        False
    )  # as it is, its creation moves the global random state
    layer.weight.copy_(torch.randn(classes, 192, generator=torch.Generator().manual_seed(1)) / 2)
    layer.bias.copy_(-layer.weight.sum(1) / 2)
    return nn.Sequential(nn.Flatten(), layer)


def images() -> Tensor:
    return 0.3 + 0.4 * torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def edges() -> Tensor:
    """Black, white, checkerboard, one hot pixel, and noise from 0 to 1: where the box is active."""
    x = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(8))
    x[0], x[1], x[2], x[3] = 0, 1, 0, 0
    x[2, :, ::2, ::2] = x[3, 0, 0, 0] = 1
    return x


def predicted(x: Tensor, classes: int = 2) -> Tensor:
    return cast(Tensor, linear(classes)(x).argmax(1))


def half_wrong(x: Tensor, classes: int = 2) -> Tensor:
    """Labels of which every other one is not the predicted class."""
    return (predicted(x, classes) + torch.arange(len(x)) % 2) % classes


def target(
    purifier: type[Purifier] = Clear,
    scored: bool = False,
    model: nn.Module | None = None,
    rows: Tensor = ROWS,
) -> Target:
    return Target(
        model or linear(), purifier(), Noise.of(5, rows).fork("attack"), eot=2, scored=scored
    )


def attacked(
    attack: Attack,
    x: Tensor,
    y: Tensor,
    t: Target | None = None,
    eps: float | None = None,
    rows: Tensor = ROWS,
) -> Tensor:
    return attack.run(
        t or target(rows=rows),
        x,
        y,
        EPS[attack.norm] if eps is None else eps,
        Noise.of(6, rows).fork("start"),
    )


def rebuilt(attack: Attack, **changed: Any) -> Attack:
    return type(attack)(**{**attack.settings, **changed})


def gain(x_adv: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """By how much the other class's logit rose against that of y: (b,)."""
    difference = linear()(x_adv) - linear()(x)
    return cast(Tensor, difference[:, 1] - difference[:, 0]) * (1 - 2 * y)


def most(norm: str, eps: float) -> float:
    """The gain that no perturbation exceeds: eps times the dual norm of the difference of the rows of W."""
    w = cast(nn.Linear, linear()[1]).weight
    return eps * float((w[1] - w[0]).abs().sum() if norm == "Linf" else (w[1] - w[0]).norm())


def accuracy(x: Tensor, y: Tensor, classes: int = 2) -> float:
    return (predicted(x, classes) == y).float().mean().item()


def check_stays_in_the_ball(attack: Attack) -> None:
    for x in (images(), edges()):
        for eps in (1e-3, EPS[attack.norm], 10 * EPS[attack.norm]):
            for purifier, scored in SETTINGS[:2]:
                d = (
                    attacked(attack, x, half_wrong(x), target(purifier, scored), eps).double()
                    - x.double()
                )
                worst = norm_of(d, attack.norm).max().item()
                assert worst <= eps + tolerance(eps, attack.norm), (
                    f"left the {attack.norm} ball: eps {eps}, measured {worst:.6g}"
                )


def check_stays_in_the_box(attack: Attack) -> None:
    for eps in (EPS[attack.norm], 10 * EPS[attack.norm]):
        adv = attacked(attack, edges(), half_wrong(edges()), eps=eps)
        assert adv.isfinite().all(), "a pixel that is not finite"
        assert adv.min() >= 0 and adv.max() <= 1, (
            f"left [0, 1]: min {adv.min():.6g}, max {adv.max():.6g}"
        )


def check_eps_zero_returns_the_input(attack: Attack) -> None:
    for x in (images(), edges()):
        assert torch.equal(attacked(attack, x, half_wrong(x), eps=0.0), x), (
            "eps 0 changed the images"
        )


def check_same_seed_same_result(attack: Attack) -> None:
    x, y = images(), half_wrong(images())
    for purifier, scored in settings_of(attack):
        once, again = (attacked(attack, x, y, target(purifier, scored)) for _ in range(2))
        assert torch.equal(once, again), (
            "same seed, different result: randomness not drawn from `noise` and the target"
        )


def check_leaves_the_model_alone(attack: Attack) -> None:
    def state() -> list[Any]:
        return [
            [m.training for m in model.modules()],
            [(p.requires_grad, p.grad, p.tolist()) for p in model.parameters()],
        ]

    model = nn.Sequential(linear().requires_grad_(True), nn.Dropout(0)).train()
    before = state()
    attacked(attack, images(), half_wrong(images()), target(model=model))
    assert state() == before, (
        "changed the model's mode, its parameters, their gradients or requires_grad"
    )


def check_leaves_input_and_global_rng_alone(attack: Attack) -> None:
    x, y = images(), half_wrong(images())
    kept, before = (x.clone(), y.clone()), global_states()
    attacked(attack, x, y)
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1]), "wrote into its input"
    assert global_states() == before, (
        "moved the global random state of torch, numpy or random; draw from `noise`"
    )


def check_keeps_shape_dtype_and_order(attack: Attack) -> None:
    for n in (1, N):
        x = images()[:n] + torch.linspace(-0.2, 0.2, n).view(
            -1, 1, 1, 1
        )  # each image is nearest to its own
        adv = attacked(attack, x, half_wrong(x), rows=ROWS[:n])
        assert (adv.shape, adv.dtype, adv.device) == (x.shape, x.dtype, x.device), (
            f"{x.dtype} {tuple(x.shape)} -> {adv.dtype} {tuple(adv.shape)}"
        )
        assert torch.equal(torch.cdist(adv.flatten(1), x.flatten(1)).argmin(1), ROWS[:n]), (
            "the images came back in another order"
        )


def check_batch_mates_do_not_matter(attack: Attack) -> None:
    x, y = _per_image(attack), half_wrong(images())
    some = torch.stack([(y == label).nonzero()[-1] for label in (0, 1)])  # one image of each label
    for purifier, scored in settings_of(attack):
        alone = [
            attacked(attack, x[at], y[at], target(purifier, scored, rows=at), rows=at)
            for at in some
        ]
        together = attacked(attack, x, y, target(purifier, scored))
        assert torch.allclose(together[some.flatten()], torch.cat(alone), atol=1e-5), (
            "an image's result, or its noise, depends on its batch mates"
        )


def check_order_does_not_matter(attack: Attack) -> None:
    x, y, other = _per_image(attack), half_wrong(images()), ROWS.flip(0).roll(5)
    for purifier, scored in settings_of(attack):
        moved = attacked(
            attack, x[other], y[other], target(purifier, scored, rows=other), rows=other
        )
        assert torch.allclose(
            attacked(attack, x, y, target(purifier, scored))[other], moved, atol=1e-5
        ), "permuting the batch changed more than the order"


def _per_image(attack: Attack) -> Tensor:
    if not attack.card.per_image:
        raise NotApplicable("its card says that it draws by row and call, not by image")
    return images()


def check_breaks_an_undefended_classifier(attack: Attack) -> None:
    x, y = images(), predicted(images())
    for scored in (False, True):
        left = accuracy(attacked(attack, x, y, target(scored=scored)), y)
        assert left <= 0.7, (
            f"{left:.0%} of the images of a linear classifier are left right, at an eps that could break all"
        )


def check_more_eps_never_helps_the_defender(attack: Attack) -> None:
    x, y = images(), predicted(images())
    left = [
        accuracy(attacked(attack, x, y, eps=EPS[attack.norm] * share), y) for share in (0.1, 0.4, 1)
    ]
    slack = (
        0.0 if attack.card.access == "gradient" else 1.5 / N
    )  # a random search may lose an image
    assert left[0] + slack >= left[1] and left[1] + slack >= left[2], (
        f"accuracy rose with eps: {left}"
    )


def check_more_steps_never_help_the_defender(attack: Attack) -> None:
    """Beyond noise: a tenth of the loss."""
    counter = next(
        (name for name in ("steps", "max_iter", "queries") if name in attack.fields()), None
    )
    if counter is None:
        raise NotApplicable("it has no steps, max_iter or queries")
    x, y = images(), predicted(images())
    few, many = (
        F.cross_entropy(linear()(attacked(rebuilt(attack, **{counter: n}), x, y)), y).item()
        for n in (3, 12)
    )
    assert many >= 0.9 * few, (
        f"{counter}=12 reaches a loss of {many:.3f}, {counter}=3 one of {few:.3f}"
    )


def check_large_eps_drives_accuracy_to_chance(attack: Attack) -> None:
    x, y = images(), predicted(images())
    left = accuracy(attacked(attack, x, y, eps=1.0 if attack.norm == "Linf" else 14.0), y)
    assert left <= 0.5, f"{left:.0%} right at an eps that allows any image: chance is 50 %"


def check_moves_away_from_the_label(attack: Attack) -> None:
    """Three classes. Not towards it, as if it were a target; and from the label given, not from the predicted class."""
    x, model = images(), linear(3)
    y = predicted(x, 3) if attack.card.access == "labels" else half_wrong(x, 3)
    before, after = (
        F.cross_entropy(model(z), y, reduction="none")
        for z in (x, attacked(attack, x, y, target(model=model)))
    )
    rose = (after > before).float().mean().item()
    assert rose >= (1 if attack.card.access == "gradient" else 0.7), (
        f"the loss of the given label rose for {rose:.0%} of the images only"
    )


def check_targeted_mode_hits_the_target(attack: Attack) -> None:
    if "targeted" not in attack.fields():
        raise NotApplicable("it has no targeted mode")
    x, wanted = images(), (predicted(images(), 3) + 1) % 3
    hit = accuracy(
        attacked(rebuilt(attack, targeted=True), x, wanted, target(model=linear(3))), wanted, 3
    )
    assert hit > 0.5, (
        f"targeted=True reaches the target class for {hit:.0%} of the images: chance is 33 %"
    )


def check_every_image_is_attacked_to_the_end(attack: Attack) -> None:
    """Where the target may not drop images, wrong ones too reach the optimum of a linear classifier.

    An attack that leaves an image alone once it is wrong stops on the bare classifier's boundary, where any blur cures the image.
    """
    if attack.card.access == "labels":
        raise NotApplicable("it sees labels alone and ends on a boundary by design")
    x, y = images(), half_wrong(images())
    for (purifier, scored), eps in product(
        [s for s in settings_of(attack) if s != SETTINGS[1]],
        (EPS[attack.norm] / 10, EPS[attack.norm]),
    ):
        assert not target(purifier, scored).may_drop, "the check itself is wrong"
        reached = gain(attacked(attack, x, y, target(purifier, scored), eps), x, y) / most(
            attack.norm, eps
        )
        right, wrong = reached[::2], reached[1::2]
        if attack.card.access == "gradient":
            assert reached.min() > 0.95, (
                f"an image went {reached.min():.0%} of the way to the optimum (worst wrong one {wrong.min():.0%}): was it dropped?"
            )
        lost = (
            purifier is Jitter and right.mean() < 0.2
        )  # a search without gradients has nothing to tell apart in the noise
        seen = f"wrong images go {wrong.mean():.0%} of the way to the optimum, right ones {right.mean():.0%}"
        assert lost or wrong.mean() > 0.5 * right.mean(), f"{seen}: dropped"


def check_never_returns_the_clean_image(attack: Attack) -> None:
    """At an eps that breaks next to nothing: what is scored may be another pipeline than the target."""
    x, y, eps = images(), predicted(images()), EPS[attack.norm] / 50
    for scored in (False, True):
        still = (
            (attacked(attack, x, y, target(scored=scored), eps) == x).flatten(1).all(1).sum().item()
        )
        assert still == 0, f"gave {still} of {N} clean images back where it failed"


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = linear(), {"forwards": 0, "backwards": 0}

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        self.seen["forwards"] += len(x)
        if z.requires_grad:
            z.register_hook(lambda g: self.seen.update(backwards=self.seen["backwards"] + len(g)))
        return z


def check_counts_are_what_the_model_saw(attack: Attack) -> None:
    for purifier, scored in settings_of(attack):
        model = _Counting()
        t = target(purifier, scored, model)
        attacked(attack, images(), half_wrong(images()), t)
        assert t.counts == model.seen, (
            f"counted {t.counts}, the model saw {model.seen}: ask the target, not its parts"
        )
        assert model.seen["forwards"] > 0, "never looked at the model"


def check_a_sweep_gives_what_each_eps_gives_alone(attack: Attack) -> None:
    x, y, some = (
        images(),
        half_wrong(images()),
        [EPS[attack.norm] * share for share in (0.3, 1, 0.6)],
    )
    for purifier, scored in settings_of(attack):
        t = target(purifier, scored)
        swept = [
            (adv.clone(), dict(t.counts))
            for adv in attack.sweep(t, x, y, some, Noise.of(6, ROWS).fork("start"))
        ]
        assert len(swept) == len(some), f"{len(swept)} results for {len(some)} eps"
        for eps, (adv, counts) in zip(some, swept, strict=True):
            t = target(purifier, scored)
            assert torch.equal(adv, attacked(attack, x, y, t, eps)), (
                f"eps {eps:.3g} in a sweep is not eps {eps:.3g} alone"
            )
            assert counts == t.counts, (
                f"eps {eps:.3g}: counts {counts} in a sweep, {t.counts} alone"
            )


class _Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise AssertionError("took a gradient; its card says that it needs none")


class _Veiled(nn.Module):
    """No gradient; and, where `hard`, the predicted class alone."""

    def __init__(self, hard: bool) -> None:
        super().__init__()
        self.net, self.hard = linear(), hard

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        z = 9.0 * F.one_hot(z.argmax(1), 2) if self.hard else z
        return cast(Tensor, _Opaque.apply(z))  # type: ignore[no-untyped-call]


def check_needs_no_more_than_its_access(attack: Attack) -> None:
    if attack.card.access == "gradient":
        raise NotApplicable("its access is gradient")
    x, y = images(), predicted(images())
    adv = attacked(
        attack, x, y, target(model=_Veiled(hard=False))
    )  # raises where a gradient is taken
    if attack.card.access == "labels":
        assert torch.equal(adv, attacked(attack, x, y, target(model=_Veiled(hard=True)))), (
            "its card says labels; the scores change its result"
        )


def check_settings_rebuild_it(attack: Attack) -> None:
    again, x, y = rebuilt(attack), images(), half_wrong(images())
    assert again.settings == attack.settings and torch.equal(
        attacked(again, x, y), attacked(attack, x, y)
    ), "type(a)(**a.settings) is not a"


def check_settings_are_json(attack: Attack) -> None:
    assert json.loads(json.dumps(attack.settings)) == attack.settings, (
        "settings must survive JSON: they go into the benchmark record"
    )


def check_fields_are_keyword_only_and_without_eps(attack: Attack) -> None:
    by_place = [
        p.name
        for p in inspect.signature(type(attack)).parameters.values()
        if p.kind is not p.KEYWORD_ONLY
    ]
    assert not by_place, f"fields that can be given by place: {by_place}"
    assert "eps" not in attack.fields(), "eps is no field: it comes with each call"


def check_refuses_an_unknown_norm(attack: Attack) -> None:
    assert set(attack.card.norms) <= set(EPS), (
        f"the card names the norms {attack.card.norms}, known are {', '.join(EPS)}"
    )
    try:
        rebuilt(attack, norm="L7")
    except ValueError as e:
        seen = str(e)
    else:
        seen = "nothing raised"
    assert "norm" in seen, f"norm='L7' should be refused, naming the field: {seen}"


def check_card_names_a_source(attack: Attack) -> None:
    ok = attack.card.paper.startswith(("arXiv:", "doi:", "none: "))
    assert ok and (type(attack).__doc__ or "").strip(), (
        "card.paper must be arXiv:, doi: or 'none: why', and the class needs a docstring"
    )


def attack_checks() -> Iterator[Check]:
    for name, value in list(globals().items()):
        if name.startswith("check_"):
            yield value
