"""Recording over all pairs: every forward pass that the specs need, once, whatever number of specs there is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from alignez_bake.capture.accumulators import MomentsSum, RowsList, WorkMemory
from alignez_bake.capture.batch_recording import BatchRecording
from alignez_bake.capture.recorder import MapReading, record
from alignez_bake.capture.spec import ANSWER_SIDES, CONTEXTS, MomentsSpec, Pass, RowsSpec
from alignez_bake.capture.statistics import ActivationStatistics
from alignez_bake.capture.weights import disagreement_weights, jensen_shannon
from alignez_bake.errors import BadInputError
from alignez_bake.language_model.batching import length_sorted_batches
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.progress import NoProgress

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from alignez_bake.capture.sequences import TokenisedPair
    from alignez_bake.capture.spec import AnswerSide, CaptureSpec, Tokens
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Advance, Progress

    Weights = dict[tuple[AnswerSide, Tokens], list[NDArray[np.float64]]]


class Capture:
    """Records activations of one model over one set of pairs; call it with specs.

    Memory beyond the statistics themselves: of one batch, the recorded rows of every site and context, in the
    model's dtype; and where weights are asked for, the log-probabilities of one batch and 8 bytes a token.

    Args:
        lm: the model.
        pairs: what it reads; rows come back in this order.
        batch_size: sequences a forward pass.
        progress: told how many sequences have been read.
    """

    def __init__(
        self,
        lm: LanguageModel,
        pairs: Sequence[TokenisedPair],
        *,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> None:
        """Check that there is something to read, and that the model can read it.

        Raises:
            BadInputError: no pairs, or ids and lengths that the model has no embedding for.
        """
        if not pairs:
            raise BadInputError("there are no pairs to record: make some, or give a file that holds some")
        for pair in pairs:
            lm.check_fits([pair.sequence(Pass(context, side)) for context in CONTEXTS for side in ANSWER_SIDES])
        self._lm = lm
        self._pairs = tuple(pairs)
        self._batch_size = batch_size
        self._progress = NoProgress() if progress is None else progress

    def __call__(self, specs: Sequence[CaptureSpec], plan_so_far: EditPlan | None = None) -> ActivationStatistics:
        """Record what the specs ask for, with the edits of `plan_so_far` applied to the model by hooks.

        Raises:
            BadInputError: a site that the model does not have; weights where the personas never disagree.
        """
        config = self._lm.model.config.to_dict()
        for spec in specs:
            self._lm.architecture.check_layer(spec.site, config)
        weighted = _weighted(specs)
        passes = {answer: _passes(specs, answer) for answer in sorted({spec.answer for spec in specs})}
        sequences = sum(map(len, passes.values())) + 2 * len({answer for answer, _ in weighted})
        edited: AbstractContextManager[None] = nullcontext()
        if plan_so_far is not None:
            edited = edited_by_hooks(self._lm.model, self._lm.architecture, plan_so_far)
        with edited, self._progress.task("Recording activations", sequences * len(self._pairs)) as advance:
            weights = self._weights(weighted, advance)
            return self._statistics(specs, passes, weights, advance)

    def _batches(self, answer: AnswerSide) -> Iterator[list[int]]:
        lengths = [len(pair.sequence(Pass("plain", answer))) for pair in self._pairs]
        yield from length_sorted_batches(lengths, self._batch_size)

    def _tails(self, batch: Sequence[int], answer: AnswerSide, tokens: Tokens) -> list[int]:
        return [self._pairs[index].tail(answer, tokens) for index in batch]

    def _widest(self, batch: Sequence[int], answer: AnswerSide, kinds: Collection[Tokens]) -> list[int]:
        """Every choice of tokens is an end of the sequence, so the longest end holds them all."""
        return [max(self._pairs[index].tail(answer, tokens) for tokens in kinds) for index in batch]

    def _weights(self, weighted: Sequence[tuple[AnswerSide, Tokens]], advance: Advance) -> Weights:
        """A first pass over both personas: the weights need the distribution of JSD over all tokens."""
        weights: Weights = {}
        for answer in sorted({side for side, _ in weighted}):
            kinds: list[Tokens] = [tokens for side, tokens in weighted if side == answer]
            divergences: list[NDArray[np.float64]] = [np.zeros(0)] * len(self._pairs)
            for batch in self._batches(answer):
                tails = self._widest(batch, answer, kinds)
                good, bad = (self._logits(batch, Pass(context, answer), tails) for context in ("good", "bad"))
                values = jensen_shannon(good, bad).to("cpu", torch.float64).numpy()
                for index, part in zip(batch, np.split(values, np.cumsum(tails)[:-1]), strict=True):
                    divergences[index] = part
                advance(2 * len(batch))
            for tokens in kinds:
                tails = self._tails(range(len(self._pairs)), answer, tokens)
                ends = [values[-tail:] for values, tail in zip(divergences, tails, strict=True)]
                weights[answer, tokens] = disagreement_weights(ends)
        return weights

    def _logits(self, batch: Sequence[int], run: Pass, tails: Sequence[int]) -> torch.Tensor:
        sequences = [self._pairs[index].sequence(run) for index in batch]
        recorded = record(self._lm, sequences, {}, logit_tails=tails)
        assert recorded.logits is not None
        return recorded.logits

    def _statistics(
        self,
        specs: Sequence[CaptureSpec],
        passes: Mapping[AnswerSide, Sequence[Pass]],
        weights: Weights,
        advance: Advance,
    ) -> ActivationStatistics:
        rows = {spec: RowsList(len(self._pairs)) for spec in specs if isinstance(spec, RowsSpec)}
        work = WorkMemory()
        moments = {spec: MomentsSum(work) for spec in specs if isinstance(spec, MomentsSpec)}
        for answer, runs in passes.items():
            for batch in self._batches(answer):
                recording = BatchRecording()
                for run in runs:
                    self._run(batch, run, specs, recording)
                    advance(len(batch))
                for rows_spec, rows_list in rows.items():
                    if rows_spec.answer == answer:
                        self._add_rows(rows_spec, rows_list, batch, recording)
                for moments_spec, moments_sum in moments.items():
                    if moments_spec.answer == answer:
                        self._add_moments(moments_spec, moments_sum, batch, recording, weights)
        return ActivationStatistics(
            {spec: rows_list.total() for spec, rows_list in rows.items()},
            {spec: moments_sum.total() for spec, moments_sum in moments.items()},
        )

    def _run(self, batch: Sequence[int], run: Pass, specs: Sequence[CaptureSpec], recording: BatchRecording) -> None:
        wanted: dict[MapReading, set[Tokens]] = {}
        for spec in specs:
            for reading in spec.readings:
                if Pass(reading.context, spec.answer) == run:
                    wanted.setdefault(MapReading(spec.site, reading.side), set()).add(spec.tokens)
        tails_of = {kinds: self._widest(batch, run.answer, kinds) for kinds in map(frozenset, wanted.values())}
        tails = {place: tails_of[frozenset(kinds)] for place, kinds in wanted.items()}
        sequences = [self._pairs[index].sequence(run) for index in batch]
        found = record(self._lm, sequences, tails)
        recording.add(run.context, found.values, tails)

    def _add_rows(self, spec: RowsSpec, target: RowsList, batch: Sequence[int], recording: BatchRecording) -> None:
        tails = self._tails(batch, spec.answer, spec.tokens)
        mean = spec.tokens == "answer_mean"
        values = recording.rows(spec.site, spec.reading, tails, mean=mean)
        target.add(batch, values, [1] * len(batch) if mean else tails)

    def _add_moments(
        self, spec: MomentsSpec, target: MomentsSum, batch: Sequence[int], recording: BatchRecording, weights: Weights
    ) -> None:
        tails = self._tails(batch, spec.answer, spec.tokens)
        mean = spec.tokens == "answer_mean"
        z, plus = (recording.rows(spec.site, reading, tails, mean=mean) for reading in (spec.key, spec.plus))
        minus = None if spec.minus is None else recording.rows(spec.site, spec.minus, tails, mean=mean)
        of_token = None
        if spec.weight is not None:
            of_token = torch.from_numpy(np.concatenate([weights[spec.answer, spec.tokens][index] for index in batch]))
        target.add(z, plus, minus, of_token)


def _passes(specs: Sequence[CaptureSpec], answer: AnswerSide) -> list[Pass]:
    """The passes that specs with this answer need, each once."""
    return sorted(
        {Pass(reading.context, answer) for spec in specs if spec.answer == answer for reading in spec.readings}
    )


def _weighted(specs: Sequence[CaptureSpec]) -> list[tuple[AnswerSide, Tokens]]:
    """The answers and tokens for which weights are asked for."""
    return sorted(
        {(spec.answer, spec.tokens) for spec in specs if isinstance(spec, MomentsSpec) and spec.weight is not None}
    )
