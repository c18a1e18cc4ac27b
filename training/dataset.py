"""What a run trains on and is evaluated on: rows of files, of shards, or of a stream; and what is encoded first."""

import hashlib
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import fsspec
import torch
from datasets import Dataset, DatasetDict, IterableDataset

from ..data import (
    FeatureCache,
    audio_roots,
    drop_bad_audio,
    encode_clips,
    feature_statistics,
    load_reasonaqa,
    select_rows,
)
from ..data.audio_check import inspect_clips
from ..data.audio_files import Clip
from ..data.label_fixes import RowFixes
from ..data.length_sampler import LengthBucketSampler, row_lengths
from ..data.shards import MANIFEST, dataset_folder, load_shards
from ..data.streaming import Shards, read_rows_in_order, stream_rows
from ..data.subsets import first_of_each_type, mix_rows
from ..runtime import file_facts, public_name
from .arguments import DataArguments


class TrainingData(NamedTuple):
    """Rows and clips of a run.

    Attributes:
        rows: to train on. evaluation: rows of each question type. num_rows, num_clips: of training.
        clips: training clips; all of them, or as many as the statistics of features take if rows are streamed.
        evaluation_clips: by the name that the evaluation's rows have for them.
    """

    rows: Dataset | IterableDataset
    evaluation: dict[str, Dataset] | None
    num_rows: int
    num_clips: int
    clips: list[Clip]
    evaluation_clips: dict[str, Clip]


def clips(rows: Dataset) -> list[str]:
    """The distinct clips of rows, in the order of the names that the rows have for them, wherever the audio lies."""
    named: dict[str, str] = {}
    for row in zip(rows["filepath1"], rows["filepath2"], rows["audio"]):
        named.update(zip(row[:2], row[2]))
    return [named[name] for name in sorted(named)]


def chosen_rows(rows: Dataset, data_args, seed: int, training: bool) -> Dataset:
    """The rows that the options leave; of those to be evaluated on, only subtypes and question types are chosen.

    Raises:
        ValueError: if none is left.
    """
    limit = data_args.max_rows_per_clip if training else None
    rows = select_rows(rows, data_args.subtypes, data_args.question_types, limit, seed)
    if training and data_args.mix:
        rows = mix_rows(rows, data_args.mix, seed)
    if training and data_args.max_train_samples:
        rows = rows.select(range(min(data_args.max_train_samples, len(rows))))
    return rows


def _by_type(rows: Dataset, limit: int) -> dict[str, Dataset]:
    return {kind: rows.select(numbers) for kind, numbers in first_of_each_type(rows, limit).items()}


def mendings(data_args, seed: int) -> tuple[RowFixes, RowFixes]:
    """What is done to rows of training and to those of evaluation.

    Raises:
        ValueError: if a csv of labels cannot be read.
    """
    fixes = data_args.fix_cle_labels
    return RowFixes(fixes, seed if data_args.shuffle_options else None), RowFixes(fixes)


def load_rows(data_args, args) -> TrainingData:
    """Rows of files or shards, whose audio is looked at first.

    Raises:
        ValueError: of reading, choosing and checking them.
    """
    if data_args.dataset_name:
        data = load_shards(dataset_folder(data_args.dataset_name))
        if "train" not in data:
            raise ValueError(
                f"--dataset_name {data_args.dataset_name} has no split `train`, only {', '.join(data)}"
            )
        data = DatasetDict(
            {"train": data["train"]} | ({"validation": data["val"]} if "val" in data else {})
        )
    else:
        files = {"train": data_args.train_file, "validation": data_args.validation_file}
        data = load_reasonaqa(
            {s: f for s, f in files.items() if f}, audio_roots(data_args.audio_dir)
        )
    for split in data:
        data[split] = chosen_rows(data[split], data_args, args.seed, split == "train")
    with args.main_process_first(desc="checking audio"):  # the others find its verdicts
        data = drop_bad_audio(
            data, data_args.max_audio_seconds, data_args.on_bad_audio, args.output_dir
        )
    of_training, of_evaluation = mendings(data_args, args.seed)
    heard, evaluation = clips(data["train"]), None
    if "validation" in data:
        evaluation = {
            k: of_evaluation.rows(v)
            for k, v in _by_type(data["validation"], data_args.max_eval_samples).items()
        }
    wanted = {clip: clip for rows in (evaluation or {}).values() for clip in clips(rows)}
    return TrainingData(
        of_training.rows(data["train"]), evaluation, len(data["train"]), len(heard), heard, wanted
    )


def stream(data_args, args, batches_done: int = 0) -> TrainingData:
    """Rows that are read while training goes on; those of evaluation, and clips for the statistics, are read first.

    Args:
        batches_done: by each process, before a run was interrupted.

    Raises:
        ValueError: of finding and choosing them.
    """
    try:
        return _stream(
            dataset_folder(data_args.dataset_name, streaming=True), data_args, args, batches_done
        )
    except (OSError, ValueError):
        raise
    except Exception as error:  # a connection fails in many ways
        raise ValueError(
            f"--dataset_name {data_args.dataset_name}: the Hub cannot be read ({error})"
        ) from error


def _stream(where: str, data_args, args, batches_done: int) -> TrainingData:
    of_training, of_evaluation = mendings(data_args, args.seed)
    shards = Shards(where, "train")
    chosen = chosen_rows(shards.selection_columns(), data_args, args.seed, True)
    options = {"chosen": chosen["row"], "buffer": data_args.shuffle_buffer, "seed": args.seed}
    rows = stream_rows(
        shards,
        **options,
        processes=args.world_size,
        workers=args.dataloader_num_workers,
        batch_size=args.per_device_train_batch_size,
        batches_done=batches_done,
        row=of_training,
    )
    heard: dict[str, bytes] = {}
    for row in islice(stream_rows(shards, **options), len(chosen)):
        heard.update(zip(row["names"], row["audio"]))
        if len(heard) >= data_args.num_stats_clips:
            break
    evaluation, wanted = None, {}
    if shards.has_split("val"):
        held_out = Shards(where, "val")
        left = chosen_rows(held_out.selection_columns(), data_args, args.seed, False)
        numbers = [
            n for rows in _by_type(left, data_args.max_eval_samples).values() for n in rows["row"]
        ]
        read = []
        for row in read_rows_in_order(held_out, numbers):
            wanted.update(zip(row["names"], row["audio"]))
            read.append(
                {
                    **{k: v for k, v in row.items() if k not in ("row", "names")},
                    "audio": row["names"],
                }
            )
        evaluation = {
            k: of_evaluation.rows(v)
            for k, v in _by_type(Dataset.from_list(read), len(read)).items()
        }
    num_clips = len({*chosen["filepath1"], *chosen["filepath2"]} - {""})
    return TrainingData(rows, evaluation, len(chosen), num_clips, list(heard.values()), wanted)


def rows_per_step(args) -> int:
    """Of all processes together."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def encodings(data: TrainingData, args) -> float:
    """How often a run without a cache encodes each training clip, on average."""
    steps = (
        args.max_steps
        if args.max_steps > 0
        else args.num_train_epochs * data.num_rows / rows_per_step(args)
    )
    clips = sum(map(len, data.rows["audio"])) / data.num_rows
    return steps * rows_per_step(args) * clips / data.num_clips


def encoded(model, extractor, data: TrainingData, data_args, args, standardise: bool, on_bad=None):
    """What is encoded before the first step: all clips with a cache, else those of evaluation, which come again and again.

    Several processes share the work for a cache. If asked, sets the mapper's mean and deviation per channel, from training
    clips that are the same for every arm. `on_bad` is told of clips that cannot be decoded, and are left out.

    Raises:
        ValueError: if the disk has no room for the cache, or a clip cannot be decoded and no `on_bad` is given.
    """
    model.encoder.move_conv_sizes_to_cpu()  # also in a process that finds all clips encoded by another
    order = torch.randperm(len(data.clips), generator=torch.Generator().manual_seed(args.seed))
    chosen = [data.clips[i] for i in order[: data_args.num_stats_clips].tolist()]
    if data_args.feature_cache:
        features = FeatureCache(data_args.feature_cache, model.encoder, extractor)
        features.fill_together(data.clips + list(data.evaluation_clips), on_bad)
        heard: Iterable[torch.Tensor] = (features[path] for path in chosen if path in features)
    else:
        names, sounds = list(data.evaluation_clips), list(data.evaluation_clips.values())
        made = dict(
            encode_clips(model.encoder, extractor, sounds, desc="evaluation clips", on_bad=on_bad)
        )
        features = {name: made[sound] for name, sound in zip(names, sounds) if sound in made}
        heard = (
            clip
            for _, clip in encode_clips(
                model.encoder, extractor, chosen, desc="feature statistics", on_bad=on_bad
            )
        )
    if standardise and not model.config.learn_code_embeddings:
        mean, deviation = feature_statistics(model.encoder, heard)
        model.mapper.feature_mean.copy_(mean)
        model.mapper.feature_std.copy_(deviation)
    return features


def bucket_sampler(data: TrainingData, max_seconds: float, args) -> LengthBucketSampler | None:
    """The order of rows by length, if `--train_sampling_strategy group_by_length` asks for it and rows are not streamed."""
    if args.train_sampling_strategy != "group_by_length":
        return None
    args.train_sampling_strategy = (
        "random"  # the stock sampler by length has no seed, and wants lengths of evaluation too
    )
    if isinstance(data.rows, IterableDataset):
        return None
    seconds = {
        clip: facts.seconds for clip, facts in inspect_clips(data.clips, max_seconds).items()
    }
    return LengthBucketSampler(
        row_lengths(data.rows, seconds, max_seconds), rows_per_step(args), args.seed
    )


def describe_rows(rows: Dataset, sampler: LengthBucketSampler, step: int) -> str:
    """Numbers of the rows of a training step, and their clips."""
    numbers = sampler.rows_of(step)
    return "; ".join(f"{i} ({', '.join(map(str, rows[i]['audio']))})" for i in numbers)


def data_changes(data_args, seed: int) -> dict:
    """What was chosen of the corpus or changed in it, of which a trained model keeps a record; nothing by default."""
    fixes = data_args.fix_cle_labels
    changes = {
        "subtypes": data_args.subtypes,
        "question_types": data_args.question_types,
        "mix": data_args.mix,
        "max_rows_per_clip": data_args.max_rows_per_clip,
        "max_train_samples": data_args.max_train_samples,
        "fix_cle_labels": None
        if fixes is None
        else [Path(file).name for file in fixes] or "swapped",
        "shuffle_options": f"by seed {seed}" if data_args.shuffle_options else None,
    }
    return {name: value for name, value in changes.items() if value is not None}


def stream_settings(data_args, args, facts: dict) -> dict | None:
    """What the place in a stream depends on that a resumed run goes on at; None if rows are not streamed.

    Args:
        facts: of [`data_facts`].
    """
    if not data_args.streaming:
        return None
    return {
        "processes": args.world_size,
        "dataloader_num_workers": args.dataloader_num_workers,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "shuffle_buffer": data_args.shuffle_buffer,
        "seed": args.seed,
        "sha256": facts["sha256"],
        "rows": facts["rows"],
        "changes": data_changes(data_args, args.seed),
    }


def data_facts(data_args, data: TrainingData) -> dict:
    """Name and SHA-256 of what says which data a run is about, the training file or a data set's manifest; and counts."""
    if not data_args.dataset_name:
        facts = file_facts(data_args.train_file)
    else:
        where = dataset_folder(data_args.dataset_name, data_args.streaming)
        with fsspec.open(f"{where}/{MANIFEST}") as file:
            facts = {
                "name": public_name(data_args.dataset_name),
                "sha256": hashlib.sha256(file.read()).hexdigest(),
            }
    return {**facts, "rows": data.num_rows, "clips": data.num_clips}


def read_rows(data_args: DataArguments, args) -> TrainingData:
    """The rows of a run; streamed ones go on where the checkpoint to resume from has stopped.

    Raises:
        ValueError: of reading, choosing and checking them.
    """
    if not data_args.streaming:
        return load_rows(data_args, args)
    args.accelerator_config.dispatch_batches = False  # each process reads its own
    args.ignore_data_skip = True  # the stream begins behind what was taken
    done = 0
    if args.resume_from_checkpoint:
        state = json.loads(Path(args.resume_from_checkpoint, "trainer_state.json").read_text())
        done = state["global_step"] * args.gradient_accumulation_steps
    return stream(data_args, args, done)
