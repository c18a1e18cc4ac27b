"""Accuracy by question type and category of a trained model, answering greedily.

`python run_eval.py --model_name_or_path M --test_file test.json --audio_dir AUDIO --output_dir OUT` writes
`predictions.jsonl` and `metrics.json`, and prints the table. The same command writes the same bytes.
"""

import argparse
import json
import sys
from pathlib import Path

import pyarrow as pa
import torch
from tqdm import tqdm

from audiolm.data import (
    QUESTION_TYPES,
    FeatureCache,
    ReasonAQACollator,
    audio_roots,
    encode_clips,
    load_reasonaqa,
    sound_rows,
)  # fmt: skip
from audiolm.data.mending import Mending
from audiolm.data.reasonaqa import question_type
from audiolm.data.selection import first_of_each_type
from audiolm.data.shards import MANIFEST, load_shards
from audiolm.evaluation import ReasonAQAMetric, parse_answer
from audiolm.evaluation.categories import categories
from audiolm.evaluation.comparison import MAJORITY, majority_baseline
from audiolm.evaluation.loss import token_losses
from audiolm.evaluation.metric import SCORED
from audiolm.hub import load_model, push_results
from audiolm.processing_audiolm import AudioLMProcessor
from audiolm.run_train import use_all_of_the_cpu
from audiolm.training_data import data_set_folder


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model_name_or_path", required=True, help="a trained AudioLM: folder or Hub name")
    parser.add_argument("--test_file", help="ReasonAQA's test.json")
    parser.add_argument("--audio_dir", nargs="+", help="folder of the audio, or SOURCE=FOLDER for each source")
    parser.add_argument("--dataset_name", help="data set of `run_prepare.py convert`, folder or Hub name, in place of both: "
                        "its split `test`")  # fmt: skip
    parser.add_argument("--fix_cle_labels", nargs="*", help="mend the labels of the subtype CLE, as run_train.py's")
    parser.add_argument("--output_dir", required=True, help="where predictions.jsonl and metrics.json go")
    parser.add_argument("--max_samples", type=int, help="answer the first rows of each question type only")
    parser.add_argument("--batch_size", type=int, default=16, help="rows at once")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--feature_cache", help="folder of clips that are encoded already, as run_train.py's")
    parser.add_argument("--on_bad_audio", choices=("error", "skip"), default="error", help="what broken files do")
    parser.add_argument("--train_file", help="ReasonAQA's train.json: adds the control that gives training's commonest answer")
    parser.add_argument("--push_to_hub", action="store_true", help="add the results to the model's repository")
    parser.add_argument("--hub_model_id", help="that repository, if --model_name_or_path is a folder")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub, also where results are pushed")
    parser.add_argument("--hub_dataset_id", default="reasonaqa", help="the data set's name in the Hub's .eval_results")
    args = parser.parse_args(argv)
    if bool(args.dataset_name) == bool(args.test_file) or bool(args.test_file) != bool(args.audio_dir):
        parser.error("give either --test_file with --audio_dir, or --dataset_name")
    if args.revision and Path(args.model_name_or_path).exists():
        parser.error(f"--revision {args.revision}: {args.model_name_or_path} is a folder, not a model on the Hub")
    args.hub_model_id = args.hub_model_id or args.model_name_or_path
    if args.push_to_hub and (Path(args.hub_model_id).exists() or len(Path(args.hub_model_id).parts) != 2):
        parser.error(f"--push_to_hub: {args.hub_model_id} is no name on the Hub; give --hub_model_id user/model")
    for option in ("max_samples", "batch_size", "max_new_tokens"):
        if (value := getattr(args, option)) is not None and value <= 0:
            parser.error(f"--{option} {value}: a number above 0 is wanted")
    return args


@torch.no_grad()
def answer_rows(model, processor, rows, batch_size: int, max_new_tokens: int, cache: FeatureCache | None = None) -> list[dict]:
    """Generated text, loss and number of labels of every row, in the rows' order.

    Rows of one clip are answered one after the other, so that it is encoded once (again where it is a second clip), and no
    more clips are held than a batch has.
    """
    features, results = {} if cache is None else cache, [None] * len(rows)
    learn = ReasonAQACollator(processor, features=features)
    ask = ReasonAQACollator(processor, generate=True, features=features)
    order = sorted(range(len(rows)), key=lambda i: rows[i]["audio"])
    bar = tqdm(total=len(rows), desc="answering", unit="row", disable=None)
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        part = [rows[i] for i in chosen]
        if cache is None:
            wanted = {path: None for row in part for path in row["audio"]}
            for path in [path for path in features if path not in wanted]:
                del features[path]
            features.update(encode_clips(model.encoder, processor.feature_extractor, [p for p in wanted if p not in features]))
        batch = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in learn(part).items()}
        losses = token_losses(model(**batch).logits, batch["labels"]).tolist()
        prompts = {k: v.to(model.device) for k, v in ask(part).items()}
        made = model.generate(**prompts, do_sample=False, max_new_tokens=max_new_tokens)
        texts = processor.tokenizer.batch_decode(made[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, row, text, (loss, count) in zip(chosen, part, texts, losses):
            results[i] = {**row, "generated": text.strip(), "loss": loss, "n_tokens": int(count)}
        bar.update(len(part))
    return results


def score(results: list[dict]) -> dict:
    """Metrics of answered rows; adds `category`, `parsed`, `reference` and `correct` to them."""
    asked, second = ([row[field] for row in results] for field in ("input", "filepath2"))
    for row, about in zip(results, categories(pa.chunked_array([asked]), pa.chunked_array([second]))):
        kind, row["category"] = row["question_type"], about
        row["parsed"] = parse_answer(kind, row["input"], row["generated"])
        right = parse_answer(kind, row["input"], row["answer"])
        row["reference"] = right
        row["correct"] = (row["parsed"] is not None and row["parsed"] == right) if kind in SCORED else None
    scored = [row for row in results if row["question_type"] in SCORED]
    metrics = {"n": len(results)}
    if scored:
        # a reference that cannot be parsed stays as its text, which no parsed answer equals
        metrics |= ReasonAQAMetric().compute(
            predictions=[row["parsed"] or "" for row in scored],
            references=[row["reference"] or row["answer"] for row in scored],
            **{key: [row[key] for row in scored] for key in ("question_type", "subtype", "category")},
        )  # fmt: skip
    metrics["text"] = {}
    for kind in QUESTION_TYPES:
        rows = [row for row in results if row["question_type"] == kind]
        if rows and kind not in SCORED:
            metrics["text"][kind] = {
                "n": len(rows),
                "loss_per_answer_token": sum(r["loss"] for r in rows) / sum(r["n_tokens"] for r in rows),
                "mean_words": sum(len(r["generated"].split()) for r in rows) / len(rows),
            }
    return metrics


def table(metrics: dict) -> str:
    """The metrics as text."""

    def block(title, groups):
        lines.append(f"{title:<20}{'n':>7}{'accuracy':>10}{'95 % interval':>18}{'unparsed':>10}")
        for name, g in groups.items():
            interval = f"{g['ci95_low']:.3f} - {g['ci95_high']:.3f}"
            lines.append(f"{name:<20}{g['n']:>7}{g['accuracy']:>10.3f}{interval:>18}{g['n_unparsed']:>10}")

    lines = []
    if "micro" in metrics:
        block("question type", {**metrics["question_type"], "all (micro)": metrics["micro"]})
        lines.append(f"{'mean of types':<20}{'':>7}{metrics['macro_accuracy']:>10.3f}")
        block("category", metrics["category"])
    if metrics["text"]:
        lines.append(f"{'':<20}{'n':>7}{'loss per token':>18}{'mean words':>12}")
        lines += [f"{k:<20}{g['n']:>7}{g['loss_per_answer_token']:>18.3f}{g['mean_words']:>12.1f}"
                  for k, g in metrics["text"].items()]  # fmt: skip
    return "\n".join(lines)


def main(argv=None):
    args = parse(argv)
    output = Path(args.output_dir)
    use_all_of_the_cpu()
    try:
        output.mkdir(parents=True, exist_ok=True)
        model, tokenizer = load_model(args.model_name_or_path, args.revision)
        processor = AudioLMProcessor.from_config(model.config, tokenizer)
        if args.dataset_name:
            data = load_shards(data_set_folder(args.dataset_name), ["test"])
        else:
            data = load_reasonaqa({"test": args.test_file}, audio_roots(args.audio_dir))
        if args.max_samples:
            first = first_of_each_type(data["test"], args.max_samples).values()
            data["test"] = data["test"].select(sorted(number for numbers in first for number in numbers))
        data = sound_rows(data, model.config.max_audio_seconds, args.on_bad_audio, args.output_dir)
        changes = getattr(model.config, "data_changes", {})
        if ("fix_cle_labels" in changes) != (args.fix_cle_labels is not None):
            print("run_eval.py: --fix_cle_labels is not as in training; CLE's labels mean something else", file=sys.stderr)
        mending = Mending(args.fix_cle_labels)
        data["test"] = mending.rows(data["test"])
        training = json.loads(Path(args.train_file).read_text(encoding="utf-8")) if args.train_file else None
        if training and args.fix_cle_labels is not None:
            training = [mending({**row, "question_type": question_type(row)}) for row in training]
        if args.feature_cache:
            Path(args.feature_cache).mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        sys.exit(f"run_eval.py: {error}")
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    cache = None
    if args.feature_cache:
        cache = FeatureCache(args.feature_cache, model.encoder, processor.feature_extractor)
        cache.fill([path for row in data["test"]["audio"] for path in row])
    results = answer_rows(model, processor, data["test"], args.batch_size, args.max_new_tokens, cache)
    metrics = score(results)
    if args.fix_cle_labels is not None:
        metrics["fix_cle_labels"] = [Path(file).name for file in args.fix_cle_labels] or "swapped"
    if training:
        metrics["controls"] = {MAJORITY: majority_baseline(training, results)}
    with open(output / "predictions.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({k: v for k, v in r.items() if k != "audio"}, ensure_ascii=False) + "\n" for r in results)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(table(metrics))
    if args.push_to_hub:
        commit = getattr(model.config, "_commit_hash", None)
        try:
            print(
                push_results(
                    args.hub_model_id,
                    metrics,
                    args.test_file or Path(data_set_folder(args.dataset_name), MANIFEST),
                    args.hub_dataset_id,
                    args.revision,
                    commit,
                )
            )
        except ConnectionError as error:
            sys.exit(f"run_eval.py: {error}; they are in {args.output_dir}")


if __name__ == "__main__":
    main()
