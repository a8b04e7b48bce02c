"""Variants that fit `contrastive_decoding` to other pairs: of several rounds, or those that the base judges right.

*A second round on top*: the base's pairs give a first model, baked and loaded; it writes pairs of its own, and the
method is fitted to it anew. *Second pairs, fitted to the base*: the same pairs, but one fit.

*Self-filtered*: of the base's pairs those whose good answer the base's self-judge (`tuning.self_judge`) finds good, and
whose bad answer it finds good when the bad persona is asked for. *Random*: as many queries, drawn at random; some
of them make no pair, as their answers are equal or empty.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

import numpy as np

from alignez_bake.commands.bake import bake
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.language_model.sampling import Continuation, derived_seed
from alignez_bake.methods.contrastive_decoding import CONTRASTIVE_DECODING
from alignez_bake.model_folder import open_model_folder
from alignez_bake.pipeline import write_own_pairs
from alignez_bake.prompts.objective import SIDES
from alignez_bake.tuning.self_judge import SelfJudge, is_good
from alignez_bake.tuning.tuner import ANSWER_TOKENS
from benchmarks.stopwatch import Stopwatch
from benchmarks.variants_bed import STRENGTH, fitted

if TYPE_CHECKING:
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.preference_pairs.records import PairRecord
    from alignez_bake.prompts.objective import Side
    from benchmarks.variants_bed import Made, VariantBed

_METHOD: Final = CONTRASTIVE_DECODING


def second_round(bed: VariantBed) -> Made:
    """Fitted to the first round's model and its own pairs.

    Raises:
        BadInputError: as the method.
    """
    first = _first_round(bed)
    return fitted(bed, _METHOD, STRENGTH, lm=first, records=_written_by(bed, first))


def second_pairs(bed: VariantBed) -> Made:
    """Fitted to the base and the pairs of the first round's model.

    Raises:
        BadInputError: as the method.
    """
    return fitted(bed, _METHOD, STRENGTH, records=_written_by(bed, _first_round(bed)))


def self_filtered(bed: VariantBed) -> Made:
    """Fitted to pairs that the base judges right.

    Raises:
        BadInputError: as the method; too few pairs are left.
    """
    right = _right_queries(bed)
    return fitted(bed, _METHOD, STRENGTH, records=[each for each in bed.records if each.query["query"] in right])


def random_subset(bed: VariantBed) -> Made:
    """Fitted to as many pairs as `self_filtered`, drawn at random.

    Raises:
        BadInputError: as the method; too few pairs are left.
    """
    queries = list(dict.fromkeys(each.query["query"] for each in bed.records))
    rng = np.random.default_rng(derived_seed(bed.seed, "random subset"))
    drawn = {queries[place] for place in rng.permutation(len(queries))[: len(_right_queries(bed))]}
    return fitted(bed, _METHOD, STRENGTH, records=[each for each in bed.records if each.query["query"] in drawn])


def _first_round(bed: VariantBed) -> LanguageModel:
    folder = bed.bench.out / f"first-round-{_label(bed)}"
    if folder.exists():  # of a run that was interrupted, perhaps in the middle
        shutil.rmtree(folder)
    bake(bed.bench.world.base, fitted(bed, _METHOD, STRENGTH).plan, folder)
    return load_language_model(open_model_folder(folder))


def _written_by(bed: VariantBed, lm: LanguageModel) -> tuple[PairRecord, ...]:
    bench = bed.bench
    file = bench.out / f"second-pairs-{_label(bed)}.jsonl"
    pairs, _ = write_own_pairs(
        lm, bench.world.asked, bench.form, file, batch_size=bench.batch_size, seed=bed.seed, progress=Stopwatch()
    )
    return pairs.records


def _right_queries(bed: VariantBed) -> set[str]:
    """Queries both of whose answers are on their sides."""
    right = [_judged_right(bed, side) for side in SIDES]
    return right[0] & right[1]


def _judged_right(bed: VariantBed, side: Side) -> set[str]:
    bench = bed.bench
    judge = SelfJudge(bed.lm, bed.objective, bench.form, batch_size=bench.batch_size, wanted=side)
    records = [each for each in bed.records if each.side == side]
    queries = [str(each.query["query"]) for each in records]
    end = bed.lm.eos_ids[0] if bed.lm.eos_ids else None
    answers = [Continuation(bench.form.answer_ids(each.answer), end) for each in records]
    floor = judge.floor(queries, seed=bed.seed, max_new_tokens=ANSWER_TOKENS)
    scores = judge.scores(queries, answers)
    return {query for query, score in zip(queries, scores, strict=True) if is_good(score, floor)}


def _label(bed: VariantBed) -> str:
    return f"{bed.bench.world.name.replace(' ', '_')}-seed{bed.seed}"
