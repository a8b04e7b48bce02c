import json

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.answers_file import ModelAnswers, answers_file
from alignez_bake.evaluation.protocol import Judgement

MODELS = ("base", "ours")
SETTINGS = {"seed": 0, "judge": {"kind": "rules"}, "temperature": 1.0}
BASE = ModelAnswers("base", ((" a\u2028", " b"), (" c", "")), 3.5, None, "tokenizer 320")
OURS = ModelAnswers("ours", ((" A", " B"), (" C", " D")), None, 0.25)
PAIR = ("ours", "base")
FIRST = Judgement({"base": -1.0, "ours": 0.5}, {PAIR: 1}, 0, (), 2)
SECOND = Judgement({}, {PAIR: None}, 1, ("'é'",), 0)


def opened(path, settings=SETTINGS, **sizes):
    return answers_file(path, settings, MODELS, **{"queries": 2, "samples": 2, **sizes})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "out.partial.jsonl"


@pytest.fixture
def written(path):
    with opened(path) as file:
        file.add_model(BASE)
        file.add_model(OURS)
        file.add_judged([FIRST, SECOND])
    return path


def test_what_was_kept_is_taken_up(written):
    with opened(written) as file:
        assert file.models == {"base": BASE, "ours": OURS}
        assert file.judged == [FIRST, SECOND]
        file.add_judged([FIRST])
    with opened(written) as file:
        assert file.judged == [FIRST, SECOND, FIRST]


def test_a_run_that_was_killed_at_any_byte_goes_on(written):
    data = written.read_bytes()
    lines = data.splitlines(keepends=True)
    ends = [sum(map(len, lines[: number + 1])) for number in range(len(lines))]
    near = {end + step for end in ends for step in (-1, 0, 1)}
    for cut in sorted({*range(0, len(data), 67), *near} - {len(data) + 1}):
        written.write_bytes(data[:cut])
        with opened(written) as file:
            whole = sum(end <= cut for end in ends)
            assert len(file.models) == min(max(whole - 1, 0), 2)
            assert len(file.judged) == max(whole - 3, 0)
            if "base" not in file.models:
                file.add_model(BASE)
            if "ours" not in file.models:
                file.add_model(OURS)
            file.add_judged([FIRST, SECOND][len(file.judged) :])
        assert written.read_bytes() == data, cut


def test_no_path_no_file(tmp_path):
    with answers_file(None, SETTINGS, MODELS, queries=2, samples=2) as file:
        file.add_model(BASE)
        file.add_judged([FIRST])
        assert file.models == {"base": BASE}
        file.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_discarded_file_is_gone(written):
    with opened(written) as file:
        file.discard()
    assert not written.exists()


def test_a_run_that_comes_to_nothing_leaves_nothing(path, tmp_path):
    with pytest.raises(ZeroDivisionError), opened(path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_other_settings_are_named(written):
    before = written.read_bytes()
    with (
        pytest.raises(
            BadInputError, match=r"begun with other settings \(seed was 0, now 1; temperature was 1.0, now 0.5"
        ),
        opened(written, {**SETTINGS, "seed": 1, "temperature": 0.5}),
    ):
        pass
    assert written.read_bytes() == before


@pytest.mark.parametrize(
    "data", [b"my notes\n", b"{}\n", b'{"alignez_eval": 2, "settings": {}}\n', b"\xff\n", b"[" * 9999]
)
def test_files_of_others_are_not_touched(path, data):
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(BadInputError, match="is in the way: it is no evaluation"), opened(path):
        pass
    assert path.read_bytes() == data


def test_two_runs_at_once(path):
    with opened(path), pytest.raises(BadInputError, match="another run is writing"), opened(path):
        pass


def test_a_link_is_not_followed(path, tmp_path):
    path.parent.mkdir()
    (tmp_path / "precious").write_text("")
    path.symlink_to(tmp_path / "precious")
    with pytest.raises(BadInputError, match="cannot be written"), opened(path):
        pass
    assert (tmp_path / "precious").read_text() == ""


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        (2, "model", "ours"),
        (2, "more", 1),
        (2, "kl", ...),
        (2, "kl", "1"),
        (2, "noise", 3),
        (2, "answers", [["a", "b"]]),
        (3, "answers", [["a", "b"], ["a"]]),
        (3, "answers", [["a", "b"], ["a", 1]]),
        (3, "answers", [["a", "b"], 3]),
        (4, "set", 1),
        (4, "scores", {"base": 1}),
        (4, "scores", {"base": 1, "ours": True}),
        (4, "scores", []),
        (4, "preferences", {}),
        (4, "preferences", {"ours against base": 2}),
        (4, "preferences", {"ours against base": True}),
        (4, "cut", 0.5),
        (5, "unreadable", [1]),
        (5, "unreadable", ...),
    ],
    ids=str,
)
def test_an_entry_that_was_changed_is_refused(written, line, key, value):
    """An ellipsis removes the key."""
    lines = written.read_text(encoding="utf-8").split("\n")
    entry = {**json.loads(lines[line - 1]), key: value}
    lines[line - 1] = json.dumps({name: found for name, found in entry.items() if found is not ...})
    refused(written, lines, line)


def refused(path, lines, line):
    path.write_text("\n".join(lines), encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(BadInputError, match=f"line {line} is not what belongs there"), opened(path):
        pass
    assert path.read_bytes() == before


def test_lines_that_are_missing_or_too_many(written):
    lines = written.read_text(encoding="utf-8").split("\n")
    refused(written, [*lines[:3], *lines[4:]], 4)
    refused(written, [*lines[:2], *lines[3:]], 3)
    more = [lines[3].replace('"set": 0', f'"set": {number}') for number in (2, 3, 4)]
    refused(written, [*lines[:5], *more, ""], 8)


def test_lines_that_are_no_json(written):
    lines = written.read_text().split("\n")
    lines[3] = '{"set": 0, "set": 0}'
    written.write_text("\n".join(lines))
    with pytest.raises(BadInputError, match="line 4: key 'set' is given twice"), opened(written):
        pass
