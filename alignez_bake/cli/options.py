"""The options of the command line, one definition each, shared by the commands that take them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Typer reads these annotations at run time: imports must not hide behind TYPE_CHECKING.
Model = Annotated[
    Path, typer.Option("--model", metavar="BASE", help="The base model: a folder, or USER/REPO[@REVISION] on the hub.")
]
OptionalModel = Annotated[
    Path | None,
    typer.Option(
        "--model",
        metavar="BASE",
        help="The base: a folder, or USER/REPO[@REVISION] on the hub; if left out, where it lay at baking, or what the "
        "cache has of it.",
    ),
]
Objective = Annotated[
    str,
    typer.Option(
        "--objective",
        metavar="NAME[=W],...",
        help="What to align to: helpful, harmless, humor, or one of --objectives-file; W weighs it.",
    ),
]
ObjectivesFile = Annotated[
    Path | None,
    typer.Option(
        "--objectives-file",
        metavar="F.json",
        help='Objectives of your own: {"truthful": {"good": "truthful", "bad": "deceptive"}}.',
    ),
]
Queries = Annotated[
    Path | None,
    typer.Option(
        "--queries",
        metavar="F",
        help="Queries that the base answers: plain lines, or JSON lines with the key 'query'. "
        "A hundred are enough; general ones come with the tool.",
    ),
]
PromptTemplate = Annotated[
    str | None,
    typer.Option(
        "--prompt-template",
        metavar="TEXT",
        help="How a query becomes a prompt, such as 'Human: {query}\\nAssistant:' (\\n is a line break); the "
        "tokenizer's chat template if left out, and where it has none, this one.",
    ),
]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        help="auto: chosen with its strength by what the base itself thinks of the edited models' answers to a third "
        "of the queries. Or contrastive_decoding, residual_ridge, ridge, alignez_v1 (give it late --layers), "
        "alignez_v2, ccs, mean_difference or shift.",
    ),
]
Strength = Annotated[
    str | None,
    typer.Option(
        "--strength",
        metavar="X|auto",
        help="The method's own: s of contrastive_decoding (default 2) and residual_ridge (1.125), where 1 imitates the "
        "good persona; γ of ridge (2), a of the others (1). auto: chosen, as --method auto does.",
    ),
]
KlBudget = Annotated[
    float | None,
    typer.Option(
        "--kl-budget",
        metavar="NATS",
        help="Most that a chosen edit may move neutral texts, as KL to the base in nats per token; a twentieth of the "
        "base's own loss on them if left out.",
    ),
]
Neutral = Annotated[
    Path | None,
    typer.Option(
        "--neutral",
        metavar="F.txt",
        help="Texts to leave alone, one a line, or JSON lines with 'text': the fits see every second one, the others "
        "measure the drift. Short ones come with the tool, and only measure, where an edit is chosen.",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option("--layers", metavar="4-20", help="Layers to edit, from 0, both ends included; all if left out."),
]
Rank = Annotated[
    int | None,
    typer.Option(
        "--rank", metavar="K", help="Rank of each edit; the method's default if left out, or chosen with auto."
    ),
]
Penalty = Annotated[
    float | None,
    typer.Option(
        "--penalty",
        metavar="X",
        help="λ of a ridge method's fit: larger is gentler; the method's default if left out, or chosen with auto.",
    ),
]
Positions = Annotated[
    str,
    typer.Option(
        "--positions",
        metavar="WHICH",
        help="Rows of each forward call to edit: all, or last alone, which is AlignEZ's own rule and cannot be folded.",
    ),
]
Gated = Annotated[
    bool,
    typer.Option(
        "--gated",
        help="alignez_v2 with the paper's own gates, one-sided removal and bounded boost, which cannot be folded.",
    ),
]
TopLayers = Annotated[
    str | None,
    typer.Option(
        "--top-layers",
        metavar="N|auto",
        help="Of the --layers edit the N with the smallest loss of a CCS probe (alignez_v1, ccs) or the largest "
        "alignment score (alignez_v2); auto: as many as stand apart from the rest; all if left out.",
    ),
]
Untie = Annotated[
    bool,
    typer.Option(
        "--untie",
        help="Where the head is tied to the embedding, make it a tensor of its own, once more the embedding's size, "
        "and change it too (contrastive_decoding, auto).",
    ),
]
Joint = Annotated[
    bool,
    typer.Option(
        "--joint",
        help="Fit several objectives together, so that the dial of each moves the others less (ridge, residual_ridge).",
    ),
]
As = Annotated[
    str,
    typer.Option(
        "--as",
        metavar="KIND",
        help="What to write: checkpoint, adapter (LoRA for PEFT), gguf (LoRA and control vector for llama.cpp), onnx "
        "(a graph), onnx-genai (for onnxruntime-genai), edits, or what another package brings.",
    ),
]
RequireFold = Annotated[
    bool, typer.Option("--require-fold", help="Refuse edits that need an inserted module, whatever else is allowed.")
]
Linearise = Annotated[
    bool,
    typer.Option("--linearise", help="Fold the best affine maps of gated edits, and say how much of them is kept."),
]
RefitBlock = Annotated[
    bool,
    typer.Option(
        "--refit-block",
        help="Make edits of the MLP's output read what enters the MLP, so that added hidden units can carry them, and "
        "say how much of them is kept.",
    ),
]
Push = Annotated[
    str | None,
    typer.Option("--push", metavar="USER/REPO", help="Upload the result to the Hugging Face Hub if it is verified."),
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", metavar="DTYPE", help="Dtype of all weights, such as float32; the base's if left out."),
]
Verify = Annotated[
    str | None,
    typer.Option(
        "--verify",
        metavar="LEVEL",
        help="tensors: compare the files; forward: also run baked and hooked model, the default for graphs.",
    ),
]
Opset = Annotated[
    int | None,
    typer.Option(
        "--opset", metavar="N", help="Graph: version of its operators, 20 to 23; 20 for an ONNX Runtime before 1.26."
    ),
]
ExternalData = Annotated[
    bool,
    typer.Option("--external-data", help="Graph: weights in a file beside it, whatever their size."),
]
Optimize = Annotated[bool, typer.Option("--optimize", help="Graph: fuse operators, which ONNX Runtime runs faster.")]
Int4 = Annotated[bool, typer.Option("--int4", help="Graph: weights of 4 bits, quantised after the edits are folded.")]
Int8 = Annotated[bool, typer.Option("--int8", help="Graph: weights of 8 bits, quantised after the edits are folded.")]
Link = Annotated[
    bool,
    typer.Option(
        "--link",
        help="Weight files without an edit become hard links to the base's (reflinks are tried in any case).",
    ),
]
Rounding = Annotated[
    str,
    typer.Option(
        "--rounding",
        metavar="RULE",
        help="Of edited values: nearest; carry: other values of a row carry what rounding takes from the edit; auto: "
        "nearest, unless that keeps too little of it.",
    ),
]
Hash = Annotated[
    str,
    typer.Option(
        "--hash",
        metavar="ALGORITHM",
        help="Of the manifest: blake3-leaves; or, slower, blake3 or sha256, as b3sum and sha256sum print them.",
    ),
]
Reversible = Annotated[
    bool,
    typer.Option(
        "--reversible",
        help="Keep the base's edited tensors in OUT/alignez/, so that `alignez-bake restore OUT` needs no base.",
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read a base of pickled weights (pytorch_model.bin) by torch's weights-only loader, which refuses what is "
        "no tensor; a flaw in that loader could let a hostile file run code.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, ...; auto: cuda if there, else cpu.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of everything that is sampled.")]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", help="Texts that run together.")]
SavePairs = Annotated[
    bool, typer.Option("--save-pairs", help="Keep the pairs that the base wrote, as OUT/alignez/pairs.jsonl.")
]
Report = Annotated[
    bool | None,
    typer.Option(
        "--report/--no-report",
        help="Write OUT/alignez/report.html, a page that shows the result; unless told, where a model is run anyway.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done; write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, all else on standard error.")]
Yes = Annotated[bool, typer.Option("--yes", help="Answer yes to every confirmation.")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Allow model code: the base's, and a small generated file in a checkpoint for edits that do not fold.",
    ),
]
AllowOtherBase = Annotated[
    bool,
    typer.Option("--allow-other-base", help="Take edits made for another base, if their sites and shapes fit."),
]
