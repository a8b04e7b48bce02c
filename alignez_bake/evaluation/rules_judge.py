"""A function of the user's as a judge of sets of answers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.evaluation.judge import load_judge
from alignez_bake.evaluation.protocol import judgements_by_score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.evaluation.judge import Judge
    from alignez_bake.evaluation.protocol import AnswerSet, Judgement

_TOGETHER: Final = 64


@dataclass(frozen=True)
class RulesJudge:
    """Scores in [-1, 1] by a function; good above the threshold.

    Attributes:
        address: `path/to/rules.py:function`.
        function: that function, whose results are checked.
        file_sha256: of the file, which is told from a changed one; of what it imports nothing is known.
        good_above: the score above which an answer is good.
    """

    address: str
    function: Judge
    file_sha256: str
    good_above: float

    @property
    def settings(self) -> dict[str, Any]:
        """As `AnswerJudge.settings`."""
        return {
            "kind": "rules",
            "address": self.address,
            "file_sha256": self.file_sha256,
            "good_above": self.good_above,
        }

    @property
    def together(self) -> int:
        """As `AnswerJudge.together`."""
        return _TOGETHER

    def check(self) -> None:
        """Nothing is left to check: the function is loaded."""

    def judge(self, sets: Sequence[AnswerSet]) -> list[Judgement]:
        """As `AnswerJudge.judge`."""
        scores = [{model: self.function(query, answer) for model, answer in answers.items()} for query, answers in sets]
        return judgements_by_score(sets, scores)


def rules_judge(address: str, good_above: float = 0.0) -> RulesJudge:
    """The judge at `path/to/rules.py:function`; errors as `load_judge`."""
    function = load_judge(address)
    file = Path(address.rpartition(":")[0])
    return RulesJudge(address, function, hashlib.sha256(file.read_bytes()).hexdigest(), good_above)
