"""Level `forward`: the patched graph, reloaded from the disk, runs as the formula says, and otherwise as the base does.

At each site, given what entered the map in the patched graph itself, its output must be

    E(W z + b)      W, b of the base, E the edits of the site, all in float64

to the tolerance of the arithmetic: 1e-12 in float64, 1e-6 in float32, 2⁻⁷ in 16 bits. So errors of earlier layers do
not count, and one that a later layer hides does. Of a quantised map W z + b is what the graph computes, whose own error
is not the patch's. The base's own output must be W z + b as well: that is what shows that the node, its layout and its
bias were understood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from alignez_bake.edit_plan import SiteValues
from alignez_bake.errors import BadInputError
from alignez_bake.formula import apply_groups
from alignez_bake.onnx_patch.insert_site import raw_output
from alignez_bake.onnx_patch.running import Watched, prompts_for, relative_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.certificate.verdict import Level, Verdict
    from alignez_bake.edit import Edit, EditTensors
    from alignez_bake.onnx_patch.base_graph import BaseGraph
    from alignez_bake.onnx_patch.decisions import SitePatch
    from alignez_bake.onnx_patch.running import Prompt
    from alignez_bake.progress import Progress

    Float64Array = NDArray[np.float64]
    Values = dict[str, Float64Array]

SITE_TOLERANCES: Final = {"F64": 1e-12, "F32": 1e-6, "F16": 2.0**-7, "BF16": 2.0**-7}
END_TO_END_TOLERANCE: Final = 1e-5
MARGIN: Final = 100
"""An edit that moves the logits by less than this many tolerances proves nothing."""


class SiteFigures(NamedTuple):
    """Of one site.

    Attributes:
        site: its name.
        base_error: of the base's own output against W z + b; None of a quantised map.
        error: of the patched output against the formula.
        tolerance: of both.
    """

    site: str
    base_error: float | None
    error: float
    tolerance: float


@dataclass(frozen=True)
class GraphForwardLevel:
    """What was found.

    Attributes:
        verdict: `failed` where a site is off its tolerance; `inconclusive` where the edits move too little to tell.
        reasons: one line each.
        sites: figures of every site.
        logits_moved: ‖patched - base‖ / ‖base‖.
        device: on which both ran.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    sites: tuple[SiteFigures, ...]
    logits_moved: float
    device: str

    @property
    def level(self) -> Level:
        """Which level."""
        return "forward"

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON values."""
        worst = max(self.sites, key=lambda entry: entry.error / entry.tolerance)
        return {
            "level": self.level,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "reference": "the base graph and the formula in float64",
            "device": self.device,
            "logits_moved": self.logits_moved,
            "required_logits_moved": MARGIN * END_TO_END_TOLERANCE,
            "worst_site": worst.site,
            "worst_site_error": worst.error,
            "worst_site_tolerance": worst.tolerance,
            "sites": [entry._asdict() for entry in self.sites],
        }


def certify_running(
    base: BaseGraph, patches: Sequence[SitePatch], graph: Path, *, device: str, progress: Progress
) -> GraphForwardLevel:
    """Run both graphs on the same tokens: batch 1 and 4, padded rows, empty and filled cache.

    Args:
        base: the graph that was patched.
        patches: what was done.
        graph: the patched `.onnx` file.
        device: "cpu", "cuda", ...
        progress: counts runs.

    Raises:
        BadInputError: a graph that does not run here.
    """
    import onnx  # noqa: PLC0415 - comes with an extra

    prompts = prompts_for(*_room(base), padded="attention_mask" in base.signature.tokens, several=not base.from_builder)
    before = {name: patch.graph_map.data_type for patch in patches for name in _seen(patch)}
    after = before | {raw_output(patch): patch.graph_map.data_type for patch in patches if patch.graph_map.quantised}
    patched = onnx.load(graph, load_external_data=False)
    after = {name: kind for name, kind in after.items() if _exists(patched, name)}
    with progress.task("running both graphs", 4) as advance:
        # One after the other, so that one set of weights is in memory.
        base_runs = _runs(Watched(base.model, base.path, before, base.signature, device), prompts)
        advance(2)
        runs = _runs(Watched(patched, graph, after, base.signature, device), prompts)
        advance(2)
    real = [prompt.real(call) for prompt in prompts for call in (0, 1)]
    sites = tuple(_site_figures(base, patch, base_runs, runs, real) for patch in patches)
    moved = relative_error(_at_real(runs, "logits", real), _at_real(base_runs, "logits", real))
    failures = [
        f"{entry.site}: {what} differs from the formula by {error:.3g}, and {entry.tolerance:.3g} is the bound"
        for entry in sites
        for what, error in (("the base's map", entry.base_error), ("the edited output", entry.error))
        if error is not None and not error <= entry.tolerance
    ]
    doubts = []
    if not moved >= MARGIN * END_TO_END_TOLERANCE:
        doubts.append(
            f"the edits move the logits by {moved:.3g}, less than {MARGIN} times the tolerance of "
            f"{END_TO_END_TOLERANCE:g}: a patch that did nothing could pass"
        )
    verdict: Verdict = "failed" if failures else "inconclusive" if doubts else "passed"
    return GraphForwardLevel(verdict, tuple(failures or doubts), sites, moved, device)


def _room(base: BaseGraph) -> tuple[int, int]:
    """Size of the vocabulary, and most tokens of a sequence."""
    vocabulary = base.signature.vocabulary or base.config.get("vocab_size")
    if not isinstance(vocabulary, int) or vocabulary < 1:
        raise BadInputError(f"{base.path}: neither its logits nor a config say how large the vocabulary is")
    positions = base.config.get("max_position_embeddings", base.config.get("n_positions"))
    return vocabulary, positions if isinstance(positions, int) and positions > 4 else 16


def _seen(patch: SitePatch) -> tuple[str, ...]:
    names = (patch.graph_map.input, patch.graph_map.output, patch.block)
    return tuple(name for name in names if name is not None)


def _exists(model: Any, name: str) -> bool:  # noqa: ANN401 - a ModelProto
    return any(name in node.output for node in model.graph.node) or any(name == v.name for v in model.graph.input)


def _runs(watched: Watched, prompts: Sequence[Prompt]) -> list[Values]:
    return [values for prompt in prompts for values in watched.run(prompt)]


def _at_real(runs: Sequence[Values], name: str, real: Sequence[NDArray[np.bool_]]) -> list[Float64Array]:
    """A value at tokens that are no padding, [tokens, d]; whatever rows of padding hold, nobody reads it."""
    return [_rows(values[name], where)[where] for values, where in zip(runs, real, strict=True)]


def _rows(values: Float64Array, where: NDArray[np.bool_]) -> Float64Array:
    """[batch, tokens, d] of what some maps have as [batch · tokens, d]."""
    return values.reshape(*where.shape, values.shape[-1])


def _site_figures(
    base: BaseGraph,
    patch: SitePatch,
    base_runs: Sequence[Values],
    runs: Sequence[Values],
    real: Sequence[NDArray[np.bool_]],
) -> SiteFigures:
    graph_map = patch.graph_map
    tolerance = SITE_TOLERANCES[graph_map.dtype]
    found = _at_real(runs, graph_map.output, real)
    if graph_map.quantised:
        raw = raw_output(patch) if raw_output(patch) in runs[0] else graph_map.output
        expected = [
            _edited(patch, _rows(values[raw], where), values, where)[where]
            for values, where in zip(runs, real, strict=True)
        ]
        return SiteFigures(str(patch.site), None, relative_error(found, expected), tolerance)
    mapped = _mapped(base, patch, [*base_runs, *runs])
    before, after = mapped[: len(base_runs)], mapped[len(base_runs) :]
    plain = [_rows(values, where)[where] for values, where in zip(before, real, strict=True)]
    base_error = relative_error(_at_real(base_runs, graph_map.output, real), plain)
    expected = [
        _edited(patch, _rows(output, where), values, where)[where]
        for output, values, where in zip(after, runs, real, strict=True)
    ]
    return SiteFigures(str(patch.site), base_error, relative_error(found, expected), tolerance)


def _mapped(base: BaseGraph, patch: SitePatch, runs: Sequence[Values]) -> list[Float64Array]:
    """W z + b of the base's W and b at every token of each run, [tokens, d]; in one product, since W is large."""
    graph_map = patch.graph_map
    weight = graph_map.oriented(base.tensors.read(graph_map.weight)).astype(np.float64)
    inputs = [values[graph_map.input].reshape(-1, graph_map.d_in) for values in runs]
    output: Float64Array = np.concatenate(inputs) @ weight.T
    if graph_map.bias is not None:
        output += base.tensors.read(graph_map.bias).astype(np.float64).reshape(-1)
    return np.split(output, np.cumsum([len(rows) for rows in inputs])[:-1])


def _edited(patch: SitePatch, output: Float64Array, values: Values, where: NDArray[np.bool_]) -> Float64Array:
    """The formula at the rows of the site; other outputs of a fused map stay."""
    graph_map = patch.graph_map
    block = None if patch.block is None else _rows(values[patch.block], where)
    last = np.zeros((where.shape[1], 1))
    last[-1] = 1.0
    site_values = SiteValues(output[..., graph_map.rows], _rows(values[graph_map.input], where), block)
    result = output.copy()
    result[..., graph_map.rows] = apply_groups(patch.groups, site_values, _float64_tensors, last)
    return result


def _float64_tensors(edit: Edit) -> EditTensors:
    return edit.tensors(lambda array: array.astype(np.float64))
