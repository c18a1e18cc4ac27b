"""A page where trained models are asked about clips, side by side: `python app.py [MODEL ...]` (the extra `app`).

Without a model it loads the demo's three, which know synthetic sounds alone, and needs no network. `--space FOLDER` writes a
folder that is a Space of the Hub: `hf upload me/audiolm FOLDER --repo-type space` publishes it.
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
from pathlib import Path

from .space import write_space

try:
    import gradio as gr
except ImportError:
    sys.exit("app.py: the page needs gradio: `uv sync --extra app`, or `pip install gradio`")

from transformers.utils.logging import disable_progress_bar

from ..data.answer_parsing import option_spans, question_kind, with_options
from ..data.clip_preview import picture
from ..data.decoder import BadClip
from ..data.soundscapes.corpus import make_soundscapes
from ..demo import MODEL_NAMES
from ..runtime import use_all_of_the_cpu
from .model import Answer, Heard, LoadedModel

MAX_FILE, MAX_WAITING = "50mb", 32  # of an upload; users in the queue
MAX_TEXT = 4000  # characters of a question with its options
FREQUENCY, AGE = 600, 3600  # seconds: how often uploads are looked at, and how old one may be
ANALYSED_SECONDS = 60.0  # of a clip, at most, are decoded for its picture
logger = logging.getLogger("audiolm.ask.app")
CSS = """
.gradio-container { max-width: 72rem !important; margin: 0 auto; }
.heard img { width: 100%; height: 9rem; display: block; border-radius: .4rem; }
.heard figure { margin: 0 0 .75rem; } .heard figcaption { font-size: .875rem; opacity: .85; }
.arm h3 { margin: 0; overflow-wrap: anywhere; } .arm .prose { font-size: .9rem; }
"""
DEMO_NOTE = """The models are small ones that come with the demo and know twenty synthetic sounds: try the examples below. What
they say about other recordings means nothing."""
EXAMPLES = {"mcq": 3, "yes_no": 2, "pair": 1}  # of the demo's corpus, by what is asked


def figures(clips: list[str], models: list[LoadedModel]) -> str:
    """Each clip's spectrogram, as far as the model that hears most of it hears it, and how much that is."""
    made = []
    for number, clip in enumerate(clips, 1):
        used = min(ANALYSED_SECONDS, max(model.max_audio_seconds for model in models))
        shown = picture(clip, used, playable=False)
        cut = shown.whole > shown.used + 0.05
        says = f"Clip {number}: {shown.whole:.1f} s" + (
            f"; the first {shown.used:g} s were heard" if cut else ""
        )
        top = shown.hertz[-1][1] if shown.hertz else "?"
        made.append(
            f'<figure><img src="{shown.spectrogram}" alt="Spectrogram of clip {number}, time to the right, pitch upwards">'
            f"<figcaption>{html.escape(says)}. Spectrogram: {shown.used:.1f} s to the right, mel bands upwards, past {top} kHz."
            "</figcaption></figure>"
        )
    return f'<div class="heard">{"".join(made)}</div>'


def shares(question: str, answer: Answer) -> dict[str, float] | None:
    """Probabilities by the options as they are written."""
    texts = {
        option.letter.lower(): f"{option.letter}) {option.text}"
        for option in option_spans(question)
    }
    return {texts.get(option, option): share for option, share in answer.options.items()} or None


def took(
    listening: float, first: float | None, answer: Answer, heard: list[Heard], limit: float
) -> str:
    cut = any(of.whole > of.used + 0.05 for of in heard)
    words = [
        f"listened {listening:.2f} s",
        f"first word {first:.2f} s" if first is not None else "",
        f"answered {answer.seconds:.2f} s",
    ]
    return " · ".join(filter(None, [*words, f"heard the first {limit:g} s" if cut else ""]))


def complaint(text: str, title: str) -> gr.Error:
    """What is shown to the user, and not written to the log."""
    return gr.Error(html.escape(text), title=title, print_exception=False)


def ask(models: list[LoadedModel], *words):
    """As [`_ask`]; what fails for another reason than the user's is in the log."""
    try:
        yield from _ask(models, *words)
    except gr.Error:
        raise
    except Exception as error:
        logger.exception("asking failed")
        raise complaint(
            "Something went wrong here, not with your clip; it is in the log of the page.", "Sorry"
        ) from error


def _ask(
    models: list[LoadedModel],
    clip: str | None,
    other: str | None,
    question: str,
    options: str,
    muted: bool,
):
    """What the page shows, again and again as it grows: spectrograms, then of each model its text, probabilities and times.

    Raises:
        gr.Error: with what the user can do about it.
    """
    clips = [path for path in (clip, other) if path]
    if not clips:
        raise complaint(
            "There is no clip yet: upload or record one, or pick an example.", "Nothing to hear"
        )
    if not (question or "").strip():
        raise complaint("Write a question first.", "Nothing was asked")
    if len(question) + len(options or "") > MAX_TEXT:
        raise complaint(f"Question and options are at most {MAX_TEXT:,} characters.", "Too long")
    try:
        asked = with_options(question, (options or "").splitlines())
    except ValueError as error:
        raise complaint(f"{error}.", "Options") from error
    shown: list = ["", *[part for _ in models for part in ("", None, "waits")]]
    for at, model in enumerate(models):
        start = time.perf_counter()
        try:
            heard = model.listen(clips)
        except BadClip as error:
            said = str(error)
            for path in clips:
                said = said.replace(
                    f"{Path(path).parent}/", ""
                )  # where it lies on the server is nobody's business
            raise complaint(
                f"This clip cannot be read ({said}). WAV, FLAC, OGG and MP3 are read.", "Not audio?"
            ) from error
        shown[0] = shown[0] or figures(clips, models)
        listening, first, begun = time.perf_counter() - start, None, time.perf_counter()
        shown[3 + 3 * at] = f"listened {listening:.2f} s"
        yield shown
        try:
            for made in model.stream(asked, heard, muted):
                if isinstance(made, Answer):
                    times = took(listening, first, made, heard, model.max_audio_seconds)
                    shown[1 + 3 * at : 4 + 3 * at] = [
                        made.text or "(it said nothing)",
                        shares(asked, made),
                        times,
                    ]
                else:
                    first = time.perf_counter() - begun if first is None else first
                    shown[1 + 3 * at] = made
                yield shown
        except ValueError as error:
            raise complaint(f"{error}.", "Too long") from error


def examples(folder: Path) -> list[list]:
    """Rows of the demo's corpus as the page takes them: clip, other clip, question, options."""
    file = make_soundscapes(folder, 40, 7)["test"]
    left, used, made = dict(EXAMPLES), set(), []
    for row in json.loads(file.read_text(encoding="utf-8")):
        kind = (
            "pair"
            if row["filepath2"]
            else "yes_no"
            if question_kind(row["input"]) == "yes_no"
            else "mcq"
        )
        if question_kind(row["input"]) != "open" and left[kind] and row["filepath1"] not in used:
            left[kind] -= 1
            used.add(row["filepath1"])
            clips = [
                str(folder / row[name]) if row[name] else None
                for name in ("filepath1", "filepath2")
            ]
            made.append([*clips, row["input"], ""])
    return made


def page(models: list[LoadedModel], given: list[list]) -> gr.Blocks:
    """The page for models that are loaded, with examples."""
    demo = all(model.is_demo for model in models)
    with gr.Blocks(
        title="AudioLM: ask about audio", analytics_enabled=False, delete_cache=(FREQUENCY, AGE)
    ) as made:
        gr.Markdown(
            "# Ask about audio\nOne or two clips and a question; each model answers in its own column."
            + f"\n\n{DEMO_NOTE}" * demo
        )
        with gr.Row():
            clip = gr.Audio(
                label="Clip", sources=["upload", "microphone"], type="filepath", elem_id="clip"
            )
            other = gr.Audio(
                label="Second clip, to compare (optional)",
                sources=["upload", "microphone"],
                type="filepath",
                elem_id="other",
            )
        with gr.Row():
            question = gr.Textbox(
                label="Question",
                placeholder="Which sound is heard?",
                max_lines=3,
                scale=2,
                elem_id="question",
            )
            options = gr.Textbox(
                label="Options, one a line (optional)",
                placeholder="rain\na dog",
                lines=2,
                max_lines=6,
                elem_id="options",
            )
        gr.Examples(
            given,
            [clip, other, question, options],
            label="Examples: synthetic scenes, and a question about each",
            example_labels=[question for _, _, question, _ in given],
        )
        clip.keep_in_cache |= (
            clip.temp_files | other.temp_files
        )  # gradio would delete those of examples too, once they are old
        with gr.Row():
            muted = gr.Checkbox(
                label="Mute the audio: what is answered without listening (control)",
                elem_id="muted",
                scale=2,
            )
            button = gr.Button("Ask", variant="primary", elem_id="ask")
        heard = gr.HTML(elem_id="heard")
        with gr.Row():
            shown = []
            for model in models:
                with gr.Column(min_width=260, elem_classes="arm"):
                    arm = model.model.config.encoder_type
                    arm = "" if arm == model.name else f"{arm}, "
                    gr.Markdown(
                        f"### {html.escape(model.name)}\n{arm}hears {model.max_audio_seconds:g} s of a clip"
                    )
                    shown += [
                        gr.Textbox(
                            label="Answer", lines=2, interactive=False, elem_classes="answer"
                        ),
                        gr.Label(label="Probability of each option", show_heading=False),
                        gr.Markdown(elem_classes="took"),
                    ]

        def answers(*words):
            yield from ask(models, *words)

        inputs = [clip, other, question, options, muted]
        for event in (button.click, question.submit):
            # former answers go first, and do not stand below a new question that waits or fails
            empty = event(
                lambda: ["", *[None] * len(shown)],
                None,
                [heard, *shown],
                queue=False,
                api_name=False,
                show_progress="hidden",
            )
            name = "ask" if event == button.click else False
            empty.then(
                answers,
                inputs,
                [heard, *shown],
                api_name=name,
                show_progress="minimal",
                concurrency_id="ask",
                concurrency_limit=1,
            )
    return made.queue(max_size=MAX_WAITING, default_concurrency_limit=1)


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help=f"trained AudioLMs, a folder or Hub name each (default: the demo's {', '.join(MODEL_NAMES)})",
    )
    parser.add_argument("--host", help="address that it listens on (default: this machine alone)")
    parser.add_argument(
        "--port",
        type=int,
        choices=range(1, 65536),
        metavar="PORT",
        help="(default: the first that is free from 7860 on)",
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="also a public address for three days, through gradio's servers",
    )
    parser.add_argument(
        "--space", type=Path, metavar="FOLDER", help="write a Space there, and start nothing"
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    try:
        if args.space:
            write_space(args.space, args.models)
            print(
                f"{args.space} is a Space; `hf upload USER/NAME {args.space} --repo-type space` publishes it"
            )
            return
        signal.signal(
            signal.SIGTERM, lambda *_: sys.exit(0)
        )  # so that what was uploaded goes then too
        use_all_of_the_cpu()
        disable_progress_bar()
        models = [LoadedModel(name) for name in args.models or MODEL_NAMES]
        with tempfile.TemporaryDirectory() as folder:
            os.environ["GRADIO_TEMP_DIR"] = str(
                Path(folder, "uploads")
            )  # so that none outlives the page
            made = page(models, examples(Path(folder)))
            made.launch(
                server_name=args.host,
                server_port=args.port,
                share=args.share,
                max_file_size=MAX_FILE,
                css=CSS,
                ssr_mode=False,
                footer_links=[],
            )
    except (ValueError, OSError) as error:
        said = str(error).replace("--model_name_or_path ", "").split("\n")[0]
        sys.exit(f"app.py: {f'--port {args.port}: ' if 'port' in said else ''}{said}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
