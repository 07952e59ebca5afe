"""A purifier that takes a second for an image can be measured: few purifications are overhead."""

import counting_plugin
import pytest
import torch

import defend
from defend.benchmarks import purifier_checks
from defend.benchmarks.scoring import SELECT_DRAWS

N, EOT, DRAWS = 8, 2, 3
CHECKED = purifier_checks.few_of(N)
SCORED = {"counts": 1, "counts-and-draws": DRAWS + SELECT_DRAWS}  # draws of each image
COPIES = {"counts": 1, "counts-and-draws": EOT}  # for one gradient


@pytest.fixture
def counting_purifiers(tmp_path, install, monkeypatch):
    """Register the purifiers that count, which the checks of the bench take for slow ones."""
    monkeypatch.setattr(purifier_checks, "QUICK_SECONDS", 0.0)
    folder = tmp_path / "counting-0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 0.1\n")
    (folder / "entry_points.txt").write_text(
        "[defend.defenses]\ncounts = counting_plugin:Counts\n"
        "counts-and-draws = counting_plugin:CountsAndDraws\n"
    )
    install(tmp_path)


def purified_images(defense, knowledge, out, n=N):
    """Return how many images a run of FGSM at one eps has purified."""
    counting_plugin.PURIFIED["images"] = 0
    suite = {
        "dataset": "digits",
        "classifiers": ["convnet"],
        "defenses": [defense],
        "attacks": ["fgsm"],
        "eps": "0.1",
        "knowledge": [knowledge],
        "n": n,
        "eot": EOT,
        "draws": DRAWS,
    }
    records = defend.bench(suite, out=out, workers=1)
    assert [r.error for r in records] == [None]
    return counting_plugin.PURIFIED["images"]


@pytest.mark.usefixtures("counting_purifiers")
@pytest.mark.parametrize("defense", SCORED)
def test_an_oblivious_attack_costs_its_scores_and_a_few_checks(defense, tmp_path):
    least = 2 * N * SCORED[defense]  # clean and adversarial images
    images = purified_images(defense, "oblivious", tmp_path)
    assert least < images <= least + 2 * CHECKED


@pytest.mark.usefixtures("counting_purifiers")
@pytest.mark.parametrize("defense", SCORED)
def test_an_adaptive_attack_costs_one_gradient_and_a_few_checks_more(defense, tmp_path):
    """The other gradient counts zero gradients off the grid of 256 levels, for every image."""
    copies = COPIES[defense]
    least = 2 * N * SCORED[defense] + N * copies
    checks = 2 * CHECKED * copies + 2 * CHECKED
    images = purified_images(defense, "bpda", tmp_path)
    assert least < images <= least + N * copies + checks


@pytest.mark.usefixtures("counting_purifiers")
def test_checks_do_not_grow_with_the_number_of_images(tmp_path):
    few = purified_images("counts", "oblivious", tmp_path / "few", n=2 * N)
    many = purified_images("counts", "oblivious", tmp_path / "many", n=8 * N)
    assert many - few == 2 * 6 * N


@pytest.mark.parametrize("count", [0, 1, 2, 5, 16, 100])
@pytest.mark.parametrize("n", [0, 1, 4, 8])
def test_spread_rows_are_distinct_rows_in_order(count, n):
    rows = purifier_checks.spread_rows(count, n).tolist()
    assert rows == sorted(set(rows))
    assert len(rows) == min(n, count)
    assert all(0 <= row < count for row in rows)
    assert not rows or max(rows) - min(rows) >= (count - 1) - 2 * (count // len(rows))


@pytest.mark.parametrize("count", [1, 2, 7, 16, 64])
@pytest.mark.parametrize("right", [0, 1, 3, 12, 64])
def test_the_few_images_are_right_ones_first(count, right):
    """The right images are the last ones."""
    is_right = torch.arange(count) >= count - right
    rows = purifier_checks.few_rows(is_right)
    assert len(set(rows.tolist())) == purifier_checks.few_of(count)
    assert int(is_right[rows].sum()) == min(len(rows), int(is_right.sum()))
