"""Each check of the attack kit fails for attacks that break its property."""

# ruff: noqa: ARG001, ARG005 (a broken attack has the arguments of `run`, even if it ignores them)

import pytest
import torch

from defend.attack import Attack, AttackCard
from defend.attacks.pgd import PGD
from defend.losses import cross_entropy
from defend.norms import project, random_signs, random_start
from defend.testing import NotApplicable, attack_checks, kit

GRADIENT, SCORES, LABELS = (
    AttackCard(paper="arXiv:0000.00000", access=access)
    for access in ("gradient", "scores", "labels")
)
ANY_TASK = AttackCard(paper="arXiv:0000.00000", access="gradient", objective="task")


def make(run, card=GRADIENT, **extra):
    """Return an attack of a class with this `run`, card and further attributes."""
    return type("Bad", (Attack,), {"__doc__": "bad", "card": card, "run": run, **extra})()


def fgsm_step(target, x, y, eps, start=None):
    """Return the result of one step of the fast gradient sign method."""
    gradient, _, _ = target.gradient(x if start is None else start, y, cross_entropy)
    return project(x + eps * gradient.sign(), x, eps, "Linf")


def after_fgsm(transform):
    """Return a `run` that changes the result of the fast gradient sign method."""

    def run(self, target, x, y, eps, noise):
        return transform(fgsm_step(target, x, y, eps), x, y, eps, target, noise)

    return run


def drops_misclassified_images(self, target, x, y, eps, noise):
    """Run PGD, but stop at misclassified images whatever target.may_drop says."""
    adv = random_start(x, eps, "Linf", noise)
    for _ in range(20):
        g, _, logits = target.gradient(adv, y, cross_entropy)
        active = (logits.argmax(1) == y).view(-1, 1, 1, 1)
        adv = torch.where(active, project(adv + eps / 8 * g.sign(), x, eps, "Linf"), adv)
    return adv


def returns_clean_images_on_failure(adv, x, y, eps, target, noise):
    return torch.where((target.logits(adv).argmax(1) == y).view(-1, 1, 1, 1), x, adv)


def sets_eval_mode(adv, x, y, eps, target, noise):
    target.classifier.eval()
    return adv


def leaves_gradients(adv, x, y, eps, target, noise):
    target.classifier(x.clone().requires_grad_()).sum().backward()
    return adv


def writes_into_the_input(self, target, x, y, eps, noise):
    return x.add_(eps).clamp_(0, 1)


def reseeds_torch(adv, x, y, eps, target, noise):
    torch.manual_seed(0)
    return adv


def averages_over_the_batch(self, target, x, y, eps, noise):
    gradient, _, _ = target.gradient(x, y, cross_entropy)
    return project(x + eps * gradient.mean(0, keepdim=True).sign(), x, eps, "Linf")


def depends_on_the_place(adv, x, y, eps, target, noise):
    return x + (adv - x) * torch.linspace(0, 1, len(x)).view(-1, 1, 1, 1)


def weaker_with_more_steps(self, target, x, y, eps, noise):
    return fgsm_step(target, x, y, eps if self.steps < 6 else eps / 100)


def leaves_the_predicted_class(self, target, x, y, eps, noise):
    return fgsm_step(target, x, target.logits(x).argmax(1), eps)


def towards_the_label(adv, x, *_):
    return 2 * x - adv


def queries_the_classifier_directly(adv, x, y, eps, target, noise):
    target.classifier(x)
    return adv


def draws_on_across_eps(self, target, x, y, epsilons, noise):
    noise = noise.fork("start")
    for eps in epsilons:
        yield random_start(x, eps, "Linf", noise)


def counts_across_eps(self, target, x, y, epsilons, noise):
    target = target.again()
    for eps in epsilons:
        yield fgsm_step(target, x, y, eps)


def uses_scores(self, target, x, y, eps, noise):
    return (x + eps * target.logits(x).abs().clamp(max=1)[:, :1, None, None]).clamp(0, 1)


def scaled_eps(self, target, x, y, eps, noise):
    return fgsm_step(target, x, y, eps * self.__dict__.get("share", 1.0))


def changed_after_creation():
    attack = make(scaled_eps)
    attack.share = 0.5  # not a field, so that it is not in `settings`
    return attack


def weak_from_eps(threshold):
    """Return a `run` that uses next to nothing of an eps from this threshold on."""

    def run(self, target, x, y, eps, noise):
        return fgsm_step(target, x, y, eps if eps < threshold else 1e-3)

    return run


def random_start_only(self, target, x, y, eps, noise):
    return random_start(x, eps, "Linf", noise)


def takes_norm_by_position():
    def __init__(self, norm=""):
        self.norm = "Linf"

    return make(after_fgsm(lambda adv, *_: adv), __init__=__init__)


class Distorts(Attack):
    """A broken attack on codecs: random signs, before classifiers too."""

    card = AttackCard(paper="arXiv:0000.00000", access="gradient", objective="distortion")

    def run(self, target, x, y, eps, noise):
        target.logits(x)
        return (x + eps * random_signs(x, noise)).clamp(0, 1)


def climbs_away_from_the_right_class(self, target, x, y, eps, noise):
    """Climb the cross entropy of the right class, whatever the task asks for."""
    labels = y if y.ndim == 1 else y[:, 0]
    return fgsm_step(target, x, labels, eps)


def descends_its_task(self, target, x, y, eps, noise):
    gradient, _, _ = target.gradient(x, y, target.loss)
    return project(x - eps * gradient.sign(), x, eps, "Linf")


HONEST = after_fgsm(lambda adv, *_: adv)
BROKEN = {
    "check_stays_in_the_ball": [
        lambda: make(after_fgsm(lambda adv, x, y, eps, *_: x + 1.01 * (adv - x)))
    ],
    "check_stays_in_the_box": [
        lambda: make(lambda s, target, x, y, eps, noise: x + eps),
        lambda: make(after_fgsm(lambda adv, *_: adv * float("nan"))),
    ],
    "check_eps_zero_returns_the_input": [
        lambda: make(lambda s, target, x, y, eps, noise: (x + 1e-4).clamp(0, 1))
    ],
    "check_same_seed_same_result": [
        lambda: make(lambda s, target, x, y, eps, noise: x + eps * torch.rand_like(x))
    ],
    "check_leaves_the_model_alone": [
        lambda: make(after_fgsm(sets_eval_mode)),
        lambda: make(after_fgsm(leaves_gradients)),
    ],
    "check_leaves_input_and_global_rng_alone": [
        lambda: make(writes_into_the_input),
        lambda: make(after_fgsm(reseeds_torch)),
    ],
    "check_keeps_shape_dtype_and_order": [
        lambda: make(after_fgsm(lambda adv, *_: adv.flip(0))),
        lambda: make(after_fgsm(lambda adv, *_: adv.double())),
    ],
    "check_batch_mates_do_not_matter": [lambda: make(averages_over_the_batch)],
    "check_order_does_not_matter": [lambda: make(after_fgsm(depends_on_the_place))],
    "check_breaks_an_undefended_classifier": [lambda: make(random_start_only)],
    "check_more_eps_never_helps_the_defender": [lambda: make(weak_from_eps(0.03))],
    "check_more_steps_never_help_the_defender": [
        lambda: make(weaker_with_more_steps, steps=10, __annotations__={"steps": int})
    ],
    "check_large_eps_drives_accuracy_to_chance": [lambda: make(weak_from_eps(0.5))],
    "check_moves_away_from_the_label": [
        lambda: make(leaves_the_predicted_class),
        lambda: make(after_fgsm(towards_the_label)),
    ],
    "check_targeted_comes_closer_to_its_target": [
        lambda: make(HONEST, targeted=False, __annotations__={"targeted": bool})
    ],
    "check_targeted_mode_hits_the_target": [
        lambda: make(HONEST, targeted=False, __annotations__={"targeted": bool})
    ],
    "check_every_image_is_attacked_to_the_end": [
        lambda: make(drops_misclassified_images),
        lambda: make(after_fgsm(returns_clean_images_on_failure)),
        lambda: make(drops_misclassified_images, SCORES),
    ],
    "check_never_returns_the_clean_image": [
        lambda: make(after_fgsm(returns_clean_images_on_failure))
    ],
    "check_counts_are_what_the_model_saw": [
        lambda: make(after_fgsm(queries_the_classifier_directly)),
        lambda: make(lambda s, target, x, y, eps, noise: x),
    ],
    "check_a_sweep_gives_what_each_eps_gives_alone": [
        lambda: make(HONEST, sweep=draws_on_across_eps),
        lambda: make(HONEST, sweep=counts_across_eps),
        lambda: make(HONEST, sweep=lambda self, target, x, y, epsilons, noise: iter(())),
    ],
    "check_needs_no_more_than_its_access": [
        lambda: make(HONEST, SCORES),
        lambda: make(uses_scores, LABELS),
    ],
    "check_makes_a_reconstruction_wrong": [
        Distorts,
        lambda: make(random_start_only, ANY_TASK),
    ],
    "check_climbs_the_loss_of_its_task": [
        lambda: make(climbs_away_from_the_right_class, ANY_TASK),
        lambda: make(descends_its_task, ANY_TASK),
    ],
    "check_refuses_a_task_without_its_objective": [Distorts],
    "check_settings_rebuild_it": [changed_after_creation],
    "check_settings_are_json": [
        lambda: make(HONEST, shape=(1, 2), __annotations__={"shape": tuple})
    ],
    "check_fields_are_keyword_only_and_without_eps": [
        takes_norm_by_position,
        lambda: make(HONEST, eps=0.1, __annotations__={"eps": float}),
    ],
    "check_refuses_an_unknown_norm": [lambda: make(HONEST, __post_init__=lambda self: None)],
    "check_card_names_a_source": [
        lambda: make(HONEST, AttackCard(paper="trust me", access="gradient"))
    ],
}


def test_every_check_has_a_broken_example():
    assert {check.__name__ for check in kit("attack")} == set(BROKEN)


CASES = []
for name, makers in BROKEN.items():
    for i, make_attack in enumerate(makers):
        CASES.append(pytest.param(name, make_attack, id=f"{name}-{i}"))


@pytest.mark.parametrize(("name", "make_attack"), CASES)
def test_check_catches(name, make_attack):
    check = getattr(attack_checks, name)
    with pytest.raises(AssertionError):
        check(make_attack())


@pytest.mark.parametrize("check", kit("attack"), ids=lambda c: c.__name__)
def test_an_honest_attack_passes(check):
    """So the broken attacks fail for what they break, and not for what they have in common."""
    try:
        check(PGD(steps=10))
    except NotApplicable as e:
        pytest.skip(str(e))
