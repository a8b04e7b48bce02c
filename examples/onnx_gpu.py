"""Run an exported folder with ONNX Runtime: no torch, no transformers. Copy this file and change it.

    python examples/onnx_gpu.py OUT --provider cuda --prompt "How do I clean a copper kettle?" --stream

Needs `pip install 'alignez-bake[gpu]'` (or `[cpu]`, and `--provider cpu`). Nothing falls back: a GPU that cannot be
used is an error, and what runs where is printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError
from alignez_bake.runtime import Sampling, stream
from alignez_bake.runtime.detokenise import Detokeniser
from alignez_bake.runtime.text import open_folder

if TYPE_CHECKING:
    from alignez_bake.runtime.session import OnnxModel
    from alignez_bake.runtime.text import OnnxTextModel, Prompt


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the graph, tokenizer.json and the configs")
    parser.add_argument("--provider", default="cuda", help="cuda, cuda:1, tensorrt or cpu (default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="refuse nodes that the GPU has no kernel for")
    parser.add_argument("--prompt", action="append", required=True, help="more than one are one batch")
    parser.add_argument("--chat", action="store_true", help="send prompts through the model's chat template")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--stream", action="store_true", help="print the answer to one prompt while it is written")
    parser.add_argument("--temperature", type=float, help="sample; without it the likeliest token is taken")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.stream and len(arguments.prompt) > 1:
        parser.error("--stream prints one answer: give one --prompt")
    return arguments


def report_placement(model: OnnxModel) -> None:
    """Say on stderr which provider runs how many of the graph's nodes."""
    if model.placement is None:
        print("placement: this ONNX Runtime does not say where nodes run", file=sys.stderr)
        return
    for provider, count in model.placement.nodes.items():
        print(f"placement: {count} nodes at {provider}", file=sys.stderr)
    if model.placement.elsewhere:
        operators = ", ".join(f"{count} {name}" for name, count in model.placement.elsewhere.items())
        print(f"placement: not at {model.provider.kind.runtime_name}: {operators}", file=sys.stderr)


def run(model: OnnxTextModel, arguments: argparse.Namespace) -> None:
    """Answer the prompts and say how long it took."""
    texts: list[str] = arguments.prompt
    prompts: list[Prompt] = [[{"role": "user", "content": text}] if arguments.chat else text for text in texts]
    contexts = model.contexts(prompts, arguments.max_new_tokens)
    sampling = None
    if arguments.temperature is not None:
        sampling = Sampling(temperature=arguments.temperature, top_p=arguments.top_p, seed=arguments.seed)
    steps = stream(
        model.graph, contexts, max_new_tokens=arguments.max_new_tokens, stop_ids=model.stop_ids, pad_id=model.pad_id,
        sampling=sampling,
    )  # fmt: skip
    writers = [Detokeniser(model.tokenizer) for _ in contexts]
    answers = ["" for _ in contexts]
    times = [time.perf_counter()]
    tokens = 0
    for step in steps:
        times.append(time.perf_counter())
        for row, token in enumerate(step):
            if token is not None:
                piece = writers[row].push(token)
                answers[row] += piece
                # The first step is the prompt's; what comes after it is decoding.
                tokens += len(times) > 2
                if arguments.stream:
                    print(piece, end="", flush=True)
    for row, writer in enumerate(writers):
        rest = writer.rest()
        print(rest if arguments.stream else answers[row] + rest)
    read = sum(map(len, contexts))
    if len(times) > 1:
        print(f"prompt: {read} tokens in {times[1] - times[0]:.3f} s", file=sys.stderr)
    if tokens:
        rate = tokens / (times[-1] - times[1])
        print(f"decode: {tokens} tokens, {rate:.1f} tokens/s", file=sys.stderr)


def main() -> int:
    """Open the folder and answer."""
    arguments = parse_arguments()
    alone = arguments.strict or arguments.provider == "cpu"
    try:
        # A GPU computes what it has kernels for. Shapes are mostly computed on the CPU, and listed.
        model = open_folder(arguments.folder, [arguments.provider] if alone else [arguments.provider, "cpu"])
        report_placement(model.graph)
        run(model, arguments)
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
