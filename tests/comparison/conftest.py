"""Fixtures of a small report: its clips, runs and comparison."""

import pytest
from support.comparisons import (
    LEARNING_CURVES,
    VERDICTS,
    build_run,
    compare_runs,
    write_tones,
)

from audiolm.comparison.report.build import (
    write_report,
)


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_tones(folder)
    return folder


@pytest.fixture(scope="module")
def runs(audio):
    """Three arms with two seeds each."""
    return {
        arm: [build_run(audio, arm, seed, arm == "text_only") for seed in (0, 1)]
        for arm in VERDICTS
    }


@pytest.fixture(scope="module")
def comparison(audio, runs):
    """The comparison of the arms. Its report lies in `audio`."""
    comparison = compare_runs(runs, note="small")
    for results in comparison["arms"].values():
        results |= {"trained_parameters": 12345, "tokens_per_clip": 92}
        results["learning_curves"] = LEARNING_CURVES
    comparison["rows"]["train"] = 20
    write_report(audio / "report.html", comparison, runs, audio)
    return comparison
