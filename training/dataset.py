"""Loads what a run trains and evaluates on, from files, shards or a stream."""

import json
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict, IterableDataset
from transformers.trainer_utils import IntervalStrategy

from ..data.audio_check import drop_bad_audio, inspect_clips
from ..data.audio_files import Clip
from ..data.label_fixes import RowFixes
from ..data.length_sampler import LengthGroupedSampler, estimate_lengths
from ..data.reasonaqa import audio_roots, iterate_columns, load_rows
from ..data.second_clips import first_clips, second_clips
from ..data.shards import dataset_folder, load_shards
from ..data.streaming import Shards, StreamReaders, read_rows_in_order, stream_examples
from ..data.subsets import first_of_each_type, mix_rows, select_rows
from ..runtime import UserError, explain_errors
from .arguments import AudioLMTrainingArguments, DataArguments, ModelArguments
from .stock_options import check_best_metric


@dataclass
class TrainingData:
    """Examples and clips of a run."""

    rows: Dataset | IterableDataset
    eval_rows: dict[str, Dataset] | None  # by question type
    num_rows: int
    num_clips: int
    clips: list[Clip]  # for training; of a stream, only those for feature statistics
    eval_clips: dict[str, Clip]  # by the name that `eval_rows` have for a clip
    # Those for feature statistics. None if the mapper has its own, or needs none.
    sampled_clips: list[Clip] | None = None
    sampler: LengthGroupedSampler | None = None  # None for the Trainer's order, or a stream's

    def describe_step(self, step: int) -> str:
        """Returns indices and clips of the examples of a step, counted from 1, if it has them."""
        if self.sampler is None:
            return "not known"
        indices = self.sampler.batch_indices(step)
        return "; ".join(f"{i} ({', '.join(map(str, self.rows[i]['audio']))})" for i in indices)


def load_training_dataset(
    model_args: ModelArguments, data_args: DataArguments, args: AudioLMTrainingArguments
) -> TrainingData:
    """Loads the examples of a run. A resumed stream starts behind the last trained example.

    Without examples to evaluate on, it turns evaluation off in `args`.
    """
    with explain_errors():  # Readers of the formats name the file.
        data = _load_stream(data_args, args) if data_args.streaming else _load_rows(data_args, args)
        if model_args.prompt_format == "mellow":
            _add_second_clips(data, args.seed)
    check_best_metric(args.metric_for_best_model, data.eval_rows or ())
    if data.eval_rows is None:
        args.eval_strategy = IntervalStrategy.NO
    if not (model_args.model_name_or_path or model_args.learn_code_embeddings):
        # A random sample that is the same for every encoder.
        generator = torch.Generator().manual_seed(args.seed)
        order = torch.randperm(len(data.clips), generator=generator)
        sample = order[: data_args.num_stats_clips].tolist()
        data.sampled_clips = [data.clips[index] for index in sample]
    data.sampler = _build_sampler(data, data_args.max_audio_seconds, args)
    return data


def unique_clips(rows: Dataset) -> list[str]:
    """Returns the distinct clips of rows, ordered by the names in the rows, not by their paths."""
    clip_by_name: dict[str, str] = {}
    for *names, clips in iterate_columns(rows, "filepath1", "filepath2", "audio"):
        clip_by_name.update(zip(names, clips))
    return [clip_by_name[name] for name in sorted(clip_by_name)]


def choose_rows(rows: Dataset, data_args: DataArguments, seed: int, is_training: bool) -> Dataset:
    """Selects the rows that the options ask for. Most options apply to training alone."""
    limit = data_args.max_rows_per_clip if is_training else None
    rows = select_rows(rows, data_args.subtypes, data_args.question_types, limit, seed)
    if is_training and data_args.mix:
        rows = mix_rows(rows, data_args.mix, seed)
    if is_training and data_args.max_train_samples:
        rows = rows.select(range(min(data_args.max_train_samples, len(rows))))
    return rows


def _rows_by_type(rows: Dataset, limit: int, fixes: RowFixes) -> dict[str, Dataset]:
    first_rows = first_of_each_type(rows, limit)
    return {name: fixes.apply(rows.select(indices)) for name, indices in first_rows.items()}


def _build_row_fixes(data_args: DataArguments, seed: int) -> tuple[RowFixes, RowFixes]:
    """Builds the row transforms of training and of evaluation."""
    label_files = data_args.fix_cle_labels
    train_fixes = RowFixes(label_files, seed if data_args.shuffle_options else None)
    return train_fixes, RowFixes(label_files)


def _read_splits(data_args: DataArguments) -> DatasetDict:
    if not data_args.dataset_name:
        files = {"train": data_args.train_file, "validation": data_args.validation_file}
        files = {split: file for split, file in files.items() if file}
        return load_rows(files, audio_roots(data_args.audio_dir))
    data = load_shards(dataset_folder(data_args.dataset_name))
    if "train" not in data:
        raise UserError(
            f"--dataset_name {data_args.dataset_name} has no split `train`, only {', '.join(data)}"
        )
    splits = {"train": data["train"]}
    if "val" in data:
        splits["validation"] = data["val"]
    return DatasetDict(splits)


def _load_rows(data_args: DataArguments, args: AudioLMTrainingArguments) -> TrainingData:
    """Loads rows of files or shards, and checks their audio."""
    data = _read_splits(data_args)
    for split in data:
        data[split] = choose_rows(data[split], data_args, args.seed, split == "train")
    # The other processes read what the main process has cached about the files.
    with args.main_process_first(desc="checking audio"):
        data = drop_bad_audio(
            data, data_args.max_audio_seconds, data_args.on_bad_audio, args.output_dir
        )
    train_fixes, eval_fixes = _build_row_fixes(data_args, args.seed)
    clips = unique_clips(data["train"])
    eval_rows = None
    eval_clips: dict[str, Clip] = {}
    if "validation" in data:
        eval_rows = _rows_by_type(data["validation"], data_args.max_eval_samples, eval_fixes)
        for rows in eval_rows.values():
            eval_clips.update((clip, clip) for clip in unique_clips(rows))
    rows = train_fixes.apply(data["train"])
    return TrainingData(rows, eval_rows, len(rows), len(clips), clips, eval_clips)


def _load_stream(data_args: DataArguments, args: AudioLMTrainingArguments) -> TrainingData:
    """Opens a stream, and reads the rows to evaluate on and the clips for feature statistics.

    It makes each process read its own part of the stream, and the Trainer skip nothing of it.
    """
    args.accelerator_config.dispatch_batches = False  # ty: ignore[invalid-assignment]
    args.ignore_data_skip = True
    batches_done = 0
    if args.resume_from_checkpoint:
        state = json.loads(Path(args.resume_from_checkpoint, "trainer_state.json").read_text())
        batches_done = state["global_step"] * args.gradient_accumulation_steps
    try:
        address = dataset_folder(data_args.dataset_name, streaming=True)
        return _open_stream(address, data_args, args, batches_done)
    except (OSError, ValueError):
        raise
    except Exception as error:
        # A connection to the Hub fails with many types of exceptions.
        raise UserError(
            f"--dataset_name {data_args.dataset_name}: cannot read from the Hub ({error})"
        ) from error


def _open_stream(
    address: str, data_args: DataArguments, args: AudioLMTrainingArguments, batches_done: int
) -> TrainingData:
    train_fixes, eval_fixes = _build_row_fixes(data_args, args.seed)
    shards = Shards(address, "train")
    chosen = choose_rows(shards.selection_columns(), data_args, args.seed, True)
    stream = partial(stream_examples, shards, chosen["row"][:], data_args.shuffle_buffer, args.seed)
    workers, size = args.dataloader_num_workers, args.per_device_train_batch_size
    readers = StreamReaders(args.world_size, workers, size, batches_done)
    rows = stream(readers, train_fixes)
    clip_by_name: dict[str, Clip] = {}
    for row in islice(stream(), len(chosen)):
        clip_by_name.update(zip(row["names"], row["audio"]))
        if len(clip_by_name) >= data_args.num_stats_clips:
            break
    eval_rows = None
    eval_clips: dict[str, Clip] = {}
    if shards.has_split("val"):
        held_out = Shards(address, "val")
        eval_rows, eval_clips = _read_eval_rows(held_out, data_args, args.seed, eval_fixes)
    names = chain.from_iterable(iterate_columns(chosen, "filepath1", "filepath2"))
    num_clips = len(set(names) - {""})
    clips = list(clip_by_name.values())
    return TrainingData(rows, eval_rows, len(chosen), num_clips, clips, eval_clips)


def _read_eval_rows(
    shards: Shards, data_args: DataArguments, seed: int, fixes: RowFixes
) -> tuple[dict[str, Dataset], dict[str, Clip]]:
    """Reads the rows to evaluate on by question type, and their clips by name."""
    chosen = choose_rows(shards.selection_columns(), data_args, seed, False)
    indices: list[int] = []
    for positions in first_of_each_type(chosen, data_args.max_eval_samples).values():
        indices += chosen.select(positions)["row"][:]
    clips: dict[str, Clip] = {}
    texts = []
    for row in read_rows_in_order(shards, indices):
        clips.update(zip(row["names"], row["audio"]))
        text = {name: value for name, value in row.items() if name not in ("row", "names")}
        texts.append({**text, "audio": row["names"]})
    return _rows_by_type(Dataset.from_list(texts), len(texts), fixes), clips


def _add_second_clips(data: TrainingData, seed: int) -> None:
    """Gives each question a second clip, as Mellow's prompt expects."""
    data.rows = second_clips(data.rows, seed)
    eval_rows = data.eval_rows or {}
    clips: dict[str, str] = {}
    for rows in eval_rows.values():
        clips.update(first_clips(rows))
    for name, rows in eval_rows.items():
        eval_rows[name] = second_clips(rows, seed, clips)


def _build_sampler(
    data: TrainingData, max_seconds: float, args: AudioLMTrainingArguments
) -> LengthGroupedSampler | None:
    """Builds the order of batches of similar length, if `--train_sampling_strategy` asks for it."""
    if args.train_sampling_strategy != "group_by_length":
        return None
    # The Trainer's own sampler by length has no seed, and expects lengths of evaluation too.
    args.train_sampling_strategy = "random"
    if isinstance(data.rows, IterableDataset):
        return None
    facts = inspect_clips(data.clips, max_seconds)
    seconds = {clip: clip_facts.seconds for clip, clip_facts in facts.items()}
    examples = iterate_columns(data.rows, "audio", "input", "answer")
    lengths = estimate_lengths(examples, seconds, max_seconds)
    return LengthGroupedSampler(lengths, batch_size(args), args.seed)


def batch_size(args: AudioLMTrainingArguments) -> int:
    """Returns the examples per optimizer step, over all processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
