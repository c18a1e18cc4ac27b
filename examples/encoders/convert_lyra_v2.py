"""Converts Lyra V2's two TFLite files for lyra_v2.py: `python convert_lyra_v2.py FOLDER OUTPUT`.

FOLDER holds soundstream_encoder.tflite and quantizer.tflite, OUTPUT is a .safetensors file.
It needs `pip install ai-edge-litert`.
"""

import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from safetensors.numpy import save_file


def read_inputs(path: Path, operations: tuple[str, ...]) -> list[dict[str, np.ndarray]]:
    """Returns the inputs of all operations of some kinds, dequantised, by name."""
    interpreter = Interpreter(str(path), experimental_preserve_all_tensors=True)
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    inputs = []
    for operation in interpreter._get_ops_details():
        if operation["op_name"] in operations:
            used = [tensors[index] for index in operation["inputs"]]
            inputs.append({tensor["name"]: dequantise(interpreter, tensor) for tensor in used})
    return inputs


def dequantise(interpreter: Interpreter, tensor: dict) -> np.ndarray:
    """Returns a tensor in float32. An activation, which has no value yet, is empty."""
    try:
        values = interpreter.get_tensor(tensor["index"])
    except ValueError:
        return np.empty(0, np.float32)
    quantization = tensor["quantization_parameters"]
    scales = quantization["scales"]
    if not len(scales):
        return values.astype(np.float32)
    shape = [1] * values.ndim
    shape[quantization["quantized_dimension"]] = -1
    zeros = quantization["zero_points"].reshape(shape)
    return ((values.astype(np.float32) - zeros) * scales.reshape(shape)).astype(np.float32)


def main(folder: Path, output: str) -> None:
    """Writes `convs.N.weight`, `convs.N.bias` and `codebooks`."""
    tensors = {}
    convolutions = read_inputs(
        folder / "soundstream_encoder.tflite", ("CONV_2D", "DEPTHWISE_CONV_2D")
    )
    for number, inputs in enumerate(convolutions):
        _, weight, bias = inputs.values()
        # (outputs, time, 1, inputs), or of a depthwise convolution (1, time, 1, channels).
        axes = (2, 0, 1) if weight.shape[0] == 1 else (0, 2, 1)
        tensors[f"convs.{number}.weight"] = weight[:, :, 0].transpose(*axes).copy()
        tensors[f"convs.{number}.bias"] = bias
    codebooks = {}
    for inputs in read_inputs(folder / "quantizer.tflite", ("GATHER",)):
        name, codebook = next(iter(inputs.items()))
        codebooks[int(name.partition("_")[2] or 0)] = codebook  # transpose, transpose_1, ...
    tensors["codebooks"] = np.stack([codebooks[number] for number in sorted(codebooks)])
    save_file(tensors, output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
