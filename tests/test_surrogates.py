"""What a transfer attack is made on: given pipelines, and the default that stands for a defense."""

from dataclasses import replace

import pytest
import torch
from expanded_suites import OTHER_CLASSIFIER, expand_suite, ladder, surrogates_of

from defend.benchmarks.components import Components
from defend.benchmarks.surrogates import Surrogates, default_surrogate
from defend.errors import DefendError
from defend.loading import load
from defend.trained_on import read_trained_on
from defend.weights import zoo


@pytest.fixture
def components():
    return Components("digits", None, torch.device("cpu"))


def zoo_row(**fields):
    """Return a row of the zoo with other fields, marked as a surrogate of split-vqvae."""
    row = next(iter(zoo.read_zoos().values()))
    name = "split-vqvae"
    common = {"kind": "defense", "component": name, "architecture": name, "dataset": "digits"}
    return replace(row, **(common | {"surrogate": True, "fields": {}} | fields))


def set_zoo(monkeypatch, rows):
    named = {name: replace(row, name=name, sha256=name) for name, row in rows.items()}
    monkeypatch.setattr(zoo, "read_zoos", lambda: named)


def put_trained(components, monkeypatch, spec, loaded_as, trained_on="clean"):
    """Let the spec stand for an untrained purifier that says it was trained."""
    purifier = load(loaded_as, "defense", components.data)
    member = getattr(purifier, "members", [purifier])[0]
    member.fitted_on = read_trained_on(trained_on)
    monkeypatch.setitem(components._loaded, ("defense", spec), purifier)
    return member


def test_a_given_surrogate_is_used(components):
    cells, _ = expand_suite(components, attacks=["pgd"], surrogates=[OTHER_CLASSIFIER])
    assert surrogates_of(cells) == {OTHER_CLASSIFIER}
    assert {c.knowledge for c in cells} == {"oblivious", "adaptive", "transfer"}


@pytest.mark.parametrize(
    "surrogate",
    ["meddian+convnet", "median+convnett", "median:sise=3+convnet", "convnet:weights=nothing"],
)
def test_a_surrogate_that_nothing_uses_must_be_right_too(components, surrogate):
    with pytest.raises(DefendError):
        expand_suite(components, attacks=["pgd"], knowledge="oblivious", surrogates=[surrogate])


DEFAULT = f"median+{OTHER_CLASSIFIER}"
OTHER_SIZE = f"median:size=2+{OTHER_CLASSIFIER}"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ([], {DEFAULT}),
        ([OTHER_CLASSIFIER], {OTHER_CLASSIFIER, DEFAULT}),
        ([OTHER_SIZE], {OTHER_SIZE, DEFAULT}),
        ([DEFAULT], {DEFAULT}),
    ],
)
def test_a_protocol_adds_the_default_surrogate(components, given, used):
    """So a weak pipeline of the same name cannot take its place."""
    assert surrogates_of(ladder(components, surrogates=given)) == used


@pytest.mark.parametrize("marked", [True, False])
def test_a_trained_purifier_is_transferred_from_one_trained_anew(components, monkeypatch, marked):
    fields = {"codes": 9}
    first, anew = zoo_row(fields=fields, surrogate=False), zoo_row(fields=fields, surrogate=marked)
    set_zoo(monkeypatch, {"first": first, "anew": anew})
    spec = "split-vqvae:codes=9,hidden=8+median"
    untrained = "split-vqvae:weights=untrained,hidden=8,codes=9+median"
    put_trained(components, monkeypatch, spec, untrained, first.trained_on)
    surrogates = default_surrogate(components, "convnet", spec)
    if marked:
        expected = ("split-vqvae:hidden=8,weights=anew+median+convnet",)
        assert surrogates == Surrogates(expected, "")
    else:
        assert surrogates.specs == ()
        assert "marked `surrogate`" in surrogates.note


@pytest.mark.parametrize(
    ("codes", "nearest", "note"),
    [
        (9, "nine", ""),
        (7, "seven", ""),
        (8, "seven", "seven, the nearest marked `surrogate`, has codes=7 (not 8)"),
    ],
)
def test_the_surrogate_with_the_most_equal_fields_is_taken(
    components, monkeypatch, codes, nearest, note
):
    nine, seven = {"codes": 9, "hidden": 16}, {"codes": 7, "hidden": 8}
    set_zoo(monkeypatch, {"nine": zoo_row(fields=nine), "seven": zoo_row(fields=seven)})
    hidden = 16 if codes == 9 else 8
    spec = f"split-vqvae:codes={codes}"
    untrained = f"split-vqvae:weights=untrained,hidden={hidden},codes={codes}"
    put_trained(components, monkeypatch, spec, untrained, zoo_row().trained_on)
    expected = (f"split-vqvae:weights={nearest}+convnet",)
    assert default_surrogate(components, "convnet", spec) == Surrogates(expected, note)


@pytest.mark.parametrize(("trained_on", "nearest"), [("clean", "a"), ("corrupted", "b")])
def test_a_surrogate_trained_on_the_same_images_is_nearer(
    components, monkeypatch, trained_on, nearest
):
    rows = {
        "a": zoo_row(trained_on=read_trained_on("clean")),
        "b": zoo_row(trained_on=read_trained_on("corrupted")),
    }
    set_zoo(monkeypatch, rows)
    untrained = "split-vqvae:weights=untrained,hidden=8,codes=9"
    member = put_trained(components, monkeypatch, "split-vqvae", untrained, trained_on)
    expected = (f"split-vqvae:weights={nearest}+convnet",)
    assert default_surrogate(components, "convnet", "split-vqvae") == Surrogates(expected, "")
    member.fitted_on = read_trained_on("adversarial(pgd, 0.1, convnet)")
    note = default_surrogate(components, "convnet", "split-vqvae").note
    assert note.endswith("has trained_on=clean (not adversarial(pgd, 0.1, convnet))")


def test_the_scored_pipeline_is_known_by_any_spelling(components):
    surrogates = ["none+median+convnet", "median+none+convnet", "none+median:size=2+convnet"]
    cells, skipped = expand_suite(components, attacks=["pgd"], surrogates=surrogates)
    assert surrogates_of(cells) == {"none+median:size=2+convnet"}
    assert sum("it is the scored pipeline itself" in line for line in skipped) == 2


def test_transfer_is_skipped_with_a_line_where_no_other_classifier_is_known(
    components, monkeypatch
):
    components.classifier("convnet")  # loaded while the zoo is still there
    monkeypatch.setattr(zoo, "read_zoos", dict)
    knowledge = ["oblivious", "transfer"]
    cells, skipped = expand_suite(components, attacks=["pgd"], knowledge=knowledge)
    assert {c.knowledge for c in cells} == {"oblivious"}
    assert len(skipped) == 1
    assert "no other classifier of digits is in a zoo" in skipped[0]
    assert "give --surrogate median+C" in skipped[0]
