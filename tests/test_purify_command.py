"""The command `defend purify` on image files."""

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from defend.cli import main


def purify(spec, *inputs, out, code=0):
    args = ["purify", spec, *map(str, inputs), "--out", str(out), "--device", "cpu"]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == code, done.output
    return done


def write_picture(path, shape, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def read_picture(path):
    with Image.open(path) as image:
        return np.asarray(image)


SHAPES = {
    "a.png": (12, 8),
    "b.jpg": (8, 12, 3),
    "deep/c.png": (8, 12, 3),
    "deep/d.bmp": (8, 12, 3),
}


def test_purify_keeps_names_shapes_and_folders(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for seed, (name, shape) in enumerate(SHAPES.items()):
        write_picture(source / name, shape, seed)
    (source / "notes.txt").write_text("no image")
    lines = purify("bitdepth:bits=2", source, out=out).stdout.splitlines()
    written = sorted(str(path.relative_to(out)) for path in out.glob("**/*.png"))
    assert written == ["a.png", "b.png", "deep/c.png", "deep/d.png"]
    for line, (name, shape) in zip(lines, SHAPES.items(), strict=True):
        target = (out / name).with_suffix(".png")
        before, after = read_picture(source / name), read_picture(target)
        assert after.shape == shape
        assert np.array_equal(after, np.rint(np.rint(before / 255 * 3) / 3 * 255))
        psnr = 10 * np.log10(255**2 / np.mean((after.astype(float) - before) ** 2))
        assert line == f"{source / name} -> {target}  {psnr:.2f} dB PSNR"


def test_purify_takes_more_images_than_it_holds_at_once(tmp_path):
    names = [f"{i:02}.png" for i in range(70)]
    for seed, name in enumerate(names):
        write_picture(tmp_path / "in" / name, (4, 4, 3), seed)
    purify("none", tmp_path / "in", out=tmp_path / "out")
    for name in names:
        before, after = read_picture(tmp_path / "in" / name), read_picture(tmp_path / "out" / name)
        assert np.array_equal(before, after)


def test_purify_leaves_out_what_is_no_image_and_names_it(tmp_path):
    for name in ("a", "c"):
        write_picture(tmp_path / "in" / f"{name}.png", (4, 4, 3))
    (tmp_path / "in" / "b.png").write_text("no image")
    done = purify("none", tmp_path / "in", out=tmp_path / "out", code=2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    assert len(done.stdout.splitlines()) == 2
    assert f"left out 1 of 3: {tmp_path}/in/b.png: no image that can be read" in done.stderr


def test_purify_leaves_out_a_picture_that_is_too_large_to_open(tmp_path, monkeypatch):
    write_picture(tmp_path / "in" / "large.png", (20, 20, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses more than twice as many
    done = purify("none", tmp_path / "in", out=tmp_path / "out", code=2)
    assert f"{tmp_path}/in/large.png: no image that can be read" in done.stderr


def test_purify_leaves_out_what_cannot_be_written_and_names_it(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "b.png", "deep/c.png", "e.png"):
        write_picture(source / name, (4, 4, 3))
    (out / "b.png").mkdir(parents=True)  # a folder where the file should be
    (out / "deep").touch()  # a file where the folder should be
    done = purify("none", source, out=out, code=2)
    written = sorted(path.name for path in out.glob("*.png") if path.is_file())
    assert written == ["a.png", "e.png"]
    assert len(done.stdout.splitlines()) == 2
    assert "left out 2 of 4: " in done.stderr
    for name in ("b.png", "deep/c.png"):
        assert f"{source / name}: {out / name} cannot be written: " in done.stderr


def test_purify_names_the_file_that_the_purifier_cannot_take(tmp_path):
    write_picture(tmp_path / "in" / "colour.png", (28, 28, 3))
    write_picture(tmp_path / "in" / "grey.png", (28, 28))
    spec = "split-vqvae:weights=split-vqvae-mnist-quad"
    done = purify(spec, tmp_path / "in", out=tmp_path / "out", code=2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["grey.png"]
    assert f"left out 1 of 2: {tmp_path}/in/colour.png: SplitVQVAE: " in done.stderr
    assert "1 channel" in done.stderr
    assert "got 3" in done.stderr


@pytest.mark.parametrize(
    ("mode", "mode_after"),
    [("L", "L"), ("1", "L"), ("LA", "L"), ("P", "RGB"), ("RGBA", "RGB"), ("CMYK", "RGB")],
)
def test_purify_reads_every_mode_of_8_bits(tmp_path, mode, mode_after):
    source = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new(mode, (4, 4)).save(source)
    text = purify("none", source, out=tmp_path / "out").stdout
    assert "unchanged" in text
    with Image.open(tmp_path / "out" / "x.png") as after:
        assert after.mode == mode_after


def test_purify_can_be_repeated_with_a_seed_and_is_random_without(tmp_path):
    write_picture(tmp_path / "x.png", (8, 8))

    def purified(spec, folder):
        purify(spec, tmp_path / "x.png", out=tmp_path / folder)
        return read_picture(tmp_path / folder / "x.png")

    with_seed = [purified("gaussian:seed=1", folder) for folder in ("a", "b")]
    without_seed = [purified("gaussian", folder) for folder in ("c", "d")]
    assert np.array_equal(*with_seed)
    assert not np.array_equal(*without_seed)
