"""Fixtures: small models of each encoder, a small corpus, a Hub with pushed models, a browser."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The default precision is that of a CPU without bfloat16 units.
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
# Sums depend on the number of threads, and threads of two test processes wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from support.builders import (
    ARMS,
    BROWSER,
    PLAYWRIGHT,
    PROBE,
    PUSH,
    arguments,
    make_corpus,
    run,
    small_model,
)
from support.hub_server import Hub

# Files of the `fast` selection, which takes under two minutes on two cores.
FAST_FILES = (
    "house/",
    "comparison/test_compare.py",
    "comparison/test_config.py",
    "data/test_answer_parsing.py",
    "data/test_label_fixes.py",
    "data/test_subsets.py",
    "data/test_unpack.py",
    "evaluation/test_categories.py",
    "evaluation/test_metric.py",
    "evaluation/test_scores.py",
    "evaluation/test_statistics.py",
    "evaluation/test_tables.py",
    "hub/test_model_card.py",
    "model/test_configuration_audiolm.py",
)


def pytest_collection_modifyitems(items):
    """Marks the tests of `FAST_FILES`, except slow ones."""
    for item in items:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        if name.startswith(FAST_FILES) and not item.get_closest_marker("slow"):
            item.add_marker("fast")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests of a file run in one process, and so do files that share the pushed models."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "pushed" if Path(file).stem in ("test_hub", "test_load_anywhere") else file

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def kept_memory():
    """Sets the allocator as a run does: an encoder loses half its time without."""
    from audiolm.runtime import use_all_of_the_cpu

    threads = torch.get_num_threads()
    use_all_of_the_cpu()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory):
    """Keeps the feature caches of tests out of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def lean_processes():
    """Of what tests start, as `lean/sitecustomize.py` says."""
    earlier = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parent / "support" / "lean"), earlier])
    )


@pytest.fixture(autouse=True)
def as_many_threads():
    """No test changes the number of threads, which would change the next one's numbers."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<bos>", "<|im_end|>", "<audio>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({t: i for i, t in enumerate(special + alphabet)}, []))
    raw.pre_tokenizer, raw.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        bos_token="<bos>",
        additional_special_tokens=["<audio>"],
    )


@pytest.fixture(scope="session", params=ARMS)
def parts(request, tokenizer):
    """(arm, model, processor)."""
    from audiolm import AudioLMProcessor

    model = small_model(request.param)
    return request.param, model, AudioLMProcessor.from_config(model.config, tokenizer)


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(tmp_path)


@pytest.fixture(scope="session")
def pushed(tmp_path_factory, tokenizer):
    """A Hub with a private model per encoder, pushed at each save, and the folder of each run."""
    folder, runs = tmp_path_factory.mktemp("pushed"), {}
    with Hub(folder / "hub") as hub:
        for arm in ARMS:
            (folder / arm).mkdir()
            corpus = make_corpus(folder / arm)
            private = [
                "--hub_model_id",
                f"me/{arm}",
                "--hub_private_repo",
                "true",
                "--hub_always_push",
                "true",
            ]
            runs[arm] = (
                corpus,
                run(hub, "-c", PROBE, *arguments(corpus, arm, tokenizer, *PUSH, *private)),
            )
        yield hub, runs
        assert [request for request in hub.unknown if "agent-harnesses" not in request] == []


@pytest.fixture
def same_examples(monkeypatch):
    """Keeps hypothesis from drawing constants of loaded modules, which other tests change."""
    from hypothesis.internal.conjecture import providers

    monkeypatch.setattr(providers, "_get_local_constants", providers.Constants)


@pytest.fixture(scope="module")
def browser():
    for present, missing in (
        (PLAYWRIGHT, "the package playwright (it is in the group dev)"),
        (BROWSER, "chromium, chromium-browser or google-chrome"),
    ):
        if not present:  # a user may lack it; with CI set nothing is skipped here
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not installed: {missing}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=options)
        yield chromium
        chromium.close()
