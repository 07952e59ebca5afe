"""The choice among precisions and layouts, on a clock that each run moves by a known time."""

from collections import Counter

import pytest
import torch

from defend import numerics
from defend.numerics import Candidate, candidates, fastest

FLOAT, BFLOAT = Candidate("float32", "contiguous"), Candidate("bfloat16", "contiguous")
LAST = Candidate("float32", "channels_last")


@pytest.mark.parametrize(
    ("seconds", "chosen", "measured"),
    [
        ({FLOAT: 0.5, LAST: 0.4}, LAST, {FLOAT: 4, LAST: 4}),
        ({FLOAT: 1.0, BFLOAT: 0.95}, FLOAT, {FLOAT: 4, BFLOAT: 4}),  # a gain below 10 %
        ({FLOAT: 1.0, BFLOAT: 0.5}, BFLOAT, {FLOAT: 4, BFLOAT: 4}),
        ({FLOAT: 1.0, BFLOAT: 9.0}, FLOAT, {FLOAT: 4, BFLOAT: 1}),  # hopeless
        ({FLOAT: 0.01, BFLOAT: 0.9}, FLOAT, {FLOAT: 4, BFLOAT: 4}),  # a first call may cost once
    ],
)
def test_the_fastest_is_chosen_and_a_hopeless_one_is_measured_once(
    monkeypatch, seconds, chosen, measured
):
    clock, calls = [0.0], Counter()
    monkeypatch.setattr(numerics.time, "perf_counter", lambda: clock[0])

    def run(candidate):
        calls[candidate] += 1
        clock[0] += seconds[candidate]

    assert fastest(list(seconds), run, torch.device("cpu")) == chosen
    assert calls == measured


def test_winograd_is_a_candidate_in_float32_where_it_changes_something():
    options = candidates("auto", "auto", has_winograd=True)
    assert {o.precision for o in options if o.layout == "winograd"} == {"float32"}
    assert len(options) == 5
    assert candidates("auto", "auto", has_winograd=False) == [
        o for o in options if o.layout != "winograd"
    ]
