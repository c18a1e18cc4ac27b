"""A web page that compares trained models on your clip: `audiolm app [MODEL ...]` (extra `app`).

Without a model it loads the demo's three, which know synthetic sounds only, and needs no network.
`--space FOLDER` writes a Space for the Hub. `hf upload me/audiolm FOLDER --repo-type space`
publishes it.
"""

import argparse
import html
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from ..data.answer_parsing import add_options, find_options, infer_answer_format
from ..data.clip_preview import preview_clip
from ..data.decoder import BadClip
from ..data.soundscapes.corpus import make_soundscapes
from ..demo import MODEL_NAMES
from ..runtime import UserError, report_user_errors, use_all_of_the_cpu
from .model import Answer, EncodedClip, LoadedModel
from .space import write_space

try:
    import gradio as gr
except ImportError:
    gr = None

MAX_UPLOAD = "50mb"
MAX_QUEUE = 32  # users
MAX_CHARACTERS = 4000  # of a question with its options
CLEANUP_INTERVAL, MAX_UPLOAD_AGE = 600, 3600  # s
MAX_PICTURE_SECONDS = 60.0
TEMPLATES = Path(__file__).parent / "templates"
DEMO_NOTE = (
    "These small demo models know twenty synthetic sounds only: try the examples below. "
    "Their answers about other recordings mean nothing."
)
EXAMPLE_COUNTS = {"mcq": 3, "yes_no": 2, "pair": 1}
logger = logging.getLogger("audiolm.ask.app")


@dataclass
class Column:
    """What the page shows of one model: its text, the options' probabilities, and times."""

    text: str = ""
    probabilities: dict[str, float] | None = None
    status: str = "waiting"


def clip_figures(paths: list[str], models: list[LoadedModel]) -> str:
    """Returns HTML with a spectrogram of each clip, as far as a model uses it."""
    used = min(MAX_PICTURE_SECONDS, max(model.max_audio_seconds for model in models))
    clips = [preview_clip(path, used, playable=False) for path in paths]
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    return environment.get_template("clips.html").render(clips=clips)


def label_probabilities(question: str, answer: Answer) -> dict[str, float] | None:
    """Returns probabilities by the options as they are written, None for an open question."""
    labels = {o.letter.lower(): f"{o.letter}) {o.text}" for o in find_options(question)}
    return {labels.get(option, option): p for option, p in answer.options.items()} or None


def user_error(message: str, title: str) -> Exception:
    """Returns an error that the page shows and that does not appear in the log."""
    return gr.Error(html.escape(message), title=title, print_exception=False)


def read_inputs(clips: list[str], question: str, options: str) -> str:
    """Returns the question with its options, or raises what the user can do about it."""
    if not clips:
        raise user_error("Upload or record a clip, or pick an example.", "No clip yet")
    if not (question or "").strip():
        raise user_error("Write a question first.", "No question")
    if len(question) + len(options or "") > MAX_CHARACTERS:
        raise user_error(f"Use at most {MAX_CHARACTERS:,} characters.", "Too long")
    try:
        return add_options(question, (options or "").splitlines())
    except ValueError as error:
        raise user_error(f"{error}.", "Options") from error


def encode_clips(model: LoadedModel, paths: list[str]) -> list[EncodedClip]:
    """Encodes the clips. An error names a file without its folder on the server."""
    try:
        return model.encode(paths)
    except BadClip as error:
        message = str(error)
        for path in paths:
            message = message.replace(f"{Path(path).parent}/", "")
        text = f"This clip cannot be read ({message}). WAV, FLAC, OGG and MP3 work."
        raise user_error(text, "Not audio?") from error


def answer_in_column(
    model: LoadedModel, clips: list[EncodedClip], question: str, no_audio: bool, column: Column
) -> Iterator[None]:
    """Fills a model's column while it answers. Yields after each change."""
    encoded = column.status
    first_word: float | None = None
    start = time.perf_counter()
    try:
        for part in model.stream(question, clips, no_audio):
            if isinstance(part, Answer):
                column.text = part.text or "(empty answer)"
                column.probabilities = label_probabilities(question, part)
                notes = [encoded, f"first word {first_word:.2f} s" if first_word else ""]
                notes.append(f"answered {part.seconds:.2f} s")
                if any(clip.is_truncated for clip in clips):
                    notes.append(f"used the first {model.max_audio_seconds:g} s")
                column.status = " · ".join(filter(None, notes))
            else:
                first_word = first_word or time.perf_counter() - start
                column.text = part
            yield
    except ValueError as error:
        raise user_error(f"{error}.", "Too long") from error


def ask(models: list[LoadedModel], *inputs) -> Iterator[list]:
    """Yields what the page shows as it grows. Unexpected failures are logged.

    Args:
        models: One column each.
        inputs: First clip, second clip, question, options (one per line), no audio (bool).
    """
    try:
        yield from _ask(models, *inputs)
    except gr.Error:
        raise
    except Exception as error:
        logger.exception("asking failed")
        text = "Something went wrong here, not with your clip. The page's log has it."
        raise user_error(text, "Sorry") from error


def _ask(
    models: list[LoadedModel],
    first_clip: str | None,
    second_clip: str | None,
    question: str,
    options: str,
    no_audio: bool,
) -> Iterator[list]:
    clips = [path for path in (first_clip, second_clip) if path]
    question = read_inputs(clips, question, options)
    columns = [Column() for _ in models]
    figures = ""
    for model, column in zip(models, columns):
        start = time.perf_counter()
        encoded = encode_clips(model, clips)
        column.status = f"encoded {time.perf_counter() - start:.2f} s"
        figures = figures or clip_figures(clips, models)
        yield _outputs(figures, columns)
        for _ in answer_in_column(model, encoded, question, no_audio, column):
            yield _outputs(figures, columns)


def _outputs(figures: str, columns: list[Column]) -> list:
    return [figures, *chain.from_iterable((c.text, c.probabilities, c.status) for c in columns)]


def example_kind(row: dict) -> str:
    """Returns the key of `EXAMPLE_COUNTS` for a row, or "open"."""
    kind = infer_answer_format(row["input"])
    return "pair" if row["filepath2"] and kind != "open" else kind


def build_examples(folder: Path) -> list[list]:
    """Makes a small demo corpus. Returns examples: clip, second clip, question, options."""
    test_file = make_soundscapes(folder, 40, 7)["test"]
    remaining = dict(EXAMPLE_COUNTS)
    used: set[str] = set()
    examples = []
    for row in json.loads(test_file.read_text(encoding="utf-8")):
        kind = example_kind(row)
        if remaining.get(kind) and row["filepath1"] not in used:
            remaining[kind] -= 1
            used.add(row["filepath1"])
            second = str(folder / row["filepath2"]) if row["filepath2"] else None
            examples.append([str(folder / row["filepath1"]), second, row["input"], ""])
    return examples


def _input_components(examples: list[list]) -> list:
    """Adds the inputs to the page: two clips, question, options and the no-audio ablation."""
    sources = ["upload", "microphone"]
    with gr.Row():
        first = gr.Audio(label="Clip", sources=sources, type="filepath", elem_id="clip")
        label = "Second clip, to compare (optional)"
        second = gr.Audio(label=label, sources=sources, type="filepath", elem_id="other")
    with gr.Row():
        question = gr.Textbox(
            label="Question",
            placeholder="Which sound is that?",
            max_lines=3,
            scale=2,
            elem_id="question",
        )
        options = gr.Textbox(
            label="Options, one per line (optional)",
            placeholder="rain\na dog",
            lines=2,
            max_lines=6,
            elem_id="options",
        )
    gr.Examples(
        examples,
        [first, second, question, options],
        label="Examples: synthetic scenes with a question about each",
        example_labels=[question for _, _, question, _ in examples],
    )
    # gradio would delete the files of the examples together with old uploads.
    first.keep_in_cache |= first.temp_files | second.temp_files
    label = "Mute: answer without the audio (ablation)"
    no_audio = gr.Checkbox(label=label, elem_id="muted", scale=2)
    return [first, second, question, options, no_audio]


def _model_components(model: LoadedModel) -> list:
    """Adds a model's column: text, probabilities and status."""
    with gr.Column(min_width=260, elem_classes="model"):
        encoder = model.model.config.encoder_type
        prefix = "" if encoder == model.name else f"{encoder}, "
        title = f"### {html.escape(model.name)}"
        gr.Markdown(f"{title}\n{prefix}uses {model.max_audio_seconds:g} s of a clip")
        text = gr.Textbox(label="Answer", lines=2, interactive=False, elem_classes="answer")
        probabilities = gr.Label(label="Probability of each option", show_heading=False)
        return [text, probabilities, gr.Markdown(elem_classes="status")]


def build_page(models: list[LoadedModel], examples: list[list]) -> "gr.Blocks":
    """Builds the page for loaded models."""
    cleanup = CLEANUP_INTERVAL, MAX_UPLOAD_AGE
    title = "AudioLM: ask about audio"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=cleanup) as page:
        gr.Markdown("# Ask about audio\nOne or two clips and a question. Each model has a column.")
        if all(model.is_demo for model in models):
            gr.Markdown(DEMO_NOTE)
        inputs = _input_components(examples)
        button = gr.Button("Ask", variant="primary", elem_id="ask")
        outputs = [gr.HTML(elem_id="clips")]
        with gr.Row():
            for model in models:
                outputs += _model_components(model)

        def answers(*values):
            yield from ask(models, *values)

        for event, api_name in ((button.click, "ask"), (inputs[2].submit, False)):
            # Earlier answers go first, so that none stands below a new question.
            cleared = event(
                lambda: ["", *[None] * (len(outputs) - 1)],
                None,
                outputs,
                queue=False,
                api_name=False,
                show_progress="hidden",
            )
            cleared.then(
                answers,
                inputs,
                outputs,
                api_name=api_name,
                show_progress="minimal",
                concurrency_id="ask",
                concurrency_limit=1,
            )
    return page.queue(max_size=MAX_QUEUE, default_concurrency_limit=1)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `audiolm app`."""
    parser = argparse.ArgumentParser("audiolm app", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    default_models = ", ".join(MODEL_NAMES)
    help_text = f"trained AudioLMs, folders or Hub names (default: the demo's {default_models})"
    add("models", nargs="*", metavar="MODEL", help=help_text)
    add("--host", help="address that the page listens on (default: this machine only)")
    add("--port", type=int, help="1 to 65535 (default: the first free one from 7860)")
    add("--share", action="store_true", help="also a public address for three days, by gradio")
    add("--space", type=Path, metavar="FOLDER", help="write a Space there and start nothing")
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses and checks the options."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.port is not None and not 1 <= args.port <= 65535:
        parser.error(f"--port {args.port}: expected a number from 1 to 65535")
    return args


def serve(args: argparse.Namespace) -> None:
    """Loads the models and serves the page until it is stopped."""
    from transformers.utils.logging import disable_progress_bar

    # SIGTERM ends the process normally, so that the uploads are deleted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    use_all_of_the_cpu()
    disable_progress_bar()
    models = [LoadedModel(name) for name in args.models or MODEL_NAMES]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "uploads"))
        page = build_page(models, build_examples(Path(folder)))
        try:
            page.launch(
                server_name=args.host,
                server_port=args.port,
                share=args.share,
                max_file_size=MAX_UPLOAD,
                css=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
                ssr_mode=False,
                footer_links=[],
            )
        except OSError as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"--host {args.host}, --port {args.port}: {reason}") from error


@report_user_errors("audiolm app")
def main(argv: list[str] | None = None) -> None:
    """Runs `audiolm app`."""
    args = parse_arguments(argv)
    if gr is None:
        raise UserError("the page needs gradio: `uv sync --extra app`, or `pip install gradio`")
    if args.space:
        write_space(args.space, args.models)
        print(f"`hf upload USER/NAME {args.space} --repo-type space` publishes the Space.")
        return
    try:
        serve(args)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
