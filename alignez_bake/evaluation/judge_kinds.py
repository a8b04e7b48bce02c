"""The kinds of judges: the value of `--judge` says which, and each refuses options that are not for it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.chat_client import chat_client
from alignez_bake.evaluation.rules_judge import rules_judge
from alignez_bake.evaluation.server_judge import DEFAULT_CRITERION, ServerJudge

if TYPE_CHECKING:
    from collections.abc import Collection

    from alignez_bake.evaluation.protocol import AnswerJudge

CHOICES: Final = (
    "a function (rules.py:function), the folder of a classifier or reward model, "
    "or the address of an OpenAI-compatible server (http://localhost:8000/v1, with --judge-model)"
)
_DEFAULT_TRIES: Final = 6
_DEFAULT_TIMEOUT: Final = 120.0


@dataclass(frozen=True)
class JudgeOptions:
    """What can be said of a judge beside its address; None: its own default.

    Attributes:
        threshold: score above which an answer is good: of rules and rewards 0, of probabilities 0.5.
        label: of a classifier, the label whose probability is the score.
        reads: of a classifier, "both" (query and answer, the default) or "answer".
        model: of a server, the model's name there.
        criterion: of a server, how the better answer is, such as "more truthful".
        key_env: of a server, name of the environment variable that holds its key; no key is sent unless given.
        tries: of a server, how often a question is sent at most; 6.
        timeout: of a server, seconds that one try may take; 120.
    """

    threshold: float | None = None
    label: str | None = None
    reads: str | None = None
    model: str | None = None
    criterion: str | None = None
    key_env: str | None = None
    tries: int | None = None
    timeout: float | None = None

    def refuse_others(self, kind: str, known: Collection[str]) -> None:
        """Refuse options that a kind of judge does not know.

        Raises:
            BadInputError: the first of them.
        """
        for option in fields(self):
            if getattr(self, option.name) is not None and option.name not in known:
                flag = f"--judge-{option.name.replace('_', '-')}"
                raise BadInputError(f"{kind} has no use for {flag}: leave it out, or name another --judge")


def judge_named(address: str | None, options: JudgeOptions, *, device: str, batch_size: int, seed: int) -> AnswerJudge:
    """The judge that an address stands for.

    Args:
        address: `rules.py:function`, a folder, or an address that begins with http:// or https://.
        options: what else was said of it.
        device: where a classifier runs.
        batch_size: texts that a classifier reads together.
        seed: of the waits between tries.

    Raises:
        BadInputError: none, an unknown one, one that does not load, or an option that is not for it.
    """
    if not address:
        raise BadInputError(f"--judge is missing: give {CHOICES}")
    if options.threshold is not None and not math.isfinite(options.threshold):
        raise BadInputError(f"--judge-threshold {options.threshold} must be finite")
    if address.startswith(("http://", "https://")):
        return _server(address, options, seed)
    if ".py:" in address:
        options.refuse_others("a judge of rules", ("threshold",))
        return rules_judge(address, 0.0 if options.threshold is None else options.threshold)
    if Path(address).is_dir():
        return _classifier(Path(address), options, device, batch_size)
    raise BadInputError(f"--judge {address!r} is unknown: give {CHOICES}")


def _server(address: str, options: JudgeOptions, seed: int) -> ServerJudge:
    options.refuse_others("a server", ("model", "criterion", "key_env", "tries", "timeout"))
    if not options.model:
        raise BadInputError(f"--judge {address} is a server: say with --judge-model which of its models judges")
    criterion = DEFAULT_CRITERION if options.criterion is None else options.criterion
    if not criterion.strip():
        raise BadInputError("--judge-criterion is empty: say how the better answer is, such as 'more helpful'")
    key = None
    if options.key_env is not None:
        key = os.environ.get(options.key_env)
        if key is None:  # not shown: somebody may have given the key itself
            raise BadInputError("--judge-key-env names no environment variable that is set: give its name, not the key")
    client = chat_client(
        address,
        options.model,
        key,
        tries=_DEFAULT_TRIES if options.tries is None else options.tries,
        timeout=_DEFAULT_TIMEOUT if options.timeout is None else options.timeout,
        seed=seed,
    )
    return ServerJudge(client, criterion.strip())


def _classifier(folder: Path, options: JudgeOptions, device: str, batch_size: int) -> AnswerJudge:
    # Needs torch and transformers' classes, which the other kinds do without.
    from alignez_bake.evaluation.classifier_judge import classifier_judge  # noqa: PLC0415

    options.refuse_others("a classifier", ("threshold", "label", "reads"))
    if options.reads not in (None, "both", "answer"):
        raise BadInputError(f"--judge-reads {options.reads!r} is unknown: use both or answer")
    return classifier_judge(
        folder,
        label=options.label,
        threshold=options.threshold,
        reads="answer" if options.reads == "answer" else "both",
        device=device,
        batch_size=batch_size,
    )
