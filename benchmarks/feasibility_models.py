"""The bases of the study: the demo's, and ones that obey their personas more or less.

A base of an obedience is the demo's base trained on, on its own corpus with that obedience: what it knows of the world
stays, how much a persona tells about the answer changes. The demo's own corpus has 94 %; at 50 % a persona tells
nothing. All have the demo's tuned twin as their yardstick.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from transformers import AutoModelForCausalLM, AutoTokenizer

from alignez_bake.errors import BadInputError
from benchmarks.worlds import DEMO
from examples.corpus import PRETRAINING, pretraining_documents
from examples.optimisation import Schedule, train
from examples.tokenizer import encode_parts
from examples.train import save
from examples.worlds import WORLDS

STEPS: Final = 150
"""Of training on. The share of good answers under the personas moves within the first third of them."""
_PEAK: Final = 1e-3
_WARM_UP: Final = 10
_SEED: Final = 100
"""Another than the demo's, whose documents the base has seen."""


@dataclass(frozen=True)
class StudyBase:
    """A base of the study.

    Attributes:
        obedience: of the documents it was trained on, in per cent; None: the demo's base as it is.
        steps: of that; fewer than `STEPS` only to try things out.
    """

    obedience: int | None
    steps: int = STEPS

    @property
    def name(self) -> str:
        """Of its folder; nothing that was only tried out passes for the real one."""
        if self.obedience is None:
            return "demo"
        tried = "" if self.steps == STEPS else f"-{self.steps}-steps"
        return f"obedience-{self.obedience}{tried}"

    def folder(self, out: Path) -> Path:
        """Where it lies, trained unless it is there; it appears whole or not at all.

        Args:
            out: folder of all bases.

        Raises:
            BadInputError: its folder holds something else.
        """
        if self.obedience is None:
            return DEMO / "base"
        folder = out / self.name
        if folder.exists():
            if not (folder / "model.safetensors").is_file():
                raise BadInputError(f"{folder} holds no model: remove it, or use another --out")
            return folder
        out.mkdir(parents=True, exist_ok=True)
        # A scratch folder on the same disk: what is interrupted leaves nothing that looks like a base.
        with TemporaryDirectory(prefix=f".{self.name}-", dir=out) as scratch:
            growing = Path(scratch) / "base"
            _train_on(self, self.obedience / 100, growing)
            growing.rename(folder)
        return folder


def _train_on(base: StudyBase, obedience: float, folder: Path) -> None:
    world = WORLDS[json.loads((DEMO / "measured.json").read_text(encoding="utf-8"))["world"]]
    schedule = Schedule(steps=base.steps, peak=_PEAK, warm_up=_WARM_UP)
    mix = replace(PRETRAINING, obedience=obedience)
    documents = pretraining_documents(world, schedule.steps * schedule.batch_size, _SEED, mix)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    encoded = [[*encode_parts(tokenizer, parts), tokenizer.eos_token_id] for parts in documents]
    model = AutoModelForCausalLM.from_pretrained(DEMO / "base", dtype="float32")
    train(model, encoded, schedule, _SEED, base.name)
    save(model, tokenizer, folder)
