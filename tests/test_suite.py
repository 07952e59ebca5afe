"""The keys of a suite: their grammar, and one clear line for each mistake."""

from fractions import Fraction

import pytest

from defend.benchmarks.suite import load_suite, make_suite
from defend.eps import parse_eps, take_eps
from defend.errors import BadParameter, DefendError

BASE = {"dataset": "digits", "classifier": "convnet", "defense": "none", "attack": "fgsm"}

EPS = {
    "0.1": [0.1],
    "8/255": [8 / 255],
    "0,8/255": [0, 8 / 255],
    "0:0.3:0.1": [0, 0.1, 0.2, 0.3],
    "0:8/255:4/255": [0, 4 / 255, 8 / 255],
    "0.1,0.1": [0.1],
}


@pytest.mark.parametrize("text", EPS)
def test_eps_grammar(text):
    assert [e.value for e in parse_eps(text)] == EPS[text]


def test_a_range_holds_both_ends_and_every_step_exactly():
    values = [e.value for e in parse_eps("0:0.3:0.02")]
    assert values == [float(Fraction(i, 50)) for i in range(16)]


def test_eps_keeps_its_spelling():
    assert [e.text for e in parse_eps(["8/255", 0.1, "0:0.04:0.02"])] == [
        "8/255",
        "0.1",
        "0",
        "0.02",
        "0.04",
    ]


def test_eps_is_taken_out_of_an_attack():
    spec, eps = take_eps("pgd:eps=8/255,steps=40")
    assert str(spec) == "pgd:steps=40"
    assert eps.value == 8 / 255
    assert take_eps("pgd")[1] is None


def test_a_suite_spelled_out_is_the_same_suite():
    suite = make_suite(BASE | {"eps": "0,8/255", "knowledge": "all"})
    assert make_suite(suite.to_dict()) == suite


def test_singulars_single_values_and_tables():
    suite = make_suite(BASE | {"attack": {"name": "pgd", "steps": 40, "eps": "8/255"}})
    assert suite.classifiers == ("convnet",)
    assert suite.attacks == ("pgd:eps=8/255,steps=40",)


def test_knowledge_all_is_every_level():
    assert make_suite(BASE | {"knowledge": "all"}).knowledge == (
        "oblivious",
        "transfer",
        "query",
        "adaptive",
    )


REFUSED = {
    "unknown key": ({"clasifier": "x"}, "no key 'clasifier'. Did you mean classifier"),
    "missing": ({"attack": None}, "attacks"),
    "eps < 0": ({"eps": "-0.1"}, "eps -0.1: expected a number >= 0"),
    "eps as text": ({"eps": "big"}, "eps 'big': expected a number >= 0, as 0.1"),
    "eps infinite": ({"eps": float("inf")}, "eps inf"),
    "eps range": ({"eps": "0:0.3"}, "start:stop:step"),
    "eps range without measure": ({"eps": "0:1:1e-9"}, "more than 1000 values; give a larger step"),
    "name": ({"name": "../../evil"}, "the name of a folder below runs/"),
    "eps range backwards": ({"eps": "0.3:0:0.1"}, "start <= stop"),
    "eps range without end": ({"eps": "0:1:0"}, "step > 0"),
    "shard = 0": ({"shard": 0}, "shard 0: expected a whole number >= 1, or auto"),
    "shard as text": ({"shard": "large"}, "shard 'large': expected a whole number >= 1, or auto"),
    "n = 0": ({"n": 0}, "n: input should be greater than or equal to 1, got 0"),
    "n as text": ({"n": "12"}, "n '12': expected a whole number"),
    "knowledge": ({"knowledge": "oblivous"}, "Did you mean oblivious"),
    "gradient": ({"gradients": ["learnt"]}, "expected declared or identity"),
    "field of a gradient": (
        {"gradients": ["relaxed:temprature=1"]},
        "expected a name alone, or relaxed:temperature=0.3",
    ),
    "field of another gradient": (
        {"gradients": ["identity:temperature=1"]},
        "expected a name alone, or relaxed:temperature=0.3",
    ),
    "temperature": ({"gradients": ["relaxed:temperature=0"]}, "expected a temperature > 0"),
    "temperature as text": (
        {"gradients": ["relaxed:temperature=hot"]},
        "expected a temperature > 0; write relaxed:temperature=0.3",
    ),
    "protocol": (
        {"protocol": "ladder-3"},
        "protocol 'ladder-3': expected ladder-1 or ladder-2. Did you mean ladder-2, ladder-1?",
    ),
    "eps of a protocol": (
        {"protocol": "ladder-1", "attack": None, "eps": "0.1"},
        "protocol ladder-1 decides eps",
    ),
    "few draws of a protocol": (
        {"protocol": "ladder-1", "draws": 19},
        "protocol ladder-1 scores by 20 draws or more, got 19: leave draws out",
    ),
    "precision": ({"precision": "fp8"}, "precision"),
    "seed in a spec": ({"defense": "gaussian:seed=1"}, "seed= says how a purifier runs"),
    "gradients of nobody": (
        {"knowledge": "oblivious", "gradients": ["learned"]},
        "attacks at oblivious choose none; add knowledge adaptive",
    ),
    "untrained": (
        {"classifier": "convnet:weights=untrained"},
        "weights=untrained measures nothing",
    ),
    "chain of attacks": ({"attack": "fgsm+pgd"}, "only defenses are chained"),
    "no classifier": (
        {"classifier": "none"},
        "classifiers: the task classification needs a classifier, got 'none'",
    ),
    "no classifier to identify": (
        {"task": "identification", "classifier": "none"},
        "classifiers: the task identification needs a classifier, got 'none'",
    ),
    "no classifier to verify": (
        {"task": "verification", "classifiers": ["convnet", "none"]},
        "classifiers: the task verification needs a classifier, got 'none'",
    ),
    "thresholds from the scored images": (
        {"task": "verification", "split": "val"},
        "task verification has its thresholds from the images of val",
    ),
    "a surrogate without a classifier": (
        {"surrogate": "jpeg+none"},
        "surrogates: the task classification needs a classifier, got 'jpeg+none'",
    ),
    "component": ({"defense": 3}, "defense 3: expected name:key=value"),
    "table without a name": ({"defense": {"bits": 3}}, 'needs name = "..."'),
}


def test_a_wrong_key_is_reported_before_a_missing_one():
    """So the next attempt has one mistake less."""
    with pytest.raises(DefendError, match="n 'many': expected a whole number"):
        make_suite({"dataset": "digits", "defenses": ["none"], "attacks": ["fgsm"], "n": "many"})


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_suite_is_refused_in_one_line(name):
    keys, message = REFUSED[name]
    with pytest.raises(DefendError) as e:
        make_suite(BASE | keys)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("written", "pipeline"),
    [
        ("jpeg:quality=50", "jpeg:quality=50+none"),
        ("jpeg:quality=50+none", "jpeg:quality=50+none"),
        ("jpeg+median", "jpeg+median+none"),
        ("none", "none+none"),
        ("none+none", "none+none"),
    ],
)
def test_a_surrogate_codec_can_be_typed_as_the_record_prints_it(written, pipeline):
    keys = {"task": "reconstruction", "dataset": "digits", "defense": "none", "attack": "fgsm"}
    suite = make_suite(keys | {"surrogate": written})
    assert suite.surrogates == (pipeline,)
    assert make_suite(suite.to_dict()) == suite


def test_the_embedded_suite_is_one():
    assert make_suite(load_suite()).name == "embedded"


def test_a_suite_that_ships_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_suite("split_vqvae")["name"] == "split_vqvae"
    (tmp_path / "split_vqvae").write_text('name = "mine"')
    assert load_suite("split_vqvae")["name"] == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = [", "not TOML"),
        (
            None,
            "cannot be read: No such file or directory. Give a file, or the name of one that"
            " ships: .*embedded, robust_codec, robust_codec_kodak, split_vqvae",
        ),
    ],
)
def test_unreadable_suite_files(tmp_path, text, message):
    file = tmp_path / "s.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadParameter, match=message):
        load_suite(file)


def test_a_suite_file_is_named_after_itself(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('dataset = "digits"')
    assert load_suite(file) == {"name": "mine", "dataset": "digits"}
