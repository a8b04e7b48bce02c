"""The texts that make a model speak as a good or a bad assistant (AlignEZ, arXiv 2406.03642, step 1).

    side   characteristic prompt                                    answer prompt, before the prompt form
    good   {query}                                                  You are a {good} assistant.
           You are a {good} assistant. Your answer to                 Your answer should {characteristic}.
           this query should:_
    bad    {query}                                                  Pretend you are a {bad} assistant.
           Pretend you are a {bad} assistant. Your response to        Your answer should {characteristic}.
           this query should:_

The characteristic prompts end with a space. With an empty characteristic the sentence ends in
"Your answer should be {good|bad}."
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignez_bake.prompts.objective import Objective, Side

_LIST_MARK = re.compile(r"^(?:[-*•]|\d{1,2}[.)]) ")
_SENTENCE_END = re.compile(r"[.!?…]+(?= )")
_TRAILING = " .!?…"


def characteristic_prompt(objective: Objective, side: Side, query: str) -> str:
    """Ask the model what an answer of this persona is like; it goes on after the last space."""
    if side == "good":
        return f"{query}\nYou are a {objective.good} assistant. Your answer to this query should: "
    return f"{query}\nPretend you are a {objective.bad} assistant. Your response to this query should: "


def persona_sentence(objective: Objective, side: Side, characteristic: str = "") -> str:
    """The sentence that goes before a prompt form, without a newline at its end.

    Args:
        objective: whose personas.
        side: which of the two.
        characteristic: what follows "Your answer should", without a full stop (see `clean_characteristic`);
            empty: the persona's own words.
    """
    wish = characteristic or f"be {objective.words(side)}"
    opening = "You are" if side == "good" else "Pretend you are"
    return f"{opening} a {objective.words(side)} assistant. Your answer should {wish}."


def clean_characteristic(text: str) -> str:
    """What of a generated text can stand in a persona sentence; may be empty.

    In this order:

    1. characters that cannot be printed become spaces, runs of white space become one space, and only the first
       line that is not blank counts, without spaces at its ends;
    2. a list mark at its start goes: "- ", "* ", "• ", "1. ", "1) ";
    3. only its first sentence counts: up to the first of . ! ? … that is followed by a space;
    4. full stops, other sentence ends and spaces at the end go, since the persona sentence brings its own.
    """
    line = next((line for line in map(_printable, text.splitlines()) if line), "")
    line = _LIST_MARK.sub("", line)
    end = _SENTENCE_END.search(line)
    sentence = line[: end.start()] if end else line
    return sentence.rstrip(_TRAILING)


def _printable(line: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in line).split())
