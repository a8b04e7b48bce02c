"""Which initialisers are right operands of products."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from alignez_bake.onnx_graph.initialisers import open_graph
from alignez_bake.onnx_graph.operands import right_operands, used_initialisers
from tests.runtime.graphs import saved


def test_right_operands_are_those_that_lie_as_in_out(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["1"]),
        helper.make_node("MatMul", ["b", "1"], ["2"]),
        helper.make_node("Gemm", ["2", "c"], ["3"]),
        helper.make_node("Gemm", ["3", "d", "e"], ["4"], transA=1, transB=0),
        helper.make_node("Gemm", ["4", "f"], ["5"], transB=1),
        helper.make_node("Add", ["5", "g"], ["6"]),
        helper.make_node("MatMul", ["6", "x"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(np.eye(2, dtype=np.float32), name) for name in "abcdefg"]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert right_operands(open_graph(saved(model, tmp_path))) == {"a", "c", "d"}


def test_used_is_what_nodes_take_in_subgraphs_too_and_what_is_given_out(tmp_path):
    bool_info, y = helper.make_tensor_value_info("x", TensorProto.BOOL, []), helper.make_tensor_value_info("y", 1, [2])
    inner = [
        helper.make_graph([helper.make_node("Neg", [name], [f"{name}_out"])], name, [], [
            helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [2])
        ])
        for name in "ab"
    ]  # fmt: skip
    nodes = [
        helper.make_node("If", ["x"], ["1"], then_branch=inner[0], else_branch=inner[1]),
        helper.make_node("Add", ["1", "c"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(np.ones(2, np.float32), name) for name in "abcde"]
    given = helper.make_tensor_value_info("d", TensorProto.FLOAT, [2])
    graph = helper.make_graph(nodes, "g", [bool_info], [y, given], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert used_initialisers(open_graph(saved(model, tmp_path))) == {"a", "b", "c", "d"}
