"""Step 1 of AlignEZ (arXiv 2406.03642): the base writes its own pairs, without labels.

For each query and side the model first says what an answer of that persona is like (the characteristic), then
answers under that persona. Both sides of a query run in the same batch, so that a batch makes two calls in all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.sampling import derived_seed, sample_batch
from alignez_bake.preference_pairs.records import RECORD_KEYS, PairHeader, PairOrigin, PairRecord, PairSet
from alignez_bake.preference_pairs.resume import growing_pair_file
from alignez_bake.progress import NoProgress
from alignez_bake.prompts.objective import SIDES
from alignez_bake.prompts.persona import characteristic_prompt, clean_characteristic, persona_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Progress
    from alignez_bake.prompts.objective import Objective
    from alignez_bake.prompts.prompt_form import PromptForm
    from alignez_bake.prompts.queries import Query

CHARACTERISTIC_TOKENS = 50
ANSWER_TOKENS = 200


@dataclass(frozen=True)
class _Batch:
    """Some queries of one objective; the number counts the objective's batches from 0."""

    objective: Objective
    number: int
    queries: tuple[Query, ...]

    @property
    def keys(self) -> list[tuple[str, str, str]]:
        return [(query["query"], self.objective.name, side) for query in self.queries for side in SIDES]


class BarePrompt(NamedTuple):
    """Token ids of what one query is asked under both personas, by `SIDES`, before a characteristic is known.

    Attributes:
        characteristic: what asks for the characteristic.
        answer: what asks for the answer, with an empty characteristic.
    """

    characteristic: tuple[list[int], ...]
    answer: tuple[list[int], ...]


BarePrompts = Mapping[tuple[str, str], BarePrompt]
"""By name of the objective and text of the query."""


def bare_prompts(queries: Sequence[Query], objectives: Sequence[Objective], form: PromptForm) -> BarePrompts:
    """Tokenise once what lengths, checks and the first step need.

    Raises:
        BadInputError: a prompt form that breaks.
    """
    found = {}
    for objective in objectives:
        sentences = [persona_sentence(objective, side) for side in SIDES]
        for query in queries:
            text = query["query"]
            asking = tuple(form.text_ids(characteristic_prompt(objective, side, text)) for side in SIDES)
            found[objective.name, text] = BarePrompt(asking, form.contexts(text, sentences).ids)
    return found


def generate_pairs(
    lm: LanguageModel,
    queries: Sequence[Query],
    objectives: Sequence[Objective],
    prompt_form: PromptForm,
    out: Path | None,
    *,
    batch_size: int,
    seed: int,
    characteristic_tokens: int = CHARACTERISTIC_TOKENS,
    answer_tokens: int = ANSWER_TOKENS,
    temperature: float = 1.0,
    prompts: BarePrompts | None = None,
    progress: Progress | None = None,
) -> PairSet:
    """Let the base answer each query under the good and the bad persona of each objective.

    Args:
        lm: the base.
        queries: distinct ones; those keys of a query that a record needs itself (such as `answer`) are not kept.
        objectives: one or more; each asks all queries.
        prompt_form: how queries become tokens.
        out: file of pairs that grows batch by batch; the same call goes on where an interrupted one stopped, and
            the file ends in the same bytes. None: nothing is kept on disk.
        batch_size: texts that run together, so half as many queries; 64 is eight times as fast as 1 on a small
            model. Another batch size gives other samples.
        seed: of all samples.
        characteristic_tokens: most new tokens of a characteristic (50 in the paper).
        answer_tokens: most new tokens of an answer (200 in the paper).
        temperature: of both steps (1 in the paper: the model's own distribution).
        prompts: `bare_prompts` of the same arguments, where they were needed before.
        progress: counts answers.

    Returns:
        All records, by objective, then query, then side, and the header.

    Raises:
        BadInputError: no query, a query too long for the model, a prompt form that breaks, a setting out of
            bounds, or a file that is not this run's.
    """
    if batch_size < 1:
        raise BadInputError(f"a batch needs at least one text: batch size {batch_size}")
    if not queries or not objectives:
        raise BadInputError(f"nothing to ask: {len(queries)} queries, {len(objectives)} objectives")
    prompts = bare_prompts(queries, objectives, prompt_form) if prompts is None else prompts
    # What will not work is found before anything is written or run.
    for prompt in prompts.values():
        lm.check_fits(prompt.characteristic, new_tokens=characteristic_tokens)
        lm.check_fits(prompt.answer, new_tokens=characteristic_tokens + answer_tokens)
    kept = [
        {key: value for key, value in query.items() if key == "query" or key not in RECORD_KEYS} for query in queries
    ]
    settings = {
        "seed": seed,
        "batch_size": batch_size,
        "characteristic_tokens": characteristic_tokens,
        "answer_tokens": answer_tokens,
        "temperature": float(temperature),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "device": lm.device.type,
        "prompt_form": prompt_form.settings,
        "objectives": [asdict(objective) for objective in objectives],
        "queries": len(kept),
        "queries_sha256": _sha256(kept),
    }
    header = PairHeader(PairOrigin(lm.folder.fingerprint, lm.tokenizer_sha256), settings)
    batches = _batches(kept, objectives, batch_size)
    records: list[PairRecord] = []
    with (
        growing_pair_file(out, header, [batch.keys for batch in batches]) as file,
        (progress or NoProgress()).task("writing pairs", sum(len(batch.keys) for batch in batches)) as advance,
    ):
        for index, batch in enumerate(batches):
            if index < len(file.finished):
                made = list(file.finished[index])
            else:
                made = _answers(
                    lm,
                    batch,
                    prompts,
                    prompt_form,
                    batch_size=batch_size,
                    seed=seed,
                    characteristic_tokens=characteristic_tokens,
                    answer_tokens=answer_tokens,
                    temperature=temperature,
                )
                file.append(made)
            records += made
            advance(len(made))
    return PairSet(tuple(records), header)


def _answers(
    lm: LanguageModel,
    batch: _Batch,
    prompts: BarePrompts,
    prompt_form: PromptForm,
    *,
    batch_size: int,
    seed: int,
    characteristic_tokens: int,
    answer_tokens: int,
    temperature: float,
) -> list[PairRecord]:
    objective = batch.objective
    asked = [(query, side) for query in batch.queries for side in SIDES]
    characteristics = [
        prompt_form.cut(clean_characteristic(prompt_form.answer_text(ids)), characteristic_tokens)
        for ids in _sampled(
            lm,
            [ids for query in batch.queries for ids in prompts[objective.name, query["query"]].characteristic],
            batch_size=batch_size,
            max_new_tokens=characteristic_tokens,
            seed=derived_seed(seed, "characteristic", objective.name, batch.number),
            temperature=temperature,
        )
    ]
    sentences = [
        persona_sentence(objective, side, characteristic)
        for (_, side), characteristic in zip(asked, characteristics, strict=True)
    ]
    contexts: list[list[int]] = []
    for index, query in enumerate(batch.queries):
        both = sentences[index * len(SIDES) : (index + 1) * len(SIDES)]
        contexts += prompt_form.contexts(query["query"], both).ids
    answer_seed = derived_seed(seed, "answer", objective.name, batch.number)
    answers = _sampled(
        lm, contexts, batch_size=batch_size, max_new_tokens=answer_tokens, seed=answer_seed, temperature=temperature
    )
    return [
        PairRecord(
            query=query,
            objective=objective.name,
            side=side,
            answer=prompt_form.cut(prompt_form.answer_text(answer), answer_tokens),
            characteristic=characteristic,
            prompt=prompt_form.prompt_text(query["query"], sentence),
            seed=answer_seed,
        )
        for (query, side), characteristic, sentence, answer in zip(
            asked, characteristics, sentences, answers, strict=True
        )
    ]


def _sampled(
    lm: LanguageModel,
    contexts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    seed: int,
    temperature: float,
) -> list[list[int]]:
    """One call, unless the two sides of a single query are already more than may run together."""
    answers: list[list[int]] = []
    for start in range(0, len(contexts), batch_size):
        answers += sample_batch(
            lm,
            contexts[start : start + batch_size],
            max_new_tokens=max_new_tokens,
            seed=seed if start == 0 else derived_seed(seed, "row", start),
            temperature=temperature,
        )
    return answers


def _batches(queries: Sequence[Query], objectives: Sequence[Objective], batch_size: int) -> list[_Batch]:
    step = max(1, batch_size // len(SIDES))
    return [
        _Batch(objective, number, tuple(queries[start : start + step]))
        for objective in objectives
        for number, start in enumerate(range(0, len(queries), step))
    ]


def _sha256(queries: Sequence[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(list(queries), sort_keys=True).encode("utf-8")).hexdigest()
