"""One run of the benchmark of bakes: its clock, its memory from outside, and its random checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest

from benchmarks import bake_running
from benchmarks.bake_memory import MemorySampler, available, family, resident
from benchmarks.bake_models import CONFIGS, shards_of, write_checkpoint
from benchmarks.bake_running import FailedRunError, clear, empty_cache, read_through, timed
from benchmarks.bake_values import Values

MB = 1_000_000
HOLD = "import time; held = bytearray(b'x') * {bytes}; time.sleep({seconds})"


def sampled(program):
    process = subprocess.Popen([sys.executable, "-c", program])
    with MemorySampler(process.pid) as memory:
        assert process.wait() == 0
    return memory


def test_memory_is_that_of_the_process_and_its_children():
    child = HOLD.format(bytes=80 * MB, seconds=1)
    program = (
        "import subprocess, sys; held = bytearray(b'x') * 100_000_000;"
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    memory = sampled(program)
    assert 180 * MB <= memory.anonymous < 230 * MB
    assert memory.total > memory.anonymous
    assert memory.samples > 10


def test_pages_of_files_count_in_the_total_alone(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100 * MB))
    memory = sampled(
        f"import mmap, time; file = open({str(tmp_path / 'file')!r}, 'rb');"
        "mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ);"
        "sum(mapped[i] for i in range(0, len(mapped), 4096)); time.sleep(0.3)"
    )
    assert memory.anonymous < 50 * MB
    assert memory.total >= 100 * MB


def test_what_ended_holds_nothing():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    assert resident(process.pid) is None
    mine = resident(os.getpid())
    assert 0 < mine.anonymous < mine.total <= mine.highest
    assert available() > 100 * MB


def test_a_family_is_all_generations():
    with subprocess.Popen(["sh", "-c", "sh -c 'sleep 5; true' & wait"]) as process:
        deadline = time.monotonic() + 5
        while len(family(process.pid)) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        found = family(process.pid)
        for pid in found:
            os.kill(pid, 9)
    assert len(found) == 3
    assert process.pid in found
    assert os.getpid() not in found


@pytest.fixture(autouse=True)
def _machine_keeps_its_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(bake_running, "DROP_CACHES", tmp_path / "not there")


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base" / "more").mkdir(parents=True)
    (tmp_path / "base" / "weights").write_bytes(bytes(3 * MB))
    (tmp_path / "base" / "more" / "config").write_bytes(b"{}")
    return tmp_path / "base"


def test_a_run_has_seconds_and_bytes(base, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    run = timed(["sh", "-c", f"sleep 0.3; cp -r {base} {out}"], base, out, log)
    assert 0.3 <= run.wall < 5
    assert run.processor < run.wall
    assert run.output_bytes == run.new_bytes == 3 * MB + 2
    clear(out)
    assert not out.exists()
    clear(out)  # nothing there is as good
    run = timed(["cp", "-rl", str(base), str(out)], base, out, log)
    assert run.output_bytes == 3 * MB + 2
    assert run.new_bytes == 0


def test_the_sync_is_on_the_clock(base, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(bake_running.subprocess, "run", lambda command, **_: (synced.append(command), time.sleep(0.5)))
    run = timed(["cp", "-r", str(base), str(tmp_path / "out")], base, tmp_path / "out", tmp_path / "log")
    assert run.wall >= 0.5
    paths = [tmp_path / "out" / name for name in ("", "more", "more/config", "weights")]
    assert synced == [["sync", *map(str, paths)]]


def test_a_failed_run_says_its_last_line(base, tmp_path):
    with pytest.raises(FailedRunError, match="status 2: the reason"):
        timed(["sh", "-c", "echo a lot; echo the reason >&2; exit 2"], base, tmp_path / "out", tmp_path / "log")
    with pytest.raises(FailedRunError, match="status 1: it printed nothing"):
        timed(["false"], base, tmp_path / "out", tmp_path / "log")


def test_memory_can_be_bounded(base, tmp_path):
    program = HOLD.format(bytes=400 * MB, seconds=0.3) + f"; import os; os.mkdir({str(tmp_path / 'out')!r})"
    command = [sys.executable, "-c", f"import time; time.sleep(0.2); {program}"]
    with pytest.raises(FailedRunError, match="MemoryError"):
        timed(command, base, tmp_path / "out", tmp_path / "log", 200 * MB)
    assert timed(command, base, tmp_path / "out", tmp_path / "log", 800 * MB).anonymous >= 400 * MB


def test_the_cache_is_emptied_by_what_the_system_allows(base, tmp_path, monkeypatch):
    knob = tmp_path / "drop_caches"
    monkeypatch.setattr(bake_running, "DROP_CACHES", knob)
    assert empty_cache(base) == "posix_fadvise, the files of the base"
    knob.write_text("")
    assert empty_cache(base) == f"{knob}, all files of the machine"
    assert knob.read_text() == "3"


def cached_bytes(file):
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(file)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(shutil.which("fincore") is None, reason="needs fincore, to see the page cache")
def test_files_leave_the_cache_and_come_back(base):
    empty_cache(base)
    if cached_bytes(base / "weights") > 0:
        pytest.skip("a file system that lies in memory")
    read_through(base)
    assert cached_bytes(base / "weights") >= 3 * MB
    empty_cache(base)
    assert cached_bytes(base / "weights") == 0


def test_values_are_normal_and_depend_on_the_name_alone():
    values = Values(0.02)
    first = values.of("model.layers.0.mlp.up_proj.weight", (1001, 999))
    assert first.dtype == ml_dtypes.bfloat16
    assert np.array_equal(first, Values(0.02).of("model.layers.0.mlp.up_proj.weight", (1001, 999)))
    other = values.of("model.layers.1.mlp.up_proj.weight", (1001, 999)).astype("f4")
    floats = first.astype("f4")
    assert floats.std() == pytest.approx(0.02, rel=0.01)
    assert abs(floats.mean()) < 1e-4
    assert np.mean(np.abs(floats) < 0.02) == pytest.approx(0.6827, abs=0.005)
    assert abs(np.corrcoef(floats.ravel(), other.ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(floats[:-1].ravel(), floats[1:].ravel())[0, 1]) < 0.01
    assert len(np.unique(first.view("u2") & 0x7F)) == 128  # every mantissa occurs
    norm = values.of("model.norm.weight", (4096,)).astype("f4")
    assert norm.mean() == pytest.approx(1, abs=0.02)
    assert 0.05 < norm.std() < 0.2


def test_shards_are_filled_in_order():
    shapes = {"a": (100,), "b": (100,), "c": (500,), "d": (1,), "e": (199,)}
    assert shards_of(shapes, 400) == [["a", "b"], ["c"], ["d", "e"]]
    assert shards_of(shapes, 10_000) == [list(shapes)]


def loaded(folder):
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


def test_a_small_checkpoint_has_the_bytes_that_save_pretrained_writes(tmp_path):
    write_checkpoint(CONFIGS["tiny"], tmp_path / "ours", 10**9)
    loaded(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    names = [sorted(file.name for file in (tmp_path / folder).iterdir()) for folder in ("ours", "theirs")]
    assert names == [["config.json", "generation_config.json", "model.safetensors"]] * 2
    file = "model.safetensors"
    assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()


def test_shards_are_those_of_the_library_that_fills_them(tmp_path):
    from huggingface_hub import split_torch_state_dict_into_shards

    folder = tmp_path / "base"
    write_checkpoint(CONFIGS["tiny"], folder, 2_000_000)
    state = loaded(folder).state_dict()
    del state["lm_head.weight"]  # tied
    split = split_torch_state_dict_into_shards(state, max_shard_size=2_000_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == split.tensor_to_filename
    assert index["metadata"]["total_size"] == split.metadata["total_size"]
    assert len(split.filename_to_tensors) > 4
    for file in split.filename_to_tensors:
        assert (folder / file).stat().st_size < 2_100_000
