"""Model cards: valid metadata, what the base's card said, and no string of others that becomes markup."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from alignez_bake.edit_plan import EditPlan
from alignez_bake.model_folder import open_model_folder
from alignez_bake.report.markdown import code, escaped, fenced
from alignez_bake.report.model_card import model_card
from tests.baking import certify, lowered, plan_for

HOSTILE = (
    "x\n---\nlicense: evil",
    "<script>alert(1)</script>",
    "</td><img src=x onerror=y>",
    "![a](http://evil/x.png) [b](javascript:z)",
    "`code` ``` fence",
    "a | b | c\n# heading\n- list",
    "{{ jinja }} {% raw %}",
    "&lt;b&gt; \\<b> \u202egnp.exe\u2028after",
    "'\"; rm -rf $HOME #",
    "yes: [no, {a: &b *b}]",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory, save_tiny):
    return open_model_folder(save_tiny("llama", tmp_path_factory.mktemp("card") / "base"))


@pytest.fixture
def with_card(base, tmp_path):
    """`with_card(readme) -> ModelFolder`: the base with this README.md."""

    def make(readme: str):
        folder = shutil.copytree(base.path, tmp_path / "with_card", dirs_exist_ok=True)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        return open_model_folder(folder)

    return make


def card_of(base, name="aligned", *, plan=None, levels=(), **settings):
    return model_card(name, base, lowered(base, plan or plan_for(base)), levels, **settings)


def metadata(text: str) -> dict:
    """The metadata as the hub's own class reads them; the card must come back as it was."""
    card = ModelCard(text)
    assert card.content == text
    written = text.split("---\n")[1]
    values = yaml.safe_load(written)
    assert card.data.to_dict() == values
    assert card.data.to_yaml() == written.strip()
    return values


def tokens(text: str):
    """Every block and inline token of the rendered body."""
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    for token in parser.parse(ModelCard(text).text):
        yield token
        yield from token.children or ()


def test_a_plain_checkpoint(base):
    values = metadata(card_of(base))
    assert values == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["alignez-bake", "alignez", "self-alignment"],
    }, "a folder's name is no base_model"


@pytest.mark.parametrize(
    ("artefact", "library", "relation"),
    [
        ("checkpoint", "transformers", "finetune"),
        ("adapter", "peft", "adapter"),
        ("gguf", "gguf", "adapter"),
        ("edits", "alignez-bake", "adapter"),
        ("somebody's", None, "finetune"),
    ],
)
def test_each_artefact(artefact, library, relation, base):
    values = metadata(card_of(base, artefact=artefact, base_id="user/base"))
    assert values["base_model"] == "user/base"
    assert values["base_model_relation"] == relation
    assert values.get("library_name") == library
    assert metadata(card_of(base, artefact=artefact, library="own"))["library_name"] == "own"


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [("meta/llama-tiny", "meta/llama-tiny"), ("./base", None), ("/data/models/base", None), ("base", None), (7, None)],
)
def test_the_name_that_config_recorded(recorded, expected, base):
    named = dataclasses.replace(base, config=base.config | {"_name_or_path": recorded})
    assert metadata(card_of(named)).get("base_model") == expected
    assert metadata(card_of(named, base_id="user/base"))["base_model"] == "user/base"


def test_licence_and_language_of_the_base_are_kept(with_card):
    front = "---\nlicense: other\nlicense_name: own-terms\nlicense_link: LICENSE\nlanguage: [en, no]\ntags: [x]\n---\n#"
    values = metadata(card_of(with_card(front)))
    assert values["license"] == "other"
    assert values["license_name"] == "own-terms"
    assert values["license_link"] == "LICENSE"
    assert values["language"] == ["en", "no"], "Norwegian is not False"
    assert "x" not in values["tags"]
    assert metadata(card_of(with_card("---\r\nlicense: mit\r\nlanguage: de\r\n---\r\n")))["language"] == ["de"]


@pytest.mark.parametrize("front", ["# No metadata\n", "", "---\n---\n", "---\nlicense:\nlanguage: null\n---\n"])
def test_a_base_without_metadata(front, with_card):
    text = card_of(with_card(front))
    assert not {"license", "language"} & set(metadata(text))
    assert "may be incomplete" not in text


@pytest.mark.parametrize(
    "front",
    [
        "---\nlicense: [unclosed\n---\n",
        "---\n- a list\n---\n",
        "---\nlicense: {a: b}\n---\n",
        "---\nlanguage: [[en]]\n---\n",
        'language: "a\\nb"',
        "---\nlanguage: &a [*a]\n---\n",
        f"---\nlicense: {'x' * 600}\n---\n",
        f"---\nlicense: {'[' * 5000}\n---\n",
        f"---\nlicense: mit\ntags: {'x' * 70000}\n---\n",
    ],
)
def test_metadata_that_cannot_be_read_are_named(front, with_card):
    front = front if front.startswith("---") else f"---\n{front}\n---\n"
    text = card_of(with_card(front))
    assert not {"license", "language"} & set(metadata(text))
    assert "Licence and language may be incomplete here" in text


def test_a_card_that_is_no_utf8(with_card):
    folder = with_card("")
    (folder.path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert "not UTF-8" in card_of(folder)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_strings_of_others_stay_text(hostile, base, with_card):
    """As name, objective, setting, method, sample, and in the base's card."""
    front = yaml.safe_dump({"license": "other", "license_name": hostile, "language": [hostile]})
    folder = with_card(f"---\n{front}---\n")
    plan = plan_for(folder)
    plan = EditPlan(
        tuple(dataclasses.replace(edit, objective=hostile) for edit in plan.edits),
        {hostile: 0.5},
        provenance={"method": hostile, "settings": {hostile: hostile}, "seed": 3},
    )
    lowering = lowered(folder, plan)
    decisions = tuple(dataclasses.replace(entry, reason=hostile) for entry in lowering.decisions)
    hostile_lowering = dataclasses.replace(lowering, decisions=decisions)
    samples = [(hostile, hostile, hostile)]
    harmless = card_shape(model_card("n", folder, lowered(folder, _named(plan, "o")), (), samples=[("p", "b", "a")]))
    for artefact in ("checkpoint", "adapter", "edits", "gguf", "other"):
        text = model_card(hostile, folder, hostile_lowering, (), artefact=artefact, samples=samples)
        values = metadata(text)
        assert set(values) <= {"language", "library_name", "license", "license_name", "pipeline_tag", "tags"}
        assert values["license"] == "other"
        assert values.get("license_name", hostile) == hostile
        if artefact == "checkpoint":
            assert card_shape(text) == harmless, "the same headings, tables, blocks and lists"
        kinds = {token.type for token in tokens(text)}
        assert not kinds & {"html_inline", "html_block", "image", "link_open", "hr"}


def _named(plan: EditPlan, objective: str) -> EditPlan:
    """The same plan with harmless names."""
    edits = tuple(dataclasses.replace(edit, objective=objective) for edit in plan.edits)
    return EditPlan(edits, {objective: 0.5}, provenance={"method": "m", "settings": {"s": "v"}, "seed": 3})


def card_shape(text: str) -> list[str]:
    """Types of all blocks in order, without the text in them."""
    parser = MarkdownIt("gfm-like", {"linkify": False})
    return [token.type for token in parser.parse(ModelCard(text).text)]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_each_form_of_text(hostile):
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    shown = " ".join("".join(c if c.isprintable() else " " for c in hostile).split())
    for form in (escaped(hostile), code(hostile)):
        paragraph, inline, end = parser.parse(f"a {form} b")
        assert (paragraph.type, end.type) == ("paragraph_open", "paragraph_close")
        assert "".join(token.content for token in inline.children) == f"a {shown} b"
    (block,) = parser.parse(fenced(hostile))
    assert block.type == "fence"
    assert block.content.split() == "".join(c if c.isprintable() else " " for c in hostile).split()


def test_the_form_test_would_see_markup():
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    seen = {token.type for text in HOSTILE for block in parser.parse(f"a {text}") for token in block.children or ()}
    assert {"html_inline", "image", "code_inline"} <= seen


def test_how_each_is_loaded(base):
    assert 'AutoModelForCausalLM.from_pretrained("aligned")' in card_of(base)
    inserted = card_of(base, needs_code=True)
    assert 'from_pretrained("aligned", trust_remote_code=True)' in inserted
    assert "LlamaForCausalLM.from_pretrained" in inserted
    assert "unedited" in inserted
    assert "custom_code" in metadata(inserted)["tags"]
    assert "trust_remote_code" not in card_of(base)
    adapter = card_of(base, artefact="adapter", base_id="user/base")
    assert 'PeftModel.from_pretrained(base, "aligned")' in adapter
    assert 'from_pretrained("user/base")' in adapter
    assert "--lora adapter.gguf" in card_of(base, artefact="gguf")
    assert "alignez-bake bake --model user/base --edits aligned" in card_of(base, artefact="edits", base_id="user/base")


def test_limits_of_edits_at_the_last_position(base):
    plan = plan_for(base)
    assert "speculatively" not in card_of(base, plan=plan)
    last = EditPlan(tuple(dataclasses.replace(edit, positions="last") for edit in plan.edits))
    text = card_of(base, plan=last, needs_code=True)
    assert "chunks" in text
    assert "speculatively" in text


def test_the_certificate_and_the_way_to_make_it_again(base):
    level = certify(base.path, base.path, plan_for(base))
    plan = EditPlan(plan_for(base).edits, provenance={"method": "ridge", "settings": {"strength": 2.0}, "seed": 11})
    text = card_of(base, plan=plan, levels=[level], artefact="gguf", dtype="float32", base_id="user/base")
    assert level.verdict == "failed", "the base is not its own bake"
    assert "| tensors | verdict | failed |" in text
    assert level.reasons
    assert escaped(level.reasons[0]) in text
    assert f"| tensors | edited tensors = formula | {len(plan.edits)} |" in text
    command = (
        "alignez-bake bake --model user/base --edits alignez/edits.safetensors --out OUT --as gguf --dtype float32"
    )
    assert command in text
    assert '"strength": 2.0' in text
    assert "strength 2.0" in text
    assert '"seed": 11' in text
    assert "2406.03642" in text


def test_the_routes_and_samples(base):
    text = card_of(base, samples=[("How?\nNow?", "No ``` idea", "Like this")])
    assert "| fold | attn\\_write 0-1 |" in text
    assert "How?\nNow?" in text
    assert "````text\nNo ``` idea\n````" in text
    assert "## Samples" not in card_of(base)


def test_the_same_input_gives_the_same_bytes(base):
    assert card_of(base, base_id="user/base") == card_of(base, base_id="user/base")
