"""The conformance kit runs every check, on a component that no other check has changed."""

import contextlib
from importlib import import_module

import pytest
from click.testing import CliRunner

from defend.classifiers.lenet import LeNet
from defend.cli import main
from defend.defenses.none import NoDefense
from defend.defenses.split_vqvae import SplitVQVAE
from defend.errors import Mismatch
from defend.purifier import Card, Purifier
from defend.testing import NotApplicable, conformance_test, kit, run_checks
from defend.testing.runner import ComponentLender, reads_only, shares_component

EXACT = Card(paper="none: made for this test", gradient="exact", stochastic=False)


class RaisesMismatch(Purifier):
    """It raises another error than the checks expect."""

    card = EXACT

    def purify(self, x, noise):
        raise Mismatch("the message of the purifier")


def results_by_check(make_purifier):
    """Return name -> (status, message) of a run of the kit."""
    results = {}
    for name, status, message in run_checks("defense", make_purifier):
        assert name not in results
        results[name] = (status, message)
    return results


def test_run_checks_reports_every_check_once():
    results = results_by_check(NoDefense)
    assert set(results) == {check.__name__ for check in kit("defense")}
    assert {status for status, _ in results.values()} == {"pass", "skip"}
    assert results["check_leaves_input_alone"] == ("pass", "")
    status, message = results["check_networks_are_frozen"]
    assert status == "skip"
    assert message


def test_run_checks_goes_on_after_an_unexpected_error():
    results = results_by_check(RaisesMismatch)
    assert results["check_seed_repeats"] == ("fail", "Mismatch: the message of the purifier")
    assert results["check_card_names_a_source"] == ("pass", "")


MOST_LOADS = 5  # of a model that may take minutes to load, in one run of the kit


class CountsLoads(SplitVQVAE):
    """Count how often a network is built, whoever builds it."""

    loads = 0
    fails = False

    def build(self):
        type(self).loads += 1
        return super().build()

    def purify(self, x, noise):
        if self.fails:
            raise RuntimeError("not finished yet")
        return super().purify(x, noise)


def make_counting_purifier():
    return CountsLoads(weights="untrained", hidden=8, codes=4)


@pytest.mark.parametrize("fails", [False, True], ids=["sound", "broken"])
def test_a_run_of_the_kit_loads_a_model_a_few_times(fails, monkeypatch):
    monkeypatch.setattr(CountsLoads, "loads", 0)
    monkeypatch.setattr(CountsLoads, "fails", fails)
    results = run_checks("defense", make_counting_purifier)
    assert ("fail" in {status for _, status, _ in results}) == fails
    assert 2 <= CountsLoads.loads <= MOST_LOADS


def test_a_component_that_exists_already_is_not_loaded_again(monkeypatch):
    monkeypatch.setattr(CountsLoads, "loads", 0)
    run_checks("defense", make_counting_purifier)
    without = CountsLoads.loads
    run_checks("defense", make_counting_purifier, first=make_counting_purifier())
    assert CountsLoads.loads == 2 * without


def test_the_command_loads_a_model_a_few_times(monkeypatch):
    build, loads = SplitVQVAE.build, []

    def counting_build(purifier):
        loads.append(purifier)
        return build(purifier)

    monkeypatch.setattr(SplitVQVAE, "build", counting_build)
    spec = "split-vqvae:weights=untrained,hidden=8,codes=4"
    assert CliRunner().invoke(main, ["check", "defense", spec]).exit_code == 0
    assert 2 <= len(loads) <= MOST_LOADS


def components_of_failing_checks(make, count):
    """Return what so many checks receive from one lender if each of them fails."""
    received = []

    @reads_only
    def fail(component):
        received.append(component)
        raise AssertionError

    lender = ComponentLender(make)
    for _ in range(count):
        with pytest.raises(AssertionError):
            lender.run(fail)
    return received


def test_a_check_that_fails_costs_the_shared_component():
    """A component that failed may be in any state, so the next check gets another one."""
    received = components_of_failing_checks(object, 2)
    assert received[0] is not received[1]


def test_a_component_that_cannot_be_copied_is_built_again():
    """It is replaced, too, after it failed."""

    class Uncopyable:
        def __deepcopy__(self, memo):
            raise TypeError("not this one")

    received = components_of_failing_checks(Uncopyable, 3)
    assert len(set(map(id, received))) == 3


def test_a_check_without_the_mark_gets_a_fresh_component():
    received = []
    lender = ComponentLender(object)
    lender.run(reads_only(lambda component: received.append(component)))
    lender.run(reads_only(lambda component: received.append(component)))
    lender.run(lambda component: received.append(component))
    first, second, third = received
    assert first is second
    assert third is not first


MAKE = {
    "defense": lambda: SplitVQVAE(weights="untrained", hidden=8, codes=4),
    "classifier": lambda: LeNet(weights="untrained", width=4),
}
SHARED = []
for kind in MAKE:
    for check in kit(kind):
        if shares_component(check):
            SHARED.append(pytest.param(kind, check, id=f"{kind}-{check.__name__}"))


@pytest.mark.parametrize(("kind", "check"), SHARED)
def test_a_shared_component_is_left_as_it_was(kind, check):
    """A check that is marked as reading only changes no field, mode or weight."""
    component = MAKE[kind]()
    before = state_of(component)
    with contextlib.suppress(NotApplicable):
        check(component)
    assert state_of(component) == before


def state_of(component):
    """Return the fields of a component, and the modes, weights and gradients of its networks."""
    fields = {k: v for k, v in vars(component).items() if isinstance(v, str | int | float | tuple)}
    modules = list(component.net.modules())
    modes = [m.training for m in modules]
    buffers = [(b.dtype, b.device, b.tolist()) for b in component.net.buffers()]
    weights = []
    for w in component.net.parameters():
        weights.append((w.dtype, w.device, w.requires_grad, w.grad, w.tolist()))
    return fields, modes, buffers, weights


def test_known_failures_must_be_checks():
    with pytest.raises(ValueError, match="check_nothing"):
        conformance_test(NoDefense, known={"check_nothing": "because"})


def make_purifier_that_cannot_be_pickled():
    """Return a purifier of a class that pickle cannot find: it is defined inside a function."""

    class Local(Purifier):
        """x' = x."""

        card = EXACT

        def purify(self, x, noise):
            return x

    return Local()


test_a_known_failure_is_expected = conformance_test(
    make_purifier_that_cannot_be_pickled,
    known={"check_pickles_and_copies": "a local class cannot be pickled"},
)


@pytest.mark.parametrize("kind", ["attack", "classifier", "dataset", "defense"])
def test_every_check_is_public_in_the_module_of_its_kit(kind):
    module = import_module(f"defend.testing.{kind}_checks")
    assert all(getattr(module, check.__name__) is check for check in kit(kind))
