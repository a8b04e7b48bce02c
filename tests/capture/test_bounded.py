"""A capture within a bound of memory: the same numbers, from a file or from a sample, and nothing left behind."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from alignez_bake.capture.run import Capture
from alignez_bake.capture.sizes import cut_batches
from alignez_bake.capture.spec import MomentsSpec, Reading, RowsSpec
from alignez_bake.capture.token_choice import TokenChoice
from alignez_bake.errors import BadInputError
from alignez_bake.site import Site
from tests.capture import naive

ROOT = Path(__file__).parents[2]
ATTN_SPEC = MomentsSpec(
    Site("attn_write", 1),
    key=Reading("plain", "input"),
    plus=Reading("good", "output"),
    minus=Reading("bad", "output"),
    answer="good",
    tokens="shared",
    weight="disagreement",
)
MLP_SPEC = dataclasses.replace(ATTN_SPEC, site=Site("mlp_write", 0))
SPECS = [
    dataclasses.replace(spec, site=Site(spec.site.kind, layer)) for spec in (ATTN_SPEC, MLP_SPEC) for layer in (0, 1)
]
# 32 · (32 + 32) and 64 · (64 + 32) doubles, in two layers: more than three quarters of this, halves below a quarter.
BOUND = 160_000


def _same(found, expected, tolerance=0.0):
    assert found.count == expected.count
    assert found.d_square == pytest.approx(expected.d_square, rel=1e-12)
    for name in ("ztz", "ztd", "z_sum"):
        one, two = getattr(found, name), getattr(expected, name)
        assert np.linalg.norm(one - two) <= tolerance * np.linalg.norm(two)


def _z_and_d(lm, pairs, spec):
    """All rows of the naive loop, weighted."""
    z, plus, minus = (
        np.concatenate([naive.rows(lm, pair, spec, reading) for pair in pairs]) for reading in spec.readings
    )
    divergences = np.concatenate([naive.divergences(lm, pair, spec.answer, spec.tokens) for pair in pairs])
    return z, (plus - minus) * np.minimum(1, divergences / np.percentile(divergences, 90))[:, None]


def test_mapped_sums_are_those_in_memory_bit_for_bit(tiny_lm64, pairs, tmp_path):
    lm = tiny_lm64("llama")
    in_memory = Capture(lm, pairs, batch_size=1)(SPECS)
    mapped = Capture(lm, pairs, batch_size=1, memory_bytes=BOUND, scratch=tmp_path)(SPECS)
    assert (in_memory.memory.mapped, mapped.memory.mapped) == (False, True)
    for spec in SPECS:
        _same(mapped.moments[spec], in_memory.moments[spec])
        mapped.release()
        _same(mapped.moments[spec], in_memory.moments[spec])


@pytest.mark.parametrize("memory_bytes", [1, 20_000])
def test_many_stripes_and_parts_of_batches_are_the_same_within_rounding(tiny_lm64, pairs, tmp_path, memory_bytes):
    lm = tiny_lm64("llama")
    in_memory = Capture(lm, pairs, batch_size=7)(SPECS)
    mapped = Capture(lm, pairs, batch_size=7, memory_bytes=memory_bytes, scratch=tmp_path)(SPECS)
    for spec in SPECS:
        _same(mapped.moments[spec], in_memory.moments[spec], 1e-6)
        ztz = mapped.moments[spec].ztz
        np.testing.assert_allclose(ztz, ztz.T, atol=1e-13 * np.abs(ztz).max())


def test_rows_do_not_change_where_batches_are_run_in_parts(tiny_lm64, pairs):
    lm = tiny_lm64("llama")
    spec = RowsSpec(Site("mlp_write", 1), Reading("good", "output"), "bad", "answer")
    whole, cut = (Capture(lm, pairs, batch_size=7, memory_bytes=size)([spec]).rows[spec] for size in (10**9, 1))
    np.testing.assert_allclose(cut.values, whole.values, atol=1e-6)


@pytest.mark.parametrize("kind", ["attn_write", "mlp_write"])
def test_mapped_halves_merged_are_the_whole(tiny_lm64, pairs, tmp_path, kind):
    """29 tokens and 46: rows and moments, or rows and rows, of which together there are more than Z is wide."""
    lm = tiny_lm64("llama")
    spec = dataclasses.replace(ATTN_SPEC, site=Site(kind, 1), weight=None, rows_if_fewer=True)
    first, second = (Capture(lm, part, memory_bytes=1, scratch=tmp_path)([spec]) for part in (pairs[:3], pairs[3:]))
    assert (len(first.token_rows), len(second.token_rows)) == {"attn_write": (1, 0), "mlp_write": (1, 1)}[kind]
    merged = first.merged_with(second).sums_of(spec)
    whole = Capture(lm, pairs)([spec]).moments[spec]
    found = merged if kind == "attn_write" else merged.moments()
    assert found.count == whole.count == 75
    assert found.d_square == pytest.approx(whole.d_square, rel=1e-6)
    np.testing.assert_allclose(found.ztz, whole.ztz, atol=1e-6 * np.abs(whole.ztz).max())
    np.testing.assert_allclose(found.ztd, whole.ztd, atol=1e-6 * np.abs(whole.ztd).max())


@pytest.mark.parametrize(("batch_size", "memory_bytes"), [(3, 10**9), (7, 1)])
def test_rows_of_fewer_tokens_than_inputs_are_those_of_the_naive_loop(
    tiny_lm64, pairs, tmp_path, batch_size, memory_bytes
):
    lm = tiny_lm64("llama")
    spec = dataclasses.replace(ATTN_SPEC, tokens="answer", rows_if_fewer=True)
    capture = Capture(lm, pairs, batch_size=batch_size, memory_bytes=memory_bytes, scratch=tmp_path)
    found = capture([spec])
    z, d = _z_and_d(lm, pairs, spec)
    rows = found.token_rows[spec]
    assert (rows.count, rows.read, rows.z.dtype, rows.d.dtype) == (28, 28, np.float32, np.float32)
    np.testing.assert_allclose(rows.z, z, atol=1e-6 * np.abs(z).max())
    np.testing.assert_allclose(rows.d, d, atol=1e-6 * np.abs(d).max())
    assert found.memory.mapped == (memory_bytes == 1)
    assert not found.moments
    assert not capture([dataclasses.replace(spec, rows_if_fewer=False)]).token_rows


@pytest.mark.parametrize("spec", [ATTN_SPEC, MLP_SPEC], ids=["moments", "rows"])
def test_a_sample_is_of_the_tokens_that_were_chosen(tiny_lm64, pairs, spec):
    """40 tokens of 75: more than attention's 32 inputs, fewer than the MLP's 64."""
    lm = tiny_lm64("llama")
    sampled = dataclasses.replace(spec, rows_if_fewer=True, most_tokens=40, seed=5)
    found = Capture(lm, pairs, batch_size=3)([sampled, spec])
    z, d = _z_and_d(lm, pairs, spec)
    tails = [pair.tail("good", "shared") for pair in pairs]
    kept = TokenChoice(tails, 40, 5).of_batch(range(len(pairs))).rows
    assert found.moments[spec].count == len(z) == 75
    if spec is MLP_SPEC:
        rows = found.token_rows[sampled]
        assert rows.read == 75
        np.testing.assert_allclose(rows.z, z[kept], atol=1e-6 * np.abs(z).max())
        np.testing.assert_allclose(rows.d, d[kept], atol=1e-6 * np.abs(d).max())
    else:
        moments = found.moments[sampled]
        assert moments.count == 40
        np.testing.assert_allclose(moments.ztz, z[kept].T @ z[kept], atol=1e-6 * np.abs(moments.ztz).max())
        np.testing.assert_allclose(moments.ztd, z[kept].T @ d[kept], atol=1e-6 * np.abs(moments.ztd).max())


def test_batches_are_cut_where_they_would_take_too_much():
    batches = [[4, 2, 0], [1, 3]]
    sizes = [5, 1, 6, 9, 30]
    assert list(cut_batches(batches, sizes, 100)) == batches
    assert list(cut_batches(batches, sizes, 11)) == [[4], [2, 0], [1, 3]]
    assert list(cut_batches(batches, sizes, 1)) == [[4], [2], [0], [1], [3]]


class _Stopped:
    """Looks into a folder whenever there is progress, and stops after `calls` of them."""

    def __init__(self, folder, calls):
        self.folder, self.calls, self.seen = folder, calls, []

    @contextmanager
    def task(self, description, total):
        def advance(n=1):
            self.seen.append(list(self.folder.iterdir()))
            if len(self.seen) == self.calls:
                raise KeyboardInterrupt

        yield advance


def test_an_interruption_leaves_no_file(tiny_lm64, pairs, tmp_path):
    lm = tiny_lm64("llama")
    progress = _Stopped(tmp_path, 9)
    with pytest.raises(KeyboardInterrupt):
        Capture(lm, pairs, batch_size=3, progress=progress, memory_bytes=BOUND, scratch=tmp_path)(SPECS)
    assert progress.seen == [[]] * 9
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_refused_before_the_long_work(tiny_lm64, pairs, tmp_path, monkeypatch):
    lm = tiny_lm64("llama")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    progress = _Stopped(tmp_path, 1)
    with pytest.raises(BadInputError, match=r"no space left in .*0\.1 MB are needed, 0\.0 MB are free"):
        Capture(lm, pairs, progress=progress, memory_bytes=BOUND, scratch=tmp_path)(SPECS)
    assert progress.seen == []


_MEASURED = """
import dataclasses, json, re, sys
from contextlib import contextmanager
from pathlib import Path
import numpy as np, torch
from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.capture.run import Capture
from alignez_bake.capture.sequences import TokenisedPair
from alignez_bake.language_model.loading import LanguageModel
from alignez_bake.methods.ridge import RIDGE
from tests.tiny_models import tiny_model, tiny_tokenizer

LAYERS = 10
model = tiny_model("llama", bias=False, overrides={
    "hidden_size": 512, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 64})
lm = LanguageModel(model, tiny_tokenizer(), architecture_for(model.config.to_dict()), None, torch.device("cpu"))
rng = np.random.default_rng(0)
ids = lambda count: tuple(rng.integers(3, 300, count).tolist())
pairs = []
for number in range(12):
    prompt = ids(6)
    prompts = {"plain": (0, *prompt), "good": (0, *ids(3), *prompt), "bad": (0, *ids(3), *prompt)}
    pairs.append(TokenisedPair(prompts, 6, {"good": ids(3), "bad": ids(3)}, str(number)))
sites = RIDGE.sites(lm.architecture, range(LAYERS))
specs = [dataclasses.replace(RIDGE.spec(site), rows_if_fewer=False) for site in sites]

class Watch:
    def __init__(self):
        self.peaks = {"RssAnon": 0, "RssFile": 0}

    def look(self):
        status = Path("/proc/self/status").read_text()
        for name in self.peaks:
            self.peaks[name] = max(self.peaks[name], int(re.search(name + r":\\s+(\\d+)", status)[1]) * 1024)

    @contextmanager
    def task(self, description, total):
        yield lambda n=1: self.look()

torch.set_num_threads(1)
grown = []
Capture(lm, pairs[:4], batch_size=4)(specs[:1])  # what any run takes once
for memory_bytes in (24_000_000, 2_000_000_000):
    start, watch = Watch(), Watch()
    start.look()
    bound = {"memory_bytes": memory_bytes, "scratch": Path(sys.argv[1])}
    statistics = Capture(lm, pairs, batch_size=4, progress=watch, **bound)(specs)
    watch.look()
    grown.append({name: watch.peaks[name] - start.peaks[name] for name in watch.peaks})
    grown[-1]["mapped"] = statistics.memory.mapped
    grown[-1]["sums"] = sum(entry.ztz.nbytes + entry.ztd.nbytes for entry in statistics.moments.values())
    del statistics
print(json.dumps(grown))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what is resident")
def test_what_is_resident_is_bounded(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURED, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    bounded, free = json.loads(ran.stdout)
    assert (bounded["mapped"], free["mapped"]) == (True, False)
    assert bounded["sums"] == free["sums"] == 10 * 8 * 512 * 1024
    assert free["RssAnon"] > 0.8 * free["sums"]
    assert bounded["RssAnon"] < 0.4 * bounded["sums"]
    assert bounded["RssFile"] < 0.3 * bounded["sums"]
