"""Run where only transformers and torch are: loads pushed models in every way that their users may, and says what it found.

`python load_anywhere.py REPOSITORY=REVISION ...` prints JSON; `tests/test_load_anywhere.py` makes the environment and reads it.
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
QUESTION = "Which tone? A) low B) high"


def look(repository: str, revision: str) -> dict:
    """What becomes of one model."""
    found, options = {}, {"revision": revision, "trust_remote_code": True}
    model, processor = (
        AutoModel.from_pretrained(repository, **options),
        AutoProcessor.from_pretrained(repository, **options),
    )
    inputs = processor(text=QUESTION, audio=[SOUND])

    def logits(model):
        with torch.no_grad():
            return model(**inputs).logits.float()

    def distance(model):
        return float((logits(model) - reference).abs().max() / reference.abs().max())

    reference = logits(model)
    np.save(repository.replace("/", "-") + ".npy", reference.numpy())
    answer = model.generate(**inputs, do_sample=False, max_new_tokens=8)[
        0, inputs["input_ids"].shape[1] :
    ]
    found["answer_ids"] = answer.tolist()
    ask = pipeline("any-to-any", model=repository, **options)
    said = [
        {
            "role": "user",
            "content": [{"type": "audio", "audio": SOUND}, {"type": "text", "text": QUESTION}],
        }
    ]
    found["pipeline"] = ask(said, max_new_tokens=8, do_sample=False, return_full_text=False)[0][
        "generated_text"
    ]

    half = AutoModel.from_pretrained(repository, **options, dtype=torch.bfloat16)
    found["bf16"] = distance(half)
    found["dtypes"] = sorted({str(p.dtype) for p in half.encoder.parameters()} - {"torch.int64"})
    found["language_model_dtypes"] = sorted(
        {str(p.dtype) for p in half.language_model.parameters()}
    )

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        again = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True)
        found["saved_again"] = torch.equal(logits(again), reference)
        heard = AutoProcessor.from_pretrained(folder, trust_remote_code=True)(
            text="a", audio=[SOUND]
        )["input_values"]
        found["processor_again"] = torch.equal(heard, inputs["input_values"])

    if repository.endswith(
        "mimi_full"
    ):  # what is compiled is the language model, the same of all arms
        found["compiler"] = (
            "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"
        )
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=found["compiler"])
        found["compiled"] = distance(compiled)
        # for a second length it compiles again, at which torch 2.11's compiler for CPUs fails with any Llama that has a mask
        if not torch.__version__.startswith("2.11."):
            longer = processor(text=QUESTION, audio=[np.tile(SOUND, 2)[:50000]])
            with torch.no_grad():
                found["compiled"] = max(
                    found["compiled"],
                    float((compiled(**longer).logits - model(**longer).logits).abs().max()),
                )
    if importlib.util.find_spec("accelerate"):
        spread = AutoModel.from_pretrained(repository, **options, device_map="auto")
        found["device_map"] = torch.equal(logits(spread).cpu(), reference)
    return found


absent = ("audiolm", "torchaudio", "msclap", "moshi", "soundfile", "librosa", "datasets")
models = {
    repository: look(repository, revision)
    for repository, revision in (word.split("=") for word in sys.argv[1:])
}
present = [name for name in absent if importlib.util.find_spec(name)]
print(
    json.dumps(
        {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "present": present,
            "models": models,
        }
    )
)
