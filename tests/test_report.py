"""The report: offline, escaped, complete; results.csv and summary.json beside it."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from made_runs import DECLARED, IDENTITY, cell, change, failed, keep, printed, record

from defend.errors import BadParameter
from defend.records import Flag, FlagCode
from defend.results import table
from defend.results.report import write_report

EVIL = "<script>alert(1)</script>"
LEVELS = ({"knowledge": "oblivious"}, IDENTITY, DECLARED)
SQUARE = {"attack": "square", "knowledge": "query", "access": "scores"}


def samples(m=6, channels=3, size=28, difference=0.03):
    x = torch.rand(m, channels, size, size, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    return {
        "sample_x": x.half(),
        "sample_adv": (x + difference).half(),
        "sample_purified": (x - difference).half(),
    }


def make_run(folder, defenses=("none", "median"), eps=("8/255", "16/255"), **changes):
    """Return the folder of a small run with samples and its records."""
    rng = np.random.default_rng(0)
    records = []
    for defense in defenses:
        for text in eps:
            names = {"defense": defense, "eps": int(text.split("/")[0]) / 255, "eps_text": text}
            for level in LEVELS:
                score = rng.integers(0, 2, 40)
                fields = names | level | changes
                records.append(cell(folder, score, shard=32, samples=samples(), **fields))
    return keep(folder, records), records


def read_page(folder, **options):
    return write_report([folder], **options)[0].read_text()


def read_csv(path):
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

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.tags if name in attributes]


# The page.


def test_the_page_needs_no_network(tmp_path):
    text = read_page(make_run(tmp_path)[0])
    assert "http" not in text.lower()
    assert "//" not in re.sub(r"base64,[^\"]*", "", text)
    page = Tags(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed"}
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(link.startswith("#") for link in page.attributes("href"))
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


def test_inner_links_and_ids_are_sound(tmp_path):
    page = Tags(read_page(make_run(tmp_path)[0]))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.attributes("href")} <= set(ids)


@pytest.mark.parametrize("eps", [("8/255", "16/255"), ("16/255",)])
def test_every_string_of_a_plugin_is_escaped(tmp_path, eps):
    """Names, flags, errors, settings, weights and versions are escaped in the table, the figures
    (curves and dots), the examples and the notes.
    """
    flag = Flag(code=FlagCode.NOT_FINITE, value=EVIL)
    facts = {
        "trained_on": [{"kind": "adversarial", "attack": EVIL}],
        "classifier_trained_on": [{"kind": "clean", "behind": EVIL}],
        "flags": [flag],
        "commit": EVIL,
        "device": EVIL,
        "versions": {EVIL: EVIL},
        "weights": {EVIL: EVIL},
        "settings": {"attack": {EVIL: EVIL}, "defense": {EVIL: [EVIL]}},
    }
    names = (EVIL, "-->" + EVIL, "$x^$")
    folder, records = make_run(tmp_path, defenses=names, eps=eps, **facts)
    keep(folder, [*records, failed(EVIL, defense=EVIL, attack="fgsm")])
    text = read_page(folder)
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20
    assert "$x^$" in text


def test_the_size_is_sane(tmp_path):
    """Thirty cells of colour noise, which no PNG makes smaller, stay below 5 MB."""
    defenses = ("none", "jpeg", "median", "gaussian", "bitdepth")
    text = read_page(make_run(tmp_path, defenses=defenses)[0])
    assert text.count("<img") == 30
    assert len(text) < 5_000_000


def test_all_that_a_reader_must_know_is_on_the_page(tmp_path):
    folder, records = make_run(tmp_path)
    names = {"defense": "median", "eps": 0.5, "eps_text": "0.5"} | IDENTITY
    keep(folder, [*records, failed("RuntimeError: out of memory", **names)])
    text = Tags(read_page(folder)).text
    for words in (
        "upper bound",
        "cover sampling alone",
        "no claim (missing: oblivious APGD-CE",
        "RuntimeError: out of memory",
        "13, 1 failed",
        "BPDA",
        "torch 2.11.0",
        "c0ffee",
        "steps = 20",
    ):
        assert words in text, words


def test_the_numbers_are_the_tables(tmp_path):
    folder, records = make_run(tmp_path)
    text = Tags(read_page(folder)).text
    for row in table(records, [folder]).rows:
        for number in row.numbers.values():
            accuracy, low, high = (
                f"{100 * value:.1f}" for value in (number.value, number.low, number.high)
            )
            assert f"{accuracy}{low}\N{EN DASH}{high}" in text


def test_the_same_records_give_the_same_bytes(tmp_path):
    folder, _ = make_run(tmp_path)
    first = read_page(folder)
    assert read_page(folder) == first


def test_a_run_json_is_shown(tmp_path):
    folder, _ = make_run(tmp_path)
    (folder / "run.json").write_text('{"precision": "float32", "command": "defend bench --n 40"}')
    assert "defend bench --n 40" in read_page(folder)
    (folder / "run.json").write_text("{damaged")
    assert "damaged" not in read_page(folder)


def test_flags_and_findings_are_told_beside_the_mark(tmp_path):
    flags = [Flag(code=FlagCode.ZERO_GRADIENT, value=3)]
    accused = record(100, flags=flags, **DECLARED)
    records = [accused, record(20, **SQUARE)]
    page = Tags(read_page(keep(tmp_path, records), records=records))
    expected = (
        "zero gradient: 3 of 200 images; black box beats it: median, square, query leaves 10.0 %"
    )
    assert expected in page.attributes("title")


@pytest.mark.parametrize("is_unconverged", [True, False])
def test_a_number_that_still_fell_is_a_bound_in_table_and_page(tmp_path, is_unconverged):
    flags = [Flag(code=FlagCode.UNCONVERGED, value=0.02)] if is_unconverged else []
    square = record(20, flags=flags, **SQUARE)
    assert ("≤ 10.0" in read_page(keep(tmp_path, [square]))) is is_unconverged
    assert ("<= 10.0" in printed([square])) is is_unconverged


# Where it is written, and from what.


def test_it_is_written_into_the_first_run_or_out(tmp_path):
    folder, _ = make_run(tmp_path / "run")
    assert write_report([folder]) == (folder / "report.html", folder / "results.csv")
    place = tmp_path / "new" / "place"
    assert write_report([folder], place)[1] == place / "results.csv"
    assert not list(tmp_path.rglob("*.part"))


def test_several_runs_make_one_report_and_a_cell_counts_once(tmp_path):
    first, _ = make_run(tmp_path / "a")
    second, _ = make_run(tmp_path / "b", defenses=("median", "jpeg"))
    page, results = write_report([first, second], tmp_path / "both")
    assert len(read_csv(results)) == 18  # three defenses, two eps, three levels
    assert "jpeg" in page.read_text()
    assert page.read_text().count("<img") == 18  # units are found in either folder


def test_only_the_given_records_are_shown(tmp_path):
    folder, records = make_run(tmp_path)
    _, results = write_report([folder], records=records[:3])
    assert len(read_csv(results)) == 3


def test_damaged_records_are_said_to_be_damaged(tmp_path):
    folder, _ = make_run(tmp_path)
    (folder / "records.json").write_text("garbage")
    with pytest.raises(BadParameter, match="could not be read, since it is no JSON"):
        write_report([folder])
    (folder / "records.json").rename(folder / "records.json.damaged")
    expected = r"could not be read, and lies there as records.json.damaged"
    with pytest.raises(BadParameter, match=expected):
        write_report([folder])


@pytest.mark.parametrize("content", [[1], [{"dataset": "digits"}], {"dataset": "digits"}, 7])
def test_a_list_of_something_else_is_named(tmp_path, content):
    (tmp_path / "records.json").write_text(json.dumps(content))
    expected = r"records\.json: expected records of `defend bench`.*, got .*Move that file away"
    with pytest.raises(BadParameter, match=expected):
        write_report([tmp_path])


def test_nothing_to_report_is_one_clear_line(tmp_path):
    expected = r"holds no records: expected .*records\.json; give the folder of a run"
    with pytest.raises(BadParameter, match=expected):
        write_report([tmp_path])
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(BadParameter, match="holds no records: the run was stopped before its end"):
        write_report([tmp_path])
    expected = f"it is a file; give the folder of the run, {re.escape(str(tmp_path))}$"
    with pytest.raises(BadParameter, match=expected):
        write_report([tmp_path / "run.json"])
    with pytest.raises(BadParameter, match="nothing to report"):
        write_report([], records=[])


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    folder, _ = make_run(tmp_path)
    with pytest.raises(BadParameter, match="cannot be written there"):
        write_report([folder], folder / "records.json" / "below")


# The files of data.


def test_csv_round_trip(tmp_path):
    flags = [Flag(code=FlagCode.NOT_FINITE, value=text) for text in ("one", "two, three")]
    names = ('art:name="a,b"', "median")
    folder, records = make_run(tmp_path, defenses=names, flags=flags)
    keep(folder, [*records, failed("line\nbreak", attack="fgsm")])
    rows = read_csv(write_report([folder])[1])
    assert len(rows) == 13
    for row, r in zip(rows, records):
        assert float(row["robust_accuracy"]) == r.robust_accuracy
        assert float(row["eps"]) == r.eps
        assert (row["defense"], row["eps_text"]) == (r.defense, r.eps_text)
        assert row["gradient"] == (r.gradient or "")
        assert row["flags"].startswith("not_finite=one; not_finite=two, three")
    assert (rows[-1]["error"], rows[-1]["robust_accuracy"]) == ("line\nbreak", "")
    assert not {"settings", "units", "versions", "weights"} & rows[0].keys()
    fields = records[0].model_dump()
    scalars = {name for name, value in fields.items() if isinstance(value, str | int | float)}
    assert scalars <= rows[0].keys()


def test_the_csv_lists_flags_as_codes_and_values(tmp_path):
    flags = [
        Flag(code=FlagCode.ZERO_GRADIENT, value=3),
        Flag(code=FlagCode.UNCONVERGED, value=0.02),
        Flag(code=FlagCode.LOSS_FELL),
    ]
    records = [record(100, flags=flags, **DECLARED)]
    _, results = write_report([keep(tmp_path, records)], records=records)
    (row,) = read_csv(results)
    assert row["flags"] == "zero_gradient=3; unconverged=0.02; loss_fell"


def test_a_cell_that_another_one_accuses_says_so_in_the_csv(tmp_path):
    accused, square = record(100, **DECLARED), record(20, **SQUARE)
    _, results = write_report([keep(tmp_path, [accused, square])], records=[accused, square])
    first, second = read_csv(results)
    expected = "black_box_beats_white_box=median, square, query leaves 10.0 %"
    assert first["flags"] == expected and second["flags"] == ""


def test_the_summary_holds_claims_signs_and_findings_as_lines(tmp_path):
    records = [record(100, **DECLARED), change(record(20, **SQUARE), surrogate=None)]
    write_report([keep(tmp_path, records)], records=records)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary) == [
        "worst",
        "comparisons",
        "measures",
        "measure_pairs",
        "claims",
        "surrogates",
        "signs",
        "findings",
        "unconfirmed",
        "training",
        "reading",
    ]
    assert summary["claims"][0].startswith("no claim (missing: oblivious APGD-CE")
    assert "black box beats white box: square, query" in summary["signs"][0]
    assert summary["findings"][0].startswith("black box beats white box: median, square, query")
    assert summary["worst"][0]["number"]["value"] == 0.1
    assert summary["worst"][0]["number"]["flags"] == [
        "black box beats it: median, square, query leaves 10.0 %"
    ]
    assert summary["worst"][0]["claim"] == summary["claims"][0]
