"""Pushes checkpoints to the Hub during training, and the results of an evaluation."""

import logging
import os
import shlex
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import disable_progress_bars, filter_repo_objects, get_session
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..checkpoints.load import merge_adapters
from ..runtime import UserError, file_facts, format_bytes, format_duration, redact_token, write_text
from .model_card import EVAL_FILE, eval_results, with_results

logger = logging.getLogger("audiolm.hub.push")
RETRY_DELAYS = (2, 10)  # seconds before the last push is tried again
TIMEOUT = 120  # seconds without an answer. The client would wait forever.
# Everything that a repository gets from a folder, beside the card. Optimizer and random states stay
# here, and training_args.bin, which names paths of this machine.
MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", "*config.json", "*.py"]
MODEL_FILES += ["tokenizer.json", "special_tokens_map.json", "vocab.json", "merges.txt", "*.jinja"]
# What an earlier push of the other kind may have left in a repository.
ADAPTER_FILES = ["adapter_*"]
FULL_MODEL_FILES = ["model*.safetensors*", "config.json", "generation_config.json"]


class PushError(UserError, ConnectionError):
    """The Hub did not accept a push."""


class PushToHub(TrainerCallback):
    """Pushes the checkpoints of a run from a background thread, and the trained model at the end.

    It takes the place of the Trainer's own push, which hides failures and pushes
    `training_args.bin`. A failed push does not stop the training.

    Args:
        args: Arguments of the run. Their `push_to_hub` is switched off.
        card: Returns the model card for a repository and a step, or None at the end.
        adapter_of: Model of the LoRA adapters, if they are pushed alone. Default: they are merged.
    """

    def __init__(
        self,
        args: TrainingArguments,
        card: Callable[[str, int | None], str],
        adapter_of: str | None = None,
    ):
        self.strategy = HubStrategy(args.hub_strategy)
        if self.strategy not in (HubStrategy.EVERY_SAVE, HubStrategy.END):
            raise UserError(
                f"--hub_strategy {self.strategy.value}: expected every_save or end. "
                "A pushed model has no optimizer state."
            )
        self.args = args
        self.card = card
        self.adapter_of = adapter_of
        self.output_dir = Path(args.output_dir or "")
        self.repo = args.hub_model_id or self.output_dir.absolute().name
        self.token = get_token()
        self.api = HfApi(token=self.token)
        self.is_repo_ready = False
        self.running_push: Future | None = None
        args.push_to_hub = False
        if args.process_index != 0:
            return
        disable_progress_bars()  # They would run into the training's.
        for leftover in self.output_dir.glob("push-*"):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            self._prepare_repo()
        except Exception as error:  # A connection fails in many ways. The training need not wait.
            status = getattr(getattr(error, "response", None), "status_code", None)
            if isinstance(error, ValueError) or status in (401, 403):
                reason = redact_token(error, self.token)
                raise UserError(f"--push_to_hub: {self.repo}: {reason}") from error
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        message = "not pushed to %s: %s. Training continues, and a later push includes this one."
        logger.warning(message, self.repo, redact_token(error, self.token))

    def _prepare_repo(self) -> None:
        get_session().timeout = TIMEOUT
        private, revision = self.args.hub_private_repo, self.args.hub_revision
        self.repo = self.api.create_repo(self.repo, private=private, exist_ok=True).repo_id
        if self.repo == self.adapter_of:
            raise UserError("it holds the model of the adapter. Use another --hub_model_id.")
        if private and not self.api.model_info(self.repo).private:
            raise UserError("it exists and is public, but you asked for --hub_private_repo.")
        if revision and not revision.startswith("refs/"):
            self.api.create_branch(self.repo, branch=revision, exist_ok=True)
        self.is_repo_ready = True

    def _stage(self, folder: Path, stage: Path, model: PreTrainedModel | None = None) -> None:
        """Links the pushed files, as the Trainer may delete a checkpoint before it is uploaded."""
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        is_merged = (folder / "adapter_config.json").is_file() and not self.adapter_of
        files = filter_repo_objects(
            folder.iterdir(),
            allow_patterns=MODEL_FILES,
            ignore_patterns=ADAPTER_FILES if is_merged else [],
            key=lambda file: file.name,
        )
        for file in files:
            try:
                os.link(file, stage / file.name)
            except OSError:  # a file system without links
                shutil.copy2(file, stage / file.name)
        if is_merged:
            merge_adapters(model).save_pretrained(stage)

    def _push(self, stage: Path, message: str, step: int | None = None) -> None:
        start = time.perf_counter()
        try:
            if not self.is_repo_ready:
                self._prepare_repo()
        finally:  # The card names the repository. A folder to be pushed by hand needs one too.
            write_text(stage / "README.md", self.card(self.repo, step))
        get_session().timeout = TIMEOUT  # The client opens a new session after some errors.
        self.api.upload_folder(
            repo_id=self.repo,
            folder_path=stage,
            commit_message=message,
            revision=self.args.hub_revision,
            # Earlier results belong to other weights.
            delete_patterns=[EVAL_FILE, *(FULL_MODEL_FILES if self.adapter_of else ADAPTER_FILES)],
        )
        size = format_bytes(sum(file.stat().st_size for file in stage.iterdir()))
        duration = format_duration(time.perf_counter() - start)
        logger.info("pushed to %s: %s, %s in %s", self.repo, message, size, duration)
        shutil.rmtree(stage, ignore_errors=True)

    def _push_checkpoint(self, stage: Path, step: int) -> None:
        try:
            self._push(stage, f"Training in progress, step {step}", step)
        except Exception as error:  # A failed push must not stop the training.
            self._warn(error)
            shutil.rmtree(stage, ignore_errors=True)

    def on_save(self, args, state, control, model=None, **kwargs) -> None:
        """Pushes a checkpoint, unless an earlier push still runs. `hub_always_push` queues it."""
        is_busy = self.running_push is not None and not self.running_push.done()
        if args.process_index != 0 or self.strategy == HubStrategy.END:
            return
        if is_busy and not args.hub_always_push:
            return
        step = state.global_step
        stage = self.output_dir / f"push-{step}"
        try:
            self._stage(self.output_dir / f"checkpoint-{step}", stage, model)
        except Exception as error:  # such as a full disk
            self._warn(error)
            shutil.rmtree(stage, ignore_errors=True)
        else:
            self.running_push = self.api.run_as_future(self._push_checkpoint, stage, step)

    def finish(self) -> None:
        """Pushes the trained model and waits. A `PushError` holds a command that does it later."""
        if self.args.process_index != 0:
            return
        logger.info("pushing the trained model to %s", self.repo)
        if self.running_push is not None:
            self.running_push.result()
        trained = self.output_dir / "adapter" if self.adapter_of else self.output_dir
        failure = f"the trained model is in {trained}, but not on the Hub"
        stage = self.output_dir / "push-final"
        try:
            self._stage(trained, stage)
        except OSError as error:
            raise PushError(f"{failure} ({error})") from error
        for delay in (0, *RETRY_DELAYS):
            time.sleep(delay)
            try:
                self._push(stage, "End of training")
                return
            except Exception as error:  # A connection fails in many ways.
                reason = redact_token(error, self.token)
        command = ["hf", "upload", self.repo, str(stage), ".", "--commit-message=End of training"]
        if self.args.hub_revision:
            command.append(f"--revision={self.args.hub_revision}")
        if self.args.hub_private_repo:
            command.append("--private")
        raise PushError(f"{failure} ({reason}). Push it with\n{shlex.join(command)}")


def push_results(
    repo: str,
    metrics: dict,
    test_file: str | Path,
    dataset_id: str,
    revision: str | None = None,
    commit: str | None = None,
) -> str:
    """Adds an evaluation to a model on the Hub, in its card and in `.eval_results/`.

    Args:
        repo: Name of the model.
        metrics: Content of run_eval.py's `metrics.json`.
        test_file: File of the test questions.
        dataset_id: Name of the data set in `.eval_results/`.
        revision: Branch. Default: main.
        commit: Commit of the weights, if they came from the Hub.

    Returns:
        URL of the new commit.
    """
    token = get_token()
    api = HfApi(token=token)
    test: dict = {**file_facts(test_file), "commit": commit}
    try:
        get_session().timeout = TIMEOUT
        try:
            card_path = api.hf_hub_download(repo, "README.md", revision=revision)
            card = Path(card_path).read_text(encoding="utf-8")
        except EntryNotFoundError:
            card = f"# {repo.split('/')[-1]}\n"
        files = {
            "README.md": with_results(card, metrics, test, repo),
            EVAL_FILE: eval_results(metrics, test, dataset_id),
        }
        operations = [CommitOperationAdd(name, text.encode()) for name, text in files.items()]
        info = api.create_commit(repo, operations, commit_message="Evaluation", revision=revision)
    except Exception as error:  # A connection fails in many ways.
        reason = redact_token(error, token)
        raise PushError(f"the Hub did not accept the results of {repo}: {reason}") from error
    return str(info.commit_url)
