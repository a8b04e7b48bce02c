"""peft's way to the same checkpoint, in a process of its own: load the base, merge the adapter, save.

    python -m benchmarks.bake_peft BASE ADAPTER OUT SHARD_BYTES

transformers 5 has no other way of loading than the one that `low_cpu_mem_usage` once asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(base: Path, adapter: Path, out: Path, shard_bytes: int) -> None:
    """Merge in the stored dtype, on the CPU."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(out, max_shard_size=shard_bytes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
