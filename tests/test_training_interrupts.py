"""Control-C in a training saves the whole state at once; what a resumed run says and refuses."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from recipe_toys import FIXED, Denoiser, DenoiseRecipe, changed_tensors, copy_state, grey_images
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from defend.errors import BadParameter
from defend.training.checkpoint import KEY
from defend.training.interrupts import HeldInterrupts

NEVER = 1e9  # seconds between two writes: the file can only come from the interrupt


@pytest.fixture(autouse=True)
def sigint_is_heard():
    """A process that a shell started in the background ignores SIGINT."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def read_state(path):
    with safe_open(path, "pt") as f:
        return json.loads(f.metadata()[KEY])


class Interrupted(Denoiser):
    """Its recipe presses Control-C once, in a loss or while the quality is measured."""

    component, __module__ = "Denoiser", Denoiser.__module__  # a resume file takes it for a Denoiser
    in_loss, in_quality = 0, 0  # the call, counted from 1, at which it does so; 0: never
    presses = 1
    number = signal.SIGINT

    class recipe(DenoiseRecipe):
        __module__ = Denoiser.__module__
        losses, qualities = 0, 0

        def loss(self, net, x, y, noise):
            self.losses += 1
            if self.losses == Interrupted.in_loss:
                for _ in range(Interrupted.presses):
                    signal.raise_signal(Interrupted.number)
            return super().loss(net, x, y, noise)

        def quality(self, component, x, y):
            self.qualities += 1
            if self.qualities == Interrupted.in_quality:
                signal.raise_signal(signal.SIGINT)
            return super().quality(component, x, y)


def fit(component_type, resume=None, **options):
    component = component_type(weights="untrained")
    images = grey_images()
    defaults = {"epochs": 3, "batch": 16, "keep": "best", "ema": 0.5, **FIXED}
    arguments = {"val": images, "resume": resume, "save_every": NEVER}
    component.fit(*images, **arguments, **defaults | options)
    return component


@pytest.mark.parametrize(
    ("settings", "step"),
    [({"in_loss": 5}, 5), ({"in_quality": 2}, 6), ({"in_quality": 3}, 9), ({"in_loss": 9}, 9)],
    ids=["in a step", "while measuring", "in the last measurement", "in the last step"],
)
def test_an_interrupted_run_is_saved_at_once_and_goes_on_to_the_bit(
    settings, step, tmp_path, monkeypatch
):
    for name, value in settings.items():
        monkeypatch.setattr(Interrupted, name, value)
    with pytest.raises(KeyboardInterrupt):
        fit(Interrupted, tmp_path / "r")
    assert read_state(tmp_path / "r")["step"] == step  # the step in progress is completed
    resumed = fit(Denoiser, tmp_path / "r")
    assert not changed_tensors(resumed.net, copy_state(fit(Denoiser).net))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_control_c_stops_inside_the_step_and_saves_no_torn_state(tmp_path, monkeypatch):
    monkeypatch.setattr(Interrupted, "in_loss", 2)
    monkeypatch.setattr(Interrupted, "presses", 2)
    with pytest.raises(KeyboardInterrupt):
        fit(Interrupted, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_without_a_resume_file_the_interrupt_comes_all_the_same(monkeypatch):
    monkeypatch.setattr(Interrupted, "in_loss", 2)
    with pytest.raises(KeyboardInterrupt):
        fit(Interrupted)


def test_a_handler_of_the_caller_is_left_alone():
    calls = []
    previous = signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    try:
        with HeldInterrupts() as held:
            signal.raise_signal(signal.SIGINT)
            held.check()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert calls == [1]


def test_sigterm_counts_where_it_is_a_control_c():
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with HeldInterrupts() as held:
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                held.check()
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_an_interrupt_that_nobody_checked_for_is_not_lost():
    with pytest.raises(KeyboardInterrupt), HeldInterrupts():
        signal.raise_signal(signal.SIGINT)


def test_it_trains_outside_of_the_main_thread():
    components = []
    thread = threading.Thread(target=lambda: components.append(fit(Denoiser)))
    thread.start()
    thread.join()
    assert len(components) == 1


def test_what_is_done_is_said(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(Interrupted, "in_quality", 1)
    shown = {"progress": True, "layout": "auto"}
    with pytest.raises(KeyboardInterrupt):
        fit(Interrupted, tmp_path / "r", **shown)
    before = capfd.readouterr().err
    assert before.startswith("measuring precision and layout...\n")
    assert f"interrupted at step 3 of 9, saved in {tmp_path / 'r'}" in before
    fit(Denoiser, tmp_path / "r", **shown)
    after = capfd.readouterr().err
    assert after.startswith("resumed at step 3 of 9\n")
    assert "measuring precision" not in after
    fit(Denoiser)
    assert capfd.readouterr().err == ""


# Resume files of other versions.


@pytest.fixture
def resume_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Interrupted, "in_loss", 4)
    with pytest.raises(KeyboardInterrupt):
        fit(Interrupted, tmp_path / "r")
    return tmp_path / "r"


CHANGES = {
    "an option that is gone": (lambda s: s["run"].update(gamma=1), "gamma"),
    "an option that is new": (lambda s: s["run"].pop("start"), "start"),
    "an entry that is gone": (lambda s: s.update(scheduler=1), "scheduler"),
    "an entry that is new": (lambda s: s.pop("summed"), "summed"),
}


@pytest.mark.parametrize(("change", "name"), CHANGES.values(), ids=CHANGES)
def test_a_file_of_another_version_is_refused_in_one_line(change, name, resume_file):
    state = read_state(resume_file)
    change(state)
    save_file(load_file(resume_file), resume_file, {KEY: json.dumps(state)})
    with pytest.raises(BadParameter) as caught:
        fit(Denoiser, resume_file)
    assert f"other entries ({name}); delete it to start from step 0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_holds_no_object_is_refused(resume_file):
    save_file(load_file(resume_file), resume_file, {KEY: "[]"})
    with pytest.raises(BadParameter, match="not a resume file"):
        fit(Denoiser, resume_file)


# The command, in a process of its own.


def test_control_c_in_the_command(tmp_path):
    command = [sys.executable, "-u", "-m", "defend", "train", "convnet:width=2"]
    options = "--dataset digits --device cpu -o batch=512 -o precision=float32 -o layout=contiguous"
    arguments = [*command, *options.split(), "--out", str(tmp_path / "w")]
    environment = {**os.environ, "COLUMNS": "200"}
    arguments += ["-o", "epochs=100000"]
    with subprocess.Popen(
        arguments,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        first_line = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        last_lines = process.stderr.read()
    assert first_line.startswith("epoch 1")
    assert process.returncode == 130
    assert last_lines.endswith("defend: interrupted\n")
    assert "interrupted at step" in last_lines
    assert read_state(tmp_path / "w.resume")["step"] > 0
