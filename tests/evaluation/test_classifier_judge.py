import json

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.classifier_judge import classifier_judge
from alignez_bake.evaluation.protocol import AnswerSet
from tests.evaluation.classifiers import save_classifier
from tests.tiny_models import BOS, BOS_ID, PAD, PAD_ID, tiny_tokenizer

LABELS = ("rude", "kind", "odd")
CHAT = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
# Several of one length, which share a batch, and one that ends in what is padding elsewhere.
ANSWERS = (" yes", " no!", " maybe not today", "", f" a{PAD}", " hmm")
SETS = [AnswerSet({"query": f"How {n}?"}, {"base": ANSWERS[n], "ours": ANSWERS[n + 1]}) for n in range(5)]


@pytest.fixture(scope="session")
def reward(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("judges") / "reward")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("judges") / "classifier", LABELS)


def logits(folder, ids, **inputs):
    """One text alone, without any notion of padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.pad_token_id = None
    with torch.no_grad():
        return model(torch.tensor([ids]), **inputs).logits[0]


def pair_ids(folder, query, answer):
    return AutoTokenizer.from_pretrained(folder)(query, answer.strip())["input_ids"]


def test_a_reward_is_the_logit(reward):
    judge = classifier_judge(reward)
    assert judge.good_above == 0
    assert PAD_ID in pair_ids(reward, "How 4?", ANSWERS[4])
    for (query, answers), judged in zip(SETS, judge.judge(SETS), strict=True):
        for model, answer in answers.items():
            expected = float(logits(reward, pair_ids(reward, query["query"], answer))[0])
            assert judged.scores[model] == pytest.approx(expected, abs=1e-5)
        ours, base = judged.scores["ours"], judged.scores["base"]
        assert judged.preferences == {("ours", "base"): 1 if ours > base else -1}


def test_a_probability_is_that_of_the_label(classifier):
    judge = classifier_judge(classifier, label="kind")
    assert judge.good_above == 0.5
    (judged, *_) = judge.judge(SETS)
    expected = torch.softmax(logits(classifier, pair_ids(classifier, "How 0?", " yes")), dim=-1)[1]
    assert judged.scores["base"] == pytest.approx(float(expected), abs=1e-6)


def test_labels_that_do_not_exclude_each_other(tmp_path):
    folder = save_classifier(tmp_path, LABELS, problem_type="multi_label_classification")
    (judged,) = classifier_judge(folder, label="odd").judge(SETS[:1])
    expected = torch.sigmoid(logits(folder, pair_ids(folder, "How 0?", " yes")))[2]
    assert judged.scores["base"] == pytest.approx(float(expected), abs=1e-6)


def test_the_answer_alone(reward):
    judge = classifier_judge(reward, reads="answer")
    (judged,) = judge.judge(SETS[:1])
    ids = AutoTokenizer.from_pretrained(reward)("yes")["input_ids"]
    assert judged.scores["base"] == pytest.approx(float(logits(reward, ids)[0]), abs=1e-5)


def test_a_chat_template_is_used(tmp_path):
    folder = save_classifier(tmp_path, tokenizer=tiny_tokenizer(chat_template=CHAT))
    ids = AutoTokenizer.from_pretrained(folder)("<s>user: How 0?\n<s>assistant: yes\n", add_special_tokens=False)
    assert ids["input_ids"].count(BOS_ID) == 2
    (judged,) = classifier_judge(folder).judge(SETS[:1])
    assert judged.scores["base"] == pytest.approx(float(logits(folder, ids["input_ids"])[0]), abs=1e-5)


def test_segments_of_a_pair(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, BOS_ID)]
    )
    folder = save_classifier(tmp_path, kind="bert", tokenizer=tokenizer)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    encoded = AutoTokenizer.from_pretrained(folder)("How 0?", "yes")
    segments = torch.tensor([encoded["token_type_ids"]])
    assert set(segments[0].tolist()) == {0, 1}
    expected = logits(folder, encoded["input_ids"], token_type_ids=segments)
    assert abs(expected - logits(folder, encoded["input_ids"])) > 1e-3
    (judged,) = classifier_judge(folder).judge(SETS[:1])
    assert judged.scores["base"] == pytest.approx(float(expected[0]), abs=1e-5)


def test_equal_answers_tie_and_batches_change_nothing(reward):
    sets = [AnswerSet({"query": "How?"}, {"base": " same", "ours": " same", "tuned": f" other {n}"}) for n in range(5)]
    judged = classifier_judge(reward, batch_size=64).judge(sets)
    assert all(entry.preferences["ours", "base"] == 0 for entry in judged)
    alone = classifier_judge(reward, batch_size=1).judge(sets)
    for one, other in zip(judged, alone, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


def test_long_answers_are_cut_and_counted(reward):
    sets = [AnswerSet({"query": "How?"}, {"base": " x" * 400, "ours": " short"})]
    (judged,) = classifier_judge(reward).judge(sets)
    assert judged.cut == 1
    tokenizer = AutoTokenizer.from_pretrained(reward)
    ids = tokenizer("How?", ("x " * 400).strip(), truncation=True, max_length=128)["input_ids"]
    assert len(ids) == 128
    sets = [AnswerSet({"query": "How?"}, {"base": ("x " * 400), "ours": " short"})]
    (judged,) = classifier_judge(reward).judge(sets)
    assert judged.scores["base"] == pytest.approx(float(logits(reward, ids)[0]), abs=1e-5)


def test_what_it_is_told_apart_by(reward, classifier):
    kind = classifier_judge(classifier, label="kind")
    assert kind.settings["kind"] == "classifier"
    assert kind.settings["label"] == "kind"
    assert classifier_judge(reward).settings["kind"] == "reward model"
    assert kind.settings != classifier_judge(classifier, label="rude").settings
    assert classifier_judge(reward, threshold=1.5).good_above == 1.5
    json.dumps(kind.settings)
    kind.check()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "has 3 labels: name the good one with --judge-label, of 'rude', 'kind', 'odd'"),
        ("nice", "has no label 'nice' of its own: it has 'rude', 'kind', 'odd'"),
    ],
)
def test_labels(classifier, label, message):
    with pytest.raises(BadInputError, match=message):
        classifier_judge(classifier, label=label)


def test_a_reward_model_has_no_labels(reward):
    with pytest.raises(BadInputError, match="has one logit, a reward, and no labels"):
        classifier_judge(reward, label="kind")


def test_a_causal_model_is_no_judge(tiny_folder):
    with pytest.raises(
        BadInputError, match=r"is no classifier: its config.json names the class \['LlamaForCausalLM'\]"
    ):
        classifier_judge(tiny_folder("llama"))


def test_a_classifier_without_its_head(tmp_path, save_tiny):
    folder = save_tiny("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    changed = {**config, "architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    (folder / "config.json").write_text(json.dumps({**changed, "id2label": {"0": "LABEL_0"}}))
    with pytest.raises(BadInputError, match=r"lacks tensors, which would be random: score.weight"):
        classifier_judge(folder).judge(SETS[:1])


def test_pickles_are_not_read(tmp_path):
    folder = save_classifier(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInputError, match="safetensors"):
        classifier_judge(folder)


def test_code_of_a_folder_is_not_run(tmp_path):
    folder = save_classifier(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(BadInputError, match="transformers cannot read its config"):
        classifier_judge(folder)


def test_damaged_weights(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_classifier(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInputError, match=r"weight score.weight holds NaN"):
        classifier_judge(folder).judge(SETS[:1])


def test_scores_that_are_not_finite(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_classifier(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {**tensors, "score.weight": tensors["score.weight"] * 3e38}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(BadInputError, match=r"scores that are not finite|holds NaN or infinity"):
        classifier_judge(folder).judge(SETS)


def test_another_models_tokenizer(tmp_path):
    with pytest.raises(BadInputError, match=r"gives id \d+, but the model knows only 64"):
        classifier_judge(save_classifier(tmp_path, vocab_size=64)).check()


def test_a_chat_template_that_fails(tmp_path):
    broken = "{{ raise_exception('no') }}"
    folder = save_classifier(tmp_path, tokenizer=tiny_tokenizer(chat_template=broken))
    with pytest.raises(BadInputError, match=r"the chat template of the judge .* fails: no"):
        classifier_judge(folder).check()
