"""Tasks of lm-evaluation-harness on base, aligned and tuned model, side by side.

    python -m alignez_bake.evaluation.lm_eval_bridge --model BASE --aligned OUT --task TASK.yaml --out report

Each model is loaded from its folder by the harness's own class for transformers (`lm_eval.models.huggingface.HFLM`), as
any user of the harness loads it: what is measured is the result as shipped. Needs the extra `[eval]`.

A task's YAML file may name Python functions (`!function`): naming the file is what runs them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import AlignezBakeError, BadInputError
from alignez_bake.evaluation.protocol import BASE, OURS, TUNED
from alignez_bake.exporters.output_folder import check_output, publish, staged_output
from alignez_bake.report.markdown import table
from alignez_bake.report.record import tool_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MISSING: Final = "tasks of lm-evaluation-harness need it: pip install 'alignez-bake[eval]'"
_SEED: Final = 0


@dataclass(frozen=True)
class HarnessRow:
    """One metric of one task.

    Attributes:
        task: its name.
        metric: such as `acc`; with the filter's name where there is one, `acc,strict`.
        documents: how many were asked.
        higher_is_better: None where the task does not say.
        values: by model.
        errors: by model the standard error, as the harness states it; None where it states none.
    """

    task: str
    metric: str
    documents: int
    higher_is_better: bool | None
    values: Mapping[str, float]
    errors: Mapping[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        models = {name: {"value": value, "standard_error": self.errors[name]} for name, value in self.values.items()}
        return {
            "task": self.task,
            "metric": self.metric,
            "documents": self.documents,
            "higher_is_better": self.higher_is_better,
            "models": models,
        }


@dataclass(frozen=True)
class HarnessReport:
    """All metrics of all tasks.

    Attributes:
        folders: of the models, by name.
        settings: what else tells this run from others, the harness's version among it.
        rows: in the order of the tasks.
    """

    folders: Mapping[str, str]
    settings: Mapping[str, Any]
    rows: tuple[HarnessRow, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "tool": tool_name(),
            "folders": dict(self.folders),
            "settings": dict(self.settings),
            "rows": [row.to_json() for row in self.rows],
        }

    def table(self) -> str:
        """The report as a Markdown table, with standard errors as the harness states them."""
        names = list(self.folders)
        rows = []
        for row in self.rows:
            arrow = {True: " (higher is better)", False: " (lower is better)", None: ""}[row.higher_is_better]
            cells = [_cell(row.values[name], row.errors[name]) for name in names]
            change = f"{row.values[OURS] - row.values[BASE]:+.4f}"
            rows.append((row.task, row.metric + arrow, str(row.documents), *cells, change))
        return table(("task", "metric", "documents", *names, f"{OURS} - {BASE}"), rows)


def harness_report(
    model: str | Path,
    aligned: str | Path,
    tasks: Sequence[str | Path],
    *,
    tuned: str | Path | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    chat_template: bool = False,
    trust_remote_code: bool = False,
) -> HarnessReport:
    """Run tasks of lm-evaluation-harness on each model.

    Args:
        model: the base's folder.
        aligned: a checkpoint, or a LoRA adapter of that base; any folder that transformers or peft loads.
        tasks: files of tasks (`.yaml`), or names of tasks that the harness brings, whose data come from the hub.
        tuned: the folder of a tuned model, to stand beside them.
        out: folder for `lm_eval.json` and `lm_eval.md`; appears whole or not at all.
        limit: documents of each task; all unless given.
        batch_size: requests that run together.
        device: where the models run.
        chat_template: render each request by the tokenizer's chat template instead of the task's text alone.
        trust_remote_code: passed to transformers' loader, for results with inserted modules.

    Raises:
        BadInputError: the harness is missing, a folder that holds no model it loads, a task that is not there, or a
            number out of bounds; nothing was run or written.
    """
    if find_spec("lm_eval") is None:
        raise BadInputError(MISSING)
    if not tasks:
        raise BadInputError("no task to run: give at least one --task")
    if batch_size < 1 or (limit is not None and limit < 1):
        raise BadInputError(f"batch size {batch_size} and limit {limit}: both are at least 1")
    folders = {BASE: Path(model), OURS: Path(aligned), **({} if tuned is None else {TUNED: Path(tuned)})}
    arguments = {name: _model_arguments(folder, folders[BASE]) for name, folder in folders.items()}
    specs = [_task_spec(task) for task in tasks]
    if out is not None:
        check_output(Path(out), folders[BASE])

    from lm_eval.tasks import TaskManager  # noqa: PLC0415 - of an extra

    manager = TaskManager(include_defaults=not all(Path(spec).is_absolute() for spec in specs))
    results = {}
    for name, model_arguments in arguments.items():
        loading = {**model_arguments, "dtype": "auto", "trust_remote_code": trust_remote_code}
        results[name] = _evaluated(
            loading, specs, manager, limit=limit, batch_size=batch_size, device=device, chat_template=chat_template
        )
    settings = {
        "lm_eval": results[BASE]["lm_eval_version"],
        "tasks": [Path(spec).name for spec in specs],
        "limit": limit,
        "batch_size": batch_size,
        "device": device,
        "chat_template": chat_template,
        "seed": _SEED,
    }
    report = HarnessReport({name: str(folder) for name, folder in folders.items()}, settings, _rows(results))
    if out is not None:
        _write(Path(out), report)
    return report


def _model_arguments(folder: Path, base: Path) -> dict[str, str]:
    """How HFLM is told to load a folder.

    Raises:
        BadInputError: it holds neither a checkpoint nor an adapter.
    """
    if (folder / "adapter_config.json").is_file():
        if find_spec("peft") is None:
            raise BadInputError(f"{folder} is an adapter, which needs peft: pip install 'alignez-bake[adapter]'")
        return {"pretrained": str(base), "peft": str(folder)}
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    if not (folder / "config.json").is_file() or not weights:
        raise BadInputError(
            f"{folder} holds neither a checkpoint (config.json and safetensors) nor an adapter: the harness's "
            "class for transformers loads no other kind; bake one with --as checkpoint or --as adapter"
        )
    return {"pretrained": str(folder)}


def _task_spec(task: str | Path) -> str:
    """The absolute path of a task's file, or the name of one that the harness brings.

    Raises:
        BadInputError: it looks like a file and is none.
    """
    text = str(task)
    if Path(text).suffix not in {".yaml", ".yml"}:
        return text
    if not Path(text).is_file():
        raise BadInputError(f"no such task: {text}")
    return str(Path(text).resolve())


def _evaluated(
    model_arguments: dict[str, Any],
    specs: list[str],
    manager: Any,  # noqa: ANN401 - lm_eval has no types
    *,
    limit: int | None,
    batch_size: int,
    device: str,
    chat_template: bool,
) -> dict[str, Any]:
    """The harness's own results of one model, without its samples."""
    from lm_eval import simple_evaluate  # noqa: PLC0415 - of an extra

    try:
        found: dict[str, Any] = simple_evaluate(
            model="hf",
            model_args=model_arguments,
            tasks=specs,
            task_manager=manager,
            limit=limit,
            batch_size=batch_size,
            device=device,
            apply_chat_template=chat_template,
            log_samples=False,
            bootstrap_iters=1000,
            random_seed=_SEED,
            numpy_random_seed=_SEED,
            torch_random_seed=_SEED,
            fewshot_random_seed=_SEED,
        )
    except (KeyError, OSError, ValueError) as error:
        # What the harness raises for tasks and models that it cannot use; it has no errors of its own.
        where = model_arguments.get("peft", model_arguments["pretrained"])
        raise BadInputError(f"the harness cannot run {', '.join(specs)} on {where}: {error}") from error
    return found


def _rows(results: Mapping[str, Mapping[str, Any]]) -> tuple[HarnessRow, ...]:
    """The metrics that all models have, beside each other.

    The harness's keys are `metric,filter`, `metric_stderr,filter`, and some that are no figures.
    """
    rows = []
    base = results[BASE]
    for task, metrics in base["results"].items():
        for key, value in metrics.items():
            metric, _, chosen = key.partition(",")
            if (
                not chosen
                or metric.endswith("_stderr")
                or isinstance(value, bool)
                or not isinstance(value, int | float)
            ):
                continue
            errors = {name: found["results"][task].get(f"{metric}_stderr,{chosen}") for name, found in results.items()}
            rows.append(
                HarnessRow(
                    task=task,
                    metric=metric if chosen == "none" else key,
                    documents=int(base["n-samples"][task]["effective"]),
                    higher_is_better=base["higher_is_better"].get(task, {}).get(metric),
                    values={name: float(found["results"][task][key]) for name, found in results.items()},
                    errors={name: error if isinstance(error, float) else None for name, error in errors.items()},
                )
            )
    return tuple(rows)


def _cell(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _write(out: Path, report: HarnessReport) -> None:
    with staged_output(out) as staging:
        text = json.dumps(report.to_json(), indent=2, sort_keys=True, allow_nan=False) + "\n"
        (staging / "lm_eval.json").write_text(text, encoding="utf-8")
        (staging / "lm_eval.md").write_text(report.table() + "\n", encoding="utf-8")
        publish(staging, out, failed=False)


def main(arguments: list[str]) -> int:
    """Run from the command line: the exit status is that of `alignez-bake`."""
    parser = argparse.ArgumentParser(prog="python -m alignez_bake.evaluation.lm_eval_bridge", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the base's folder")
    parser.add_argument("--aligned", type=Path, required=True, help="a checkpoint, or an adapter of that base")
    parser.add_argument("--tuned", type=Path, help="a tuned model, to stand beside them")
    parser.add_argument("--task", action="append", required=True, help="TASK.yaml, or a name; can be given again")
    parser.add_argument("--out", type=Path, help="folder for lm_eval.json and lm_eval.md")
    parser.add_argument("--limit", type=int, help="documents of each task; all if left out")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--chat-template", action="store_true", help="render requests by the chat template")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    options = parser.parse_args(arguments)
    try:
        report = harness_report(
            options.model,
            options.aligned,
            options.task,
            tuned=options.tuned,
            out=options.out,
            limit=options.limit,
            batch_size=options.batch_size,
            device=options.device,
            chat_template=options.chat_template,
            trust_remote_code=options.trust_remote_code,
        )
    except AlignezBakeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    shown = json.dumps(report.to_json(), indent=2, allow_nan=False) if options.json else report.table()
    sys.stdout.write(shown + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
