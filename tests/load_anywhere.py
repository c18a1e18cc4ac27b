"""Run where only transformers and torch are: loads a pushed model in every way that its users may, and says what it found.

`python load_anywhere.py REPOSITORY REVISION` prints JSON; `tests/test_hub.py` makes the environment and reads it.
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

repository, revision = sys.argv[1:]
found = {"torch": torch.__version__, "transformers": transformers.__version__}
absent = ("audiolm", "torchaudio", "msclap", "moshi", "soundfile", "librosa", "datasets")
found["present"] = [name for name in absent if importlib.util.find_spec(name)]

model = AutoModel.from_pretrained(repository, revision=revision, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(repository, revision=revision, trust_remote_code=True)
sound = np.sin(np.arange(30000) / 9).astype("float32")
inputs = processor(text="Which tone? A) low B) high", audio=[sound])


def logits(model):
    with torch.no_grad():
        return model(**inputs).logits.float()


def distance(model):
    return float((logits(model) - reference).abs().max() / reference.abs().max())


reference = logits(model)
np.save("logits.npy", reference.numpy())
prompt = inputs["input_ids"].shape[1]
answer = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, prompt:]
found["answer"] = processor.tokenizer.decode(answer)
found["answer_ids"] = answer.tolist()

ask = pipeline("any-to-any", model=repository, revision=revision, trust_remote_code=True)
said = [
    {"role": "user", "content": [{"type": "audio", "audio": sound}, {"type": "text", "text": "Which tone? A) low B) high"}]}
]
found["pipeline"] = ask(said, max_new_tokens=8, do_sample=False, return_full_text=False)[0]["generated_text"]

half = AutoModel.from_pretrained(repository, revision=revision, trust_remote_code=True, dtype=torch.bfloat16)
found["bf16"] = distance(half)
found["dtypes"] = sorted({str(p.dtype) for p in half.encoder.parameters()} - {"torch.int64"})
found["language_model_dtypes"] = sorted({str(p.dtype) for p in half.language_model.parameters()})

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    again = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True)
    found["saved_again"] = torch.equal(logits(again), reference)
    found["processor_again"] = bool(
        torch.equal(
            AutoProcessor.from_pretrained(folder, trust_remote_code=True)(text="a", audio=[sound])["input_values"],
            inputs["input_values"],
        )
    )

found["compiler"] = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"
found["compiled"] = distance(torch.compile(model, backend=found["compiler"]))

if importlib.util.find_spec("accelerate"):
    spread = AutoModel.from_pretrained(repository, revision=revision, trust_remote_code=True, device_map="auto")
    found["device_map"] = torch.equal(logits(spread).cpu(), reference)

print(json.dumps(found))
