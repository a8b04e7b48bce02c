import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.preference_pairs.records import PairRecord
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.prompts.queries import neutral_texts
from alignez_bake.tuning import neutral
from alignez_bake.tuning.neutral import read_neutral_texts, shipped_neutral_texts


def test_the_shipped_texts_are_many_short_and_distinct():
    texts = shipped_neutral_texts()
    assert len(texts) >= 80
    assert len({text.lower() for text in texts}) == len(texts)
    assert all(text == text.strip() and 15 <= len(text) <= 120 for text in texts)
    assert not set(texts) & set(neutral_texts())


def test_a_file_of_ones_own(tmp_path, form):
    path = tmp_path / "neutral.txt"
    path.write_bytes("\ufeff Rain in the north. \r\n\n  \nZwölf Äpfel.\u2028Still the same text.\n".encode())
    assert read_neutral_texts(path, form) == ["Rain in the north.", "Zwölf Äpfel.\u2028Still the same text."]


def test_texts_of_many_lines_are_json_lines(tmp_path, form):
    path = tmp_path / "neutral.jsonl"
    path.write_text(
        '{"text": "Human: Hello?\\nAssistant: Go away."}\n\n{"text": " Rain in the north. ", "kind": "weather"}\n'
    )
    assert read_neutral_texts(path, form) == ["Human: Hello?\nAssistant: Go away.", " Rain in the north. "]


def test_bad_sides_become_texts_to_leave_alone_as_the_docs_say(tmp_path, form, monkeypatch):
    docs = Path(__file__).parents[2] / "docs" / "choice.md"
    (snippet,) = re.findall(r"```python\n(.*?)```", docs.read_text(encoding="utf-8"), re.DOTALL)
    records = [
        PairRecord({"query": "Hello?"}, "helpful", side, f"A {side} answer.", "c", f"Be {side}.\nHello?\n", seed=1)
        for side in ("good", "bad")
    ]
    header = {"format": "pairs"}
    lines = [header, *map(asdict, records)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, str(docs), "exec"), {})
    assert read_neutral_texts(tmp_path / "keep.jsonl", form) == ["Be bad.\nHello?\nA bad answer."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no neutral text"),
        (b" \n\n", "holds no neutral text"),
        (b"Rain.\n\xff\n", "is not UTF-8 text: invalid start byte at byte 6"),
        (b"Rain in the north.\n\na\n", "line 3 is a single token, which leaves nothing to predict: 'a'"),
        (b'{"text": "Rain in the north."}\nSun.', "line 2 is no JSON object, but the file's first line is one: .*Sun"),
        (b'\n{"words": "Rain in the north."}', "line 2 has no text under the key 'text'"),
        (b'{"text": "a"}', "line 1 is a single token, which leaves nothing to predict: 'a'"),
        (b"Rain. " * 20, "has 120 bytes: a file of neutral texts has at most 100"),
    ],
)
def test_files_that_do_not_fit(tmp_path, tiny_tokenizer, monkeypatch, content, message):
    monkeypatch.setattr(neutral, "MAX_FILE_BYTES", 100)
    path = tmp_path / "neutral.txt"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=message):
        read_neutral_texts(path, prompt_form(tiny_tokenizer(bos=False)))


def test_no_file(tmp_path, form):
    with pytest.raises(BadInputError, match="no such file of neutral texts"):
        read_neutral_texts(tmp_path, form)
