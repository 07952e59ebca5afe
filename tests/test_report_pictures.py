"""The report's pictures: examples of images and figures show what the units hold."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
from made_runs import DECLARED, IDENTITY, cell, failed, record
from PIL import Image
from test_report import LEVELS, make_run, read_page, samples

from defend.results import table
from defend.results.report.curves import make_plots
from defend.results.report.image_examples import make_image_examples

# Examples of images.


def decode(picture):
    png = BytesIO(base64.b64decode(picture.png))
    return np.asarray(Image.open(png).convert("RGBA")).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_holds_the_images_of_the_unit(tmp_path, channels):
    images = samples(m=3, channels=channels, size=10)
    r = cell(tmp_path, [1, 0, 1], samples=images, **DECLARED)
    (picture,), _ = make_image_examples([r], [tmp_path])
    pixels = decode(picture)
    assert pixels.shape == (4 * 11, 3 * 11, 4)  # a transparent pixel between images
    assert pixels[10, :, 3].max() == pixels[:, 10, 3].max() == 0
    for i, name in enumerate(("sample_x", "sample_adv", "sample_purified")):
        expected = (images[name][1].float().numpy() * 255).round().transpose(1, 2, 0)
        assert np.abs(pixels[11 * i : 11 * i + 10, 11:21, :3] - expected).max() <= 1
    difference = pixels[33:43, 11:21, :3]
    assert np.abs(difference - 255 * (0.5 + 10 * 0.03)).max() <= 4  # float16 samples, times ten


def test_a_picture_shows_at_most_eight_images_and_fewer_large_ones(tmp_path):
    many = cell(tmp_path, [1, 0], samples=samples(m=12, size=8), **DECLARED)
    large = cell(tmp_path, [1, 0], samples=samples(m=6, size=160), **IDENTITY)
    (of_small, of_large), _ = make_image_examples([many, large], [tmp_path])
    assert decode(of_small).shape[1] == 8 * 9
    assert decode(of_large).shape[1] == 2 * 161
    assert (of_small.pixelated, of_large.pixelated) == (True, False)
    # Nearest neighbours by a whole factor.
    assert of_small.width % decode(of_small).shape[1] == 0


def test_cells_without_something_to_see_have_no_picture(tmp_path):
    without = cell(tmp_path, [1, 0], **DECLARED)
    clean = cell(tmp_path, [1, 0], samples=samples(), eps=0.0, eps_text="0", **DECLARED)
    records = [without, clean, failed(**DECLARED), record(20)]
    assert make_image_examples(records, [tmp_path]) == ([], 0)


def test_over_budget_every_series_shows_its_largest_eps(tmp_path):
    folder, records = make_run(tmp_path, eps=("4/255", "8/255", "16/255"))
    every, none_left = make_image_examples(records, [folder])
    assert (len(every), none_left) == (18, 0)
    budget = sum(len(picture.png) for picture in every) // 3 + 2000
    chosen, left_out = make_image_examples(records, [folder], budget=budget)
    assert left_out == 18 - len(chosen)
    with_others = [*records, cell(tmp_path, [1, 0], **DECLARED), failed(**DECLARED)]
    assert make_image_examples(with_others, [folder], budget=budget)[1] == left_out
    assert [picture.eps_text for picture in chosen[:6]] == ["16/255"] * 6
    assert len({(picture.defense, picture.level) for picture in chosen}) == 6
    assert f"{left_out} more cells" not in read_page(folder)


# Figures.


def test_a_figure_for_each_attack_and_a_line_for_each_defense_and_level():
    records = []
    for attack in ("fgsm", "pgd"):
        for defense in ("none", "jpeg"):
            for i in range(16):
                eps = {"eps": i / 50, "eps_text": f"{i / 50:g}"}
                names = {"attack": attack, "defense": defense} | eps
                records += [record(150 - 4 * i, **names, **level) for level in LEVELS]
    plots = make_plots(table(records).sections)
    assert [plot.title for plot in plots] == [
        "digits-m, convnet, fgsm, Linf",
        "digits-m, convnet, pgd, Linf",
    ]
    colours = dict(plots[0].colours)
    assert list(colours) == ["none", "jpeg"]
    assert len(set(colours.values())) == 2
    assert dict(plots[0].dashes) == {"worst": "-", "oblivious": "--"}
    for colour in colours.values():
        assert plots[0].svg.lower().count(f"stroke: {colour.lower()}") >= 2  # solid and dashed


def test_a_single_eps_is_a_dot_chart():
    (plot,) = make_plots(table([record(50, **DECLARED), record(150)]).sections)
    assert plot.title.endswith("eps 16/255")
    assert plot.colours == ()
    assert all(level in plot.svg for level in ("clean", "oblivious", "declared", "worst"))


def test_failed_cells_break_the_line_and_are_no_zero():
    ends = [record(150, eps=0.1, eps_text="0.1"), record(90, eps=0.3, eps_text="0.3")]
    (unbroken,) = make_plots(table(ends).sections)
    (broken,) = make_plots(table([*ends, failed(eps=0.2, eps_text="0.2")]).sections)
    assert count_strokes(unbroken) == 1
    assert count_strokes(broken) == 2
    assert make_plots(table([failed()]).sections) == []


def count_strokes(plot):
    """Return the number of pieces of the dashed line."""
    (path,) = re.findall(r'd="([^"]*)"[^>]*style="[^"]*stroke-dasharray', plot.svg)
    return path.count("M")
