import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignez_bake.errors import BadInputError
from alignez_bake.prompts.prompt_form import DEFAULT_TEMPLATE, prompt_form
from tests.tiny_models import BOS_ID, EOS_ID

SENTENCE = "You are a helpful assistant. Your answer should be helpful."
OTHER = "Pretend you are a useless assistant. Your answer should be useless."
QUERY = "How do I clean a copper kettle?"

WITH_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
REFUSES_SYSTEM = WITH_SYSTEM.replace(
    "[{{ m['role'] }}]", "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}[{{ m['role'] }}]"
)
DROPS_SYSTEM = (
    "{{ bos_token }}{% for m in messages if m['role'] == 'user' %}[user]\n{{ m['content'] }}\n{% endfor %}"
    "{{ '[assistant]\n' }}"
)
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}[system]\nBe yourself.\n{% endif %}" + WITH_SYSTEM.replace(
    "{{ bos_token }}", ""
)


@pytest.fixture
def encode(tiny_tokenizer):
    return lambda text: tiny_tokenizer().encode(text, add_special_tokens=False)


def test_the_default_form(tiny_tokenizer, encode):
    form = prompt_form(tiny_tokenizer())
    assert form.context_ids(QUERY, None) == [BOS_ID, *encode(f"Human: {QUERY}\nAssistant:")]
    assert form.context_ids(QUERY, SENTENCE) == [
        BOS_ID,
        *encode(SENTENCE + "\n"),
        *encode(f"Human: {QUERY}\nAssistant:"),
    ]
    assert form.prompt_text(QUERY, SENTENCE) == f"{SENTENCE}\nHuman: {QUERY}\nAssistant:"
    assert form.prompt_text(QUERY, None) == f"Human: {QUERY}\nAssistant:"
    assert form.settings == {"template": DEFAULT_TEMPLATE}


def test_contexts_share_the_prompt_form_and_no_more(tiny_tokenizer, encode):
    contexts = prompt_form(tiny_tokenizer()).contexts(QUERY, [None, SENTENCE, OTHER])
    shared = encode(f"Human: {QUERY}\nAssistant:")
    assert contexts.shared == len(shared)
    assert len(contexts.ids) == 3
    assert all(ids[-contexts.shared :] == shared for ids in contexts.ids)


@pytest.mark.parametrize("sentences", [[None], [SENTENCE, SENTENCE], [SENTENCE, OTHER]])
def test_bos_and_personas_are_never_shared(tiny_tokenizer, encode, sentences):
    assert prompt_form(tiny_tokenizer()).contexts(QUERY, sentences).shared == len(encode(f"Human: {QUERY}\nAssistant:"))


def test_without_bos(tiny_tokenizer, encode):
    form = prompt_form(tiny_tokenizer(bos=False))
    assert form.context_ids(QUERY, None) == encode(f"Human: {QUERY}\nAssistant:")
    assert form.text_ids("a") == encode("a")


def test_the_query_alone_is_a_form_and_braces_are_literal(tiny_tokenizer, encode):
    assert prompt_form(tiny_tokenizer(), "{query}").context_ids("{a} {query}", None) == [
        BOS_ID,
        *encode("{a} {query}"),
    ]
    assert prompt_form(tiny_tokenizer(), "{x}{{query}}").prompt_text("q", None) == "{x}{q}"


@pytest.mark.parametrize("template", ["", "Human:", "{query} {query}", "{ query }", "{Query}"])
def test_a_template_holds_the_query_once(tiny_tokenizer, template):
    with pytest.raises(BadInputError, match="it must hold it once"):
        prompt_form(tiny_tokenizer(), template)


def test_a_template_beats_the_chat_template(tiny_tokenizer):
    assert prompt_form(tiny_tokenizer(chat_template=WITH_SYSTEM), "{query}").prompt_text("q", None) == "q"


@pytest.mark.parametrize("template", [WITH_SYSTEM, REFUSES_SYSTEM, DROPS_SYSTEM, DEFAULT_SYSTEM])
def test_chat_templates(tiny_tokenizer, encode, template):
    form = prompt_form(tiny_tokenizer(chat_template=template))
    takes_system = template in {WITH_SYSTEM, DEFAULT_SYSTEM}
    assert form.chat.takes_system == takes_system
    led = f"[system]\n{SENTENCE}\n[user]\n{QUERY}" if takes_system else f"[user]\n{SENTENCE}\n{QUERY}"
    assert form.prompt_text(QUERY, SENTENCE).endswith(f"{led}\n[assistant]\n")
    contexts = form.contexts(QUERY, [None, SENTENCE, OTHER])
    assert contexts.shared >= len(encode(f"{QUERY}\n[assistant]\n"))
    tail = contexts.ids[0][-contexts.shared :]
    assert all(ids[-contexts.shared :] == tail for ids in contexts.ids)
    assert contexts.shared < len(contexts.ids[0])
    has_bos = template != DEFAULT_SYSTEM
    assert all((ids[0] == BOS_ID) == has_bos and BOS_ID not in ids[1:] for ids in contexts.ids)
    assert set(form.settings) == {"chat_template_sha256"}


def test_a_bare_chat_template_does_not_share_bos(tiny_tokenizer, encode):
    bare = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    contexts = prompt_form(tiny_tokenizer(chat_template=bare)).contexts(QUERY, [None])
    assert contexts.ids[0] == [BOS_ID, *encode(QUERY + "\n")]
    assert contexts.shared == len(encode(QUERY + "\n"))


def test_a_doubled_bos_becomes_one(tiny_tokenizer):
    form = prompt_form(tiny_tokenizer(chat_template="{{ bos_token }}" + WITH_SYSTEM))
    ids = form.contexts(QUERY, [SENTENCE, None]).ids
    assert [context[:2].count(BOS_ID) for context in ids] == [1, 1]


def test_a_query_that_occurs_in_the_template_is_no_problem(tiny_tokenizer, encode):
    form = prompt_form(tiny_tokenizer(chat_template=WITH_SYSTEM))
    assert form.contexts("assistant", [None, SENTENCE]).shared >= len(encode("assistant\n[assistant]\n"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # The persona stands behind the query: it shares only what follows.
        (
            (
                "{{ messages[-1]['content'] }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
                "{% endif %}!"
            ),
            "are not the same as without",
        ),
        ("{{ messages[-1]['content'] | upper }}", "shows the user's text 0 times"),
        ("{{ messages[-1]['content'] * 2 }}", "shows the user's text 2 times"),
        ("{{ raise_exception('never') }}", "chat template fails"),
        ("{{ messages[-1]['content'] | replace('kettle', 'pot') }}", "changes the text of the query"),
    ],
)
def test_chat_templates_that_do_not_work(tiny_tokenizer, template, message):
    with pytest.raises(BadInputError, match=message):
        prompt_form(tiny_tokenizer(chat_template=template)).contexts(QUERY, [None, SENTENCE])


def test_answers(tiny_tokenizer, encode):
    form = prompt_form(tiny_tokenizer())
    assert form.answer_ids(" Rub it.") == encode(" Rub it.")
    assert form.answer_ids(" Rub it.", eos=True) == [*encode(" Rub it."), EOS_ID]
    assert form.answer_text([*encode(" Rub it ."), EOS_ID]) == " Rub it ."


@given(query=st.text(min_size=1).filter(str.strip), persona=st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_any_text_shares_its_form(tiny_tokenizer, query, persona):
    form = prompt_form(tiny_tokenizer())
    contexts = form.contexts(query, [None, persona])
    tail = contexts.ids[0][1:]
    assert contexts.shared == len(tail)
    assert contexts.ids[1][-contexts.shared :] == tail


def test_prompts_do_not_import_torch_or_transformers():
    code = (
        "import sys, alignez_bake.prompts.prompt_form, alignez_bake.prompts.queries, alignez_bake.prompts.persona;"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_cut_keeps_the_longest_beginning_that_fits(tiny_tokenizer):
    form = prompt_form(tiny_tokenizer(), None)
    text = "rub it with lemon \ufffd\ufffd and mind the spout"
    for tokens in (0, 1, 5, 12, 100):
        cut = form.cut(text, tokens)
        assert text.startswith(cut)
        assert len(form.answer_ids(cut)) <= tokens
        assert cut == text if tokens == 100 else len(form.answer_ids(text[: len(cut) + 1].rstrip())) > tokens - 1
