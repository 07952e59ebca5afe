"""What trainings knew: typed in records, in words beside rows, marked where it concerns them."""

import csv
import json
from dataclasses import dataclass, field

import pytest
import torch
from made_runs import change, printed, record
from recipe_toys import save_toy

import defend
from defend.records import read_records
from defend.results import table
from defend.results.diagnostics import TrainingCode, format_training_mark
from defend.results.report.page import write_report
from defend.results.training_knowledge import find_training_marks, format_classifier
from defend.trained_on import ITSELF, TrainedOn

OWN, OTHER = "ab" * 32, "cd" * 32
PURIFIER = "split-vqvae:weights=quad"
JPEG = {"quality": 60, "subsampling": True}
ROBUST = TrainedOn(
    kind="adversarial", attack="pgd-10", norm="Linf", eps=0.3, classifiers={ITSELF: ""}
)


def trained_against(sha256, name="convnet-digits-m"):
    return TrainedOn(kind="adversarial", attack="fgsm", eps=0.1, classifiers={name: sha256})


def trained_behind(spec, **weights):
    return TrainedOn(kind="clean", behind=spec, behind_weights=weights)


@dataclass
class Scored:
    """A pipeline, the trainings behind it, and the sentences that must stand beside its row."""

    defense: str = "none"
    settings: dict = field(default_factory=dict)
    trained_on: tuple = ()
    classifier_trained_on: tuple = (TrainedOn(kind="clean"),)
    purifier_weights: dict = field(default_factory=dict)
    attacked_weights: dict = field(default_factory=dict)
    sentences: tuple = ()

    def record(self):
        own = {"convnet-digits-m": OWN}
        return record(
            50,
            defense=self.defense,
            settings={"defense": self.settings},
            trained_on=self.trained_on,
            classifier_trained_on=self.classifier_trained_on,
            scored_weights={"classifier": own, "defense": self.purifier_weights},
            weights=own | self.purifier_weights | self.attacked_weights,
        )


KNOWS = (
    "the purifier was trained against convnet-digits-m, the classifier that it stands before here"
)


def behind(scored, trained="jpeg:quality=60"):
    return f"the classifier was trained behind {trained}; scored here behind {scored}"


BEHIND_JPEG = (trained_behind("jpeg:quality=60"),)
BEHIND_QUAD = (trained_behind(PURIFIER, quad=OTHER),)
PIPELINES = {
    "nothing learned": Scored(),
    "trained on clean images": Scored(PURIFIER, trained_on=(TrainedOn(kind="clean"),)),
    "against the classifier": Scored(
        PURIFIER, trained_on=(trained_against(OWN),), sentences=(KNOWS,)
    ),
    "against it by another name": Scored(
        PURIFIER, trained_on=(trained_against(OWN, "c.safetensors"),), sentences=(KNOWS,)
    ),
    "against another of the same name": Scored(PURIFIER, trained_on=(trained_against(OTHER),)),
    "against networks without files": Scored(
        PURIFIER, trained_on=(trained_against("", "3 surrogates"),)
    ),
    "against the attacked classifier alone": Scored(
        PURIFIER, trained_on=(trained_against(OTHER),), attacked_weights={"again": OTHER}
    ),
    "one member of a chain": Scored(
        f"jpeg+{PURIFIER}",
        trained_on=(TrainedOn(kind="clean"), trained_against(OWN)),
        sentences=(KNOWS,),
    ),
    "a robust classifier": Scored(classifier_trained_on=(ROBUST,)),
    "behind its own defense": Scored("jpeg:quality=60", JPEG, classifier_trained_on=BEHIND_JPEG),
    "behind it, spelled by its default": Scored("jpeg", JPEG, classifier_trained_on=BEHIND_JPEG),
    "behind it and nothing else": Scored(
        "none+jpeg:quality=60", {"members": [{}, JPEG]}, classifier_trained_on=BEHIND_JPEG
    ),
    "behind none": Scored(classifier_trained_on=BEHIND_JPEG, sentences=(behind("none"),)),
    "behind another": Scored(
        "median", classifier_trained_on=BEHIND_JPEG, sentences=(behind("median"),)
    ),
    "behind another quality": Scored(
        "jpeg",
        JPEG | {"quality": 75},
        classifier_trained_on=BEHIND_JPEG,
        sentences=(behind("jpeg"),),
    ),
    "behind another field": Scored(
        "jpeg:quality=60,subsampling=false",
        JPEG | {"subsampling": False},
        classifier_trained_on=BEHIND_JPEG,
        sentences=(behind("jpeg:quality=60,subsampling=false"),),
    ),
    "behind a chain that holds it": Scored(
        "median+jpeg:quality=60",
        {"members": [{}, JPEG]},
        classifier_trained_on=BEHIND_JPEG,
        sentences=(behind("median+jpeg:quality=60"),),
    ),
    "behind the same weights": Scored(
        PURIFIER,
        {"weights": "quad"},
        classifier_trained_on=BEHIND_QUAD,
        purifier_weights={"quad": OTHER},
    ),
    "behind the same weights by a path": Scored(
        'split-vqvae:weights="quad.safetensors"',
        classifier_trained_on=BEHIND_QUAD,
        purifier_weights={"quad.safetensors": OTHER},
    ),
    "behind other weights of one name": Scored(
        PURIFIER,
        {"weights": "quad"},
        classifier_trained_on=BEHIND_QUAD,
        purifier_weights={"quad": "ef" * 32},
        sentences=(behind(f"{PURIFIER} with other weights", PURIFIER),),
    ),
    "both": Scored(
        PURIFIER,
        trained_on=(trained_against(OWN),),
        classifier_trained_on=BEHIND_JPEG,
        sentences=(KNOWS, behind(PURIFIER)),
    ),
}


@pytest.fixture(params=PIPELINES)
def scored(request):
    return PIPELINES[request.param]


def test_a_pipeline_carries_its_marks(scored):
    marks = find_training_marks(scored.record())
    assert tuple(map(format_training_mark, marks)) == scored.sentences


def test_a_marked_row_is_marked_on_a_terminal_of_any_width(scored):
    for width in (80, 240):
        text = printed([scored.record()], width=width)
        assert (f"!{scored.defense}" in text) is bool(scored.sentences)
        words = " ".join(text.split())
        assert ("What the training knew (marked !):" in words) is bool(scored.sentences)
        for sentence in scored.sentences:
            assert f"{scored.defense} before convnet: {sentence}." in words


def test_a_marked_row_is_marked_in_the_report(scored, tmp_path):
    page, results = write_report([], out=tmp_path, records=[scored.record()])
    html = page.read_text().replace("&#34;", '"')
    title = "; ".join(scored.sentences)
    assert html.count(f'<span class="mark" title="{title}">!</span>') == 3 * bool(title)
    assert all(f"{sentence}.</li>" in html for sentence in scored.sentences)
    (row,) = csv.DictReader(results.read_text().splitlines())
    codes = [code.split("=")[0] for code in row["flags"].split("; ") if code]
    summary = json.loads((tmp_path / "summary.json").read_text())
    (worst,) = summary["worst"]
    assert [code.split("=")[0] for code in worst["training_marks"]] == codes
    assert len(codes) == len(summary["training"]) == len(scored.sentences)
    assert set(codes) <= set(TrainingCode)


def test_trainings_are_read_as_they_were_written(scored, tmp_path):
    original = scored.record()
    (tmp_path / "records.json").write_text(f"[{original.to_json()}]")
    assert read_records(tmp_path) == [original]


# What a classifier was trained on.

CLASSIFIERS = {
    "clean images": ((TrainedOn(kind="clean"),), ""),
    "nothing": ((), ""),
    "attacks on itself": ((ROBUST,), "adversarial(pgd-10, Linf 0.3, itself)"),
    "something unknown": ((TrainedOn(kind="unknown"),), "unknown"),
    "images behind jpeg": (BEHIND_JPEG, "clean behind jpeg:quality=60"),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_says_what_it_was_trained_on_unless_that_is_clean_images(name, tmp_path):
    trainings, words = CLASSIFIERS[name]
    shown = change(record(50), classifier_trained_on=trainings)
    expected = f"convnet (trained on {words})" if words else "convnet"
    assert format_classifier("convnet", trainings) == expected
    (section,) = table([shown]).sections
    assert f" | {expected} | " in section.title
    assert section.title in printed([shown], width=200)
    page, results = write_report([], out=tmp_path, records=[shown])
    assert page.read_text().count(expected) >= 3  # the facts, the captions of both tables
    (row,) = csv.DictReader(results.read_text().splitlines())
    assert row["classifier_trained_on"] == ", ".join(map(str, trainings))
    (worst,) = json.loads((tmp_path / "summary.json").read_text())["worst"]
    assert worst["classifier_trained_on"] == [training.to_json() for training in trainings]


# A run.


def test_a_run_records_what_both_halves_were_trained_on(tmp_path):
    torch.manual_seed(0)
    untrained = defend.load(
        "convnet:weights=untrained", "classifier", defend.load("digits", "dataset")
    )
    save_toy(untrained, tmp_path / "c.safetensors", trained_behind("jpeg:quality=60"))
    classifier = f'convnet:weights="{tmp_path / "c.safetensors"}"'
    sha256 = next(iter(defend.load(classifier, "classifier").weights_sha256.values()))
    shape = (
        "split-vqvae:weights=untrained,size=8,channels=1,grid=2,codes=20,hidden=8,embedding_dim=4"
    )
    save_toy(defend.load(shape), tmp_path / "p.safetensors", trained_against(sha256))
    purifier = f'split-vqvae:weights="{tmp_path / "p.safetensors"}"'
    records = defend.bench(
        dataset="digits",
        classifiers=[classifier],
        defenses=["none", "jpeg:quality=60", purifier],
        attacks=["fgsm"],
        knowledge=["oblivious"],
        n=8,
        out=tmp_path / "run",
    )
    assert all(r.classifier_trained_on == (trained_behind("jpeg:quality=60"),) for r in records)
    assert [r.trained_on for r in records] == [(), (), (trained_against(sha256),)]
    codes = [[mark.code for mark in find_training_marks(r)] for r in records]
    another = TrainingCode.SCORED_BEHIND_ANOTHER
    assert codes == [[another], [], [TrainingCode.KNOWS_CLASSIFIER, another]]
    assert read_records(tmp_path / "run") == records
