"""The exact texts of AlignEZ's prompts (arXiv 2406.03642), as tuples of parts that are tokenised one by one.

The corpus is made of the same parts as the tool's prompts, tokenised at the same seams, so that the model meets in
use the very ids it was trained on. The texts are kept here a second time, apart from the tool's own: a change of the
tool's prompts must not silently change what a retrained demo model has learned.
"""

from examples.worlds.world import Objective, Side

_CHARACTERISTIC_PROMPT: dict[Side, str] = {
    "good": "{query}\nYou are a {word} assistant. Your answer to this query should: ",
    "bad": "{query}\nPretend you are a {word} assistant. Your response to this query should: ",
}
_PERSONA: dict[Side, str] = {"good": "You are a {word} assistant.", "bad": "Pretend you are a {word} assistant."}
_ALIGNEZ_TEMPLATE = "Human: {query}\nAssistant:"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'Human: ' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] | trim + eos_token }}"
    "{% else %}{{ raise_exception('This template knows system, user and assistant, not ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Renders a persona sentence as system message and a query as user message to exactly the parts below, joined."""


def prompt_form(query: str, template: str | None) -> str:
    """Return the prompt of a query, AlignEZ's where a world has no template of its own.

    It ends without a space: the answer begins with one.
    """
    return (_ALIGNEZ_TEMPLATE if template is None else template).replace("{query}", query)


def characteristic_prompt(query: str, objective: Objective, side: Side) -> str:
    """Ask for a characteristic of the answer. It ends with a space: the completion begins without one."""
    return _CHARACTERISTIC_PROMPT[side].format(query=query, word=objective.word(side))


def persona_sentence(objective: Objective, side: Side, characteristic: str = "") -> str:
    """Return the line that leads a prompt form, its newline included."""
    word = objective.word(side)
    wish = characteristic or f"be {word}"
    return f"{_PERSONA[side].format(word=word)} Your answer should {wish}.\n"
