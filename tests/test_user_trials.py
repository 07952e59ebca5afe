"""Faults that people met who tried the commands on networks and purifiers of their own."""

import pytest
import torch
from click.testing import CliRunner

import defend
from defend.cli import main
from defend.errors import BadParameter
from defend.record_list import Records
from defend.results.verify import verify_run

FILES = {
    "net.py": "import torch\n\n\ndef build():\n    torch.manual_seed(0)\n"
    "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n",
    "plain.py": "import torch\n\n\nclass Plain(torch.nn.Module):\n    def forward(self, x):\n"
    "        return x.flatten(1)[:, :10]\n\n\ndef build():\n    return Plain()\n",
    "bright.py": "from defend import Card, Purifier\n\n\nclass Bright(Purifier):\n"
    '    card = Card(paper="none: a test", gradient="exact", stochastic=False)\n\n'
    "    def purify(self, x, noise):\n        return x * {factor}\n",
}
KEYS = {"dataset": "digits", "attacks": ["fgsm"], "knowledge": ["oblivious"], "eps": "0.1", "n": 8}


@pytest.fixture
def files(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(**keys):
    return defend.bench(KEYS | keys, out="run", workers=1)


LIVE = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("classifier", ["./net.py:build", LIVE], ids=["file", "object"])
def test_a_run_with_a_network_of_the_user_is_confirmed(classifier):
    run(classifiers=[classifier], defenses=["none", "jpeg"])
    verification = verify_run("run")
    assert (verification.problems, verification.confirmed) == ((), 2)


def test_an_edited_number_of_such_a_run_is_found(files):
    records = run(classifiers=["./net.py:build"], defenses=["none"])
    file = files / "run" / "records.json"
    text = file.read_text().replace(
        f'"robust_accuracy": {records[0].robust_accuracy}', '"robust_accuracy": 0.93'
    )
    file.write_text(text)
    assert [problem.code for problem in verify_run("run").problems] == ["edited"]


@pytest.mark.usefixtures("files")
def test_a_network_without_parameters_is_evaluated():
    (record,) = run(classifiers=["./plain.py:build"], defenses=["none"])
    assert not record.failed


@pytest.mark.parametrize(("factor", "is_refused"), [(1.0, False), (2.0, True), (-1.0, True)])
def test_a_purifier_that_leaves_the_range_of_pixels_has_no_number(files, factor, is_refused):
    (files / "bright.py").write_text(FILES["bright.py"].format(factor=factor))
    (record,) = run(classifiers=["convnet"], defenses=["./bright.py:Bright"])
    assert record.failed is is_refused
    assert not is_refused or "expected purified pixels in [0, 1]" in record.error


@pytest.mark.usefixtures("files")
def test_check_of_a_network_of_the_user_fails_nothing_that_its_author_cannot_mend():
    done = CliRunner().invoke(
        main, ["check", "classifier", "./net.py:build", "--dataset", "digits"]
    )
    assert "rebuild it from its settings" not in done.output
    assert done.exit_code == 0, done.output


@pytest.mark.usefixtures("files")
def test_records_of_no_run_are_one_line_and_slices_stay_records():
    with pytest.raises(BadParameter, match="expected the folder of a run"):
        Records.read("nowhere")
    run(classifiers=["convnet"], defenses=["none", "jpeg"])
    records = Records.read("run")
    assert isinstance(records[:1], Records) and len(records[:1]) == 1
    assert records[1].defense == "jpeg"
