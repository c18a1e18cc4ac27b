"""Loads pushed models where only transformers and torch are installed, and prints a JSON report.

`python load_anywhere.py REPOSITORY=REVISION ...` is run by `tests/model/test_load_anywhere.py`.
"""

import importlib.util
import json
import shutil
import sys
import tempfile

import numpy as np
import torch
import transformers
from transformers import AutoModel, AutoModelForMultimodalLM, AutoProcessor, pipeline

SOUND = np.sin(np.arange(30000) / 9).astype("float32")
LONGER_SOUND = np.tile(SOUND, 2)[:50000]
QUESTION = "Which tone? A) low B) high"
ABSENT = ("audiolm", "torchaudio", "msclap", "moshi", "soundfile", "librosa", "datasets")


@torch.no_grad()
def compute_logits(model, inputs) -> torch.Tensor:
    return model(**inputs).logits.float()


def dtype_names(module) -> set[str]:
    return {str(parameter.dtype) for parameter in module.parameters()}


def answer_with_pipeline(repository: str, options: dict) -> str:
    ask = pipeline("any-to-any", model=repository, **options)
    content = [{"type": "audio", "audio": SOUND}, {"type": "text", "text": QUESTION}]
    chat = [{"role": "user", "content": content}]
    outputs = ask(chat, max_new_tokens=8, do_sample=False, return_full_text=False)
    return outputs[0]["generated_text"]


def save_and_reload(model, processor, inputs, reference) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        reloaded = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True)
        reloaded_processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        values = reloaded_processor(text=QUESTION, audio=[SOUND])
        return {
            "saved_again": torch.equal(compute_logits(reloaded, inputs), reference),
            "processor_again": all(torch.equal(values[name], inputs[name]) for name in inputs),
        }


def compile_model(model, processor, inputs, reference) -> dict:
    """Compiles the language model, which is the same with all encoders."""
    has_compiler = shutil.which("g++") or shutil.which("clang++")
    backend = "inductor" if has_compiler else "aot_eager"
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    deviation = relative_deviation(compute_logits(compiled, inputs), reference)
    # A second length compiles again, at which torch 2.11 fails on CPUs with a Llama and a mask.
    if not torch.__version__.startswith("2.11."):
        longer = processor(text=QUESTION, audio=[LONGER_SOUND])
        difference = compute_logits(compiled, longer) - compute_logits(model, longer)
        deviation = max(deviation, float(difference.abs().max()))
    return {"compiler": backend, "compiled": deviation}


def relative_deviation(logits: torch.Tensor, reference: torch.Tensor) -> float:
    return float((logits - reference).abs().max() / reference.abs().max())


def check_model(repository: str, revision: str) -> dict:
    """Uses one model in each way that its users may."""
    options = {"revision": revision, "trust_remote_code": True}
    model = AutoModel.from_pretrained(repository, **options)
    processor = AutoProcessor.from_pretrained(repository, **options)
    inputs = processor(text=QUESTION, audio=[SOUND])
    reference = compute_logits(model, inputs)
    np.save(repository.replace("/", "-") + ".npy", reference.numpy())
    output = model.generate(**inputs, do_sample=False, max_new_tokens=8)
    half = AutoModel.from_pretrained(repository, **options, dtype=torch.bfloat16)
    report = {
        "answer_ids": output[0, inputs["input_ids"].shape[1] :].tolist(),
        "pipeline": answer_with_pipeline(repository, options),
        "bf16": relative_deviation(compute_logits(half, inputs), reference),
        "dtypes": sorted(dtype_names(half.encoder) - {"torch.int64"}),
        "language_model_dtypes": sorted(dtype_names(half.language_model)),
        **save_and_reload(model, processor, inputs, reference),
    }
    if repository.endswith("mimi_full"):
        report |= compile_model(model, processor, inputs, reference)
    if importlib.util.find_spec("accelerate"):
        spread = AutoModel.from_pretrained(repository, **options, device_map="auto")
        report["device_map"] = torch.equal(compute_logits(spread, inputs).cpu(), reference)
    return report


def main(argv: list[str]) -> None:
    models = {}
    for argument in argv:
        repository, revision = argument.split("=")
        models[repository] = check_model(repository, revision)
    report = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "present": [name for name in ABSENT if importlib.util.find_spec(name)],
        "models": models,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
