"""Tasks: names and fields, goals, and what they say of the same outputs."""

import pytest
import torch

from defend.errors import BadParameter, BadSpec
from defend.tasks.classification import CLASSIFICATION
from defend.tasks.goals import choose_targets, with_targets
from defend.tasks.registry import TASKS, load_task
from defend.tasks.task import Deployed

N, CLASSES = 40, 7
generator = torch.Generator().manual_seed(0)
X = torch.randint(0, 256, (N, 3, 8, 8), generator=generator) / 255
Y = torch.arange(N) % CLASSES
LOGITS = torch.randn(N, CLASSES, generator=generator)
LOGITS[torch.arange(N), Y] += 3
SPECS = [
    "classification",
    "identification",
    "identification:goal=impersonation",
    "verification",
    "verification:goal=impersonation",
    "reconstruction",
]


def calibrated(spec):
    """Return the task with what it is measured against, and an output."""
    task = load_task(spec)
    reference = task.reference(X, Y, CLASSES)
    output = LOGITS if task.needs_classifier else (X + 0.1).clamp(0, 1)
    return task.calibrated(output, reference), output, reference


@pytest.mark.parametrize("spec", SPECS)
def test_a_task_is_written_as_it_is_read(spec):
    assert str(load_task(spec)) == spec
    assert load_task(spec).name in TASKS


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("reconstruct", BadParameter, "expected classification or .*Did you mean reconstruction"),
        ("identification:goal=fame", BadParameter, "expected 'dodging' or 'impersonation'"),
        ("verification:far=0.1", BadParameter, "has no field 'far'. .*It takes goal=dodging"),
        ("classification+verification", BadSpec, "give one task"),
    ],
)
def test_another_text_is_refused_in_one_line(text, error, message):
    with pytest.raises(error, match=message) as raised:
        load_task(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("spec", SPECS)
def test_a_task_answers_for_each_image(spec):
    task, output, reference = calibrated(spec)
    for values in (
        task.loss(output, reference),
        task.score(output, reference),
        task.is_broken(output, reference),
        task.agree(output, output),
    ):
        assert values.shape == (N,)
    assert task.agree(output, output).all()
    assert not task.agree(output, output.roll(1, 1)).all()


@pytest.mark.parametrize("spec", SPECS)
def test_a_score_falls_where_the_loss_is_climbed(spec):
    """The loss of the attacker and the score of the defender point in opposite directions."""
    task, output, reference = calibrated(spec)
    leaf = output.clone().requires_grad_()
    gradient = torch.autograd.grad(task.loss(leaf, reference).sum(), leaf)[0]
    length = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (output.ndim - 1))
    climbed = output + 50 * gradient / length
    assert (task.score(climbed, reference) <= task.score(output, reference)).all()
    assert task.score(climbed, reference).sum() < task.score(output, reference).sum()
    broken = task.is_broken(climbed, reference)
    assert broken.all() or not task.needs_classifier


@pytest.mark.parametrize("spec", SPECS)
def test_measures_are_those_that_the_task_declares(spec):
    task, output, reference = calibrated(spec)
    details = {}
    for is_clean, x in ((True, X), (False, (X + 0.02).clamp(0, 1))):
        deployed = Deployed(
            x=x,
            source=X,
            output=output,
            clean_output=None if is_clean else output.flip(0),
            reference=reference,
            rate=torch.ones(N),
            is_clean=is_clean,
        )
        values = task.details(deployed)
        details[is_clean] = {name: v[:, None].numpy() for name, v in values.items()}
    measures = task.measure(details[False], details[True], seed=0)
    expected = set(task.measured) - {
        "vi_ms_ssim",
        "unchanged",
        "unmoved",
    }  # small images, all changed
    assert set(measures) == expected
    for summary in measures.values():
        assert summary.low <= summary.value <= summary.high
    for point in task.curve(details[False], details[True]):
        assert 0 <= point[0] <= 1 and 0 <= point[1] <= 1


def test_identification_is_classification_in_its_own_words():
    task = load_task("identification")
    assert torch.equal(task.score(LOGITS, Y), CLASSIFICATION.score(LOGITS, Y))
    assert torch.equal(task.loss(LOGITS, Y), CLASSIFICATION.loss(LOGITS, Y))
    assert torch.equal(task.is_broken(LOGITS, Y), CLASSIFICATION.is_broken(LOGITS, Y))
    wrong = torch.zeros(N, 1, dtype=torch.uint8)
    assert torch.equal(task.under_attack(wrong + 1, wrong), wrong)


def test_impersonation_breaks_the_images_that_are_taken_for_their_target():
    task = load_task("identification:goal=impersonation")
    reference = task.reference(X, Y, CLASSES)
    as_target = torch.nn.functional.one_hot(reference[:, 1], CLASSES).float()
    as_another = torch.nn.functional.one_hot((reference[:, 1] + 1) % CLASSES, CLASSES).float()
    assert task.is_broken(as_target, reference).all()
    assert not task.is_broken(as_another, reference).any()


def test_targets_are_other_people_chosen_by_the_image_alone():
    targets = choose_targets(X, Y, CLASSES)
    assert (targets != Y).all() and targets.min() >= 0 and targets.max() < CLASSES
    alone = [choose_targets(X[i : i + 1], Y[i : i + 1], CLASSES)[0] for i in range(N)]
    assert torch.equal(targets, torch.stack(alone))
    assert torch.equal(choose_targets(X + 1e-5, Y, CLASSES), targets)
    assert len(set(((targets - Y) % CLASSES).tolist())) == CLASSES - 1
    assert torch.equal(with_targets(X, Y, CLASSES), torch.stack([Y, targets], 1))


def test_two_classes_leave_one_target():
    y = Y % 2
    assert torch.equal(choose_targets(X, y, 2), 1 - y)


@pytest.mark.parametrize("spec", SPECS)
def test_objectives_that_a_task_lacks_have_a_reason(spec):
    task = load_task(spec)
    assert task.reason_against("task") == ""
    needed = {"label": task.needs_classifier, "distortion": not task.needs_classifier}
    if "impersonation" in spec:
        needed["label"] = False
    for objective, is_run in needed.items():
        assert (task.reason_against(objective) == "") == is_run
