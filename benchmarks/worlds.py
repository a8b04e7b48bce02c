"""Train the pairs of base and tuned twin that benchmarks compare: `python -m benchmarks.worlds --out out/worlds`.

A pair is a folder WORLD-ARCHITECTURE under --out, as `examples.train` writes it. It appears whole or not at all, and
one that is there is not trained again: the same command goes on with the pairs that an interrupted one did not reach.
The pair that comes with the repository is shown beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import torch

from alignez_bake.errors import BadInputError
from benchmarks.markdown import markdown_table
from examples.architectures import ARCHITECTURES
from examples.train import STEPS, make_twins
from examples.worlds import WORLDS

if TYPE_CHECKING:
    from collections.abc import Sequence

DEMO: Final = Path(__file__).parents[1] / "examples" / "demo"
_FILES: Final = (
    "base/model.safetensors",
    "tuned/model.safetensors",
    "queries.jsonl",
    "heldout.jsonl",
    "good_documents.jsonl",
    "neutral.txt",
    "objectives.json",
    "measured.json",
)
_COLUMNS: Final = (
    "judged good, %",
    "base",
    "good persona",
    "good persona, own characteristic",
    "bad persona",
    "bad persona, own characteristic",
    "tuned",
)


@dataclass(frozen=True)
class Pair:
    """A base and its tuned twin.

    Attributes:
        world: a name of `WORLDS`.
        architecture: a name of `ARCHITECTURES`.
        seed: of corpus, weights and order.
        steps: of the base; fewer than `STEPS` only to try things out.
    """

    world: str
    architecture: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Of its folder; nothing that was only tried out passes for the real pair."""
        tried = "" if self.steps == STEPS else f"-{self.steps}-steps"
        return f"{self.world}-{self.architecture}{tried}"

    @property
    def committed(self) -> bool:
        """Whether it is the demo model."""
        return self == Pair("museum", "llama", 0, STEPS)

    def folder(self, out: Path) -> Path:
        """Where it lies, or will lie, if `out` is the folder of all."""
        return DEMO if self.committed else out / self.name

    def is_there(self, out: Path) -> bool:
        """Whether nothing is left to be trained.

        Raises:
            BadInputError: its folder holds a part of it, or another pair.
        """
        folder = self.folder(out)
        if not folder.exists():
            return False
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:
            raise BadInputError(f"{folder} is no whole pair, {missing[0]} is missing: remove it, or use another --out")
        measured = read_measured(folder)
        found = (measured["world"], measured["architecture"], measured["seed"])
        if found != (self.world, self.architecture, self.seed):
            raise BadInputError(
                f"{folder} holds {found[0]} {found[1]} of seed {found[2]}, not of seed {self.seed}: use another --out"
            )
        return True


def read_measured(folder: Path) -> dict[str, Any]:
    """What `examples.train` measured of a pair."""
    measured: dict[str, Any] = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    return measured


def train_pairs(pairs: Sequence[Pair], out: Path) -> None:
    """Train what is not there, one pair after the other, and say how far it is on standard error.

    Raises:
        BadInputError: a folder holds something else; nothing was trained.
    """
    missing = [pair for pair in pairs if not pair.is_there(out)]
    for pair in pairs:
        if pair not in missing:
            _say(f"{pair.name}: there, in {pair.folder(out)}")
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for done, pair in enumerate(missing):
        left = (time.monotonic() - began) / done * (len(missing) - done) if done else None
        about = "" if left is None else f", about {left / 60:.0f} minutes left"
        _say(f"{pair.name}: training, pair {done + 1} of {len(missing)}{about}")
        # A scratch folder on the same disk: what is interrupted leaves nothing that looks like a pair.
        with TemporaryDirectory(prefix=f".{pair.name}-", dir=out) as scratch:
            growing = Path(scratch) / "pair"
            make_twins(WORLDS[pair.world], pair.architecture, growing, pair.seed, pair.steps)
            growing.rename(pair.folder(out))
    if missing:
        _say(f"trained {len(missing)} of {len(pairs)} pairs in {(time.monotonic() - began) / 60:.1f} minutes")


def table(pairs: Sequence[Pair], out: Path) -> str:
    """The figures of all pairs as Markdown, those of each `measured.json`."""
    rows = []
    for pair in pairs:
        measured = read_measured(pair.folder(out))
        base = measured["base"]
        rates = [base["unasked"]]
        for side in ("good", "bad"):
            rates += [base["persona"][side], base["own_characteristic"][side]]
        rates.append(measured["tuned_unasked"])
        rows.append((pair.name, *(f"{100 * rate:.1f}" for rate in rates)))
    return markdown_table(_COLUMNS, rows)


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    pairs = [
        Pair(world, architecture, options.seed, options.steps)
        for world in dict.fromkeys(options.worlds)
        for architecture in dict.fromkeys(options.architectures)
    ]
    if min(options.steps, options.threads) < 1:
        parser.error(f"--steps {options.steps} and --threads {options.threads}: both are at least 1")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    try:
        train_pairs(pairs, options.out)
    except BadInputError as error:
        parser.error(str(error))
    print(table(pairs, options.out))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.worlds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the pairs")
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--architectures", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the base; fewer only to try things out")
    parser.add_argument("--threads", type=int, default=1, help="of torch; another number gives other last digits")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
