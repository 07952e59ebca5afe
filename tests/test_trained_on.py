"""What a training knew is checked when it is made, whatever file it comes from."""

import json
import math

import pytest

from defend.errors import BadParameter, BadWeights
from defend.trained_on import TrainedOn, read_trained_on
from defend.weights.header import read_header

WRONG = {  # field -> values that it cannot have
    "kind": ("clear", 3, ["clean"], None),
    "attack": (3, None),
    "norm": (2, None),
    "eps": ("0.3", True, -0.1, math.nan, math.inf, [0.3]),
    "classifiers": (["x"], "x", {"x": None}, {3: ""}, None),
    "behind": (["jpeg"], None),
    "behind_weights": (["x"], {"x": 3}, None),
}
CASES = [(name, value) for name, values in WRONG.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES, ids=map(repr, CASES))
def test_a_field_of_another_type_is_one_line(name, value):
    fields = {"kind": "clean", name: value}
    for make in (lambda: TrainedOn(**fields), lambda: read_trained_on(fields)):
        with pytest.raises(BadParameter) as e:
            make()
        assert str(e.value).startswith(f"TrainedOn({name}={value!r}): expected ")
        assert "\n" not in str(e.value)


RIGHT = [
    TrainedOn(kind="clean"),
    TrainedOn(kind="adversarial", attack="pgd", norm="Linf", eps=0.3, classifiers={"a": ""}),
    TrainedOn(kind="adversarial", attack="pgd", eps=1),
    TrainedOn(kind="clean", behind="jpeg", behind_weights={"a": "b"}),
]


@pytest.mark.parametrize("known", RIGHT, ids=str)
def test_json_gives_it_back(known):
    assert read_trained_on(json.loads(json.dumps(known.to_json()))) == known


@pytest.mark.parametrize("text", ["adversarial(pgd, 1.2.3, a)", "adversarial(pgd, ., a)", "clear"])
def test_a_text_that_says_nothing_is_one_line(text):
    with pytest.raises(BadParameter, match="expected one of untrained, unknown, clean"):
        read_trained_on(text)


@pytest.mark.parametrize("wrong", [{"classifiers": ["x"]}, {"eps": "0.3"}], ids=str)
def test_a_header_with_a_wrong_type_is_no_weights_file(wrong, tmp_path):
    values = {"kind": "defense", "component": "vq", "dataset": "mnist", "fields": {}}
    values |= {"trained_on": {"kind": "clean", **wrong}, "command": "", "seed": 0, "commit": ""}
    header = json.dumps({"__metadata__": {"defend": json.dumps(values)}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BadWeights, match=r"not a weights file of defend \(TrainedOn\("):
        read_header(path)
