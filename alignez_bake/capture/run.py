"""Recording over all pairs: every forward pass that the specs need, once, whatever number of specs there is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import numpy as np
import torch

from alignez_bake.capture.accumulators import MomentsSum, RowsList, TokenRowsList, WorkMemory
from alignez_bake.capture.batch_recording import BatchRecording
from alignez_bake.capture.left_alone import chosen_texts, rows_left_alone
from alignez_bake.capture.memory import DEFAULT_MEMORY_BYTES, logits_bytes, rows_bytes
from alignez_bake.capture.planning import planned_capture, recorded_tails, tails_of, widest_tails
from alignez_bake.capture.recorder import record
from alignez_bake.capture.sizes import cut_batches, row_sizes
from alignez_bake.capture.spec import ANSWER_SIDES, CONTEXTS, MomentsSpec, Pass, RowsSpec
from alignez_bake.capture.statistics import ActivationStatistics
from alignez_bake.capture.weights import disagreement_weights, jensen_shannon
from alignez_bake.errors import BadInputError
from alignez_bake.language_model.batching import length_sorted_batches
from alignez_bake.language_model.readout import checked_readout
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.progress import NoProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.capture.planning import Passes, Planned
    from alignez_bake.capture.recorder import MapReading
    from alignez_bake.capture.sequences import TokenisedPair
    from alignez_bake.capture.spec import AnswerSide, CaptureSpec, Context, Reading, Tokens
    from alignez_bake.capture.token_choice import TokenChoice
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.language_model.readout import Readout
    from alignez_bake.progress import Advance, Progress
    from alignez_bake.site import Site

    Weights = dict[tuple[AnswerSide, Tokens], list[NDArray[np.float64]]]

T = TypeVar("T")
RECORDING: Final = "Recording activations"
"""The task that progress is told of."""
_LOGITS_COPIES: Final = 3
"""Those of both personas, and what those of one are cut out of."""


class Capture:
    """Records activations of one model over one set of pairs; call it with specs.

    Memory beside the model stays within `memory_bytes`, as `capture.memory` divides it up: moments that take more are
    mapped from a file, and batches whose rows or logits take more are run in parts. What `RowsSpec`s record comes on
    top, and 8 bytes a token where weights are asked for.

    Args:
        lm: the model.
        pairs: what it reads; rows come back in this order.
        batch_size: sequences a forward pass.
        progress: told how many sequences have been read.
        memory_bytes: the bound.
        scratch: folder of the file, if one is needed; None: `capture.memory.scratch_folder`.
        weights: of every token, where they are known already; else those of `capture.weights`, from the base.
        left_alone: token ids of texts that edits should leave alone.
    """

    def __init__(
        self,
        lm: LanguageModel,
        pairs: Sequence[TokenisedPair],
        *,
        batch_size: int = 16,
        progress: Progress | None = None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        scratch: Path | None = None,
        weights: Weights | None = None,
        left_alone: Sequence[Sequence[int]] = (),
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
        self._memory_bytes = memory_bytes
        self._scratch = scratch
        self._weights_of_base: Weights = {} if weights is None else dict(weights)
        self._left_alone = chosen_texts(left_alone)
        lm.check_fits(self._left_alone)

    def __call__(
        self,
        specs: Sequence[CaptureSpec],
        plan_so_far: EditPlan | None = None,
        *,
        edited: Collection[Context] = CONTEXTS,
    ) -> ActivationStatistics:
        """Record what the specs ask for, with the edits of `plan_so_far` applied to the model by hooks.

        Args:
            specs: what to record.
            plan_so_far: edits that are there already; None: none.
            edited: contexts in which they are; in the others the model is the base.

        Raises:
            BadInputError: a site or a reading that the model does not have; no room for the statistics; weights where
                the personas never disagree.
        """
        config = self._lm.model.config.to_dict()
        for spec in specs:
            for site, _ in spec.placed:
                self._lm.architecture.check_layer(site, config)
        weighted = _weighted(specs)
        passes = {answer: _passes(specs, answer) for answer in sorted({spec.answer for spec in specs})}
        sizes = row_sizes(self._lm, specs, self._pairs[0].sequence(Pass("plain", "good")))
        planned = planned_capture(
            specs, self._pairs, passes, sizes, memory_bytes=self._memory_bytes, scratch=self._scratch
        )
        editing = _Editing(self._lm, plan_so_far, frozenset(edited))
        known = self._weights_of_base if editing.spares_personas else {}
        missing = [wanted for wanted in weighted if wanted not in known]
        sequences = sum(map(len, passes.values())) + 2 * len({answer for answer, _ in missing})
        with self._progress.task(RECORDING, sequences * len(self._pairs)) as advance:
            weights = {**known, **self._weights(missing, editing, advance)}
            if editing.spares_personas:
                self._weights_of_base = weights
            return self._statistics(specs, passes, planned, weights, editing=editing, advance=advance)

    def left_alone(
        self, readings: Sequence[MapReading], plan_so_far: EditPlan | None = None
    ) -> Mapping[MapReading, NDArray[np.float32]] | None:
        """As `methods.protocol.CaptureFunction`."""
        if not self._left_alone:
            return None
        return rows_left_alone(self._lm, self._left_alone, readings, plan_so_far, batch_size=self._batch_size)

    def readout(self) -> Readout:
        """What turns the stream behind the last layer into predictions, of the model without edits.

        Raises:
            BadInputError: as `checked_readout`.
        """
        return checked_readout(self._lm, self._pairs[0].sequence(Pass("plain", "good")))

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """As `methods.protocol.CaptureFunction`; nothing is kept."""
        del key
        return make()

    def _batches(self, answer: AnswerSide, sizes: Sequence[int], most: int) -> Iterator[list[int]]:
        lengths = [len(pair.sequence(Pass("plain", answer))) for pair in self._pairs]
        yield from cut_batches(length_sorted_batches(lengths, self._batch_size), sizes, most)

    def _chosen(self, batch: Sequence[int]) -> list[TokenisedPair]:
        return [self._pairs[index] for index in batch]

    def _weights(self, weighted: Sequence[tuple[AnswerSide, Tokens]], editing: _Editing, advance: Advance) -> Weights:
        """A first pass over both personas: the weights need the distribution of JSD over all tokens."""
        found = self._divergences(weighted, editing, advance)
        return {wanted: disagreement_weights(divergences) for wanted, divergences in found.items()}

    def divergences(self, answer: AnswerSide, tokens: Tokens) -> list[NDArray[np.float64]]:
        """How far the base's two personas disagree about the next token, as `capture.weights` has it.

        Args:
            answer: which answer follows the prompts.
            tokens: which of the tokens; not `answer_mean`.

        Returns:
            JSD in nats, one float64 array a pair.
        """
        with self._progress.task("Comparing personas", 2 * len(self._pairs)) as advance:
            return self._divergences([(answer, tokens)], _Editing(self._lm, None, frozenset()), advance)[answer, tokens]

    def _divergences(self, wanted: Sequence[tuple[AnswerSide, Tokens]], editing: _Editing, advance: Advance) -> Weights:
        found: Weights = {}
        for answer in sorted({side for side, _ in wanted}):
            kinds: list[Tokens] = [tokens for side, tokens in wanted if side == answer]
            divergences: list[NDArray[np.float64]] = [np.zeros(0)] * len(self._pairs)
            logits = _LOGITS_COPIES * self._lm.vocabulary_size * self._lm.model.dtype.itemsize
            sizes = [tail * logits for tail in widest_tails(self._pairs, answer, kinds)]
            for batch in self._batches(answer, sizes, logits_bytes(self._memory_bytes)):
                tails = widest_tails(self._chosen(batch), answer, kinds)
                good, bad = (self._logits(batch, Pass(context, answer), tails, editing) for context in ("good", "bad"))
                values = jensen_shannon(good, bad).to("cpu", torch.float64).numpy()
                for index, part in zip(batch, np.split(values, np.cumsum(tails)[:-1]), strict=True):
                    divergences[index] = part
                advance(2 * len(batch))
            for tokens in kinds:
                tails = tails_of(self._pairs, answer, tokens)
                found[answer, tokens] = [values[-tail:] for values, tail in zip(divergences, tails, strict=True)]
        return found

    def _logits(self, batch: Sequence[int], run: Pass, tails: Sequence[int], editing: _Editing) -> torch.Tensor:
        sequences = [pair.sequence(run) for pair in self._chosen(batch)]
        with editing.within(run.context):
            recorded = record(self._lm, sequences, {}, logit_tails=tails)
        assert recorded.logits is not None
        return recorded.logits

    def _statistics(
        self,
        specs: Sequence[CaptureSpec],
        passes: Passes,
        planned: Planned,
        weights: Weights,
        *,
        editing: _Editing,
        advance: Advance,
    ) -> ActivationStatistics:
        rows = {spec: RowsList(len(self._pairs)) for spec in specs if isinstance(spec, RowsSpec)}
        work = WorkMemory()
        moments: dict[MomentsSpec, MomentsSum] = {}
        token_rows: dict[MomentsSpec, TokenRowsList] = {}
        for spec, taken in planned.sizes.items():
            if taken.keeps_rows:
                token_rows[spec] = TokenRowsList(work, planned.memory, planned.choices[spec])
            else:
                moments[spec] = MomentsSum(work, planned.memory)
        for answer, runs in passes.items():
            for batch in self._batches(answer, planned.row_bytes[answer], rows_bytes(self._memory_bytes)):
                recording = BatchRecording()
                for run in runs:
                    self._run(batch, run, specs, recording, editing)
                    advance(len(batch))
                for wanted, choice in planned.choices.items():
                    if wanted.answer != answer:
                        continue
                    if isinstance(wanted, RowsSpec):
                        self._add_rows(wanted, rows[wanted], batch, choice, recording)
                    else:
                        target = token_rows[wanted] if wanted in token_rows else moments[wanted]
                        self._add_moments(wanted, target, batch, choice=choice, recording=recording, weights=weights)
        return ActivationStatistics(
            {spec: rows_list.total() for spec, rows_list in rows.items()},
            # Each sum goes as its moments come, which are a copy where they are not mapped.
            {spec: moments.pop(spec).total() for spec in list(moments)},
            {spec: rows_list.total() for spec, rows_list in token_rows.items()},
            planned.memory,
        )

    def _run(
        self,
        batch: Sequence[int],
        run: Pass,
        specs: Sequence[CaptureSpec],
        recording: BatchRecording,
        editing: _Editing,
    ) -> None:
        tails = recorded_tails(self._chosen(batch), run, specs)
        sequences = [pair.sequence(run) for pair in self._chosen(batch)]
        with editing.within(run.context):
            found = record(self._lm, sequences, tails)
        recording.add(run.context, found.values, tails)

    def _add_rows(
        self, spec: RowsSpec, target: RowsList, batch: Sequence[int], choice: TokenChoice, recording: BatchRecording
    ) -> None:
        mean = spec.tokens == "answer_mean"
        chosen = self._chosen(batch)
        tails = tails_of(chosen, spec.answer, spec.tokens)
        values = recording.rows(spec.site, spec.reading, tails, mean=mean)
        counts = [1] * len(batch) if mean else tails
        # The token in front of an answer predicts its first one.
        of_answer = [
            np.arange(count)[::-1] <= len(pair.answers[spec.answer]) for pair, count in zip(chosen, counts, strict=True)
        ]
        predicting = np.concatenate(of_answer)
        kept, _ = choice.of_batch(batch)
        if kept is not None:
            values, predicting = values[torch.from_numpy(kept).to(values.device)], predicting[kept]
            counts = [len(choice.of_batch([pair]).places) for pair in batch]
        target.add(batch, values, counts, predicting)

    def _add_moments(
        self,
        spec: MomentsSpec,
        target: MomentsSum | TokenRowsList,
        batch: Sequence[int],
        *,
        choice: TokenChoice,
        recording: BatchRecording,
        weights: Weights,
    ) -> None:
        kept, places = choice.of_batch(batch)
        if not len(places):
            return
        tails = tails_of(self._chosen(batch), spec.answer, spec.tokens)
        mean = spec.tokens == "answer_mean"

        def rows(site: Site, reading: Reading) -> torch.Tensor:
            values = recording.rows(site, reading, tails, mean=mean)
            return values if kept is None else values[torch.from_numpy(kept).to(values.device)]

        at = spec.target_site
        z, plus = rows(spec.site, spec.key), rows(at, spec.plus)
        minus = None if spec.minus is None else rows(at, spec.minus)
        for factor, reading in spec.more:
            # In the model's dtype the sum of several rows would be rounded.
            plus = plus.to(torch.promote_types(plus.dtype, torch.float32)) + factor * rows(at, reading)
        of_token = None
        if spec.weight is not None:
            of_all = np.concatenate([weights[spec.answer, spec.tokens][index] for index in batch])
            of_token = torch.from_numpy(of_all if kept is None else of_all[kept])
        if isinstance(target, TokenRowsList):
            target.add(places, z, plus, minus, of_token)
        else:
            target.add(z, plus, minus, of_token)


class _Editing(NamedTuple):
    """In which contexts the model runs with which edits."""

    lm: LanguageModel
    plan: EditPlan | None
    contexts: frozenset[Context]

    @property
    def spares_personas(self) -> bool:
        """Whether the model is the base under both personas."""
        return self.plan is None or not self.contexts & {"good", "bad"}

    def within(self, context: Context) -> AbstractContextManager[None]:
        """The model as it runs in a context."""
        if self.plan is None or context not in self.contexts:
            return nullcontext()
        return edited_by_hooks(self.lm.model, self.lm.architecture, self.plan)


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
