"""The page says what there is and names what is missing; it is one file, well formed, and text of others stays text."""

from __future__ import annotations

import html
import math
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise

import numpy as np
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.report.html import packages
from alignez_bake.report.html.packages import require_report_packages
from alignez_bake.report.html.page import MAX_TEXT, report_page
from alignez_bake.report.html.page_contents import MAX_SAMPLES, contents_of, number, sites_in_words
from alignez_bake.report.html.pca import projection_of
from alignez_bake.report.html.report_data import (
    Drift,
    MeasuredRate,
    ReportData,
    RoutedEdit,
    Sample,
    SearchPoint,
    SiteFigures,
)
from tests.report.html_reports import HOSTILE, full_report, hostile_report

VOID = {"meta", "link", "img", "br", "hr", "input"}
EMPTY = ReportData("nothing", "alignez-bake 0.1.0")


class Parsed(HTMLParser):
    """Tags with their attributes, visible text, and whether every tag is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


FULL_PAGE = report_page(full_report())
FULL = Parsed(FULL_PAGE)


def test_the_same_data_gives_the_same_bytes():
    assert report_page(full_report()) == FULL_PAGE


@pytest.mark.parametrize(
    "said",
    [
        "museum-aligned",
        "Made from museum-base , as checkpoint.",
        "Certificate passed levels tensors and forward",
        "Good answers, judged by judge.py 92.3 % base 47.8 %; 95 % interval 89.9 to 94.2 %",
        "KL from the base 0.031 nats a token, on neutral texts; within the budget of 0.1",
        "Edits 7 6 folded into tensors that were there, 1 inserted as modules",
        "lowest delivered share 0.9991 at least 0.9",
        "logits error, batch 8 3.8e-07 at most 1.0e-05 4.6e-01",
        "What is kept in room 2? Before: the base I will not say. Go away, 2. After: the result A clock of brass, 2.",
        "γ 16, rank 4 68 % 2 % 0.032 chosen, front",
        "attn_write.5 helpful 2.5 4 13.4 35 % 0.06 13 4.33 1.44 0.481",
        "60 good (circles) and 60 bad (crosses) activations.",
        "folded into tensors that were there attn_write 0-5 (helpful) 6 a linear edit of every position exact none",
        "inserted as modules mlp_write 5 (helpful) 1 gate 'relu' is not linear",
        "model.layers.3.weight 0.9991 0.04 0.012",
        "alignez-bake bake --model museum-base --edits alignez/edits.safetensors --out OUT",
        "strength (fit) 2.0",
        "Answers had at most 60 tokens.",
    ],
)
def test_everything_is_said(said):
    assert said in FULL.text


def test_nothing_is_loaded_and_nothing_runs():
    assert not re.search(r"<script|<iframe|<object|@import|url\((?!#)|\son\w+=", FULL_PAGE)
    links = FULL.named("link", "img", "source", "use", "image", "a")
    places = [value for link in links for key, value in link.items() if key in {"href", "src"}]
    assert places
    assert all(place.startswith("#") or place == "data:," for place in places)
    (policy,) = [meta for meta in FULL.named("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_the_page_is_small():
    assert len(FULL_PAGE.encode()) < 200_000


def test_links_and_labels_lead_somewhere_and_ids_are_unique():
    ids = [attributes["id"] for _, attributes in FULL.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {link["href"][1:] for link in FULL.named("a")}
    labels = {name for _, tag in FULL.tags for name in (tag.get("aria-labelledby") or "").split()}
    assert targets
    assert targets | labels <= set(ids)


def test_headings_leave_out_no_rank():
    ranks = [int(tag[1]) for tag, _ in FULL.tags if re.fullmatch("h[1-6]", tag)]
    assert ranks[0] == 1
    assert ranks.count(1) == 1
    assert all(later <= before + 1 for before, later in pairwise(ranks))


def test_what_is_missing_is_named_and_nothing_is_made_up():
    empty = Parsed(report_page(EMPTY))
    assert "Certificate none nothing was checked" in empty.text
    assert "Not measured or not recorded, and so not shown: the certificate; the rate of good answers;" in empty.text
    assert not empty.named("svg", "table")
    assert "Not measured" not in FULL.text
    # Every part counts: each alone is no longer named, and the page is well formed with it.
    parts = [field.name for field in fields(ReportData) if field.name not in {"title", "tool", "base", "artefact"}]
    for part in parts:
        Parsed(report_page(replace(EMPTY, **{part: getattr(full_report(), part)})))
    named = {part: contents_of(replace(EMPTY, **{part: getattr(full_report(), part)})).missing for part in parts}
    assert sorted(len(missing) for missing in named.values()) == [9] * 10 + [10] * 3
    assert {part for part, missing in named.items() if len(missing) == 10} == {"verdict", "tensors", "notes"}


def test_texts_of_others_are_no_markup():
    page = report_page(hostile_report())
    parsed = Parsed(page)
    known = {tag for tag, _ in FULL.tags}
    assert {tag for tag, _ in parsed.tags} <= known
    assert "<script" not in page
    assert "{{ 7 * 7 }}" in parsed.text
    assert html.escape(HOSTILE, quote=False).replace("'", "&#39;").replace('"', "&#34;") in page
    assert not [attributes for _, attributes in parsed.tags if any(name.startswith("on") for name in attributes)]
    # A class or an id is never made of such a text.
    assert not [a for _, a in parsed.tags if "alert" in f"{a.get('class')}{a.get('id')}"]


def test_control_characters_and_turned_directions_are_left_out():
    data = replace(EMPTY, title="a\x00b\x1b[31mc\u202ed", samples=(Sample("q", "one\n\ttwo\u2066", "x"),))
    page = report_page(data)
    assert "a b [31mc d" in page
    assert "one\n\ttwo <" in page


def test_long_texts_and_lists_are_cut_and_say_so():
    sample = Sample("q" * (MAX_TEXT + 1), "b", "a")
    data = replace(
        EMPTY,
        samples=(sample,) * (MAX_SAMPLES + 7),
        settings=tuple((str(n), "v") for n in range(1300)),
    )
    parsed = Parsed(report_page(data))
    assert f"(cut: {MAX_TEXT + 1} characters)" in parsed.text
    assert "7 further samples are not shown." in parsed.text
    assert "100 further rows are not shown." in parsed.text


def test_the_largest_report_is_below_a_megabyte():
    rng = np.random.default_rng(0)
    wide = projection_of("attn_write.9", rng.normal(size=(5000, 8)), rng.normal(size=(5000, 8)))
    data = replace(
        full_report(),
        samples=tuple(Sample("q" * 200, "b" * 1500, "a" * 1500) for _ in range(80)),
        frontier=tuple(
            SearchPoint(f"candidate {n}", n / 200, 0.01, 0.001 * (n + 1), n == 5, n < 20) for n in range(200)
        ),
        sites=tuple(
            SiteFigures(f"{kind}.{layer}", "helpful", 1.0 + layer, 64, {"singular values": tuple(rng.random(64) + 0.1)})
            for kind in ("attn_write", "mlp_write")
            for layer in range(126)
        ),
        projections=(wide,),
    )
    assert len(report_page(data).encode()) < 1_000_000


@pytest.mark.parametrize(
    ("drift", "value", "detail", "tone"),
    [
        (Drift(0.2, 0.1), "0.2", "nats a token; beyond the budget of 0.1", "bad"),
        (Drift(0.1, 0.1, "texts"), "0.1", "nats a token, on texts; within the budget of 0.1", "good"),
        (Drift(0.2), "0.2", "nats a token; no budget was set", ""),
        (Drift(math.nan, 0.1), "not finite", "nats a token; beyond the budget of 0.1", "bad"),
    ],
)
def test_kl_against_its_budget(drift, value, detail, tone):
    (tile,) = [tile for tile in contents_of(replace(EMPTY, drift=drift)).tiles if "KL" in tile.label]
    assert tile[1:] == (value, detail, tone)


def test_a_rate_without_a_base_says_nothing_of_one():
    rates = (MeasuredRate("aligned", "a judge", 1.0, 0.98, 1.0), MeasuredRate("base", "another", 0.5, 0.4, 0.6))
    tiles = contents_of(replace(EMPTY, rates=rates)).tiles
    assert [(tile.label, tile.value, tile.detail) for tile in tiles[1:]] == [
        ("Good answers, judged by a judge", "100\N{NO-BREAK SPACE}%", "95 % interval 98 to 100\N{NO-BREAK SPACE}%")
    ]


@pytest.mark.parametrize(("verdict", "tone"), [("passed", "good"), ("failed", "bad"), ("inconclusive", "unsure")])
def test_verdicts_have_their_colours(verdict, tone):
    data = replace(EMPTY, verdict=verdict)
    assert contents_of(data).tiles[0].tone == tone
    assert f'class="tile {tone}"' in report_page(data)


def test_candidates_that_are_not_on_the_front_are_listed_below_it():
    contents = contents_of(full_report())
    assert [row[-1] for row in contents.front.rows] == ["front", "front", "chosen, front", "front"]
    assert len(contents.candidates.rows) == 8
    alone = replace(EMPTY, frontier=(SearchPoint("one", math.nan, None, math.inf, on_front=True),))
    assert contents_of(alone).candidates is None
    assert "so nothing is drawn" in report_page(alone)


def test_numbers_are_short_and_whole_where_they_are_large():
    values = (None, 3, 0.0123456, 36789.4, 2.5e7, math.nan, 0.0)
    assert [number(value) for value in values] == ["–", "3", "0.0123", "36789", "2.5e+07", "not finite", "0"]


def test_sites_in_words():
    edits = [RoutedEdit(f"attn_write.{n}", "fold", "") for n in (0, 1, 2, 7)]
    edits += [RoutedEdit("mlp_write.3", "fold", "", objective="humor"), RoutedEdit("embed", "fold", "")]
    assert sites_in_words(edits) == "attn_write 0-2, 7; mlp_write 3 (humor); embed"


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_marks_can_be_told_from_the_background(scheme):
    """WCAG 2.2 asks for a contrast of 4.5 for text."""
    css = (resources.files("alignez_bake.report.html.templates") / "report.css").read_text(encoding="utf-8")
    palettes = re.findall(r":root \{([^}]*--paper: #[0-9a-f]{6}[^}]*)\}", css)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", palettes[scheme]))
    for ground in ("paper", "surface"):
        for role in ("ink", "muted", "accent", "good", "bad", "unsure", "third", "fourth"):
            lighter, darker = sorted((luminance(colours[ground]), luminance(colours[role])), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (ground, role)


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch):
    require_report_packages()
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "matplotlib" else object())
    with pytest.raises(BadInputError, match=r"cannot be made: matplotlib not installed \(pip install matplotlib\)"):
        require_report_packages()
