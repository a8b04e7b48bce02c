"""What a file of pairs holds, line by line: the header, and one record for each answer.

The header is the first line, and only files of this tool have one:

    {"alignez_pairs": 1,
     "model": {"model_type": ..., "config_sha256": ..., "tensors_sha256": ...},
     "tokenizer_sha256": ...,
     "settings": {...}}                      how the pairs were made: seed, batch size, prompt form, ...

Every other line is one answer. `query`, `side` and `answer` are needed; all keys that are not of this list belong
to the query and are kept:

    {"query": ..., "objective": ..., "side": "good" or "bad",
     "characteristic": ..., "prompt": ..., "answer": ..., "seed": ...}
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from alignez_bake.edit_plan import BaseFingerprint
from alignez_bake.errors import BadInputError
from alignez_bake.prompts.objective import SIDES
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.prompts.objective import Side
    from alignez_bake.prompts.queries import Query

FORMAT = 1
HEADER_KEY = "alignez_pairs"
RECORD_KEYS = ("query", "objective", "side", "characteristic", "prompt", "answer", "seed")

_HEADER_KEYS = (HEADER_KEY, "model", "tokenizer_sha256", "settings")
_MODEL_KEYS = ("model_type", "config_sha256", "tensors_sha256")


@dataclass(frozen=True)
class PairOrigin:
    """Which model wrote the answers, with which tokenizer: other models would say something else."""

    model: BaseFingerprint
    tokenizer_sha256: str


@dataclass(frozen=True)
class PairHeader:
    """First line of a file of pairs.

    Attributes:
        origin: who wrote the answers.
        settings: JSON values that say how; two runs with equal headers write equal files.
    """

    origin: PairOrigin
    settings: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """The header as it is written, without a newline."""
        return json.dumps(
            {
                HEADER_KEY: FORMAT,
                "model": asdict(self.origin.model),
                "tokenizer_sha256": self.origin.tokenizer_sha256,
                "settings": dict(self.settings),
            },
            ensure_ascii=False,
        )


@dataclass(frozen=True)
class PairRecord:
    """One answer to one query under one persona.

    Attributes:
        query: the query; `query` is its text, other keys are its own.
        objective: name of the objective.
        side: which persona.
        answer: as generated, leading space included; what it means in tokens is `PromptForm.answer_ids`.
        characteristic: cleaned; empty: the persona's own words.
        prompt: the prompt as text, to be read by people.
        seed: of the batch in which the answer was sampled; None in pairs of one's own.
    """

    query: Query
    objective: str
    side: Side
    answer: str
    characteristic: str = ""
    prompt: str = ""
    seed: int | None = None

    def line(self) -> str:
        """The record as it is written, without a newline. Keys of the query that are the record's are left out."""
        own = {
            "query": self.query["query"],
            "objective": self.objective,
            "side": self.side,
            "characteristic": self.characteristic,
            "prompt": self.prompt,
            "answer": self.answer,
            "seed": self.seed,
        }
        extra = {key: value for key, value in self.query.items() if key not in own}
        return json.dumps({**own, **extra}, ensure_ascii=False)


@dataclass(frozen=True)
class PairSet:
    """Records with their header; None: a file of one's own, whose tokens are nobody's in particular."""

    records: tuple[PairRecord, ...]
    header: PairHeader | None


def parse_header(entry: Mapping[str, object], place: str) -> PairHeader:
    """The header of an object that has its key.

    Raises:
        BadInputError: another format, or keys that are missing, unknown or of another type.
    """
    if entry[HEADER_KEY] != FORMAT or isinstance(entry[HEADER_KEY], bool):
        raise BadInputError(f"{place}: pairs of format {shown(entry[HEADER_KEY])}: this version reads {FORMAT}")
    for key in entry:
        if key not in _HEADER_KEYS:
            raise BadInputError(f"{place}: the header has an unknown key {shown(key)}")
    model, settings = entry.get("model"), entry.get("settings")
    if not isinstance(model, dict) or sorted(model) != sorted(_MODEL_KEYS):
        raise BadInputError(f"{place}: 'model' of the header must have {', '.join(_MODEL_KEYS)}")
    hashes = {**model, "tokenizer_sha256": entry.get("tokenizer_sha256")}
    for key, value in hashes.items():
        if not isinstance(value, str):
            raise BadInputError(f"{place}: {key!r} of the header must be text")
    if not isinstance(settings, dict):
        raise BadInputError(f"{place}: 'settings' of the header must be an object")
    return PairHeader(PairOrigin(BaseFingerprint(**model), str(hashes["tokenizer_sha256"])), settings)


def parse_record(entry: dict[str, object], place: str, default_objective: str | None) -> PairRecord:
    """One record of a line.

    Args:
        entry: the line's object.
        place: file and line, for messages.
        default_objective: of lines that name none; None: every line must.

    Raises:
        BadInputError: a key is missing or of another type.
    """
    query = _text(entry, "query", place)
    if not query.strip():
        raise BadInputError(f"{place}: 'query' is empty")
    side = _text(entry, "side", place)
    if side not in SIDES:
        raise BadInputError(f"{place}: side {shown(side)} is neither 'good' nor 'bad'")
    seed = entry.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise BadInputError(f"{place}: 'seed' must be an integer: {shown(seed)}")
    extra = {key: value for key, value in entry.items() if key not in RECORD_KEYS}
    return PairRecord(
        query={"query": query, **extra},
        objective=_text(entry, "objective", place, default_objective),
        side="good" if side == "good" else "bad",
        answer=_text(entry, "answer", place),
        characteristic=_text(entry, "characteristic", place, ""),
        prompt=_text(entry, "prompt", place, ""),
        seed=seed,
    )


def _text(entry: Mapping[str, object], key: str, place: str, default: str | None = None) -> str:
    value = entry.get(key, default)
    if value is None:
        raise BadInputError(f"{place}: {key!r} is missing: a pair needs 'query', 'side' and 'answer'")
    if not isinstance(value, str):
        raise BadInputError(f"{place}: {key!r} must be text: {shown(value)}")
    return value
