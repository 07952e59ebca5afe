"""The command `defend purify` on folders as people have them: damaged, odd and large files."""

import gc
import os
import struct
import weakref
import zlib

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import defend
from defend import batch_sizes
from defend.batch_sizes import CPU_BATCH_VALUES, GPU_BATCH_VALUES, images_at_once
from defend.cli import image_memory, main
from defend.cli import purify as purify_command
from defend.cli.image_files import plan_jobs
from defend.cli.purify import LoadedImage, purify_files
from defend.defenses.jpeg import Jpeg
from defend.errors import MissingData, printable
from defend.losses import cross_entropy
from defend.noise import Noise
from defend.target import Target


def purify(spec, *inputs, out, code=0):
    args = ["purify", spec, *map(str, inputs), "--out", str(out), "--device", "cpu"]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == code, done.output
    return done


def write_picture(path, shape=(8, 8, 3), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def png_with(chunk_type, data):
    """A PNG of one pixel with a chunk between its header and its end."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    parts = [header, chunk(chunk_type, data), pixels, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


DAMAGED = {
    "bad.ppm": b"P6\n2 x\n255\n" + bytes(12),
    "short.ppm": b"P6\n20 20\n255\n" + bytes(12),
    "bomb.pgm": b"P5\n99999 99999\n255\n",
    "text.png": png_with(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**21))),
    "empty.png": b"",
    "cut.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "words.gif": b"no image",
}


def test_damaged_files_are_listed_and_the_others_go_on(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    good = [write_picture(source / name) for name in ("a.png", "m.png", "z.png")]
    for name, content in DAMAGED.items():
        (source / name).write_bytes(content)
    done = purify("none", source, out=out, code=2)
    assert sorted(path.name for path in out.iterdir()) == [path.name for path in good]
    assert f"left out {len(DAMAGED)} of {len(DAMAGED) + 3}: " in done.stderr
    for name in DAMAGED:
        assert f"{source / name}: no image that can be read: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_data_set_names_all_damaged_files_of_a_range(tmp_path):
    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        write_picture(tmp_path / "test" / name)
    names = [name for name in DAMAGED if not name.endswith(".gif")]  # torchvision lists no GIF
    for name in names:
        (tmp_path / "test/cat" / name).write_bytes(DAMAGED[name])
    (tmp_path / "train/cat").mkdir(parents=True)
    data = defend.load(f"image-folder:path={tmp_path},size=8", "dataset")
    with pytest.raises(MissingData, match=f"^{len(names)} of {len(names) + 3} images") as error:
        data.rows("test", 0, data.count("test"))
    assert all(f"cat/{name}: no image" in str(error.value) for name in names)


NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


def test_a_file_name_that_is_no_utf8_is_purified_and_printed(tmp_path):
    source = tmp_path / "in"
    write_picture(source / "a.png")
    (source / "a.png").rename(source / NOT_UTF8)
    write_picture(source / "b.png")
    done = purify("none", source, out=tmp_path / "out")
    assert r"caf\xe9.png" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.png", NOT_UTF8]
    (source / NOT_UTF8).write_bytes(b"no image")
    done = purify("none", source, out=tmp_path / "again", code=2)
    assert r"caf\xe9.png: no image" in done.stderr
    assert printable("é") == "é"


def test_a_data_set_with_a_file_name_that_is_no_utf8(tmp_path):
    for name in ("cat/1.png", "dog/2.png"):
        write_picture(tmp_path / "test" / name)
    (tmp_path / "train/cat").mkdir(parents=True)
    (tmp_path / "test/cat/1.png").rename(tmp_path / "test/cat" / NOT_UTF8)
    data = defend.load(f"image-folder:path={tmp_path},size=8", "dataset")
    assert len(data.rows("test", 0, 2)[0]) == 2


NAMES = {
    "three of a name": (["ok.gif", "ok.bmp", "ok.png"], ["ok.bmp.png", "ok.gif.png", "ok.png"]),
    "capitals": (["ok.PNG", "ok.bmp"], ["ok.PNG.png", "ok.bmp.png"]),
    "alone": (["ok.gif", "no.bmp"], ["no.png", "ok.png"]),
    "in folders": (["a/ok.gif", "b/ok.gif"], ["a/ok.png", "b/ok.png"]),
}


@pytest.mark.parametrize("name", NAMES)
def test_files_that_differ_in_their_suffix_keep_it(tmp_path, name):
    sources, targets = NAMES[name]
    for i, source in enumerate(sources):
        write_picture(tmp_path / "in" / source, (8, 8 + i))
    purify("none", tmp_path / "in", out=tmp_path / "out")
    written = [p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")]
    assert sorted(written) == targets


def test_one_of_two_files_of_one_name_is_left_out_and_named(tmp_path):
    first, second = (write_picture(tmp_path / folder / "x.bmp") for folder in ("a", "b"))
    done = purify("none", first, second, first, out=tmp_path / "out", code=2)
    assert "left out 1 of 2: " in done.stderr
    assert f"{second}: would become {tmp_path}/out/x.bmp.png, as {first} does" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.bmp.png"]


# Memory.

SIZES = [  # max_batch, shape, device, images at once
    (256, (1000, 3, 32, 32), "cpu", 256),
    (256, (1000, 3, 224, 224), "cpu", 55),
    (256, (8, 3, 1536, 2048), "cpu", 1),
    (256, (8, 3, 768, 768), "cuda", 9),
    (4, (1000, 1, 8, 8), "cpu", 4),
    (256, (0, 3, 0, 0), "cpu", 256),
]


@pytest.mark.parametrize(("limit", "shape", "device", "expected"), SIZES)
def test_large_images_are_purified_few_at_a_time(limit, shape, device, expected):
    assert images_at_once(limit, shape, device) == expected
    values = CPU_BATCH_VALUES if device == "cpu" else GPU_BATCH_VALUES
    assert expected == 1 or expected * np.prod(shape[1:]) <= values


class Watched(Jpeg):
    """JPEG that remembers the batches that it was given."""

    def purify(self, x, noise):
        self.__dict__.setdefault("batches", []).append(len(x))
        return super().purify(x, noise)


CALLS = {
    "an array": lambda p, x, _: p(x.numpy()),
    "tensors": lambda p, x, noise: p.purified(x, noise),
    "a gradient": lambda p, x, noise: p.purified(x.requires_grad_(), noise).sum().backward(),
    "ART": lambda p, x, _: p.forward(x),
    "a module": lambda p, x, _: p.as_module()(x),
    "a query": lambda p, x, noise: Target(NET, p, noise).logits(x),
    "an attack": lambda p, x, noise: Target(NET, p, noise).gradient(x, Y, cross_entropy),
}
X, Y = defend.load("digits", "dataset").rows("test", 0, 12)
NET = defend.load("convnet", "classifier", "digits").network


@pytest.mark.parametrize("name", CALLS)
def test_every_call_cuts_its_batch_by_pixels(name, monkeypatch):
    monkeypatch.setattr(batch_sizes, "CPU_BATCH_VALUES", 5 * 64 + 63)
    purifier = Watched()
    CALLS[name](purifier, X.clone(), Noise.of(0, torch.arange(12)))
    assert max(purifier.batches) == 5
    own = Watched(max_batch=12)  # the user's own limit stays
    CALLS[name](own, X.clone(), Noise.of(0, torch.arange(12)))
    assert max(own.batches) == 12


@pytest.mark.parametrize("count", [6, 40])
def test_memory_does_not_grow_with_the_number_of_files(tmp_path, monkeypatch, count):
    monkeypatch.setattr(batch_sizes, "CPU_BATCH_VALUES", 3 * 192)
    for i in range(count):
        write_picture(tmp_path / "in" / f"{i:02}.png")
    held, most = weakref.WeakSet(), [0]

    class Counted(LoadedImage):
        __hash__ = object.__hash__

        def __post_init__(self):
            held.add(self)
            gc.collect()
            most[0] = max(most[0], len(held))

    monkeypatch.setattr(purify_command, "LoadedImage", Counted)
    failures = []
    jobs = plan_jobs((tmp_path / "in",), tmp_path / "out", failures)
    purifier = Watched()
    assert len(list(purify_files(purifier, jobs, failures))) == count
    assert max(purifier.batches) == 3
    assert most[0] <= 4  # a batch, and the next image


def test_an_image_that_does_not_fit_into_memory_is_refused_and_the_others_go_on(
    tmp_path, monkeypatch
):
    source = tmp_path / "in"
    write_picture(source / "large.png", (300, 400, 3))
    write_picture(source / "small.png")
    needed = 300 * 400 * 3 * image_memory.LEAST_BYTES  # `none` takes no memory of its own
    monkeypatch.setattr(image_memory, "available_memory", lambda: needed - 1)
    done = purify("none", source, out=tmp_path / "out", code=2)
    assert "in/large.png: 0 megapixels would take about 0 GB to purify" in done.stderr
    assert "cut it into tiles" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small.png"]
    monkeypatch.setattr(image_memory, "available_memory", lambda: needed)
    purify("none", source, out=tmp_path / "all")
    assert len(list((tmp_path / "all").iterdir())) == 2


def test_the_free_memory_is_that_of_this_machine():
    free = image_memory.available_memory()
    assert 2**20 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_memory_of_a_purifier_is_measured():
    class Large(Jpeg):
        """JPEG that fills 40 float32 for each value of a pixel."""

        def purify(self, x, noise):
            return x + 0 * x.repeat(40, 1, 1, 1).cumsum(0)[:1]

    small = image_memory.measure_bytes(defend.load("none"))
    assert small == image_memory.LEAST_BYTES
    for _ in range(3):  # memory that was taken before, and is free again, hides nothing
        assert 100 < image_memory.measure_bytes(Large()) < 1000
    fixed_size = defend.load("split-vqvae:weights=untrained,channels=3,size=32")
    assert image_memory.measure_bytes(fixed_size) == image_memory.LEAST_BYTES
