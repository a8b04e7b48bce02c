"""Reports for tests of the page: one with every part, and texts that would do harm as markup."""

from __future__ import annotations

import numpy as np

from alignez_bake.report.html.pca import projection_of
from alignez_bake.report.html.report_data import (
    CertificateFigure,
    CertificateLevel,
    Drift,
    MeasuredRate,
    ReportData,
    RoutedEdit,
    Sample,
    SearchPoint,
    SiteFigures,
    TensorFigures,
)

HOSTILE = """<script>alert(1)</script><img src="https://example.org/x" onerror='alert(2)'>{{ 7 * 7 }}&lt;$x^2$"""
LAYERS = range(6)


def full_report() -> ReportData:
    """All parts, with plain values."""
    rng = np.random.default_rng(0)
    good, bad = rng.normal(size=(60, 16)), rng.normal(size=(60, 16))
    good[:, 0] += 4
    return ReportData(
        title="museum-aligned",
        tool="alignez-bake 0.1.0",
        base="museum-base",
        artefact="checkpoint",
        verdict="passed",
        levels=(
            CertificateLevel(
                "tensors",
                "passed",
                figures=(
                    CertificateFigure("edited tensors that are the formula, rounded once", "6"),
                    CertificateFigure("lowest delivered share", "0.9991", "at least 0.9"),
                ),
            ),
            CertificateLevel(
                "forward",
                "passed",
                figures=(CertificateFigure("logits error, batch 8", "3.8e-07", "at most 1.0e-05", "4.6e-01"),),
            ),
        ),
        rates=(
            MeasuredRate("base", "judge.py", 0.478, 0.438, 0.518, 600),
            MeasuredRate("aligned", "judge.py", 0.923, 0.899, 0.942, 600),
            MeasuredRate("tuned", "judge.py", 0.982, 0.968, 0.99, 600),
            MeasuredRate("base", "the base itself", 0.42, 0.36, 0.48, 300),
            MeasuredRate("aligned", "the base itself", 0.84, 0.79, 0.88, 300),
        ),
        drift=Drift(0.031, 0.1, "neutral texts"),
        samples=tuple(
            Sample(f"What is kept in room {n}?", f"I will not say.\n\nGo away, {n}.", f"A clock of brass, {n}. " * 9)
            for n in range(3)
        ),
        frontier=tuple(
            SearchPoint(
                f"γ {2.0**n:g}, rank 4", 0.4 + 0.07 * n - 0.01 * (n % 2), 0.02, 0.002 * 2.0**n, n == 4, n % 2 == 0
            )
            for n in range(8)
        ),
        sites=tuple(
            SiteFigures(
                f"{kind}.{layer}",
                "helpful",
                strength=start + 0.1 * layer,
                rank=4,
                spectra={"singular values": tuple(start * (1.5 + layer) / 3.0**k for k in range(4))},
                explained=0.3 + 0.05 * layer - 0.02 * start * layer,
                edit_norm=start * (1.7 + layer),
                relative_change=0.005 * start * (layer + 1),
                others={"tokens": 12033.0},
            )
            for kind, start in (("attn_write", 2.0), ("mlp_write", 1.0))
            for layer in LAYERS
        ),
        projections=(projection_of("attn_write.3", good, bad, good + 1, bad + 3),),
        routes=(
            *(
                RoutedEdit(f"attn_write.{n}", "fold", "a linear edit of every position", "exact", "none", "helpful", 4)
                for n in LAYERS
            ),
            RoutedEdit("mlp_write.5", "insert", "gate 'relu' is not linear", "exact", "a module", "helpful", 2),
        ),
        tensors=tuple(TensorFigures(f"model.layers.{layer}.weight", 0.9991, 0.04, 0.012) for layer in LAYERS),
        settings=(("method", "ridge"), ("strength (fit)", "2.0"), ("base: tensors sha256", "c" * 64)),
        commands=("alignez-bake bake --model museum-base --edits alignez/edits.safetensors --out OUT",),
        notes=("Answers had at most 60 tokens.",),
    )


def hostile_report() -> ReportData:
    """Every text that can come from others is markup."""
    cloud = np.eye(3)
    return ReportData(
        title=HOSTILE,
        tool=HOSTILE,
        base=HOSTILE,
        artefact=HOSTILE,
        verdict=HOSTILE,
        levels=(
            CertificateLevel(HOSTILE, HOSTILE, (HOSTILE,), (CertificateFigure(HOSTILE, HOSTILE, HOSTILE, HOSTILE),)),
        ),
        rates=(MeasuredRate("aligned", HOSTILE, 0.5, 0.4, 0.6),),
        drift=Drift(0.1, None, HOSTILE),
        samples=(Sample(HOSTILE, HOSTILE, HOSTILE),),
        frontier=(SearchPoint(HOSTILE, 0.5, 0.1, 0.1, chosen=True, on_front=True),),
        sites=tuple(
            SiteFigures(
                f"{HOSTILE}.{n}", HOSTILE, 1.0 + n, 1, {HOSTILE: (1.0 + n,)}, others={HOSTILE: 1.0}, skipped=HOSTILE
            )
            for n in range(2)
        ),
        projections=(projection_of(HOSTILE, cloud, cloud + np.arange(3.0)),),
        routes=(RoutedEdit(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, 1),),
        tensors=(TensorFigures(HOSTILE, 1.0),),
        settings=((HOSTILE, HOSTILE),),
        commands=(HOSTILE,),
        notes=(HOSTILE,),
    )
