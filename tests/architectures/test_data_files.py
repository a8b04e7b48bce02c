"""Each architecture's data file against the live model: nothing in it is taken on trust."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from alignez_bake.architectures.architecture import architecture_for, known_model_types
from alignez_bake.architectures.table import architecture_table
from alignez_bake.errors import BadInputError
from alignez_bake.site import Site
from tests.running import relative
from tests.tiny_models import COMBINATIONS, MODEL_TYPES, VOCABULARY


def ids():
    return torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))


def sites(architecture, layers):
    return [Site(kind, layer) for kind in architecture.sites for layer in range(layers)]


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
    found = sites(architecture, 2)
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
    for site in sites(architecture, 2):
        stated = architecture.linear_site(site.kind).bias
        expected = stated == "always" if stated in ("always", "never") else getattr(model.config, stated)
        assert (model.get_submodule(architecture.module_path(site)).bias is not None) == expected


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
    # Without a post-norm nothing scales it on its way: what is added to the writer's output arrives as it is. Seen
    # where no other part of the layer reads it: at the MLP's writer, and at attention's where the MLP is cut off.
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
    assert relative(after - before, torch.full_like(before, added)) < 1e-12


@pytest.mark.parametrize("kind", ["attn_write", "mlp_write"])
def test_the_block_reads_what_a_norm_gave(live, kind):
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
    assert any(torch.equal(read, output) for output in given)
    writer = architecture.module_path(Site(kind, 1))
    assert writer.startswith(block) or architecture.model_type == "opt"


def test_the_site_embed_is_what_the_embedding_module_gives(tiny_model):
    model = tiny_model("gemma2", bias=False, dtype=torch.float64)
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
