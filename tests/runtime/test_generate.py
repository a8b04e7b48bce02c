"""Generation: the cached graph gives what a computation without a cache gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from alignez_bake.errors import BadInputError
from alignez_bake.runtime import Sampling, generate, open_session, stream
from alignez_bake.runtime.decoder import Decoder
from tests.runtime.graphs import LAYERS, VOCABULARY, causal_model, reference_greedy, reference_logits, saved

CONTEXTS = [[1, 5, 9, 3], [1, 7], [4, 2, 8, 8, 8, 16, 0], [6]]
NEW = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_session(saved(causal_model(), tmp_path_factory.mktemp("graph")), ["cpu"])


def fed(ids: list[list[int]], start: int = 0) -> dict[str, np.ndarray]:
    new = np.array(ids)
    total = start + new.shape[1]
    positions = np.broadcast_to(np.arange(start, total), new.shape)
    return {"input_ids": new, "attention_mask": np.ones((len(ids), total), np.int64), "position_ids": positions}


def close(found, expected):
    return np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)  # fp32, end to end


@pytest.mark.parametrize("context", CONTEXTS)
def test_one_row_is_the_reference(model, context):
    assert generate(model, [context], max_new_tokens=NEW) == [reference_greedy(context, NEW)]


def test_a_left_padded_batch_is_its_rows(model):
    expected = [reference_greedy(context, NEW) for context in CONTEXTS]
    assert len({tuple(answer) for answer in expected}) == len(CONTEXTS)
    for pad_id in (0, 11):  # what stands at padding is hidden
        assert generate(model, CONTEXTS, max_new_tokens=NEW, pad_id=pad_id) == expected


def test_prefill_and_steps_are_the_whole_sequence(model):
    """In pieces of any size: the past is what the graph was given before, once and in order."""
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    expected = reference_logits(ids)
    for pieces in ([8], [1] * 8, [3, 4, 1], [5, 1, 2]):
        decoder, at = Decoder(model, 2), 0
        for size in pieces:
            logits = decoder.step(fed([ids[at : at + size]] * 2, at))
            at += size
            assert close(logits, np.tile(expected[at - 1], (2, 1)))


def test_a_wrong_past_would_show(model):
    """What the test above would miss if the toy had no memory: another first token moves every later logit."""
    first, second = reference_logits([3, 1, 4, 1]), reference_logits([2, 1, 4, 1])
    assert np.linalg.norm(first[-1] - second[-1]) > 100 * 1e-5 * np.linalg.norm(first[-1])
    decoder = Decoder(model, 1)
    decoder.step(fed([[3]]))
    assert not close(decoder.step(fed([[1]], 1)), reference_logits([2, 1])[-1:])


@pytest.mark.parametrize(
    ("made", "element_type"),
    [
        ({"dtype": "float16"}, TensorProto.FLOAT16),
        ({"cache_dtype": "float16"}, TensorProto.FLOAT16),
        ({"cache_dtype": "bfloat16"}, TensorProto.BFLOAT16),
    ],
)
def test_a_cache_in_half_precision_stays_so(tmp_path, made, element_type):
    """numpy has no bfloat16, and needs none: the cache is never one of its arrays."""
    half = open_session(saved(causal_model(**made), tmp_path), ["cpu"])
    decoder = Decoder(half, 1)
    for at, token in enumerate([3, 1, 4]):
        logits = decoder.step(fed([[token]], at))
    assert logits.dtype == np.float32
    expected = reference_logits([3, 1, 4])[-1]
    assert 1e-5 < np.linalg.norm(logits[0] - expected) / np.linalg.norm(expected) <= 2**-7
    assert {value.element_type() for value in decoder._cache} == {element_type}


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_logits_in_half_precision_are_those_of_the_graph(tmp_path, dtype, bits):
    """Rounded once, by the graph's own cast; numpy's lack of bfloat16 shows nowhere."""
    half = open_session(saved(causal_model(logits_dtype=dtype), tmp_path), ["cpu"])
    decoder, every = Decoder(half, 2), Decoder(half, 2)
    ids = [[3, 1, 4], [9, 2, 6]]
    last, whole = decoder.step(fed(ids)), every.step_with_all_logits(fed(ids))
    assert last.dtype == (np.float16 if dtype == "float16" else np.float32)
    assert (whole[:, -1] == last).all()
    expected = np.stack([reference_logits(row) for row in ids])
    assert whole.shape == expected.shape
    error = np.abs(whole - expected)
    assert (error <= 2.0**-bits * np.abs(expected) + 1e-5).all()  # half a spacing, and fp32 of the sum
    assert error.max() > 1e-4  # so that it is half precision that was read
    greedy = generate(half, ids, max_new_tokens=1)
    assert greedy == [[int(row.argmax())] for row in last]


def test_a_graph_that_computes_in_bfloat16_names_the_way_out(tmp_path):
    """The CPU provider has the type and no arithmetic in it."""
    pytest.importorskip("ml_dtypes")
    with pytest.raises(BadInputError, match="does not compute in: export float32 or float16 for the CPU"):
        open_session(saved(causal_model(dtype="bfloat16"), tmp_path), ["cpu"])


def test_keys_and_values_never_become_numpy(model, monkeypatch):
    """They stay where ONNX Runtime allocated them: logits alone come back."""
    seen = []
    real = onnxruntime.OrtValue.data_ptr
    monkeypatch.setattr(onnxruntime.OrtValue, "data_ptr", lambda self: seen.append(self.shape()) or real(self))
    monkeypatch.delattr(onnxruntime.OrtValue, "numpy")
    monkeypatch.delattr(onnxruntime.OrtValue, "__array__")
    generate(model, [CONTEXTS[0]], max_new_tokens=5)
    assert seen == [[1, 4, VOCABULARY], *[[1, 1, VOCABULARY]] * 4]


def test_the_cache_of_one_call_is_the_next_ones_input(model, monkeypatch):
    """The very values, not copies of them."""
    bound = []
    real = onnxruntime.IOBinding.bind_ortvalue_input
    monkeypatch.setattr(
        onnxruntime.IOBinding,
        "bind_ortvalue_input",
        lambda self, name, value: bound.append((name, value)) or real(self, name, value),
    )
    decoder = Decoder(model, 1)
    decoder.step(fed([[3, 1]]))
    kept = list(decoder._cache)
    bound.clear()
    decoder.step(fed([[4]], 2))
    given = [value for name, value in bound if name.startswith("past_key_values")]
    assert len(given) == 2 * LAYERS
    assert all(value is before for value, before in zip(given, kept, strict=True))


def test_a_stop_token_ends_its_row_alone(model):
    whole = [reference_greedy(context, NEW) for context in CONTEXTS]
    stop = whole[0][1]
    expected = [answer[: answer.index(stop)] if stop in answer else answer for answer in whole]
    assert len({len(answer) for answer in expected}) > 1
    assert generate(model, CONTEXTS, max_new_tokens=NEW, stop_ids=[stop]) == expected
    both = {stop, whole[3][2]}
    cut = [next((answer[:at] for at, token in enumerate(answer) if token in both), answer) for answer in whole]
    assert generate(model, CONTEXTS, max_new_tokens=NEW, stop_ids=both) == cut


def test_nothing_runs_after_the_last_row_has_ended(model, monkeypatch):
    steps = []
    real = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, tokens: steps.append(1) or real(self, tokens))
    stop = reference_greedy(CONTEXTS[0], 1)[0]
    assert generate(model, [CONTEXTS[0]], max_new_tokens=NEW, stop_ids=[stop]) == [[]]
    assert len(steps) == 1


def test_a_stream_gives_each_token_when_it_is_known(model, monkeypatch):
    steps = []
    real = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, tokens: steps.append(1) or real(self, tokens))
    whole = [reference_greedy(context, 6) for context in CONTEXTS]
    given = stream(model, CONTEXTS, max_new_tokens=6)
    for number, tokens in enumerate(given, start=1):
        assert len(steps) == number
        assert tokens == tuple(answer[number - 1] for answer in whole)
    assert len(steps) == 6


def test_a_stream_says_none_behind_the_end_of_a_row(model):
    whole = [reference_greedy(context, NEW) for context in CONTEXTS]
    stop = whole[0][1]
    rows = list(zip(*stream(model, CONTEXTS, max_new_tokens=NEW, stop_ids=[stop]), strict=True))
    assert any(None in row for row in rows)
    for row, answer in zip(rows, whole, strict=True):
        ended = answer.index(stop) if stop in answer else len(answer)
        assert list(row[:ended]) == answer[:ended]
        assert set(row[ended:]) <= {None}


def test_samples_follow_their_seed(model):
    def sampled(seed: int) -> list[list[int]]:
        return generate(model, CONTEXTS, max_new_tokens=NEW, sampling=Sampling(temperature=4.0, top_p=0.9, seed=seed))

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert sampled(1) != generate(model, CONTEXTS, max_new_tokens=NEW)


@pytest.mark.parametrize(
    ("contexts", "settings", "message"),
    [
        ([], {}, "at least one context"),
        ([[1], []], {}, "context 1 is empty"),
        ([[1, VOCABULARY]], {}, f"token id {VOCABULARY} is not in the vocabulary"),
        ([[1, -1]], {}, "token id -1 is not in the vocabulary"),
        ([[1]], {"pad_id": 99}, "token id 99"),
        ([[1]], {"max_new_tokens": 0}, "at least one token must be generated"),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_step(model, contexts, settings, message):
    with pytest.raises(BadInputError, match=message):
        stream(model, contexts, **{"max_new_tokens": 4, **settings})


def changed(folder, change):
    made = causal_model()
    change(made.graph)
    return open_session(saved(made, folder), ["cpu"])


def test_without_a_mask_lengths_must_agree(tmp_path):
    def no_mask(graph: onnx.GraphProto) -> None:
        kept = [value for value in graph.input if value.name != "attention_mask"]
        del graph.input[:]
        graph.input.extend(kept)
        graph.initializer.append(numpy_helper.from_array(np.array([[1]]), "attention_mask"))

    model = changed(tmp_path, no_mask)
    with pytest.raises(BadInputError, match="cannot share a batch"):
        stream(model, CONTEXTS, max_new_tokens=4)
    rows = [[1, 5, 9], [2, 4, 8]]
    assert generate(model, rows, max_new_tokens=NEW) == [reference_greedy(row, NEW) for row in rows]


def test_a_cache_that_loses_its_past_is_refused(tmp_path):
    """A graph that gives only the new keys runs without a word, and writes nonsense."""

    def forgets(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            if node.output[0] == "present.1.key":
                node.output[0] = "inner"
            node.input[:] = ["inner" if name == "present.1.key" else name for name in node.input]
        graph.node.append(helper.make_node("Identity", ["key_new1"], ["present.1.key"]))

    steps = stream(changed(tmp_path, forgets), [[1, 5]], max_new_tokens=4)
    next(steps)  # the past is empty, so nothing is lost yet
    with pytest.raises(BadInputError, match=r"present\.1\.key has the shape \[1, 2, 1, 3\] after 3 tokens"):
        next(steps)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(tmp_path, value):
    def overflows(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.name == "H1":
                weight = numpy_helper.to_array(tensor).copy()
                weight[0, 3] = value
                tensor.CopyFrom(numpy_helper.from_array(np.abs(weight), "H1"))

    with pytest.raises(BadInputError, match="not finite"):
        generate(changed(tmp_path, overflows), [[1, 5, 9]], max_new_tokens=64)


def test_a_failure_of_onnx_runtime_is_ours_to_tell(tmp_path):
    """An embedding smaller than the vocabulary of the logits."""

    def short(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.name == "K0":
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:5].copy(), "K0"))

    with pytest.raises(BadInputError, match=r"ONNX Runtime failed .*out of data bounds"):
        generate(changed(tmp_path, short), [[1, 9]], max_new_tokens=4)
