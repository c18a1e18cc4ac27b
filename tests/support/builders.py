"""A small model of each arm, with the real modules at small sizes and a tokenizer made here."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.hub_server import WRITER
from torch.utils._python_dispatch import TorchDispatchMode

SHARED = Path(__file__).parents[3] / "shared" / "data" / "mini_reasonaqa"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PLAYWRIGHT = importlib.util.find_spec("playwright") is not None
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the recordings of mini_reasonaqa are not beside the checkout"
)
ARMS = ["htsat", "mimi_semantic", "mimi_full"]
SMALL_HTSAT = {
    "patch_embeds_hidden_size": 8,
    "hidden_size": 64,
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "window_seconds": 1.0,
}
SMALL_MIMI = {
    "hidden_size": 32,
    "num_filters": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "codebook_dim": 16,
    "codebook_size": 64,
    "upsample_groups": 32,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 8,
}
TEXT = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "max_position_embeddings": 2048,
}


def small_model(arm: str, seed: int = 0, **fields):
    from audiolm import AudioLMConfig, AudioLMForConditionalGeneration
    from audiolm.checkpoints.random_weights import randomise_codebooks
    from audiolm.encoders_audiolm import MimiEncoder

    torch.manual_seed(seed)
    config = AudioLMConfig(
        arm, SMALL_HTSAT if arm == "htsat" else SMALL_MIMI, TEXT, mapper_hidden_size=32, **fields
    )
    model = AudioLMForConditionalGeneration(config).eval()
    if isinstance(model.encoder, MimiEncoder):
        randomise_codebooks(model.encoder)
    return model


def save_parts(folder: Path, tokenizer) -> None:
    """Mimi of a small model in `mimi` and its language model, with the tokenizer, in `text`."""
    model = small_model("mimi_full")
    model.encoder.model.save_pretrained(folder / "mimi")
    model.language_model.save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")


def clip(seconds: float, rate: int = 24000, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    return (
        0.4 * np.sin(2 * np.pi * 300 * (seed + 1) * t) + 0.05 * random.standard_normal(len(t))
    ).astype("float32")


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


EMPTY = {key: "" for key in ("taskname", "filepath2", "caption1", "caption2")}
MCQ = {**EMPTY, "input": "Which tone? A) low B) high", "subtype": "T-MCQ.json"}
YES_NO = {**EMPTY, "input": "Is it low? Answer only using yes or no.", "subtype": "TAQA.json"}


def make_corpus(tmp_path: Path) -> Path:
    """16 clips of two tones and a question about each, in ReasonAQA's shape, in a folder."""
    rows = []
    for i in range(16):
        soundfile.write(tmp_path / f"{i}.wav", clip(0.5 + i / 20, seed=i % 2 * 9), 24000)
        answer = (
            {"answer": "B) high" if i % 2 else "A) low"}
            if i < 8
            else {"answer": "no" if i % 2 else "yes"}
        )
        rows.append({**(MCQ if i < 8 else YES_NO), "filepath1": f"{i}.wav", **answer})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def arguments(corpus, arm, tokenizer, *more):
    model = small_model(arm)
    model.encoder.model.save_pretrained(corpus / "encoder")
    model.language_model.save_pretrained(corpus / "text")
    tokenizer.save_pretrained(corpus / "text")
    if arm == "htsat":  # LAION's front end, its window short here
        front = {
            "sampling_rate": 48000,
            "fft_window_size": 1024,
            "hop_length": 480,
            "max_length_s": 1,
            "frequency_min": 50,
            "frequency_max": 14000,
        }
        (corpus / "encoder" / "preprocessor_config.json").write_text(json.dumps(front))
    return [
        "--encoder_type",
        arm,
        "--encoder_name_or_path",
        str(corpus / "encoder"),
        "--text_model_name_or_path",
        str(corpus / "text"),
        "--train_file",
        str(corpus / "rows.json"),
        "--validation_file",
        str(corpus / "rows.json"),
        "--audio_dir",
        str(corpus),
        "--output_dir",
        str(corpus / "out"),
        "--max_steps",
        "20",
        "--learning_rate",
        "0.01",
        "--logging_steps",
        "1",
        "--dataloader_num_workers",
        "0",
        "--freeze_lm",
        "false",
        "--eval_steps",
        "10",
        *more,
    ]


# A run that also writes the trained model's logits for a probe, before anything is saved or pushed.
PROBE = """
import sys, numpy, torch
from transformers import TrainerCallback
from audiolm.training.arguments import parse_arguments
from audiolm.training.train import train

class Probe(TrainerCallback):
    def on_train_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        sound = numpy.sin(numpy.arange(30000) / 9).astype("float32")
        inputs = processing_class(text="Which tone? A) low B) high", audio=[sound])
        with torch.no_grad():
            logits = model.eval()(**inputs).logits
        numpy.save(args.output_dir + "/probe.npy", logits.numpy())

train(*parse_arguments(sys.argv[1:]), callbacks=[Probe()])
"""


# On CPUs, `accelerate launch` ignores --num_processes. This is what it runs on GPUs.


class Waits(TorchDispatchMode):
    """Collects the places where Python reads a value of a tensor, for which it waits on a GPU."""

    def __init__(self):
        super().__init__()
        self.places = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aten = torch.ops.aten
        operation = function.overloadpacket
        asks = (
            aten._local_scalar_dense,
            aten.masked_select,
            aten.nonzero,
            aten.masked_scatter_backward,
        )
        if operation in asks or (
            operation is aten.index
            and any(i is not None and i.dtype == torch.bool for i in args[1])
        ):
            caller = next(
                (
                    f
                    for f in reversed(traceback.extract_stack()[:-1])
                    if "/torch/" not in f.filename
                ),
                None,
            )
            self.places.add(
                f"{function} in {Path(caller.filename).name}, {caller.name}"
                if caller
                else str(function)
            )
        return function(*args, **(kwargs or {}))


def weights(folder) -> dict:
    from audiolm import AudioLMForConditionalGeneration

    return AudioLMForConditionalGeneration.from_pretrained(folder).state_dict()


TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def run(hub, *argv: str, token: str | None = WRITER, home: str = "home", **variables: str):
    """Python in a process of its own that knows no other Hub."""
    environment = {**os.environ, **hub.environment(hub.folder.parent / home, token), **variables}
    return subprocess.run([sys.executable, *argv], env=environment, capture_output=True, text=True)


def train(hub, argv, **options):
    return run(hub, "-m", "audiolm.run_train", *argv, **options)


PUSH = [
    "--max_steps",
    "6",
    "--save_steps",
    "2",
    "--eval_strategy",
    "no",
    "--push_to_hub",
    "--hub_model_id",
    "me/x",
]
