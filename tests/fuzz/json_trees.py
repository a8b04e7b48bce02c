"""JSON documents as trees that can hold what no Python dict can: repeated keys, and text that is no JSON at all."""

from __future__ import annotations

import json
from dataclasses import dataclass

from hypothesis import strategies as st


@dataclass(frozen=True)
class Raw:
    """Bytes that stand in the text as they are."""

    text: bytes


class Members(list):
    """An object: a list of [key, value], so that a key may come twice."""


DEPTHS = st.one_of(st.sampled_from([1, 3, 99, 100, 101, 127, 128, 129, 100_000]), st.integers(80, 1200))
INTEGERS = st.one_of(
    st.integers(-2, 70),
    st.sampled_from([n + k for n in (2**31, 2**32, 2**53, 2**62, 2**63, 2**64, 10**18) for k in (-1, 0, 1, 2)]),
    st.sampled_from([-(2**63), 10**308, 10**309, 10**400, 10**4299]),
)
TEXTS = st.one_of(
    st.text(max_size=4),
    st.sampled_from(
        ["", ".", "..", "../x.safetensors", "/etc/passwd", "a\nb", "\x1b[31m", "\0", "\ud800", "\U0001f600", "x" * 3000]
    ),
)
# Among them what a parser may take for a number, a name or a text, and what none should take.
ODD_TEXTS = st.sampled_from(
    [
        *(b"1.0", b"0.5", b"-0", b"1e0", b"1e999", b"-1e999", b"1e-999", b"9" * 4300, b"9" * 4301, b"01", b"0x1"),
        *(b"NaN", b"Infinity", b"-Infinity", b"nul", b"", b"{", b"]", b'"', b",", b"//", b"[1,]", b"{}{}"),
        *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"\xff"', b'"\xed\xa0\x80"', b'"\n"'),
        *(b'{"a":1,"a":2}', b'{"a":{},"\\u0061":{}}', b"[[],[{}]]", b"\xef\xbb\xbf{}", b" \t\r\n1 "),
    ]
).map(Raw)


@st.composite
def nests(draw):
    """Arrays or objects within each other, closed or not."""
    depth, closed = draw(DEPTHS), draw(st.booleans())
    opening, closing = draw(st.sampled_from([(b"[", b"]"), (b'{"a":', b"}")]))
    return Raw(opening * depth + b"1" + closing * depth * closed)


PLAIN = st.none() | st.booleans() | st.integers(-3, 3) | TEXTS
SMALL = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(TEXTS, inner).map(list), max_size=3).map(Members),
    max_leaves=6,
)
HOSTILE = st.one_of(INTEGERS, INTEGERS, TEXTS, ODD_TEXTS, nests(), SMALL)


def tree_of(value):
    """A plain JSON value as a tree."""
    if isinstance(value, dict):
        return Members([key, tree_of(inner)] for key, inner in value.items())
    return [tree_of(inner) for inner in value] if isinstance(value, list) else value


def text_of(tree):
    """The tree as bytes; half of a surrogate pair is escaped, everything else as the json module writes it."""
    if isinstance(tree, Raw):
        return tree.text
    if isinstance(tree, Members):
        return b"{" + b", ".join(text_of(key) + b": " + text_of(value) for key, value in tree) + b"}"
    if isinstance(tree, list):
        return b"[" + b",".join(map(text_of, tree)) + b"]"
    return json.dumps(tree).encode("ascii")


def _places(tree):
    """Every (container, position) in a tree; a member of an object stands at position 1 of its pair."""
    if not isinstance(tree, list):
        return
    for position, item in enumerate(tree):
        container, at = (item, 1) if isinstance(tree, Members) else (tree, position)
        yield tree, position, container, at
        yield from _places(container[at])


def mutate(draw, tree):
    """Change one place of a tree: put something hostile there, drop it, repeat it, or copy it from elsewhere."""
    places = list(_places(tree))
    what = draw(st.sampled_from(["replace"] * 5 + ["nudge", "copy", "add", "drop", "repeat", "rename"]))
    if not places or what == "add":
        objects = [tree] + [container[at] for _, _, container, at in places]
        target = draw(st.sampled_from([node for node in objects if isinstance(node, list)]))
        new = draw(HOSTILE)
        target.append([draw(TEXTS), new] if isinstance(target, Members) else new)
        return
    parent, position, container, at = places[draw(st.integers(0, len(places) - 1))]
    if what == "drop":
        del parent[position]
    elif what == "repeat":
        parent.insert(position, tree_copy(parent[position]))
    elif what == "rename" and isinstance(parent, Members):
        parent[position] = [draw(TEXTS), container[at]]
    elif what == "nudge" and type(container[at]) is int:
        container[at] += draw(st.sampled_from([-2, -1, 1, 2, 2**32, 2**63, 2**64]))
    elif what == "copy":
        _, _, other, index = places[draw(st.integers(0, len(places) - 1))]
        container[at] = tree_copy(other[index])
    else:
        container[at] = draw(HOSTILE)


def tree_copy(tree):
    """A tree of its own: one that holds itself could not be written."""
    if isinstance(tree, Members):
        return Members([key, tree_copy(value)] for key, value in tree)
    return [tree_copy(value) for value in tree] if isinstance(tree, list) else tree
