"""Evaluates an AudioLM in lmms-eval: `python -m lmms_eval --model audiolm ...`.

lmms-eval finds `manifest` by its entry point in setup.cfg. docs/lmms-eval.md explains the use.
"""

import os
from collections.abc import Iterator, Mapping
from itertools import chain, groupby
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from ..data.decoder import ClipDecoder
from ..data.features import encode_clips
from ..runtime import UserError
from .answering import answer_batch
from .inputs import load_evaluated_model

# The values with which each option of a task leaves generation greedy.
GREEDY_VALUES = {
    "do_sample": (False, None),
    "temperature": (0, None),
    "top_p": (0, 1, None),
    "num_beams": (1, None),
}


class LmmsEvalModel(lmms):
    """A trained AudioLM as lmms-eval asks it.

    Args:
        pretrained: Folder or Hub name.
        revision: Branch, tag or commit on the Hub.
        batch_size: Documents per batch.
        device: Default: an accelerator if there is one.
        unsupported: Any other argument is an error.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        revision: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        **unsupported: Any,
    ):
        super().__init__()
        if unsupported or not pretrained:
            raise UserError(
                "--model_args: expected pretrained=FOLDER_OR_HUB_NAME and at most revision, "
                f"batch_size and device, not {', '.join(unsupported) or 'nothing'}"
            )
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"--batch_size {batch_size}: expected a number above 0")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("--model audiolm runs in one process: start it without a launcher")
        if device is None:
            accelerator = torch.accelerator
            device = accelerator.current_accelerator() if accelerator.is_available() else "cpu"
        self.batch_size = int(batch_size)
        self.device = torch.device(device)
        evaluated = load_evaluated_model(pretrained, revision, self.device)
        self.model, self.processor = evaluated.model, evaluated.processor

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Returns the greedy answer to each request, up to the task's first stop string."""
        texts = []
        for task, group in groupby(requests, lambda request: request.task_name):
            instances = list(group)
            options = dict(instances[0].args[1])
            stops = options.pop("until", None) or []
            max_new_tokens = options.pop("max_new_tokens", 64)
            for name, value in options.items():
                if value not in GREEDY_VALUES.get(name, ()):
                    raise UserError(
                        f"task {task}: AudioLM generates greedily, not with {name}={value}. "
                        "Change it with --gen_kwargs, such as temperature=0,do_sample=False"
                    )
            for answer in self._answer(instances, ("generate",), max_new_tokens):
                text = answer["text"]
                for stop in [stops] if isinstance(stops, str) else stops:
                    text = text.split(stop)[0] if stop else text
                texts.append(text.strip())
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Returns each continuation's negative log-likelihood, and whether it is the greedy text.

        lmms-eval chooses the option with the lowest value. The end-of-text token counts too.
        """
        answers = self._answer(requests, ("likelihood", "generate"))
        return [(answer["loss"], answer["text"] == answer["continuation"]) for answer in answers]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuses tasks of several rounds."""
        raise UserError(
            f"task {requests[0].task_name}: AudioLM answers one round of questions only"
        )

    def _answer(
        self, requests: list[Instance], protocols: tuple[str, ...], max_new_tokens: int = 64
    ) -> Iterator[dict]:
        features: dict[tuple, list[torch.Tensor]] = {}
        for start in tqdm(range(0, len(requests), self.batch_size), desc="AudioLM", unit="batch"):
            batch = requests[start : start + self.batch_size]
            features = self._encode_clips(batch, features)
            by_clip = {(doc, i): clip for doc in features for i, clip in enumerate(features[doc])}
            rows = [self._row(request, features[request.args[3:]]) for request in batch]
            answers = answer_batch(
                self.model, self.processor, rows, by_clip, protocols, max_new_tokens
            )
            yield from (
                {"continuation": row["answer"], **answer} for row, answer in zip(rows, answers)
            )

    def _row(self, request: Instance, clips: list[torch.Tensor]) -> dict:
        question, continuation, _, *document = request.args
        if callable(continuation):  # the target of a `loglikelihood` task
            continuation = continuation(self._document(request))
        return {
            "input": question,
            "answer": continuation.strip() if isinstance(continuation, str) else "",
            "question_type": "open",
            "audio": [(tuple(document), i) for i in range(len(clips))],
        }

    def _document(self, request: Instance) -> Any:
        doc_id, task, split = request.args[3:]
        return self.task_dict[task][split][doc_id]

    def _encode_clips(
        self, batch: list[Instance], previous: dict[tuple, list[torch.Tensor]]
    ) -> dict[tuple, list[torch.Tensor]]:
        """Returns the features of each document's clips. The options of one share them."""
        requests = {request.args[3:]: request for request in batch}
        clips = {doc: self._load_clips(requests[doc]) for doc in requests if doc not in previous}
        samples = list(chain.from_iterable(clips.values()))
        encoded = encode_clips(self.model.encoder, self.processor.feature_extractor, samples)
        new = {doc: [next(encoded)[1] for _ in clips[doc]] for doc in clips}
        return {doc: new[doc] if doc in new else previous[doc] for doc in requests}

    def _load_clips(self, request: Instance) -> list[torch.Tensor]:
        """Returns the samples of a document's one or two clips at the encoder's rate."""
        place = f"task {request.task_name}, document {request.doc_id}"
        if len(request.args) != 6:
            raise UserError(f"{place}: AudioLM needs audio, so acc_mutual_info cannot be computed")
        visuals = request.args[2](self._document(request)) or []
        if len(visuals) not in (1, 2):
            raise UserError(f"{place}: AudioLM takes one or two clips, not {len(visuals)}")
        decode = ClipDecoder(self.processor.feature_extractor)
        clips = [decode(_samples_and_rate(visual, place), place) for visual in visuals]
        needs_two_clips = self.processor.prompt_format == "mellow"
        return clips * 2 if needs_two_clips and len(clips) == 1 else clips


def _samples_and_rate(visual: Any, place: str) -> tuple[Any, int]:
    if hasattr(visual, "get_all_samples"):  # torchcodec's AudioDecoder
        samples = visual.get_all_samples()
        return samples.data.numpy(), samples.sample_rate
    if isinstance(visual, Mapping) and {"array", "sampling_rate"} <= set(visual):
        return visual["array"], visual["sampling_rate"]
    raise UserError(
        f"{place}: AudioLM takes audio (array and sampling_rate, or a torchcodec AudioDecoder), "
        f"not {type(visual).__name__}"
    )


def manifest() -> Any:
    """Returns what lmms-eval registers for the name `audiolm`."""
    # Imported here because lmms_eval.models itself loads this module.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("audiolm", simple_class_path=f"{__name__}.{LmmsEvalModel.__name__}")
