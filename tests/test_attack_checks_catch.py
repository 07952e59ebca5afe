"""Every attack check has an attack that breaks it: a check nothing can fail is not a check."""

# ruff: noqa: ARG001, ARG005 (breakers have the signature of what they break)

import pytest
import torch

from defend.attack import Attack, AttackCard
from defend.attacks.pgd import PGD
from defend.losses import cross_entropy
from defend.norms import project, random_start
from defend.testing import attack_checks as ac

GRADIENT, SCORES, LABELS = (
    AttackCard(paper="arXiv:0000.00000", access=access)
    for access in ("gradient", "scores", "labels")
)


def make(run, card=GRADIENT, **extra):
    return type("Bad", (Attack,), {"__doc__": "bad", "card": card, "run": run, **extra})()


def climb(target, x, y, eps, start=None):
    """One honest step of the fast gradient sign method."""
    return project(
        x + eps * target.gradient(x if start is None else start, y, cross_entropy)[0].sign(),
        x,
        eps,
        "Linf",
    )


def fast(transform):
    return lambda self, target, x, y, eps, noise: transform(
        climb(target, x, y, eps), x, y, eps, target, noise
    )


def drops_what_is_wrong(self, target, x, y, eps, noise):
    """A stranger's PGD that saves time, whatever target.may_drop says."""
    adv = random_start(x, eps, "Linf", noise)
    for _ in range(20):
        g, _, logits = target.gradient(adv, y, cross_entropy)
        standing = (logits.argmax(1) == y).view(-1, 1, 1, 1)
        adv = torch.where(standing, project(adv + eps / 8 * g.sign(), x, eps, "Linf"), adv)
    return adv


def clean_where_it_failed(adv, x, y, eps, target, noise):
    return torch.where((target.logits(adv).argmax(1) == y).view(-1, 1, 1, 1), x, adv)


def eval_mode(adv, x, y, eps, target, noise):
    target.classifier.eval()
    return adv


def leaves_gradients(adv, x, y, eps, target, noise):
    target.classifier(x.clone().requires_grad_()).sum().backward()
    return adv


def moves_the_input(self, target, x, y, eps, noise):
    return x.add_(eps).clamp_(0, 1)


def seeds_torch(adv, x, y, eps, target, noise):
    torch.manual_seed(0)
    return adv


def with_company(self, target, x, y, eps, noise):
    return project(
        x + eps * target.gradient(x, y, cross_entropy)[0].mean(0, keepdim=True).sign(),
        x,
        eps,
        "Linf",
    )


def by_place(adv, x, y, eps, target, noise):
    return x + (adv - x) * torch.linspace(0, 1, len(x)).view(-1, 1, 1, 1)


def steps_backwards(self, target, x, y, eps, noise):
    return climb(target, x, y, eps if self.steps < 6 else eps / 100)


def from_the_prediction(self, target, x, y, eps, noise):
    return climb(target, x, target.logits(x).argmax(1), eps)


def behind_the_targets_back(adv, x, y, eps, target, noise):
    target.classifier(x)
    return adv


def goes_on_from_the_last_eps(self, target, x, y, epsilons, noise):
    noise = noise.fork("start")
    for eps in epsilons:
        yield random_start(x, eps, "Linf", noise)


def counts_on(self, target, x, y, epsilons, noise):
    target = target.again()
    for eps in epsilons:
        yield climb(target, x, y, eps)


def looks_at_scores(self, target, x, y, eps, noise):
    return (x + eps * target.logits(x).abs().clamp(max=1)[:, :1, None, None]).clamp(0, 1)


def tuned_after_birth():
    attack = make(
        lambda self, target, x, y, eps, noise: climb(
            target, x, y, eps * self.__dict__.get("share", 1.0)
        )
    )
    attack.share = 0.5  # not a field, so `settings` cannot carry it
    return attack


def by_position():
    def __init__(self, norm=""):
        self.norm = "Linf"

    return make(fast(lambda adv, *_: adv), __init__=__init__)


HONEST = fast(lambda adv, *_: adv)
BROKEN = {
    "check_stays_in_the_ball": [
        lambda: make(fast(lambda adv, x, y, eps, *_: x + 1.01 * (adv - x)))
    ],
    "check_stays_in_the_box": [
        lambda: make(lambda s, target, x, y, eps, noise: x + eps),
        lambda: make(fast(lambda adv, *_: adv * float("nan"))),
    ],
    "check_eps_zero_returns_the_input": [
        lambda: make(lambda s, target, x, y, eps, noise: (x + 1e-4).clamp(0, 1))
    ],
    "check_same_seed_same_result": [
        lambda: make(lambda s, target, x, y, eps, noise: x + eps * torch.rand_like(x))
    ],
    "check_leaves_the_model_alone": [
        lambda: make(fast(eval_mode)),
        lambda: make(fast(leaves_gradients)),
    ],
    "check_leaves_input_and_global_rng_alone": [
        lambda: make(moves_the_input),
        lambda: make(fast(seeds_torch)),
    ],
    "check_keeps_shape_dtype_and_order": [
        lambda: make(fast(lambda adv, *_: adv.flip(0))),
        lambda: make(fast(lambda adv, *_: adv.double())),
    ],
    "check_batch_mates_do_not_matter": [lambda: make(with_company)],
    "check_order_does_not_matter": [lambda: make(fast(by_place))],
    "check_breaks_an_undefended_classifier": [
        lambda: make(lambda s, target, x, y, eps, noise: random_start(x, eps, "Linf", noise))
    ],
    "check_more_eps_never_helps_the_defender": [
        lambda: make(
            lambda s, target, x, y, eps, noise: climb(target, x, y, eps if eps < 0.03 else 1e-3)
        )
    ],
    "check_more_steps_never_help_the_defender": [
        lambda: make(steps_backwards, steps=10, __annotations__={"steps": int})
    ],
    "check_large_eps_drives_accuracy_to_chance": [
        lambda: make(
            lambda s, target, x, y, eps, noise: climb(target, x, y, eps if eps < 0.5 else 1e-3)
        )
    ],
    "check_moves_away_from_the_label": [
        lambda: make(from_the_prediction),
        lambda: make(fast(lambda adv, x, *_: 2 * x - adv)),  # towards it
    ],
    "check_targeted_mode_hits_the_target": [
        lambda: make(HONEST, targeted=False, __annotations__={"targeted": bool})
    ],
    "check_every_image_is_attacked_to_the_end": [
        lambda: make(drops_what_is_wrong),
        lambda: make(fast(clean_where_it_failed)),
        lambda: make(drops_what_is_wrong, SCORES),
    ],
    "check_never_returns_the_clean_image": [lambda: make(fast(clean_where_it_failed))],
    "check_counts_are_what_the_model_saw": [
        lambda: make(fast(behind_the_targets_back)),
        lambda: make(lambda s, target, x, y, eps, noise: x),
    ],
    "check_a_sweep_gives_what_each_eps_gives_alone": [
        lambda: make(HONEST, sweep=goes_on_from_the_last_eps),
        lambda: make(HONEST, sweep=counts_on),
        lambda: make(HONEST, sweep=lambda self, target, x, y, epsilons, noise: iter(())),
    ],
    "check_needs_no_more_than_its_access": [
        lambda: make(HONEST, SCORES),
        lambda: make(looks_at_scores, LABELS),
    ],
    "check_settings_rebuild_it": [tuned_after_birth],
    "check_settings_are_json": [
        lambda: make(HONEST, shape=(1, 2), __annotations__={"shape": tuple})
    ],
    "check_fields_are_keyword_only_and_without_eps": [
        by_position,
        lambda: make(HONEST, eps=0.1, __annotations__={"eps": float}),
    ],
    "check_refuses_an_unknown_norm": [lambda: make(HONEST, __post_init__=lambda self: None)],
    "check_card_names_a_source": [
        lambda: make(HONEST, AttackCard(paper="trust me", access="gradient"))
    ],
}


def test_every_check_has_a_breaker():
    assert {c.__name__ for c in ac.attack_checks()} == set(BROKEN)


@pytest.mark.parametrize(
    ("name", "broken"),
    [pytest.param(n, b, id=f"{n}-{i}") for n, each in BROKEN.items() for i, b in enumerate(each)],
)
def test_check_catches(name, broken):
    with pytest.raises(AssertionError):
        getattr(ac, name)(broken())


@pytest.mark.parametrize("check", list(ac.attack_checks()), ids=lambda c: c.__name__)
def test_an_honest_attack_passes_the_checks_that_its_breakers_fail(check):
    """The breakers fail for what they break, not for what they share."""
    try:
        check(PGD(steps=10))
    except ac.NotApplicable as e:
        pytest.skip(str(e))
