"""Random probing against the full decomposition, and where each is used."""

from __future__ import annotations

import numpy as np
import pytest

from alignez_bake.methods import top_eigenpairs as module
from alignez_bake.methods.top_eigenpairs import probed_eigenpairs, top_eigenpairs
from tests.methods.planted import orthonormal


def _planted(values: np.ndarray, seed: int = 0) -> np.ndarray:
    basis = orthonormal(np.random.default_rng(seed), len(values), len(values))
    return (basis * values) @ basis.T


SPECTRA = {
    "fast": 0.5 ** np.arange(200),
    "slow": 1.0 / np.arange(1, 201),
    "clusters": np.repeat([9.0, 8.9, 1.0, 0.5], 50) * np.linspace(1, 0.9, 200),
    "rank 2": np.array([3.0, 1.0, *np.zeros(198)]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("count", [1, 4])
def test_probing_finds_what_the_full_decomposition_finds_or_says_that_it_does_not(name: str, count: int) -> None:
    matrix = _planted(SPECTRA[name])
    found = probed_eigenpairs(matrix, count, seed=1)
    if found is None:
        assert name == "clusters"  # 50 eigenvalues within a tenth of each other, which 12 probes cannot part
        return
    expected = np.sort(SPECTRA[name])[::-1][:count]
    np.testing.assert_allclose(found.values, expected, atol=1e-8 * expected[0])
    assert found.residual <= 1e-9
    actual = np.linalg.norm(matrix @ found.vectors - found.vectors * found.values) / expected[0]
    assert actual == pytest.approx(found.residual, abs=1e-13)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(count), atol=1e-12)


def test_clusters_are_too_slow_for_probing() -> None:
    assert probed_eigenpairs(_planted(SPECTRA["clusters"]), 4, seed=1) is None


def test_sizes_decide_and_a_slow_spectrum_falls_back(monkeypatch) -> None:
    monkeypatch.setattr(module, "_SMALL", 150)
    fast, slow = _planted(SPECTRA["fast"]), _planted(SPECTRA["clusters"])
    assert top_eigenpairs(fast, 4, seed=0).found_by == "randomised"
    assert top_eigenpairs(fast, 5, seed=0).found_by == "full"  # 16 · (5 + 8) > 200
    assert top_eigenpairs(fast[:150, :150], 1, seed=0).found_by == "full"
    fallen = top_eigenpairs(slow, 4, seed=0)
    assert fallen.found_by == "full, randomised was too slow"
    np.testing.assert_allclose(fallen.values, np.linalg.eigvalsh(slow)[::-1][:4])
    assert fallen.residual == 0


def test_the_seed_says_where_probing_starts_and_the_result_hardly_depends_on_it() -> None:
    matrix = _planted(SPECTRA["slow"])
    one, same, other = (probed_eigenpairs(matrix, 3, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.vectors, same.vectors)
    assert not np.array_equal(one.vectors, other.vectors)
    np.testing.assert_allclose(one.vectors @ one.vectors.T, other.vectors @ other.vectors.T, atol=1e-7)


def test_more_pairs_than_there_are() -> None:
    assert top_eigenpairs(_planted(np.array([3.0, 2.0, 1.0])), 5, seed=0).values == pytest.approx([3, 2, 1])
