"""The report's content: offline, escaped, complete; its strips and curves show what the units hold."""

import base64
import csv
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from made_runs import DECLARED, IDENTITY, cell, failed, keep, printed, record
from PIL import Image

from defend.benchmarks.flags import unconverged
from defend.errors import BadParameter
from defend.results import table
from defend.results.report import write_report
from defend.results.report.curves import plots
from defend.results.report.image_examples import strips

EVIL = "<script>alert(1)</script>"


def samples(m=6, channels=3, size=28, change=0.03):
    x = torch.rand(m, channels, size, size, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    return {
        "sample_x": x.half(),
        "sample_adv": (x + change).half(),
        "sample_purified": (x - change).half(),
    }


def run(folder, defenses=("none", "median"), eps=("8/255", "16/255"), **over):
    """A small run with samples: two levels, units on disk."""
    rng = np.random.default_rng(0)
    levels = ({"knowledge": "oblivious"}, IDENTITY, DECLARED)
    cells = [
        cell(
            folder,
            rng.integers(0, 2, 40),
            shard=32,
            samples=samples(),
            defense=d,
            eps=int(e.split("/")[0]) / 255,
            eps_text=e,
            **level,
            **over,
        )
        for d in defenses
        for e in eps
        for level in levels
    ]
    return keep(folder, cells), cells


def page(folder, **options):
    return write_report([folder], **options)[0].read_text()


def lines_of(path):
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


class Tags(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


# the file


def test_the_file_needs_no_network(tmp_path):
    text = page(run(tmp_path)[0])
    assert "http" not in text.lower()
    assert "//" not in re.sub(r"base64,[^\"]*", "", text)
    seen = Tags(text)
    assert not {tag for tag, _ in seen.tags} & {"script", "link", "iframe", "object", "embed"}
    assert all(
        a["src"].startswith("data:image/png;base64,") for tag, a in seen.tags if tag == "img"
    )
    assert all(a["href"].startswith("#") for _, a in seen.tags if "href" in a)
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


def test_inner_links_and_ids_are_sound(tmp_path):
    seen = Tags(page(run(tmp_path)[0]))
    ids = [a["id"] for _, a in seen.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for _, a in seen.tags if "href" in a} <= set(ids)


@pytest.mark.parametrize("eps", [("8/255", "16/255"), ("16/255",)])
def test_every_string_of_a_plugin_is_escaped(tmp_path, eps):
    """Names, flags, errors, settings, weights, versions; in the table, the figures (curves and dots), the strips, the notes."""
    over = {
        "trained_on": EVIL,
        "flags": [EVIL],
        "commit": EVIL,
        "device": EVIL,
        "versions": {EVIL: EVIL},
        "weights": {EVIL: EVIL},
    }
    folder, cells = run(
        tmp_path,
        defenses=(EVIL, "-->" + EVIL, "$x^$"),
        eps=eps,
        settings={"attack": {EVIL: EVIL}, "defense": [EVIL]},
        **over,
    )
    keep(folder, [*cells, failed(EVIL, defense=EVIL, attack="fgsm")])
    text = page(folder)
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20
    assert "$x^$" in text


def test_the_size_is_sane(tmp_path):
    """Thirty cells of colour noise, which no PNG makes smaller."""
    text = page(run(tmp_path, defenses=("none", "jpeg", "median", "gaussian", "bitdepth"))[0])
    assert text.count("<img") == 30
    assert len(text) < 5_000_000


def test_what_a_reader_must_know_is_on_the_page(tmp_path):
    folder, cells = run(tmp_path)
    keep(
        folder,
        [
            *cells,
            failed(
                "RuntimeError: out of memory", defense="median", **IDENTITY, eps=0.5, eps_text="0.5"
            ),
        ],
    )
    seen = Tags(page(folder)).text
    for said in (
        "upper bound",
        "cover sampling alone",
        "no claim (missing: oblivious APGD-CE",
        "RuntimeError: out of memory",
        "13, 1 failed",
    ):
        assert said in seen, said
    for said in ("BPDA", "torch 2.11.0", "c0ffee", "steps = 20"):
        assert said in seen, said


def test_the_numbers_are_the_tables(tmp_path):
    folder, cells = run(tmp_path)
    seen = Tags(page(folder)).text
    for row in table(cells, [folder]).rows:
        for number in row.numbers.values():
            assert (
                f"{100 * number.accuracy:.1f}{100 * number.low:.1f}\N{EN DASH}{100 * number.high:.1f}"
                in seen
            )


def test_the_same_records_give_the_same_bytes(tmp_path):
    folder, _ = run(tmp_path)
    first = page(folder)
    assert page(folder) == first


def test_a_run_json_is_shown(tmp_path):
    folder, _ = run(tmp_path)
    (folder / "run.json").write_text('{"precision": "float32", "command": "defend bench --n 40"}')
    assert "defend bench --n 40" in page(folder)
    (folder / "run.json").write_text("{damaged")
    assert "damaged" not in page(folder)


def test_a_cell_that_another_one_accuses_says_so_in_the_csv(tmp_path):
    square = record(20, attack="square", knowledge="query", access="scores")
    write_report([keep(tmp_path, [record(100, knowledge="adaptive", gradient="declared"), square])])
    accused, other = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert (
        accused["flags"] == "black box beats it: median, square, query leaves 10.0 %"
        and other["flags"] == ""
    )


def test_a_number_that_still_fell_is_a_bound_in_table_and_page(tmp_path):
    square = record(
        20, attack="square", knowledge="query", access="scores", flags=[unconverged(0.02)]
    )
    for told, bound in ((square, True), (square | {"flags": []}, False)):
        page, _ = write_report([keep(tmp_path, [told])])
        assert ("≤ 10.0" in page.read_text()) is bound and ("<= 10.0" in printed([told])) is bound


def test_damaged_records_are_said_to_be_damaged(tmp_path):
    folder, _ = run(tmp_path)
    (folder / "records.json").write_text("garbage")
    with pytest.raises(
        BadParameter, match=r"could not be read, and lies there as records.json.damaged"
    ):
        write_report([folder])


@pytest.mark.parametrize("records", [[1], [{"dataset": "digits"}], {"dataset": "digits"}, 7])
def test_a_list_of_something_else_is_named(tmp_path, records):
    with pytest.raises(
        BadParameter,
        match=r"records.json: expected records of `defend bench`.* lack .*attack.*Move that file away",
    ):
        write_report([keep(tmp_path, records)])


# where and what


def test_it_is_written_into_the_first_run_or_out(tmp_path):
    folder, _ = run(tmp_path / "run")
    assert write_report([folder]) == (folder / "report.html", folder / "results.csv")
    assert (
        write_report([folder], tmp_path / "new" / "place")[1]
        == tmp_path / "new" / "place" / "results.csv"
    )
    assert not list(tmp_path.rglob("*.part"))


def test_several_runs_make_one_report_and_a_cell_counts_once(tmp_path):
    first, _ = run(tmp_path / "a")
    second, _ = run(tmp_path / "b", defenses=("median", "jpeg"))
    html, lines = write_report([first, second])
    rows = lines_of(lines)
    assert len(rows) == 18  # three defenses, two eps, three levels
    assert "jpeg" in html.read_text()
    assert html.read_text().count("<img") == 18  # units are found in either folder


def test_only_the_given_records(tmp_path):
    folder, cells = run(tmp_path)
    _, lines = write_report([folder], records=cells[:3])
    assert len(lines_of(lines)) == 3


def test_nothing_to_report_is_one_clear_line(tmp_path):
    with pytest.raises(
        BadParameter, match=r"holds no records: expected .*records\.json; give the folder of a run"
    ):
        write_report([tmp_path])
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(BadParameter, match="holds no records: the run was stopped before its end"):
        write_report([tmp_path])
    with pytest.raises(
        BadParameter, match=f"it is a file; give the folder of the run, {tmp_path}$"
    ):
        write_report([tmp_path / "run.json"])
    with pytest.raises(BadParameter, match="nothing to report"):
        write_report([], records=[])


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    folder, _ = run(tmp_path)
    with pytest.raises(BadParameter, match="cannot be written there"):
        write_report([folder], folder / "records.json" / "below")


# the CSV


def test_csv_round_trip(tmp_path):
    folder, cells = run(
        tmp_path, defenses=('art:name="a,b"', "median"), flags=["one", "two, three"]
    )
    keep(folder, [*cells, failed("line\nbreak", attack="fgsm")])
    rows = lines_of(write_report([folder])[1])
    assert len(rows) == 13
    for row, r in zip(rows, cells):
        assert float(row["robust_accuracy"]) == r["robust_accuracy"]
        assert float(row["eps"]) == r["eps"]
        assert (row["defense"], row["eps_text"], row["gradient"], row["flags"]) == (
            r["defense"],
            r["eps_text"],
            r["gradient"] or "",
            "one; two, three",
        )
    assert (rows[-1]["error"], rows[-1]["robust_accuracy"]) == ("line\nbreak", "")
    assert not {"settings", "units", "versions", "weights"} & rows[0].keys()
    assert {k for k, v in cells[0].items() if isinstance(v, str | int | float)} <= rows[0].keys()


# strips


def decoded(strip):
    return np.asarray(Image.open(BytesIO(base64.b64decode(strip.png))).convert("RGBA")).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_strip_holds_the_images_of_the_unit(tmp_path, channels):
    given = samples(m=3, channels=channels, size=10)
    r = cell(tmp_path, [1, 0, 1], samples=given, **DECLARED)
    (strip,), _ = strips([r], [tmp_path])
    pixels = decoded(strip)
    assert pixels.shape == (4 * 11, 3 * 11, 4)  # a transparent pixel between images
    assert pixels[10, :, 3].max() == pixels[:, 10, 3].max() == 0
    for i, name in enumerate(("sample_x", "sample_adv", "sample_purified")):
        expected = (given[name][1].float().numpy() * 255).round().transpose(1, 2, 0)
        assert np.abs(pixels[11 * i : 11 * i + 10, 11:21, :3] - expected).max() <= 1
    difference = pixels[33:43, 11:21, :3]
    assert np.abs(difference - 255 * (0.5 + 10 * 0.03)).max() <= 4  # float16 samples, times ten


def test_a_strip_shows_at_most_eight_images_and_fewer_large_ones(tmp_path):
    many = cell(tmp_path, [1, 0], samples=samples(m=12, size=8), **DECLARED)
    large = cell(tmp_path, [1, 0], samples=samples(m=6, size=160), **IDENTITY)
    (small_strip, large_strip), _ = strips([many, large], [tmp_path])
    assert decoded(small_strip).shape[1] == 8 * 9
    assert decoded(large_strip).shape[1] == 2 * 161
    assert (small_strip.pixelated, large_strip.pixelated) == (True, False)
    assert (
        small_strip.width % decoded(small_strip).shape[1] == 0
    )  # nearest neighbour by a whole factor


def test_cells_without_something_to_see_have_no_strip(tmp_path):
    without = cell(tmp_path, [1, 0], **DECLARED)
    clean = cell(tmp_path, [1, 0], samples=samples(), eps=0.0, eps_text="0", **DECLARED)
    assert strips([without, clean, failed(**DECLARED), record(20)], [tmp_path]) == ([], 0)


def test_over_budget_every_series_keeps_its_largest_eps(tmp_path):
    folder, cells = run(tmp_path, eps=("4/255", "8/255", "16/255"))
    every, none_left = strips(cells, [folder])
    assert (len(every), none_left) == (18, 0)
    some, left_out = strips(cells, [folder], budget=sum(len(s.png) for s in every) // 3 + 2000)
    assert left_out == 18 - len(some)
    assert [s.eps_text for s in some[:6]] == ["16/255"] * 6
    assert len({(s.defense, s.name) for s in some}) == 6
    assert f"{left_out} more cells" not in page(folder)


# figures


def test_a_figure_for_each_attack_and_a_line_for_each_defense_and_level():
    levels = ({"knowledge": "oblivious"}, IDENTITY, DECLARED)
    records = [
        record(150 - 4 * i, attack=a, defense=d, eps=i / 50, eps_text=f"{i / 50:g}", **level)
        for a in ("fgsm", "pgd")
        for d in ("none", "jpeg")
        for i in range(16)
        for level in levels
    ]
    made = plots(table(records).sections)
    assert [p.title for p in made] == [
        "digits-m, convnet, fgsm, Linf",
        "digits-m, convnet, pgd, Linf",
    ]
    colours = dict(made[0].colours)
    assert list(colours) == ["none", "jpeg"]
    assert len(set(colours.values())) == 2
    assert dict(made[0].dashes) == {"worst": "-", "oblivious": "--"}
    for colour in colours.values():
        assert made[0].svg.lower().count(f"stroke: {colour.lower()}") >= 2  # solid and dashed


def test_a_single_eps_is_a_dot_chart():
    (made,) = plots(table([record(50, **DECLARED), record(150)]).sections)
    assert made.title.endswith("eps 16/255")
    assert made.colours == ()
    assert all(level in made.svg for level in ("clean", "oblivious", "declared", "worst"))


def test_failed_cells_break_the_line_and_are_no_zero():
    ends = [record(150, eps=0.1, eps_text="0.1"), record(90, eps=0.3, eps_text="0.3")]
    whole, broken = (
        plots(table(records).sections)[0]
        for records in (ends, [*ends, failed(eps=0.2, eps_text="0.2")])
    )
    assert strokes(whole) == 1
    assert strokes(broken) == 2
    assert plots(table([failed()]).sections) == []


def strokes(plot):
    """Pieces of the dashed line."""
    (path,) = re.findall(r'd="([^"]*)"[^>]*style="[^"]*stroke-dasharray', plot.svg)
    return path.count("M")
