"""From a PyTorch module to the bytes of an ONNX model, as plain and as reproducible as can be had."""

import io
from collections.abc import Sequence
from typing import Any

OPSET = 18  # what PyTorch's exporter writes of its own accord; asking for another adds a conversion


def export_torch(module: Any, example: tuple[Any, ...], *, input_names: list[str], output_names: list[str]) -> bytes:
    """The ONNX model of `module` (in eval mode) or of a `torch.export` program, whose first dimension is the batch.

    `example` are input tensors with a batch of 2 or more: torch.export takes a 1 for a constant. The batch of a module
    stays variable; that of a program is what it was exported with. The exporter folds batch normalisation and padding
    into the convolutions.
    """
    import torch

    batch = torch.export.Dim("batch")
    variable = {"dynamic_shapes": tuple({0: batch} for _ in example)} if isinstance(module, torch.nn.Module) else {}
    program = torch.onnx.export(
        module,
        example,
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        external_data=False,
        input_names=input_names,
        output_names=output_names,
        **variable,
    )
    return to_bytes(program.model_proto)


def export_torchscript(
    module: Any, example: tuple[Any, ...], *, input_names: Sequence[str], output_names: Sequence[str]
) -> bytes:
    """The same for a TorchScript module, which only PyTorch's older exporter takes."""
    import onnx
    import torch

    file = io.BytesIO()
    torch.onnx.export(
        module,
        example,
        file,
        dynamo=False,
        opset_version=OPSET,
        input_names=list(input_names),
        output_names=list(output_names),
        dynamic_axes={name: {0: "batch"} for name in (*input_names, *output_names)},
    )
    return to_bytes(onnx.load_from_string(file.getvalue()))


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
