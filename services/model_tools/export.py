"""From a PyTorch module to the bytes of an ONNX model, as plain and as reproducible as can be had."""

from typing import Any

OPSET = 18  # what PyTorch's exporter writes of its own accord; asking for another adds a conversion


def export_torch(module: Any, example: Any, *, input_name: str, output_name: str) -> bytes:
    """The ONNX model of `module` (in eval mode), whose first dimension is the batch and stays variable.

    `example` is an input tensor with a batch of 2 or more: torch.export takes a 1 for a constant.
    The exporter folds batch normalisation and padding into the convolutions.
    """
    import torch

    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        external_data=False,
        input_names=[input_name],
        output_names=[output_name],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    return to_bytes(program.model_proto)


def to_bytes(model: Any) -> bytes:
    """Check an `onnx.ModelProto` and serialise it without what its makers noted in it, such as stack traces."""
    import onnx

    graph = model.graph
    for described in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        described.doc_string = ""
        del described.metadata_props[:]
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))
