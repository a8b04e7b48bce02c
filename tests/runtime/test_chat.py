"""Chat templates: the text that transformers makes of them, and nothing that gets out of the sandbox."""

from __future__ import annotations

import jinja2
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.chat import chat_text
from tests.tiny_models import tiny_tokenizer

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'A <b>kettle</b> & "spout"?\n'},
    {"role": "assistant", "content": " Yes. "},
    {"role": "user", "content": "日本 👩"},
]
TEMPLATES = {
    "plain": "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m.content | trim }}"
    "{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "blocks": "{% for message in messages %}\n    {% if loop.first %}\nfirst {% endif %}\n{{ message.content }}\n"
    "{% endfor %}",
    "controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "defined": "{% if tools is defined and tools is not none %}tools{% else %}no tools{% endif %}"
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "time": "{{ strftime_now('%Y') }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_that_of_transformers(name):
    tokenizer = tiny_tokenizer(chat_template=TEMPLATES[name])
    theirs = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert chat_text(TEMPLATES[name], MESSAGES, {"bos_token": "<s>", "eos_token": "</s>"}) == theirs
    assert len(theirs) > 3


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system role here') }}", "the chat template fails .'no system role here'"),
        ("{% if %}", "the chat template fails"),
        ("{{ messages[0]['role'] + 1 }}", "the chat template fails"),
        ("{{ ''.__class__.__mro__ }}{{ x.y.z }}", "the chat template fails"),
        ("{{ messages.append(1) }}", "the chat template fails"),
        ("{% for i in range(10**9) %}{% endfor %}", "the chat template fails"),
        ("{{ 1 // 0 }}", "the chat template fails"),
        ("{% include '/etc/passwd' %}", "the chat template fails"),
    ],
)
def test_a_template_that_fails_or_reaches_out_is_refused(template, message):
    with pytest.raises(BadInputError, match=message):
        chat_text(template, MESSAGES, {})


def test_the_messages_are_left_as_they_were():
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(BadInputError):
        chat_text("{% set _ = messages[0].update({'content': 'b'}) %}", messages, {})
    assert messages == [{"role": "user", "content": "a"}]


def test_an_old_jinja_is_refused(monkeypatch):
    monkeypatch.setattr(jinja2, "__version__", "3.1.5")
    with pytest.raises(BadInputError, match=r"jinja2 3\.1\.5 has known holes"):
        chat_text("a", MESSAGES, {})
