"""Each architecture's data file against the live model: nothing in it is taken on trust."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from alignez_bake.architectures.architecture import architecture_for, known_model_types
from alignez_bake.architectures.table import architecture_table
from alignez_bake.errors import BadInputError
from alignez_bake.site import Site
from tests.running import load, relative
from tests.tiny_models import COMBINATIONS, MODEL_TYPES, VOCABULARY


def ids():
    return torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))


def sites(architecture, layers):
    return [Site(kind, layer) for kind in architecture.sites for layer in range(layers)]


def map_sites(architecture, layers):
    """The sites whose module is one linear map, which a mixture of experts is not."""
    return [s for s in sites(architecture, layers) if architecture.linear_site(s.kind, s.layer).experts is None]


@pytest.fixture(params=COMBINATIONS, ids=lambda case: f"{case[0]}-{'bias' if case[1] else 'plain'}")
def live(request, tiny_model):
    """A live model and its architecture."""
    model_type, bias = request.param
    model = tiny_model(model_type, bias=bias, dtype=torch.float64)
    return model, architecture_for(model.config.to_dict())


def recorded(model, paths):
    """Input, output of every call of each module in one forward pass, by path and in order of calls."""
    calls = {path: [] for path in paths}
    order = []

    def hook(path):
        def keep(_module, args, kwargs, output):
            given = args[0] if args else kwargs.get("hidden_states")
            calls[path].append((given, output[0] if isinstance(output, tuple) else output))
            order.append(path)

        return keep

    handles = [model.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True) for path in paths]
    with torch.no_grad():
        model(ids(), use_cache=False)
    for handle in handles:
        handle.remove()
    return calls, order


def test_every_described_model_type_is_tested():
    assert known_model_types() == tuple(sorted(MODEL_TYPES))


def test_layers_embedding_and_final_norm_are_the_models_own(live):
    model, architecture = live
    config = json.loads(model.config.to_json_string(use_diff=False))
    layers = model.get_submodule(architecture.layers)
    assert architecture.num_layers(config) == len(layers) == 2
    assert model.get_submodule(architecture.embed) is model.get_input_embeddings()
    assert architecture.base_model_prefix == model.base_model_prefix
    calls, order = recorded(
        model, [architecture.embed, architecture.layer_path(0), architecture.layer_path(1), architecture.final_norm]
    )
    assert Counter(order).most_common(1)[0][1] == 1
    assert order[0] == architecture.embed
    assert order[-1] == architecture.final_norm
    (into_norm, _), (_, out_of_last) = calls[architecture.final_norm][0], calls[architecture.layer_path(1)][0]
    assert torch.equal(into_norm, out_of_last)
    # The head reads what the norm gives, and nothing else lies between.
    head = model.get_output_embeddings()
    with torch.no_grad():
        logits = model(ids()).logits
    expected = head(calls[architecture.final_norm][0][1])
    expected = expected / getattr(model.config, "logits_scaling", 1.0)
    cap = getattr(model.config, "final_logit_softcapping", None)
    assert relative(logits, cap * torch.tanh(expected / cap) if cap else expected) < 1e-12


def test_each_sites_module_runs_exactly_once_a_layer(live):
    model, architecture = live
    paths = [architecture.module_path(site) for site in sites(architecture, 2)]
    assert len(set(paths)) == len(paths)
    _, order = recorded(model, paths)
    assert Counter(order) == dict.fromkeys(paths, 1)


def test_the_layout_is_what_the_map_computes(live):
    """y = W z + b with W as the data file orients it: also where W is square and a shape tells nothing."""
    model, architecture = live
    found = map_sites(architecture, 2)
    calls, _ = recorded(model, [architecture.module_path(site) for site in found])
    for site in found:
        path = architecture.module_path(site)
        module = model.get_submodule(path)
        oriented = module.weight if architecture.linear_site(site.kind).layout == "out_in" else module.weight.T
        ((read, output),) = calls[path]
        bias = 0.0 if module.bias is None else module.bias
        assert relative(read @ oriented.T + bias, output) < 1e-12
        if oriented.shape[0] == oriented.shape[1]:
            assert relative(read @ oriented + bias, output) > 0.1


def test_biases_are_where_the_data_says(live):
    model, architecture = live
    for site in map_sites(architecture, 2):
        stated = architecture.linear_site(site.kind).bias
        expected = stated == "always" if stated in ("always", "never") else getattr(model.config, stated)
        assert (model.get_submodule(architecture.module_path(site)).bias is not None) == expected


def test_routers_decide_what_the_experts_get(live):
    model, architecture = live
    routers = architecture.router_paths(2)
    experts = [name for name, _ in model.named_modules() if name.endswith(".experts")]
    assert len(routers) == len(experts)
    made, given = [], []
    for router, block in zip(routers, experts, strict=True):
        model.get_submodule(router).register_forward_hook(lambda _module, _args, output: made.append(output))
        model.get_submodule(block).register_forward_pre_hook(lambda _module, args: given.append(args))
    with torch.no_grad():
        model(ids(), use_cache=False)
    assert len(made) == len(given) == len(routers)
    for (logits, weights, indices), (_, chosen, weighed) in zip(made, given, strict=True):
        assert logits.shape == (ids().numel(), model.config.num_local_experts)
        assert chosen is indices
        assert weighed is weights


def test_a_gate_is_the_half_that_the_activation_reads(live):
    model, architecture = live
    if "mlp_gate" not in architecture.sites:
        assert "gate" in architecture.absent_sites["mlp_gate"]
        return
    linear = architecture.linear_site("mlp_gate")
    activation = (
        f"{architecture.layer_path(0)}.mlp.{'activation_fn' if architecture.model_type == 'phi3' else 'act_fn'}"
    )
    calls, _ = recorded(model, [architecture.module_path(Site("mlp_gate", 0)), activation])
    (_, output), (read, _) = calls[architecture.module_path(Site("mlp_gate", 0))][0], calls[activation][0]
    assert torch.equal(output[..., linear.row_slice(output.shape[-1])], read)


@pytest.mark.parametrize("kind", ["attn_write", "mlp_write"])
def test_what_a_writer_gives_joins_the_residual_stream_as_the_post_norm_says(live, kind):
    model, architecture = live
    linear = architecture.linear_site(kind)
    layer = architecture.layer_path(1)
    writer = architecture.module_path(Site(kind, 1))
    if linear.post_norm is not None:
        norm = f"{layer}.{linear.post_norm}"
        calls, _ = recorded(model, [writer, norm])
        assert torch.equal(calls[writer][0][1], calls[norm][0][0])
        return
    # Without a post-norm nothing scales it on its way but a multiplier: what is added to the writer's output arrives as
    # it is, or times that. Seen where no other part of the layer reads it: at the MLP's writer, and at attention's
    # where the MLP is cut off.
    added = 0.5
    cut = model.get_submodule(architecture.module_path(Site("mlp_write", 1)))
    handles = []
    if kind == "attn_write":
        handles.append(cut.register_forward_hook(lambda _m, _a, output: torch.zeros_like(output)))
    ((_, before),) = recorded(model, [layer])[0][layer]
    handles.append(model.get_submodule(writer).register_forward_hook(lambda _m, _a, output: output + added))
    ((_, after),) = recorded(model, [layer])[0][layer]
    for handle in handles:
        handle.remove()
    multiplier = getattr(model.config, architecture.writer_multiplier or "", 1.0)
    assert (multiplier != 1.0) == (architecture.model_type == "granite")
    assert relative(after - before, torch.full_like(before, added * multiplier)) < 1e-12


@pytest.mark.parametrize("kind", ["attn_write", "mlp_write"])
def test_the_block_reads_what_a_norm_gave(live, kind):
    """In olmo2, whose norms all follow the writers, it reads the stream itself."""
    model, architecture = live
    layer = model.get_submodule(architecture.layer_path(1))
    norms = [
        f"{architecture.layer_path(1)}.{name}"
        for name, module in layer.named_children()
        if "norm" in name or name.startswith("ln_")
    ]
    block = architecture.block_path(Site(kind, 1))
    calls, _ = recorded(model, [block, *norms])
    ((read, _),) = calls[block]
    given = [output.reshape(read.shape) for norm in norms for _, output in calls[norm]]
    assert any(torch.equal(read, output) for output in given) == (architecture.model_type != "olmo2")
    writer = architecture.module_path(Site(kind, 1))
    assert writer.startswith(block) or architecture.model_type == "opt"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_head_and_embedding_are_tied_as_the_config_class_has_it(model_type):
    architecture = architecture_for({"model_type": model_type})
    assert architecture.is_tied({}) == AutoConfig.for_model(model_type).tie_word_embeddings
    assert [architecture.is_tied({"tie_word_embeddings": tied}) for tied in (True, False)] == [True, False]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_files_name_the_head_as_the_data_does_and_hold_it_unless_tied(model_type, tied, tmp_path, save_tiny):
    folder = save_tiny(model_type, tmp_path, overrides={"tie_word_embeddings": tied})
    tensors = load_file(folder / "model.safetensors")
    architecture = architecture_for({"model_type": model_type})
    assert (f"{architecture.head}.weight" in tensors) != tied
    if not tied:
        head = load(folder, torch.float32).get_output_embeddings()
        assert torch.equal(tensors[f"{architecture.head}.weight"], head.weight)


def test_what_the_embedding_module_gives_is_its_row_unless_it_scales(live):
    model, architecture = live
    ((_, output),) = recorded(model, [architecture.embed])[0][architecture.embed]
    rows = model.get_submodule(architecture.embed).weight[ids()]
    assert torch.equal(rows, output) != architecture.embed_scaled


def test_learned_positions_join_between_embedding_and_first_layer(live):
    model, architecture = live
    calls, _ = recorded(model, [architecture.embed, architecture.layer_path(0)])
    embedded, entering = calls[architecture.embed][0][1], calls[architecture.layer_path(0)][0][0]
    embedded = embedded * getattr(model.config, "embedding_multiplier", 1.0)
    assert torch.equal(embedded, entering) != architecture.learned_positions


def layer_terms(model, architecture, layer):
    """Input and output of a layer, and what its two writers give, in one pass."""
    writers = [architecture.module_path(Site(kind, layer)) for kind in ("attn_write", "mlp_write")]
    calls, _ = recorded(model, [architecture.layer_path(layer), *writers])
    (entering, leaving) = calls[architecture.layer_path(layer)][0]
    return entering, leaving, [calls[path][0][1].reshape(leaving.shape) for path in writers]


NO_SUMS = ("gemma2", "gemma3_text", "granite", "olmo2")
SUM_SWITCHES = [
    ("granite", {"residual_multiplier": 1.0}, True),
    ("opt", {"do_layer_norm_before": True}, True),
    ("opt", {"do_layer_norm_before": False}, False),
    ("gpt_neox", {"use_parallel_residual": False}, True),
]


@pytest.mark.parametrize(
    ("model_type", "overrides", "is_sum"),
    [(name, {}, name not in NO_SUMS) for name in MODEL_TYPES] + SUM_SWITCHES,
)
def test_a_layer_gives_the_sum_of_its_input_and_its_writers_where_the_data_says(
    model_type, overrides, is_sum, tiny_model
):
    bias = (model_type, False) not in COMBINATIONS
    model = tiny_model(model_type, bias=bias, dtype=torch.float64, overrides=overrides)
    architecture = architecture_for(model.config.to_dict())
    entering, leaving, written = layer_terms(model, architecture, 1)
    assert (relative(entering + written[0] + written[1], leaving) < 1e-12) == is_sum
    assert architecture.layers_are_sums(json.loads(model.config.to_json_string(use_diff=False))) == is_sum


@pytest.mark.parametrize(
    ("model_type", "overrides", "parallel"),
    [(name, {}, name == "gpt_neox") for name in MODEL_TYPES] + [("gpt_neox", {"use_parallel_residual": False}, False)],
)
def test_the_mlp_reads_what_attention_wrote_unless_they_are_parallel(model_type, overrides, parallel, tiny_model):
    bias = (model_type, False) not in COMBINATIONS
    model = tiny_model(model_type, bias=bias, dtype=torch.float64, overrides=overrides)
    architecture = architecture_for(model.config.to_dict())
    _, _, (_, before) = layer_terms(model, architecture, 1)
    writer = model.get_submodule(architecture.module_path(Site("attn_write", 1)))
    handle = writer.register_forward_hook(lambda _m, _a, output: -output)
    _, _, (_, after) = layer_terms(model, architecture, 1)
    handle.remove()
    assert torch.equal(before, after) == parallel
    assert architecture.is_parallel(json.loads(model.config.to_json_string(use_diff=False))) == parallel


def test_batch_and_length_are_one_dimension_where_the_data_says(live):
    model, architecture = live
    path = architecture.module_path(Site("mlp_write", 0))
    ((_, output),) = recorded(model, [path])[0][path]
    assert (output.dim() == 2) == architecture.flattens


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_the_site_embed_is_what_the_embedding_module_gives(model_type, tiny_model):
    model = tiny_model(model_type, bias=False, dtype=torch.float64)
    architecture = architecture_for(model.config.to_dict())
    calls, _ = recorded(model, [architecture.embed, architecture.layer_path(0)])
    assert torch.equal(calls[architecture.embed][0][1], calls[architecture.layer_path(0)][0][0])


@pytest.mark.parametrize("config", [{"model_type": "mamba"}, {"model_type": "Llama"}, {"model_type": "../llama"}])
def test_an_unknown_model_type_is_refused_by_name(config):
    with pytest.raises(BadInputError, match=f"model_type '{config['model_type']}' is not described.*llama"):
        architecture_for(config)


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": ["llama"]}])
def test_a_config_without_model_type_is_refused(config):
    with pytest.raises(BadInputError, match="no model_type"):
        architecture_for(config)


@pytest.mark.parametrize("count", [None, 0, -1, True, "2", 2.0])
def test_a_number_of_layers_that_is_none_is_refused(count):
    architecture = architecture_for({"model_type": "llama"})
    with pytest.raises(BadInputError, match="num_hidden_layers"):
        architecture.num_layers({"num_hidden_layers": count})


def test_the_documented_table_is_the_data():
    page = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text(encoding="utf-8")
    assert architecture_table() in page
