"""Pushes checkpoints to the Hub during training, and the results of an evaluation."""

import logging
import os
import shlex
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import disable_progress_bars, get_session
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..runtime import UserError, file_facts, redact_token, write_text
from .model_card import EVAL_FILE, eval_results, with_results

logger = logging.getLogger("audiolm.hub.push")
TIMEOUT = 120  # seconds without an answer. The client would wait forever.
# Everything that a repository gets from a folder. Optimizer and random states stay here, and
# training_args.bin, which names paths of this machine.
PUSHED_FILES = ["README.md", "*.safetensors", "*.safetensors.index.json", "*config.json", "*.py"]
PUSHED_FILES += ["tokenizer.json", "special_tokens_map.json", "vocab.json", "merges.txt", "*.jinja"]
SUBFOLDERS = "*/*"


class PushError(UserError, ConnectionError):
    """The Hub did not accept a push."""


def _hard_link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


class PushToHub(TrainerCallback):
    """Pushes the checkpoints of a run from a background thread, and the trained model at the end.

    It takes the place of the Trainer's own push, which hides failures and pushes
    `training_args.bin`. A failed push does not stop the training. Checkpoints of LoRA adapters are
    not pushed, only the merged model at the end.

    Args:
        args: Arguments of the run. Their `push_to_hub` is switched off.
        card: Returns the model card for a repository and a step, or None at the end.

    Raises:
        UserError: The Hub refuses the repository, or cannot be reached.
    """

    def __init__(self, args: TrainingArguments, card: Callable[[str, int | None], str]):
        self.strategy = HubStrategy(args.hub_strategy)
        if self.strategy not in (HubStrategy.EVERY_SAVE, HubStrategy.END):
            raise UserError(
                f"--hub_strategy {self.strategy.value}: expected every_save or end. "
                "A pushed model has no optimizer state."
            )
        self.args = args
        self.card = card
        self.output_dir = Path(args.output_dir or "")
        self.repo = args.hub_model_id or self.output_dir.absolute().name
        self.token = get_token()
        self.api = HfApi(token=self.token)
        self.running_push: Future | None = None
        args.push_to_hub = False
        if args.process_index != 0:
            return
        disable_progress_bars()  # They would run into the training's.
        for leftover in self.output_dir.glob("push-*"):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            self._prepare_repo()
        except Exception as error:  # A connection fails in many ways.
            reason = redact_token(error, self.token)
            raise UserError(f"--push_to_hub: {self.repo}: {reason}") from error

    def _prepare_repo(self) -> None:
        get_session().timeout = TIMEOUT
        private, revision = self.args.hub_private_repo, self.args.hub_revision
        self.repo = self.api.create_repo(self.repo, private=private, exist_ok=True).repo_id
        if private and not self.api.model_info(self.repo).private:
            raise UserError("it exists and is public, but you asked for --hub_private_repo.")
        if revision and not revision.startswith("refs/"):
            self.api.create_branch(self.repo, branch=revision, exist_ok=True)

    def _upload(self, folder: Path, message: str, step: int | None = None) -> None:
        write_text(folder / "README.md", self.card(self.repo, step))
        get_session().timeout = TIMEOUT  # The client opens a new session after some errors.
        self.api.upload_folder(
            repo_id=self.repo,
            folder_path=folder,
            commit_message=message,
            revision=self.args.hub_revision,
            allow_patterns=PUSHED_FILES,
            ignore_patterns=SUBFOLDERS,
            delete_patterns=EVAL_FILE,  # Earlier results belong to other weights.
        )
        logger.info("pushed to %s: %s", self.repo, message)

    def _upload_checkpoint(self, folder: Path, step: int) -> None:
        try:
            self._upload(folder, f"Training in progress, step {step}", step)
        except Exception as error:  # A failed push must not stop the training.
            message = "not pushed to %s: %s. Training continues, and a later push includes this."
            logger.warning(message, self.repo, redact_token(error, self.token))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def on_save(self, args, state, control, **kwargs) -> None:
        """Pushes a checkpoint, unless an earlier push still runs. `hub_always_push` queues it."""
        is_busy = self.running_push is not None and not self.running_push.done()
        if args.process_index != 0 or self.strategy == HubStrategy.END:
            return
        checkpoint = self.output_dir / f"checkpoint-{state.global_step}"
        has_adapters = (checkpoint / "adapter_config.json").is_file()
        if has_adapters or (is_busy and not args.hub_always_push):
            return
        # The Trainer may delete the checkpoint before it is uploaded.
        links = self.output_dir / f"push-{state.global_step}"
        shutil.copytree(checkpoint, links, copy_function=_hard_link)
        step = state.global_step
        self.running_push = self.api.run_as_future(self._upload_checkpoint, links, step)

    def finish(self) -> None:
        """Pushes the trained model and waits. A `PushError` holds a command that does it later."""
        if self.args.process_index != 0:
            return
        logger.info("pushing the trained model to %s", self.repo)
        if self.running_push is not None:
            self.running_push.result()
        try:
            self._upload(self.output_dir, "End of training")
        except Exception as error:
            command = ["hf", "upload", self.repo, str(self.output_dir), "."]
            command += ["--commit-message=End of training", f"--exclude={SUBFOLDERS}"]
            command += [f"--include={pattern}" for pattern in PUSHED_FILES]
            if self.args.hub_revision:
                command.append(f"--revision={self.args.hub_revision}")
            raise PushError(
                f"the trained model is in {self.output_dir}, but not on the Hub "
                f"({redact_token(error, self.token)}). Push it with\n{shlex.join(command)}"
            ) from error


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

    Raises:
        PushError: If the Hub does not accept it.
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
            "README.md": with_results(card, metrics, test),
            EVAL_FILE: eval_results(metrics, test, dataset_id),
        }
        operations = [CommitOperationAdd(name, text.encode()) for name, text in files.items()]
        info = api.create_commit(repo, operations, commit_message="Evaluation", revision=revision)
    except Exception as error:  # A connection fails in many ways.
        reason = redact_token(error, token)
        raise PushError(f"the Hub did not accept the results of {repo}: {reason}") from error
    return str(info.commit_url)
