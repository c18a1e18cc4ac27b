"""The Hub: pushing checkpoints while training goes on, and loading an AudioLM that somebody pushed."""

import logging
import os
import shlex
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, get_session
from transformers import TrainerCallback

from ..checkpoints.load import merge_adapters
from ..runtime import file_facts, redact_token
from .model_card import EVAL_FILE, eval_results, with_results

logger = logging.getLogger("audiolm.hub.push")
RETRY_SECONDS = (2, 10)  # before the last push is tried again
SILENCE_SECONDS = (
    120  # after which a Hub that says nothing has failed; the client would wait for ever
)
# All that a repository holds of a folder; optimizer, random states, training_args.bin and lists of files stay here.
PUSHED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "adapter_config.json",
    "*_audiolm.py",
    "README.md",
)
WHOLE = [
    "model*.safetensors*",
    "config.json",
    "generation_config.json",
]  # what a repository of adapters lacks


class PushToHub(TrainerCallback):
    """Pushes what the stock Trainer saves, from a thread, and lets no failure of it reach the training.

    The Trainer's own push drops failures and pushes `training_args.bin` with the token in it: it is switched off
    in `args`. `hub_strategy` may be `every_save` or `end`.

    Args:
        args: the run's `TrainingArguments`. card: the text of the model card for a repository and a step, None at the end.
        adapter_of: the model that LoRA adapters belong to, if they are pushed alone and not merged into it.

    Raises:
        ValueError: if the Hub refuses the token or the repository's name, or `hub_strategy` would push optimizer states.
    """

    def __init__(self, args, card: Callable[[str, int | None], str], adapter_of: str | None = None):
        self.strategy = str(getattr(args.hub_strategy, "value", args.hub_strategy))
        if self.strategy not in ("every_save", "end"):
            raise ValueError(
                f"--hub_strategy {self.strategy}: every_save and end are there; a pushed model has no optimizer"
            )
        self.repo = args.hub_model_id or Path(args.output_dir).absolute().name
        self.revision, self.private, self.always = (
            args.hub_revision,
            args.hub_private_repo,
            args.hub_always_push,
        )
        self.output, self.card, self.adapter_of = Path(args.output_dir), card, adapter_of
        self.token = get_token()
        self.api = HfApi(token=self.token)
        args.push_to_hub = False
        self.here = args.process_index == 0
        disable_progress_bars()  # of uploads, amid the training's
        self.created, self.finishing, self.reason = (
            False,
            False,
            None,
        )  # of the last push, why it failed
        self.thread, self.push_in_progress = ThreadPoolExecutor(1), None
        if not self.here:
            return
        for left in self.output.glob("push-*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            self._create()
        except HFValidationError as error:
            raise ValueError(
                f"--hub_model_id {self.repo}: {redact_token(error, self.token)}"
            ) from error
        except ValueError:
            raise
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (401, 403):
                raise ValueError(
                    f"--push_to_hub: the Hub refuses to write to {self.repo}: {redact_token(error, self.token)}"
                ) from error
            self._report(error)
        except (
            Exception
        ) as error:  # no connection, in one of many ways: training need not wait for it
            self._report(error)

    def _create(self) -> None:
        get_session().timeout = SILENCE_SECONDS
        self.repo = self.api.create_repo(self.repo, private=self.private, exist_ok=True).repo_id
        if self.repo == self.adapter_of:
            raise ValueError(
                f"--hub_model_id {self.repo} holds the model that the adapter is of: give it a repository of its own"
            )
        if self.private and not self.api.model_info(self.repo).private:
            raise ValueError(f"--hub_private_repo: {self.repo} is there already, and public")
        if self.revision and not self.revision.startswith("refs/"):
            self.api.create_branch(self.repo, branch=self.revision, exist_ok=True)
        self.created = True

    def _report(self, error: Exception) -> None:
        self.reason = redact_token(error, self.token)
        if self.finishing:
            return
        logger.warning(
            "not pushed to %s: %s; training goes on, and a later push brings what this one would have",
            self.repo,
            self.reason,
        )

    def _stage(self, folder: Path, model=None, step: int | None = None) -> Path:
        """A folder with links to what is pushed of another: the Trainer may delete a checkpoint before it is uploaded."""
        stage = self.output / f"push-{step or 'final'}"
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        merge = (folder / "adapter_config.json").is_file() and not self.adapter_of
        for file in sorted({file for pattern in PUSHED for file in folder.glob(pattern)}):
            if file.name == "README.md" or (merge and file.name.startswith("adapter_")):
                continue
            try:
                os.link(file, stage / file.name)
            except OSError:  # a file system without links
                shutil.copy2(file, stage / file.name)
        if merge:
            merge_adapters(model).save_pretrained(stage)
        return stage

    def _push(self, stage: Path, message: str, step: int | None = None) -> bool:
        start = time.perf_counter()
        try:
            (stage / "README.md").write_text(self.card(self.repo, step), encoding="utf-8")
            if not self.created:
                self._create()
                (stage / "README.md").write_text(
                    self.card(self.repo, step), encoding="utf-8"
                )  # with the user's name
            get_session().timeout = SILENCE_SECONDS
            self.api.upload_folder(
                repo_id=self.repo,
                folder_path=stage,
                commit_message=message,
                revision=self.revision,
                # what an earlier push of another kind left, and results of other weights
                delete_patterns=[EVAL_FILE, *(WHOLE if self.adapter_of else ["adapter_*"])],
            )
        except Exception as error:  # whatever a network can do, the training goes on
            self._report(error)
            return False
        self.reason = None
        size = sum(file.stat().st_size for file in stage.iterdir())
        logger.info(
            "pushed to %s: %s, %.1f MB in %.0f s",
            self.repo,
            message,
            size / 1e6,
            time.perf_counter() - start,
        )
        shutil.rmtree(stage, ignore_errors=True)
        return True

    def _push_and_forget(self, stage: Path, message: str, step: int) -> None:
        if not self._push(stage, message, step):
            shutil.rmtree(stage, ignore_errors=True)  # the next push holds more

    def on_save(self, args, state, control, model=None, **kwargs):
        if not self.here or self.strategy == "end":
            return
        if self.push_in_progress and not self.push_in_progress.done() and not self.always:
            return  # as the Trainer does: the next save pushes
        try:
            stage = self._stage(
                self.output / f"checkpoint-{state.global_step}", model, state.global_step
            )
        except Exception as error:  # a full disk
            self._report(error)
            shutil.rmtree(self.output / f"push-{state.global_step}", ignore_errors=True)
            return
        message = f"Training in progress, step {state.global_step}"
        self.push_in_progress = self.thread.submit(
            self._push_and_forget, stage, message, state.global_step
        )

    def finish(self) -> None:
        """Pushes the trained model, and waits until it is there.

        Raises:
            ConnectionError: if the Hub does not take it; it names the folder that holds it and the command that pushes it.
        """
        if not self.here:
            return
        if self.push_in_progress and not self.push_in_progress.done():
            logger.info("waiting for the last checkpoint to be pushed")
        self.thread.shutdown(wait=True)
        self.finishing = True
        enable_progress_bars()
        trained = self.output / "adapter" if self.adapter_of else self.output
        try:
            stage = self._stage(trained)
        except OSError as error:
            raise ConnectionError(
                f"the trained model is in {trained}, but not on the Hub ({error})"
            ) from error
        for pause in (0, *RETRY_SECONDS):
            time.sleep(pause)
            if self._push(stage, "End of training"):
                return
        command = [
            "hf",
            "upload",
            self.repo,
            str(stage),
            ".",
            "--commit-message",
            "End of training",
        ]
        command += ["--revision", self.revision] if self.revision else []
        command += ["--private"] if self.private else []
        raise ConnectionError(
            f"the trained model is in {self.output}, but not on the Hub ({self.reason}); push it with\n"
            + shlex.join(command)
        )


def push_results(
    repo: str,
    metrics: dict,
    test_file: str | Path,
    dataset_id: str,
    revision: str | None = None,
    commit: str | None = None,
) -> str:
    """Adds an evaluation to a model on the Hub, in its card and in `.eval_results/`, as one commit; gives its address.

    Args:
        metrics: of run_eval.py's `metrics.json`. dataset_id: the data set's name in `.eval_results/`.
        commit: of the weights that were evaluated, if they came from the Hub.

    Raises:
        ConnectionError: in one line, if the Hub does not take it.
    """
    token = get_token()
    try:
        get_session().timeout = SILENCE_SECONDS
        api, test = HfApi(token=token), {**file_facts(test_file), "commit": commit}
        try:
            card = Path(api.hf_hub_download(repo, "README.md", revision=revision)).read_text(
                encoding="utf-8"
            )
        except EntryNotFoundError:
            card = f"# {repo.split('/')[-1]}\n"
        files = {
            "README.md": with_results(card, metrics, test, repo),
            EVAL_FILE: eval_results(metrics, test, dataset_id),
        }
        made = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=text.encode())
            for name, text in files.items()
        ]
        return str(
            api.create_commit(repo, made, commit_message="Evaluation", revision=revision).commit_url
        )
    except Exception as error:  # whatever a network can do
        raise ConnectionError(
            f"the Hub did not take the results of {repo}: {redact_token(error, token)}"
        ) from error
