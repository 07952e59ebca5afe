"""Images of a run that are kept on request: the exact ones, and pictures of them."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import defend
from defend.errors import BadParameter

KEYS = {
    "dataset": "digits",
    "classifiers": ["convnet"],
    "defenses": ["none", "bitdepth:bits=3"],
    "attacks": ["fgsm"],
    "knowledge": ["oblivious"],
    "eps": "0.1",
    "n": 12,
    "shard": 8,
}


def run(out, save_images, **changes):
    return defend.bench(KEYS | changes, out=out, save_images=save_images, workers=1)


def saved(out):
    """Return the tensors of each file, by the folder of the cell and the name of the file."""
    files = sorted((out / "images").rglob("*.safetensors"))
    return {(f.parent.name, f.name): load_file(f) for f in files}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return out, run(out, 10)


def test_each_cell_has_the_first_images_of_all_its_ranges(kept):
    out, records = kept
    files = saved(out)
    folders = {folder for folder, _ in files}
    assert len(folders) == len(records) == 2
    assert {name for _, name in files} == {"0000-0007.safetensors", "0008-0009.safetensors"}
    assert any(folder.startswith("bitdepth-bits=3_fgsm_oblivious_eps-0.1_") for folder in folders)
    for _, tensors in files.items():
        assert set(tensors) == {"clean", "adversarial", "purified", "index"}
        assert all(len(batch) == len(tensors["index"]) for batch in tensors.values())


def clean_images(out):
    return [tensors["clean"] for tensors in saved(out).values()]


def test_images_of_another_split_are_kept_beside(tmp_path):
    for split in ("test", "val"):
        run(tmp_path, 4, defenses=["none"], split=split)
    first, second = clean_images(tmp_path)
    assert not torch.equal(first, second)


def test_images_of_other_data_take_the_place_of_earlier_ones(tmp_path):
    """As where a folder of images has changed, so that its name is the same."""
    run(tmp_path, 4, defenses=["none"])
    (file,) = (tmp_path / "images").rglob("*.safetensors")
    tensors = load_file(file)
    save_file(tensors | {"clean": 1 - tensors["clean"]}, file, {"data": "0" * 64})
    run(tmp_path, 4, defenses=["none"])
    assert torch.equal(clean_images(tmp_path)[0], tensors["clean"])


def test_they_are_the_images_of_the_evaluation(kept):
    """Clean ones are the data set's, adversarial ones in the ball, purified ones the purifier's."""
    out, _ = kept
    purifier = defend.load("bitdepth:bits=3")
    for (folder, name), tensors in saved(out).items():
        start = int(name[:4])
        x, _ = defend.load("digits", "dataset").rows("test", start, start + len(tensors["clean"]))
        assert torch.equal(tensors["clean"], x)
        distance = (tensors["adversarial"] - x).abs().amax()
        assert 0 < distance <= 0.1 + 1e-6
        expected = tensors["adversarial"]
        if folder.startswith("bitdepth"):
            expected = torch.from_numpy(purifier(expected.numpy())[0])
        assert torch.equal(tensors["purified"], expected)


def test_the_folder_of_a_file_of_the_user_is_not_hidden(tmp_path):
    source = "from defend.defenses.bitdepth import BitDepth\n\n\nclass Mine(BitDepth):\n    pass\n"
    (tmp_path / "mine.py").write_text(source)
    run(tmp_path / "run", 1, defenses=[f"{tmp_path / 'mine.py'}:Mine"])
    assert not [f for f in (tmp_path / "run" / "images").iterdir() if f.name.startswith(".")]


def test_pictures_are_the_tensors_rounded(kept):
    out, _ = kept
    for (folder, _), tensors in saved(out).items():
        for name in ("clean", "adversarial", "purified"):
            for place, image in zip(tensors["index"].tolist(), tensors[name], strict=True):
                picture = Image.open(out / "images" / folder / f"{place:04d}-{name}.png")
                expected = np.round(image.numpy() * 255).squeeze()
                assert np.array_equal(np.asarray(picture), expected)
    assert len(list((out / "images").rglob("*.png"))) == 2 * 3 * 10


def test_at_eps_0_the_purified_images_of_all_ranges_are_there(tmp_path):
    run(tmp_path, 12, eps="0")
    for _, tensors in saved(tmp_path).items():
        assert torch.equal(tensors["adversarial"], tensors["clean"])
        assert len(tensors["purified"]) == len(tensors["clean"]) > 0


def test_asking_later_computes_what_is_not_there_and_changes_no_number(tmp_path, kept):
    first = run(tmp_path, 0)
    assert not (tmp_path / "images").exists()
    again = run(tmp_path, 10)
    assert [r.robust_accuracy for r in again] == [r.robust_accuracy for r in first]
    assert saved(tmp_path).keys() == saved(kept[0]).keys()


def test_what_is_there_is_not_written_again(kept):
    out, _ = kept
    times = {f: f.stat().st_mtime_ns for f in (out / "images").rglob("*")}
    run(out, 10)
    assert {f: f.stat().st_mtime_ns for f in (out / "images").rglob("*")} == times


@pytest.mark.parametrize("number", [-1, 1.5])
def test_no_number_of_images_is_one_line(tmp_path, number):
    with pytest.raises(BadParameter, match="save_images"):
        run(tmp_path, number)
