"""What inserted modules cost for each generated token, beside hooks and beside the base, in one run.

    python -m benchmarks.inserted_overhead [--base examples/demo/base] [--dtype bfloat16] [--compile] [--device cuda]

Edits of rank 4 read the output of `mlp_write` in every layer, tanh and relu by turns. The models take turns token by
token, each with a cache of its own, so that a change of the machine's load meets all of them alike. A ratio is one of
medians; the second compares lower quartiles, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.inserted.model import SiteInsert, inserted_model
from alignez_bake.language_model.kv_cache import cache_name
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.model_folder import open_model_folder
from alignez_bake.safetensors_io.writer import write_tensors
from alignez_bake.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from alignez_bake.edit import Gate
    from alignez_bake.model_folder import ModelFolder

RANK = 4
PROMPT = 16


def gated_plan(base: ModelFolder) -> EditPlan:
    """Random edits of rank 4 at the MLP writer of every layer, tanh and relu by turns, too small to derail the text."""
    rng = np.random.default_rng(0)
    width = int(base.config["hidden_size"])
    edits = []
    for layer in range(base.num_layers):
        left, right = (rng.normal(scale=width**-0.5, size=(width, RANK)).astype(np.float32) for _ in range(2))
        gate: Gate = "relu" if layer % 2 else "tanh"
        edits.append(Edit(Site("mlp_write", layer), 0.05 * left, right, gate=gate))
    return EditPlan(tuple(edits))


def write_inserted(base: ModelFolder, plan: EditPlan, out: Path) -> None:
    """The base with the plan inserted, its tensors in one file."""
    made = inserted_model(base, [SiteInsert(site, plan.groups_at(site)) for site in plan.sites])
    shutil.copytree(base.path, out, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    (out / made.code_file).write_text(made.code, encoding="utf-8")
    (out / "config.json").write_text(json.dumps(made.config), encoding="utf-8")
    tensors = {name: base.tensors.read(name) for name in base.tensors.names()}
    write_tensors(out / "model.safetensors", {**tensors, **made.tensors}, {"format": "pt"})


class Subject:
    """A model that writes one token after the other, with the time that each took."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - a transformers model
        forward: Callable[..., Any],
        context: Callable[[], AbstractContextManager[None]],
        *,
        static: bool,
    ) -> None:
        """Nothing is run yet."""
        self.model, self.forward, self.context, self.static = model, forward, context, static
        self.seconds: list[float] = []

    def start(self, tokens: int) -> None:
        """Read the prompt, on the model as it is, into a new cache."""
        config, device = self.model.config, self.model.device
        room = PROMPT + tokens
        self.cache = StaticCache(config=config, max_cache_len=room) if self.static else DynamicCache(config=config)
        ids = torch.arange(5, 5 + PROMPT, device=device)[None]
        self.position = torch.arange(PROMPT, device=device)[None]
        with self.context():
            self._step(self.model.forward, ids)
        self.position = self.position[:, -1:]

    def token(self) -> None:
        """Write one token and note its time."""
        self.position = self.position + 1
        with self.context():
            start = time.perf_counter()
            self._step(self.forward, self.next)
            if self.next.is_cuda:
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - start)

    def _step(self, forward: Callable[..., Any], ids: torch.Tensor) -> None:
        cache = {cache_name(self.model): self.cache}
        out = forward(input_ids=ids, position_ids=self.position, use_cache=True, **cache)
        self.next = out.logits[:, -1:].argmax(-1)


@torch.no_grad()
def measure(subjects: dict[str, Subject], *, tokens: int, rounds: int) -> None:
    """Let the subjects take turns; the first round is not counted."""
    for number in range(rounds + 1):
        for subject in subjects.values():
            subject.start(tokens)
            if number == 0:
                subject.token()
        for step in range(tokens - 1):
            for subject in list(subjects.values())[:: -1 if step % 2 else 1]:
                subject.token()
        if number == 0:
            for subject in subjects.values():
                subject.seconds.clear()


def main() -> None:
    """Measure and print one line for each subject."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", type=Path, default=Path("examples/demo/base"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    base = open_model_folder(arguments.base)
    plan = gated_plan(base)
    with tempfile.TemporaryDirectory() as folder:
        write_inserted(base, plan, Path(folder) / "inserted")
        plain = AutoModelForCausalLM.from_pretrained(base.path, dtype=dtype).eval().to(arguments.device)
        inserted = AutoModelForCausalLM.from_pretrained(
            Path(folder) / "inserted", dtype=dtype, trust_remote_code=True
        ).eval()
        inserted.to(arguments.device)
    if arguments.compile:
        subjects = {
            name: Subject(model, torch.compile(model.forward, fullgraph=True), nullcontext, static=True)
            for name, model in (("base, compiled", plain), ("inserted, compiled", inserted))
        }
    else:
        hooks = Subject(plain, plain.forward, lambda: edited_by_hooks(plain, base.architecture, plan), static=False)
        subjects = {
            "base": Subject(plain, plain.forward, nullcontext, static=False),
            "hooks": hooks,
            "inserted": Subject(inserted, inserted.forward, nullcontext, static=False),
        }
    measure(subjects, tokens=arguments.tokens, rounds=arguments.rounds)
    first = next(iter(subjects.values())).seconds
    for name, subject in subjects.items():
        median, low = (
            [float(np.quantile(seconds, share)) for seconds in (subject.seconds, first)] for share in (0.5, 0.25)
        )
        print(
            f"{name:20} {1e3 * median[0]:7.3f} ms a token, median of {len(first)}; "
            f"ratio {median[0] / median[1]:.3f}, of lower quartiles {low[0] / low[1]:.3f}"
        )


if __name__ == "__main__":
    main()
