"""Figures hold what they are given, in the page's colours, the same bytes every time, and leave matplotlib alone."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from alignez_bake.report.html.figures import MAX_POINTS, frontier_figure, projection_figures, rates_figure
from alignez_bake.report.html.inline_svg import empty_figure, inline_svg, own_settings
from alignez_bake.report.html.layer_figures import layer_figures
from alignez_bake.report.html.report_data import Drift, PointCloud, Projection, SiteFigures
from alignez_bake.report.html.site_series import quantities, spectra_of
from tests.report.html_reports import HOSTILE, full_report, hostile_report


def all_figures(data):
    return [
        rates_figure(data.rates),
        frontier_figure(data.frontier, data.drift),
        *layer_figures(data.sites),
        *projection_figures(data.projections[0], 1),
    ]


FULL = all_figures(full_report())


def texts(drawing):
    return [element.text for element in ET.fromstring(drawing.svg).iter("text")]


def ticks(drawing):
    return [text for text in texts(drawing) if text[-1].isdigit()]


def marks(drawing, role):
    """How many markers are filled or stroked in a role's colour."""
    uses = ET.fromstring(drawing.svg).iter("use")
    return sum(f"var(--{role})" in use.attrib.get("style", "") for use in uses)


def test_the_same_data_gives_the_same_bytes_whatever_the_users_settings():
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.hashsalt": "other", "axes.grid": False}):
        second = all_figures(full_report())
        assert mpl.rcParams["lines.linewidth"] == 9
    assert second == FULL


def test_ids_are_unique_in_the_page_and_every_reference_has_its_id():
    drawings = FULL
    ids = [name for drawing in drawings for name in re.findall(r'\bid="([^"]*)"', drawing.svg)]
    assert len(ids) == len(set(ids))
    for drawing in drawings:
        own = {name for name in ids if f'id="{name}"' in drawing.svg}
        referred = {*re.findall(r"url\(#([^)]*)\)", drawing.svg), *re.findall(r'href="#([^"]*)"', drawing.svg)}
        assert referred
        assert referred <= own


def test_colours_are_variables_and_nothing_of_matplotlibs_page_is_left():
    for drawing in FULL:
        assert re.findall(r"var\(--\w+\)", drawing.svg)
        assert not re.search(r"#[0-9a-fA-F]{6}\b|font-family|<style|<metadata|xmlns|xlink|dc:", drawing.svg)


def test_a_colour_without_a_role_is_refused():
    with own_settings():
        figure, axes = empty_figure(100, 100)
        axes.plot([0, 1], [0, 1], color="#123456")
        with pytest.raises(ValueError, match="#123456 has no role"):
            inline_svg(figure, "name", "title", "description")


def test_who_does_not_see_a_figure_is_told_what_it_shows():
    for drawing in FULL:
        root = ET.fromstring(drawing.svg)
        assert root.attrib["role"] == "img"
        labels = [root.find(f".//*[@id='{name}']").text for name in root.attrib["aria-labelledby"].split()]
        assert labels == [drawing.title, drawing.caption]


def test_rates_have_a_row_each_with_its_interval():
    data = full_report()
    drawing = rates_figure(data.rates)
    assert "aligned, judge.py" in texts(drawing)
    assert [marks(drawing, role) for role in ("muted", "accent", "third")] == [2, 2, 1]


def test_the_frontier_tells_the_three_kinds_apart():
    data = full_report()
    drawing = frontier_figure(data.frontier, data.drift)
    assert {"candidate", "on the front", "chosen", "budget"} <= set(texts(drawing))
    # Once among the points and once in the legend.
    assert marks(drawing, "good") == 2
    assert marks(drawing, "accent") == 3 + 1
    assert "budget" not in texts(frontier_figure(data.frontier, Drift(0.1)))


def test_candidates_that_broke_the_model_are_counted_and_not_drawn():
    points = full_report().frontier
    broken = [
        replace(points[0], kl=math.inf),
        replace(points[1], rate=math.nan),
        replace(points[2], kl=None),
        *points[3:],
    ]
    drawing = frontier_figure(broken)
    assert "3 of 8 lack one of the two" in drawing.caption
    assert frontier_figure(broken[:3]) is None
    at_zero = replace(points[0], kl=0.0, standard_error=None)
    assert frontier_figure([at_zero, *points[1:]]) is not None


def test_layers_have_a_figure_for_each_quantity_that_varies():
    sites = full_report().sites
    drawings = layer_figures(sites)
    titles = [drawing.title for drawing in drawings]
    assert titles == [
        "Strength",
        "Norm of the edit",
        "Share explained by the fit",
        "Relative change of the weight",
        "Singular values",
    ]
    assert {"attn_write", "mlp_write"} <= set(texts(drawings[0]))
    alike = [replace(site, strength=2.0, edit_norm=None, explained=None, relative_change=None) for site in sites]
    assert [drawing.title for drawing in layer_figures(alike)] == ["Singular values"]
    assert layer_figures([]) == []


def test_a_single_layer_is_a_whole_number_on_the_axis():
    (drawing,) = layer_figures([SiteFigures("mlp_write.5", "a", 1.0, spectra={"s": (4.0, 3.0)})])
    found = texts(drawing)
    assert "5" in found
    assert not [text for text in found if re.fullmatch(r"[45]\.\d+", text) and 4.5 < float(text) < 5.5]


def test_lines_over_layers_are_the_sites_values_in_order():
    sites = [
        SiteFigures("attn_write.2", "a", 3.0, spectra={"s": (4.0, 1.0)}),
        SiteFigures("attn_write.0", "a", 1.0, spectra={"s": (5.0,)}),
        SiteFigures("attn_write.1", "b", 2.0),
        SiteFigures("attn_write.3", "a", math.nan),
        SiteFigures("embed", "a", 9.0),
    ]
    assert quantities(sites)["strength"] == [
        ("attn_write, a", (0, 2), (1.0, 3.0)),
        ("attn_write, b", (1,), (2.0,)),
    ]
    (lines,) = spectra_of(sites)["s"]
    assert lines == (("attn_write, a", (0, 2), (5.0, 4.0)), ("attn_write, a", (2,), (1.0,)))


def test_clouds_share_their_limits_and_are_thinned():
    rng = np.random.default_rng(0)
    before = PointCloud(rng.normal(size=(1000, 2)), rng.normal(size=(30, 2)), (0.5, 0.25))
    after = PointCloud(before.good * 10, before.bad * 10, (0.5, 0.25))
    first, second = projection_figures(Projection("attn_write.1", before, after), 1)
    assert marks(first, "accent") == MAX_POINTS + 1
    assert marks(first, "bad") == 30 + 1
    assert "430 of 1030 are drawn" in first.caption
    assert "first component, 50% of the variance" in texts(first)
    assert ticks(first) == ticks(second)
    apart = projection_figures(Projection("attn_write.1", before, after, same_axes=False), 1)
    assert ticks(apart[0]) != ticks(apart[1])


def test_coordinates_have_two_columns():
    with pytest.raises(ValueError, match=r"good has shape \(3, 3\)"):
        PointCloud(np.zeros((3, 3)), np.zeros((3, 2)), (0.0, 0.0))


def test_texts_of_others_are_no_markup_and_no_mathematics():
    for drawing in all_figures(hostile_report()):
        assert "<script" not in drawing.svg
        assert "<img" not in drawing.svg
        tags = {element.tag for element in ET.fromstring(drawing.svg).iter()}
        assert tags <= {"svg", "title", "desc", "defs", "g", "path", "use", "text", "clipPath", "rect"}
    label = next(text for text in texts(rates_figure(hostile_report().rates)) if text.startswith("aligned, "))
    assert label.startswith("aligned, <script>alert(1)")
    other = replace(hostile_report().rates[0], judge="数学 $x^2$ \x00\x1b")
    assert "aligned, ?? $x^2$" in texts(rates_figure([other]))
    assert HOSTILE[:20] in projection_figures(hostile_report().projections[0], 1)[0].title
