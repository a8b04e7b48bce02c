"""The comparison with alternatives on random models, and that each training does what it says."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from alignez_bake import pipeline
from alignez_bake.errors import BadInputError
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.language_model.log_probabilities import answer_log_probabilities
from alignez_bake.model_folder import open_model_folder
from alignez_bake.pipeline import Fitted
from alignez_bake.preference_pairs.filters import Answer, Pair
from alignez_bake.prompts.objective import Objective
from alignez_bake.prompts.persona import persona_sentence
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.tuning import tuner
from benchmarks import alternatives, alternatives_measuring
from benchmarks.alternatives_distillation import DistillationSettings, distilled
from benchmarks.subjects import BASE, PROMPTED, TUNED
from examples import preference_tuning
from examples.preference_tuning import DpoSettings, LoraShape, Preference, dpo_tuned
from examples.worlds import WORLDS

OBJECTIVE = Objective("helpful", "helpful", "useless")
DISTILLED = "distilled, o_proj, rank 4, 3 epochs"
DPO = "DPO, all maps, rank 16, 1 epochs"


@pytest.fixture(scope="module")
def base(world):
    return open_model_folder(world / "base")


def run(world, out, *rows, steps=1):
    sizes = ["--seeds", "2", "--samples", "1", "--max-steps", str(steps), "--cost-queries", "2", "--cost-rounds", "1"]
    alternatives.main([str(world), "--out", str(out), *sizes, "--rows", *rows])


@pytest.fixture
def _short(monkeypatch):
    monkeypatch.setattr(pipeline, "ANSWER_TOKENS", 16)
    monkeypatch.setattr(pipeline, "CHARACTERISTIC_TOKENS", 4)
    for module in ("measuring", "alternatives_measuring"):
        monkeypatch.setattr(f"benchmarks.{module}.ANSWER_TOKENS", 6)


@pytest.mark.usefixtures("_judged_by_length", "_short")
def test_it_measures_prints_and_goes_on_where_it_stopped(world, tmp_path, capsys, monkeypatch):
    run(world, tmp_path, PROMPTED, "ridge", DISTILLED)
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "alternatives.json").read_text())
    figures = result["figures"]
    assert list(figures) == [BASE, PROMPTED, TUNED, "ridge", DISTILLED]
    assert all(figures[name]["rate"]["total"] == 2 * 6 for name in figures)
    assert all(figures[name]["kl"]["mean"] > 0 for name in ("ridge", DISTILLED))
    assert figures[PROMPTED]["kl"] is None
    assert all(figures[name]["seconds"]["processor"]["low"] > 0 for name in ("ridge", DISTILLED))
    assert result["settings"][DISTILLED]["lora"] == {"rank": 4, "maps": ["o_proj"]}
    assert result["pairs_seconds"]["processor"] > 0
    assert f"the pairs of all queries took {result['pairs_seconds']['processor']:.1f} processor s more" in printed
    assert result["chosen"] == {}
    costs = result["costs"]
    assert costs[PROMPTED]["prompt_tokens"] > costs[BASE]["prompt_tokens"] == costs["ridge"]["prompt_tokens"]
    assert (tmp_path / "alternatives.png").stat().st_size > 0

    monkeypatch.setattr(alternatives.AlternativesBench, "measure", None)
    monkeypatch.setattr(alternatives.AlternativesBench, "answer_costs", None)  # nothing is measured again
    run(world, tmp_path, PROMPTED, "ridge", DISTILLED)
    assert capsys.readouterr().out == printed
    with pytest.raises(SystemExit, match="holds figures of other models or settings"):
        alternatives.main([str(world), "--out", str(tmp_path), "--max-steps", "3", "--rows", "ridge"])


@pytest.fixture
def world_to_choose_in(world, tmp_path):
    """With as many queries as a choice needs at least."""
    copy = shutil.copytree(world, tmp_path / "world")
    queries = WORLDS["museum"].queries("pairs")[:16]
    (copy / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    return copy


def choose(world, out):
    sizes = ["--seeds", "1", "--samples", "1", "--cost-queries", "0", "--rows", "auto", "ridge"]
    alternatives.main([str(world), "--out", str(out), *sizes])
    return json.loads((out / "alternatives.json").read_text())


@pytest.mark.usefixtures("_judged_by_length", "_short")
def test_the_row_of_the_default_is_the_whole_choice(world_to_choose_in, tmp_path, capsys, monkeypatch):
    asked = []
    tuned = alternatives_measuring.tune_edits

    def watched(lm, records, *rest, **settings):
        asked.append(({record.query["query"] for record in records}, settings["held_out"]))
        found = tuned(lm, records, *rest, **settings)
        names = [name for name in found.frontier if name.startswith("ridge")]
        assert names  # a candidate that stands for the chosen one: random weights prefer nothing for sure
        chosen = replace(found.tuning, chosen=names[0])
        return replace(found, tuning=chosen, fitted=Fitted(found.frontier[names[0]], {}, {}))

    monkeypatch.setattr(alternatives_measuring, "tune_edits", watched)
    result = choose(world_to_choose_in, tmp_path / "out")
    ((learned, held_out),) = asked
    assert len(learned) == len(held_out) == 8
    assert learned.isdisjoint(query["query"] for query in held_out)
    row, named = result["figures"]["auto"], result["figures"]["ridge"]
    assert row["kl"]["mean"] > 0
    assert row["seconds"].keys() == named["seconds"].keys()
    # Every candidate is fitted and answers, beside one that is fitted alone.
    assert row["seconds"]["processor"]["mean"] > named["seconds"]["processor"]["mean"]
    (chosen,) = result["chosen"]["auto"]
    assert chosen.startswith("ridge-")
    assert f"auto: chosen {chosen} (seed 0)." in capsys.readouterr().out


@pytest.mark.usefixtures("_judged_by_length", "_short")
def test_a_choice_that_finds_nothing_is_the_base(world_to_choose_in, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuner, "BUDGET_SHARE", 1e-12)  # which no edit keeps to
    result = choose(world_to_choose_in, tmp_path / "out")
    figures = result["figures"]
    assert result["chosen"] == {"auto": [BASE]}
    assert figures["auto"]["rate"] == figures[BASE]["rate"]
    assert figures["auto"]["kl"]["mean"] == 0
    assert figures["auto"]["seconds"]["processor"]["mean"] > 0
    assert "auto: chosen nothing, its answers are the base's own (seed 0)." in capsys.readouterr().out


@pytest.mark.usefixtures("_short")
def test_too_few_queries_for_a_choice_are_refused_before_anything_runs(world, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(world, tmp_path / "out", "auto")
    assert "10 queries are too few to choose an edit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "magic"], "invalid choice: 'magic'"),
        (["--samples", "0"], "at least 1"),
        (["nowhere"], "No such file or directory: 'nowhere/measured.json'"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(tmp_path, capsys, arguments, message, monkeypatch):
    monkeypatch.setattr(preference_tuning, "find_spec", lambda _name: True)
    with pytest.raises(SystemExit) as exit_:
        alternatives.main([*arguments, "--out", str(tmp_path / "out")])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_trl_rows_of_dpo_are_refused_by_name(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(preference_tuning, "find_spec", lambda name: None if name == "trl" else True)
    with pytest.raises(SystemExit):
        run(world, tmp_path / "out", DPO)
    assert "this training needs trl: pip install 'alignez-bake[dpo]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def mean_kl(teacher, student, form, pairs):
    """Mean KL of the answers' tokens, by plain log-probabilities of the whole vocabulary."""
    total, count = 0.0, 0
    for pair in pairs:
        answer = form.answer_ids(pair.good.text, eos=True)
        logs = []
        for lm, sentence in ((teacher, persona_sentence(OBJECTIVE, "good")), (student, None)):
            ids = torch.tensor([[*form.context_ids(pair.query["query"], sentence), *answer]])
            with torch.inference_mode():
                logs.append(torch.log_softmax(lm.model(ids).logits[0, -len(answer) - 1 : -1].double(), dim=-1))
        p, q = logs
        total += float((p.exp() * (p - q)).sum())
        count += len(answer)
    return total / count


def test_distillation_brings_the_student_to_its_teacher(base, tmp_path):
    lm = load_language_model(base, dtype=torch.float32)
    form = prompt_form(lm.tokenizer)
    things = ("kettle", "spoon", "lamp", "clock")
    pairs = [
        Pair({"query": f"Where is the {thing}?"}, "helpful", Answer(f" On the {thing}.", ""), Answer(" No.", ""))
        for thing in things
    ]
    settings = DistillationSettings(epochs=30, learning_rate=1e-2, lora=LoraShape(8), batch_size=4)
    out = distilled(base, pairs, OBJECTIVE, form=form, settings=settings, out=tmp_path / "student")
    student = load_language_model(open_model_folder(out), dtype=torch.float32)
    before, after = (mean_kl(lm, model, form, pairs) for model in (lm, student))
    assert before > 0.001
    assert after < before / 3
    assert load_language_model(open_model_folder(out)).model.dtype == load_language_model(base).model.dtype


def test_texts_that_merge_across_the_seam_are_refused(base, monkeypatch):
    tokenizer = load_language_model(base).tokenizer
    form = prompt_form(tokenizer, "{query}")
    letters = [chr(97 + number) for number in range(26)]
    one, other = next(
        (a, b) for a in letters for b in letters if form.answer_ids(a + b) != [*form.answer_ids(a), *form.answer_ids(b)]
    )
    monkeypatch.setattr(preference_tuning, "find_spec", lambda _name: True)
    with pytest.raises(BadInputError, match="become other tokens than one by one"):
        dpo_tuned(base, [Preference(one, other, " no")], form, DpoSettings(1, 1e-3), base.path / "never")
    with pytest.raises(BadInputError, match="no preferences"):
        dpo_tuned(base, [], form, DpoSettings(1, 1e-3), base.path / "never")


@pytest.mark.parametrize("lora", [None, LoraShape(4)])
def test_dpo_prefers_what_is_preferred(base, tmp_path, lora):
    pytest.importorskip("trl", reason="TRL is not installed: run `make peers`")
    tokenizer = load_language_model(base).tokenizer
    form = prompt_form(tokenizer)
    preferences = [Preference(f"Where is the {thing}?", " Here it is.", " I do not know.") for thing in ("a", "b", "c")]
    settings = DpoSettings(epochs=6, learning_rate=5e-3, batch_size=3, lora=lora)
    out = dpo_tuned(base, preferences, form, settings, tmp_path / "tuned")
    margins = []
    for folder in (base, open_model_folder(out)):
        lm = load_language_model(folder)
        contexts = [form.context_ids(one.query, None) for one in preferences]
        chosen, rejected = (
            [form.answer_ids(getattr(one, side), eos=True) for one in preferences] for side in ("chosen", "rejected")
        )
        sums = [
            sum(float(log.sum()) for log in answer_log_probabilities(lm, contexts, answers, batch_size=4))
            for answers in (chosen, rejected)
        ]
        margins.append(sums[0] - sums[1])
    assert margins[1] > margins[0] + 1


@pytest.mark.usefixtures("_judged_by_length", "_short")
def test_dpo_is_a_row(world, tmp_path):
    pytest.importorskip("trl", reason="TRL is not installed: run `make peers`")
    run(world, tmp_path, DPO, steps=2)  # the first is at a rate of 0
    figures = json.loads((tmp_path / "alternatives.json").read_text())["figures"]
    assert figures[DPO]["kl"]["mean"] > 0
