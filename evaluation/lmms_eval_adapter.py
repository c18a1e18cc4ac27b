"""Evaluates an AudioLM in lmms-eval: `python -m lmms_eval --model audiolm ...`.

lmms-eval finds `manifest` by its entry point in setup.cfg. docs/lmms-eval.md explains the use.
"""

import os
import re
from itertools import groupby
from typing import Any, NoReturn

import torch
from accelerate import PartialState
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from ..checkpoints.load import import_saved_encoders
from ..data.decoder import ClipDecoder
from ..data.features import encode_clips
from ..runtime import UserError
from .answering import answer_batch
from .inputs import load_evaluated_model

# The values with which an option of a task leaves generation greedy.
GREEDY = {"do_sample": [False, None], "temperature": [0, None], "top_p": [0, 1, None]}
GREEDY["num_beams"] = [1, None]


class LmmsEvalModel(lmms):
    """A trained AudioLM that answers lmms-eval's requests greedily.

    Args:
        pretrained: Folder or Hub name.
        revision: Branch, tag or commit on the Hub.
        reasonaqa_options: Write option lines ("A. rain") as in training ("A) rain"), leave out
            what follows them, and shorten the answer "A) rain" to "A".
        trust_remote_code: Run the file of an encoder in the model's folder, if it has one.
        batch_size: Documents per batch.
        device: Default: an accelerator if there is one.
        unsupported: Any other argument is an error.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        revision: str | None = None,
        reasonaqa_options: bool = False,
        trust_remote_code: bool = False,
        batch_size: int | str = 1,
        device: str | None = None,
        **unsupported: Any,
    ):
        super().__init__()
        if unsupported or not pretrained:
            expected = "pretrained=FOLDER_OR_HUB_NAME"
            expected += " and at most revision, reasonaqa_options and trust_remote_code"
            raise UserError(f"--model_args: expected {expected}, not {', '.join(unsupported)!r}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"--batch_size {batch_size}: expected a number above 0")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("--model audiolm runs in one process: start it without a launcher")
        self.batch_size = int(batch_size)
        self.reasonaqa_options = reasonaqa_options
        target = torch.device(device or PartialState().device)
        if trust_remote_code:
            import_saved_encoders([str(pretrained)], revision)
        evaluated = load_evaluated_model(str(pretrained), revision, target)
        self.model, self.processor = evaluated.model, evaluated.processor

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Returns the greedy answer to each request, up to the task's first stop string."""
        texts = []
        for task, group in groupby(requests, lambda request: request.task_name):
            instances = list(group)
            options = dict(instances[0].args[1])
            stops = options.pop("until", None) or []
            stops = [stops] if isinstance(stops, str) else stops
            max_new_tokens = options.pop("max_new_tokens", 64)
            for name, value in options.items():
                if value not in GREEDY.get(name, ()):
                    raise UserError(
                        f"task {task}: AudioLM generates greedily, without {name}={value}. "
                        "Change it, such as with --gen_kwargs temperature=0,do_sample=False"
                    )
            for start in tqdm(range(0, len(instances), self.batch_size), desc=task, unit="batch"):
                batch = instances[start : start + self.batch_size]
                for answer in self._answer(batch, max_new_tokens):
                    for stop in filter(None, stops):
                        answer = answer.split(stop)[0].strip()
                    texts.append(answer)
        return texts

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Refuses, because lmms-eval 0.7.3 turns the values into text and cannot compare them."""
        raise UserError(f"task {requests[0].task_name}: use a task with generate_until instead")

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        """Refuses tasks of several rounds."""
        raise UserError(
            f"task {requests[0].task_name}: AudioLM answers one round of questions only"
        )

    def _answer(self, batch: list[Instance], max_new_tokens: int) -> list[str]:
        rows, clips = [], []
        for request in batch:
            own = self._load_clips(request)
            question = request.args[0]
            option_lines = re.search(r"(\n[A-Z][.)] .*)+", question)
            if self.reasonaqa_options and option_lines:
                options = re.sub(r"\n([A-Z])[.)] ", r" \1) ", option_lines[0])
                question = question[: option_lines.start()] + options
            numbers = list(range(len(clips), len(clips) + len(own)))
            rows.append({"input": question, "answer": "", "audio": numbers})
            clips += own
        encoded = encode_clips(self.model.encoder, self.processor.feature_extractor, clips)
        features = {number: features for number, (_, features) in enumerate(encoded)}
        answers = answer_batch(
            self.model, self.processor, rows, features, ("generate",), max_new_tokens
        )
        texts = [answer["text"] for answer in answers]
        if self.reasonaqa_options:
            texts = [re.sub(r"^\(?([A-Za-z])\)(?s:.*)", lambda m: m[1].upper(), t) for t in texts]
        return texts

    def _load_clips(self, request: Instance) -> list[torch.Tensor]:
        """Returns the samples of a document's one or two clips at the encoder's rate."""
        _, _, doc_to_visual, doc_id, task, split = request.args
        place = f"task {task}, document {doc_id}"
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        if len(visuals) not in (1, 2):
            raise UserError(f"{place}: AudioLM takes one or two clips, not {len(visuals)}")
        decode = ClipDecoder(self.processor.feature_extractor)
        clips = [decode(visual, place) for visual in visuals]
        needs_two_clips = self.processor.prompt_format == "mellow"
        return clips * 2 if needs_two_clips and len(clips) == 1 else clips


def manifest() -> Any:
    """Returns what lmms-eval registers under the name `audiolm`."""
    # Imported here because lmms_eval.models itself loads this module.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("audiolm", simple_class_path=f"{__name__}.{LmmsEvalModel.__name__}")
