import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.prompts.queries import MAX_FILE_BYTES, read_queries, shipped_queries


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "queries"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_plain_lines(file):
    assert read_queries(file("\n  How?  \r\n\r\nWhy {x}?\nHow?\n")) == ([{"query": "How?"}, {"query": "Why {x}?"}], 1)


def test_json_lines_keep_other_keys(file):
    path = file(
        '\ufeff{"query": " How\\u2028? ", "subject": {"a": [1]}}\n\n{"query": "Why?"}\n{"query": "Why?", "x": 1}'
    )
    assert read_queries(path) == ([{"query": " How\u2028? ", "subject": {"a": [1]}}, {"query": "Why?"}], 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no query"),
        (" \n\n", "holds no query"),
        ('{"query": "a"}\nWhy?', "line 2 is no JSON object"),
        ('{"query": "a"}\n\n{"query": 3}', "line 3 has no text under the key 'query'"),
        ('{"query": "a"}\n{"query": " "}', "line 2 has no text"),
        ('{"text": "a"}', "line 1 has no text"),
        ('{"query": "a"}\n{"query": ', "line 2 is not valid JSON"),
        ('{"query": "a", "x": NaN}', "line 1: NaN"),
        (b"caf\xe9", "not UTF-8"),
    ],
)
def test_bad_files(file, content, message):
    with pytest.raises(BadInputError, match=message):
        read_queries(file(content))


def test_plain_queries_may_begin_with_a_brace_later_on(file):
    assert read_queries(file("Why?\n{not json")).queries[1] == {"query": "{not json"}


def test_files_that_are_none(tmp_path):
    with pytest.raises(BadInputError, match="no such file of queries"):
        read_queries(tmp_path)
    with (tmp_path / "big").open("wb") as big:
        big.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(BadInputError, match="bytes"):
        read_queries(tmp_path / "big")


@pytest.mark.parametrize("objective", ["helpful", "harmless", "humor", "my own"])
def test_shipped_queries(objective):
    queries = shipped_queries(objective)
    texts = [query["query"] for query in queries]
    assert len(set(texts)) == len(texts) >= 100
    assert all(set(query) == {"query"} and query["query"].strip() for query in queries)


def test_shipped_queries_depend_on_the_objective():
    assert shipped_queries("helpful") != shipped_queries("harmless")
    assert len(shipped_queries("my own")) > len(shipped_queries("helpful"))
