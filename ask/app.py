"""Serves a page that compares trained models on your clip: `audiolm app [MODEL ...]` (extra `app`).

Without a model it loads the demo's three, which know synthetic sounds only, and needs no network.
`--space FOLDER` writes a Space for the Hub. `hf upload me/audiolm FOLDER --repo-type space`
publishes it.
"""

import argparse
import html
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from ..data.answer_parsing import add_options
from ..data.clip_preview import preview_clip
from ..data.decoder import BadClip
from ..data.soundscapes.corpus import make_soundscapes
from ..demo import MODEL_NAMES
from ..runtime import UserError, report_user_errors, use_all_of_the_cpu
from .model import LoadedModel
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
CLIP_FIELDS = ("filepath1", "filepath2")


def clip_figures(paths: list[str], models: list[LoadedModel]) -> str:
    """Returns HTML with a spectrogram of each clip, as far as a model uses it."""
    used = min(MAX_PICTURE_SECONDS, max(model.max_audio_seconds for model in models))
    clips = [preview_clip(path, used, playable=False) for path in paths]
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    return environment.get_template("clips.html").render(clips=clips)


def alert(message: str) -> str:
    """Returns HTML of a message that stands where the answers would."""
    return f'<p role="alert" class="alert">Not answered: {html.escape(message)}</p>'


def read_inputs(clips: list[str], question: str, options: str) -> str:
    """Returns the question with its options, or raises `UserError`."""
    if not clips:
        raise UserError("Upload or record a clip, or pick an example")
    if len(question) + len(options) > MAX_CHARACTERS:
        raise UserError(f"Use at most {MAX_CHARACTERS:,} characters")
    return add_options(question, options.splitlines())


def ask(
    models: list[LoadedModel],
    first_clip: str | None,
    second_clip: str | None,
    question: str,
    options: str,
    no_audio: bool,
) -> Iterator[list]:
    """Yields what the page shows as it grows: the clips, then each model's column."""
    clips = [path for path in (first_clip, second_clip) if path]
    columns: list[list] = [[None, "", "waiting"] for _ in models]
    figures = ""
    try:
        question = read_inputs(clips, question, options)
        for model, column in zip(models, columns):
            start = time.perf_counter()
            encoded = model.encode(clips)
            notes = [f"encoded {time.perf_counter() - start:.2f} s"]
            figures = figures or clip_figures(clips, models)
            column[2] = notes[0]
            yield [figures, *chain.from_iterable(columns)]
            (answer,) = model.ask([question], [encoded], no_audio)
            notes.append(f"answered {answer.seconds:.2f} s")
            if any(clip.is_truncated for clip in encoded):
                notes.append(f"used the first {model.max_audio_seconds:g} s")
            text = answer.text or "(empty answer)"
            column[:] = [answer.probabilities or None, text, " · ".join(notes)]
            yield [figures, *chain.from_iterable(columns)]
    except BadClip as error:
        message = str(error)
        for path in clips:  # Their folder on the server tells a user nothing.
            message = message.replace(f"{Path(path).parent}/", "")
        text = f"This clip cannot be read ({message}). WAV, FLAC, OGG and MP3 work."
        yield [alert(text), *_empty_columns(models)]
    except UserError as error:
        yield [alert(f"{error}."), *_empty_columns(models)]


def _empty_columns(models: list[LoadedModel]) -> list:
    return [None, "", ""] * len(models)


def build_examples(folder: Path) -> list[list]:
    """Makes a small demo corpus. Returns clip, second clip, question, options and truth."""
    test_file = make_soundscapes(folder, 40, 7)["test"]
    rows = json.loads(test_file.read_text(encoding="utf-8"))
    examples = []
    for row in {row["filepath1"]: row for row in rows[::-1]}.values():  # one for each clip
        clips = [str(folder / row[name]) if row[name] else None for name in CLIP_FIELDS]
        examples.append([*clips, row["input"], "", row["answer"]])
    return examples


def _input_components(examples: list[list]) -> list:
    """Adds the inputs to the page: two clips, question, options and the no-audio ablation."""
    sources = ["upload", "microphone"]
    with gr.Row():
        first = gr.Audio(label="Clip", sources=sources, type="filepath", elem_id="clip")
        label = "Second clip, to compare (optional)"
        second = gr.Audio(label=label, sources=sources, type="filepath", elem_id="other")
    with gr.Row():
        hint = "Which sound is that?"
        style = {"max_lines": 3, "scale": 2, "elem_id": "question"}
        question = gr.Textbox("", label="Question", placeholder=hint, **style)
        label = "Options, one per line (optional)"
        style = {"lines": 2, "max_lines": 6, "elem_id": "options"}
        options = gr.Textbox("", label=label, placeholder="rain\na dog", **style)
    gr.Examples(
        [values[:4] for values in examples],
        [first, second, question, options],
        label="Examples: synthetic scenes with a question about each",
        example_labels=[f"Truth: {values[4]}. {values[2]}" for values in examples],
    )
    # gradio would delete the files of the examples together with old uploads.
    first.keep_in_cache |= first.temp_files | second.temp_files
    label = "Mute: answer without the audio (ablation)"
    no_audio = gr.Checkbox(label=label, elem_id="muted", scale=2)
    return [first, second, question, options, no_audio]


def _model_components(model: LoadedModel) -> list:
    """Adds a model's column: probabilities, text and status."""
    with gr.Column(min_width=260, elem_classes="model"):
        encoder = model.model.config.encoder_type
        prefix = "" if encoder == model.name else f"{encoder}, "
        title = f"### {html.escape(model.name)}"
        gr.Markdown(f"{title}\n{prefix}uses {model.max_audio_seconds:g} s of a clip")
        probabilities = gr.Label(label="Answer, with the probability of each option")
        text = gr.Textbox(label="Free text", lines=2, interactive=False, elem_classes="answer")
        return [probabilities, text, gr.Markdown(elem_classes="status")]


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

        # Earlier answers go first, so that none stands below a new question.
        gr.on(
            [button.click, inputs[2].submit],
            lambda: ["", *_empty_columns(models)],
            None,
            outputs,
            queue=False,
            api_name=False,
            show_progress="hidden",
        ).then(answers, inputs, outputs, api_name="ask", show_progress="minimal").then(
            None, js="() => document.querySelector('#clips').scrollIntoView()", api_name=False
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
    trust_help = "run the file of an encoder in the model's folder, if it has one"
    add("--trust_remote_code", action="store_true", help=trust_help)
    add("--space", type=Path, metavar="FOLDER", help="write a Space there and start nothing")
    return parser


def serve(args: argparse.Namespace) -> None:
    """Loads the models and serves the page until it is stopped."""
    from transformers.utils.logging import disable_progress_bar

    # SIGTERM ends the process normally, so that the uploads are deleted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    use_all_of_the_cpu()
    disable_progress_bar()
    names = args.models or MODEL_NAMES
    models = [LoadedModel(name, None, args.trust_remote_code) for name in names]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "uploads"))
        page = build_page(models, build_examples(Path(folder)))
        try:
            page.launch(
                server_name=args.host,
                server_port=args.port,
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
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.port is not None and not 1 <= args.port <= 65535:
        parser.error(f"--port {args.port}: expected a number from 1 to 65535")
    if args.space and (args.host or args.port):
        parser.error("--space starts no page; remove --host and --port")
    if gr is None:
        raise UserError("the page needs gradio: `uv sync --extra app`, or `pip install gradio`")
    if args.space:
        write_space(args.space, args.models, args.trust_remote_code)
        print(f"`hf upload USER/NAME {args.space} --repo-type space` publishes the Space.")
        return
    serve(args)
