"""Checkpoints are whole or not there: a kill in every phase of a write, full file systems, flipped bytes."""

import errno
import io
import multiprocessing
import os
import resource
import signal
import subprocess
import sys

import pytest

pytest.importorskip("lightning")
import torch

from metricseg.cli import main
from metricseg.training.checkpoints import WholeCheckpoints, check_whole
from metricseg.utils import files

FORK = multiprocessing.get_context("fork")
FILES = WholeCheckpoints()


def state(value):
    return {"epoch": value, "state_dict": {"weight": torch.full((20_000,), float(value))}}


def value_of(path):
    """The number in a checkpoint that must be whole."""
    found = FILES.load_checkpoint(path, weights_only=True)
    assert bool((found["state_dict"]["weight"] == found["epoch"]).all())
    return found["epoch"]


def in_child(work):
    """The exit code of a process that does `work`."""
    child = FORK.Process(target=work)
    child.start()
    child.join(60)
    return child.exitcode


@pytest.fixture
def path(tmp_path):
    """A checkpoint, 1, alone in its folder."""
    path = tmp_path / "run" / "last.ckpt"
    FILES.save_checkpoint(state(1), path)
    assert os.listdir(path.parent) == ["last.ckpt"]
    return path


def save_killed_at(path, line):
    """Save 2 over 1, with SIGKILL before the `line`-th line of the code that saves."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code not in (WholeCheckpoints.save_checkpoint.__code__, files.write_whole.__code__):
            return None
        count += event == "line"
        if count > line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    FILES.save_checkpoint(state(2), path)
    sys.settrace(None)


def test_killed_before_every_line_of_a_write(path):
    """The old checkpoint up to the rename, the new one from then on; and the next write removes what is left."""
    values, left, code = [], 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        FILES.save_checkpoint(state(1), path)
        assert os.listdir(path.parent) == ["last.ckpt"]
        code = in_child(lambda: save_killed_at(path, len(values)))
        values.append(value_of(path))
        left += len(os.listdir(path.parent)) - 1
    assert code == 0 and len(values) > 10
    assert values == sorted(values) and set(values) == {1, 2} and left >= 3
    FILES.save_checkpoint(state(3), path.with_name("best.ckpt"))
    assert sorted(os.listdir(path.parent)) == ["best.ckpt", "last.ckpt"]


class Half(io.FileIO):
    """A file that takes half of what it is given, and then `end`s."""

    def __init__(self, path, mode, end):
        super().__init__(path, mode)
        self.end = end

    def write(self, data):
        super().write(data[: len(data) // 2])
        self.end()


def test_killed_in_the_middle_of_the_bytes(path, monkeypatch):
    def save():
        kill = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        monkeypatch.setattr(files, "open", lambda p, mode: Half(p, mode, kill), raising=False)
        FILES.save_checkpoint(state(2), path)

    assert in_child(save) == -signal.SIGKILL
    (left,) = set(os.listdir(path.parent)) - {"last.ckpt"}
    assert (path.parent / left).stat().st_size > 30_000
    assert value_of(path) == 1
    FILES.save_checkpoint(state(2), path)
    assert value_of(path) == 2 and os.listdir(path.parent) == ["last.ckpt"]


@pytest.mark.parametrize("end", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_stopped_in_the_middle_of_the_bytes(path, monkeypatch, end):
    def stop():
        raise end

    monkeypatch.setattr(files, "open", lambda p, mode: Half(p, mode, stop), raising=False)
    with pytest.raises(type(end)) as caught:
        FILES.save_checkpoint(state(2), path)
    if isinstance(end, OSError):
        assert caught.value.errno == errno.ENOSPC and str(path) in str(caught.value)
    monkeypatch.undo()
    assert value_of(path) == 1 and os.listdir(path.parent) == ["last.ckpt"]


def test_file_size_limit(path):
    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        with pytest.raises(OSError, match=r"the checkpoint is not written: .*last\.ckpt"):
            FILES.save_checkpoint(state(2), path)

    assert in_child(save) == 0
    assert value_of(path) == 1 and os.listdir(path.parent) == ["last.ckpt"]


def test_full_file_system(tmp_path):
    """A file system with room for one checkpoint and a half."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=124k", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        FILES.save_checkpoint(state(1), folder / "last.ckpt")
        with pytest.raises(OSError, match="No space left on device; the checkpoint is not written"):
            FILES.save_checkpoint(state(2), folder / "last.ckpt")
        assert value_of(folder / "last.ckpt") == 1 and os.listdir(folder) == ["last.ckpt"]
    finally:
        subprocess.run(["umount", folder], check=True)


def test_stage_is_beside_the_target(path, monkeypatch):
    """So that the rename never becomes a copy to another device."""
    opened = []
    monkeypatch.setattr(files, "open", lambda p, mode: opened.append(p) or io.FileIO(p, mode), raising=False)
    FILES.save_checkpoint(state(2), path)
    assert [p.parent for p in opened] == [path.parent]


def test_every_flipped_byte_is_noticed_or_does_nothing(tmp_path):
    path = tmp_path / "last.ckpt"
    content = {"epoch": 3, "state_dict": {"weight": torch.arange(40.0)}}
    FILES.save_checkpoint(content, path)
    whole, silent = path.read_bytes(), []
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            found = FILES.load_checkpoint(path, weights_only=True)
        except ValueError as error:
            assert f"the checkpoint {path} " in str(error)
        else:
            silent.append(at)
            assert found["epoch"] == 3 and torch.equal(found["state_dict"]["weight"], torch.arange(40.0))
    assert len(silent) < len(whole) / 2  # padding, dates and the like


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_checkpoint_is_named(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged: "):
        check_whole(path)


def test_command_line_uses_it_and_names_damage_before_a_file_is_written(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = main(["--config=scenes", "--trainer.accelerator=cpu", "--trainer.precision=32-true"], run=False).trainer
    assert isinstance(trainer.strategy.checkpoint_io, WholeCheckpoints)
    bad = bytearray(path.read_bytes())
    bad[len(bad) // 2] ^= 1
    path.write_bytes(bad)
    for command in ("fit", "validate", "predict"):
        with pytest.raises(ValueError, match=r"last\.ckpt is damaged: .* is not what was written"):
            main([command, "--config=scenes", f"--ckpt_path={path}"])
        with pytest.raises(FileNotFoundError, match=r"the checkpoint nowhere\.ckpt is missing"):
            main([command, "--config=scenes", "--ckpt_path=nowhere.ckpt"])
    assert os.listdir(tmp_path) == ["run"]
