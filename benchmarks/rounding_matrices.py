"""Matrices whose edits are rounded: weights, changes of a rank, and activations that the maps read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from alignez_bake.fit_settings import FitSettings
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.methods.registry import METHODS
from alignez_bake.model_folder import open_model_folder
from alignez_bake.pipeline import fit_edits, write_own_pairs
from alignez_bake.progress import NoProgress
from alignez_bake.prompts.prompt_form import prompt_form
from benchmarks.rounding_running import inputs_of_writers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from benchmarks.world_folder import WorldFolder

RANKS: Final = (1, 4, 16, 64)
_ACTIVATIONS = 256
_DEVIATION = 0.02
"""Of the weights of a 1.5 B model, roughly."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """One map.

    Attributes:
        name: of the kind of matrix; figures of one name are pooled.
        place: module path in the model, or empty.
        weight: W [n, d_in], float32.
        left: B [n, 64], columns by falling contribution.
        right: A [64, d_in].
        activations: Z [d_in, m] that the map reads, float32.
    """

    name: str
    place: str
    weight: NDArray[np.float32]
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    activations: NDArray[np.float32]

    def change(self, rank: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """(B A of the first so many, not scaled; those rows of A)."""
        return self.left[:, :rank] @ self.right[:rank], self.right[:rank].astype(np.float32)


def random_matrices(seed: int) -> Iterator[Matrix]:
    """Rows of maps of a 1.5 B model, with light and with heavy tails.

    Heavy: weights are of Student's t with 3 degrees of freedom, times a scale of each column, log-normal with
    deviation 0.5. Activations are so in both (deviation 1), as those of models are. B is normal, A normal times the
    scales of the activations. Rows are rounded one by one, so a part of them says what all would.
    """
    for d_in, rows in ((1536, 128), (8960, 48)):
        for tails in ("normal", "heavy"):
            rng = np.random.default_rng([seed, d_in, tails == "heavy"])
            if tails == "normal":
                weight = rng.normal(size=(rows, d_in))
            else:
                weight = rng.standard_t(3, size=(rows, d_in)) * np.exp(0.5 * rng.normal(size=d_in))
            weight *= _DEVIATION / weight.std()
            scales = np.exp(rng.normal(size=d_in))
            activations = rng.standard_t(3, size=(d_in, _ACTIVATIONS)) * scales[:, None]
            yield Matrix(
                f"{tails}, d_in {d_in}",
                "",
                weight.astype(np.float32),
                rng.normal(size=(rows, RANKS[-1])),
                rng.normal(size=(RANKS[-1], d_in)) * scales,
                activations.astype(np.float32),
            )


def demo_matrices(world: WorldFolder, seed: int, batch_size: int) -> Iterator[Matrix]:
    """The maps that the default method edits in a world's base, with its own edits and what the maps read.

    Args:
        world: whose base writes its pairs, from this seed, and is fitted with the largest rank.
        seed: of pairs and fit.
        batch_size: texts that run together.
    """
    lm = load_language_model(open_model_folder(world.base))
    form = prompt_form(lm.tokenizer, world.prompt_template)
    pairs, _ = write_own_pairs(lm, world.asked, form, None, batch_size=batch_size, seed=seed, progress=NoProgress())
    method = METHODS["ridge"]
    layers = tuple(range(lm.folder.num_layers))
    settings = FitSettings(method, layers, method.default_strength, RANKS[-1], seed)
    plan = fit_edits(
        lm,
        pairs.records,
        world.asked.objectives,
        form,
        settings,
        weights=world.asked.weights,
        batch_size=batch_size,
        progress=NoProgress(),
    ).plan
    places = {edit: f"model.layers.{edit.site.layer}.self_attn.o_proj" for edit in plan.edits}
    read = inputs_of_writers(lm, world, tuple(places.values()))
    for edit, place in places.items():
        assert edit.left is not None
        assert edit.right is not None
        left, sizes, right = np.linalg.svd(edit.left.astype(np.float64) @ edit.right.astype(np.float64).T)
        rank = RANKS[-1]
        weight = lm.folder.tensors.read(f"{place}.weight").astype(np.float32)
        yield Matrix("demo, ridge", place, weight, left[:, :rank] * sizes[:rank], right[:rank], read[place])
