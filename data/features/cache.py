"""Keeps the features of clips in a folder, so that each clip is encoded once.

Mimi's features are saved as 16-bit codes, shape `(codebooks, frames)`, which decode to bitwise
identical features. All variants of one Mimi share the codes of all its codebooks. HTSAT's features
are saved as bfloat16, shape `(frames, dim)`.
"""

import hashlib
import inspect
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...encoders_audiolm import AudioEncoder
from ...processing_audiolm import AudioLMFeatureExtractor
from ...runtime import atomic_file, format_bytes, write_json
from ..audio_files import Clip, clip_identity
from ..cache import ABOUT_FILE
from .encode import batch_size, encode_batch, encode_clips

logger = logging.getLogger(__name__)
VERSION = 2  # Version of the cache files. Another one invalidates earlier caches.
CLIPS_PER_SHARD = 512
SECONDS_PER_SHARD = 60.0  # A killed run loses the features of so many seconds at most.
# Fields of a configuration that say who wrote it, not what the encoder computes.
PROVENANCE_FIELDS = ("transformers_version", "architectures", "dtype")
# Fields of a codec's configuration that choose from the codes that a cache holds.
LEVEL_FIELDS = ("num_levels", "first_level")


def _config_facts(config: dict, ignored: tuple[str, ...]) -> list[tuple]:
    """Returns the sorted items of a configuration, without the ignored fields."""
    facts = {}
    for name, value in config.items():
        name = str(name)
        if not name.startswith("_") and name not in ignored:
            facts[name] = _config_facts(value, ignored) if isinstance(value, dict) else value
    return sorted(facts.items())


class FeatureCache:
    """Features of [`encode_clips`] by path, in a directory of memory-mapped shards.

    A clip is identified by path, size and modification time. The folder's name is a hash of the
    encoder's weights, the code that decodes and encodes, the version of transformers and
    `max_audio_seconds`, so stale features are never read. Shards are complete or absent, so
    several processes can fill a cache, and an interrupted run keeps what it has encoded.

    Where the directory cannot be written, one warning is logged, and nothing is kept. Features are
    the same with and without a directory.
    """

    def __init__(
        self, directory: str | Path, encoder: AudioEncoder, extractor: AudioLMFeatureExtractor
    ):
        self.encoder = encoder
        self.extractor = extractor
        self._levels = getattr(encoder, "levels", slice(None))
        self.folder = Path(directory, self._fingerprint())
        self.is_writable = True
        self._places: dict[str, tuple[str, str]] = {}  # identity of a clip: shard, key in it
        self._identities: dict[str, str] = {}
        self._unsaved: dict[str, torch.Tensor] = {}  # features by path
        self._saved_at = time.monotonic()
        self._modified_at = 0  # when the folder was read, in nanoseconds
        self.refresh()

    def _fingerprint(self) -> str:
        seconds = self.extractor.max_audio_seconds
        ignored = PROVENANCE_FIELDS + (LEVEL_FIELDS if hasattr(self.encoder, "all_codes") else ())
        config = _config_facts(self.encoder.config.to_dict(), ignored)
        facts = (VERSION, transformers.__version__, seconds, config)
        digest = hashlib.sha256(repr(facts).encode())
        # An encoder from a file of its own has its base class in another one.
        bases = type(self.encoder).__mro__
        classes: list[type] = [cls for cls in bases if issubclass(cls, AudioEncoder)]
        classes += [type(self.encoder), type(self.extractor)]
        for file in sorted(set(map(inspect.getfile, classes))):
            digest.update(Path(file).read_bytes())
        for name, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def _source(self) -> Any:
        """Returns the encoder. One that uses some of its codebooks gives the codes of all."""
        encoder: Any = self.encoder
        if not hasattr(encoder, "all_codes"):
            return encoder
        return SimpleNamespace(
            device=encoder.device,
            codes=encoder.all_codes,
            encode=encoder.encode,
            num_frames=encoder.num_frames,
        )

    def refresh(self) -> None:
        """Finds what other processes have encoded since."""
        try:
            modified_at = self.folder.stat().st_mtime_ns
        except OSError:
            return
        if modified_at == self._modified_at:
            return
        self._modified_at = modified_at
        read_shards = {shard for shard, _ in self._places.values()}
        for shard in sorted({*map(str, self.folder.glob("*.safetensors"))} - read_shards):
            self._index(Path(shard))

    def __getstate__(self) -> dict:
        # A data loader's worker needs no encoder.
        return {**self.__dict__, "encoder": None, "extractor": None}

    def _index(self, shard: Path) -> None:
        try:
            with safe_open(shard, "pt") as file:
                for key, identity in json.loads(file.metadata()["clips"]).items():
                    self._places[identity] = (str(shard), key)
        except (SafetensorError, KeyError, TypeError, ValueError):
            # Something else damaged it. Its clips are encoded again.
            shard.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be read (%s). Its clips are encoded again.", shard, error)

    def identity(self, path: Any) -> str:
        """Returns path, size and modification time of a file. A missing file raises `OSError`."""
        if path not in self._identities:
            self._identities[path] = clip_identity(path)
        return self._identities[path]

    def bytes_per_clip(self) -> int:
        """Returns the size of a clip of full length: 16 bits per code or channel of each frame."""
        encoder: Any = self.encoder
        samples = int(self.extractor.max_audio_seconds * self.extractor.sampling_rate)
        values_per_frame = encoder.dim
        if hasattr(encoder, "all_codes"):
            values_per_frame = encoder.num_codebooks
        elif hasattr(encoder, "codes"):
            values_per_frame = encoder.num_levels
        return 2 * values_per_frame * encoder.num_frames(samples)

    def encode(
        self,
        paths: Iterable[str],
        desc: str = "",
        on_bad: Callable[[str], None] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Returns the features of clips by path, and encodes those that are missing.

        `desc` and `on_bad` are as in [`encode_clips`].
        """
        paths = list(dict.fromkeys(paths))
        missing = [path for path in paths if path not in self]
        encoded: dict = {}
        if missing:
            try:
                pairs = encode_clips(self._source(), self.extractor, missing, desc, on_bad=on_bad)
                for path, features in pairs:
                    encoded[path] = self._keep(path, features)
            finally:
                # An interruption keeps what is encoded.
                self.save()
        return {
            path: encoded[path] if path in encoded else self[path]
            for path in paths
            if path in encoded or path in self
        }

    @torch.no_grad()
    def encode_samples(
        self, paths: list[str], values: torch.Tensor, lengths: list[int]
    ) -> dict[str, torch.Tensor]:
        """Returns the features of decoded clips by path.

        Args:
            paths: Paths of the clips.
            values: Their samples at the encoder's rate, padded, shape `(clips, samples)`.
            lengths: Samples of each clip.
        """
        # Another batch may have had a clip since these were decoded.
        encoded = {path: self[path] for path in paths if path in self}
        missing = [index for index, path in enumerate(paths) if path not in encoded]
        source = self._source()
        size = batch_size(source.device)
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            part_lengths = [lengths[index] for index in part]
            batch = values[part, : max(part_lengths)]
            features = encode_batch(source, batch, part_lengths)
            for index, clip in zip(part, features):
                encoded[paths[index]] = self._keep(paths[index], clip)
        return encoded

    def encode_together(
        self, paths: list[str], desc: str, on_bad: Callable[[str], None] | None = None
    ) -> Iterator[torch.Tensor]:
        """Yields the features of clips. All processes of a run share the work of encoding."""
        state = PartialState()
        own_paths = sorted(set(paths))[state.process_index :: state.num_processes]
        own = self.encode(own_paths, desc if state.is_main_process else "", on_bad)
        bad = set(gather_object([path for path in own_paths if path not in own]))
        state.wait_for_everyone()
        self.refresh()
        for path in paths:
            # Encodes only clips whose file another process lost meanwhile.
            if path in own:
                yield own[path]
            elif path not in bad:
                yield from self.encode([path]).values()

    def _keep(self, path: str, features: torch.Tensor) -> torch.Tensor:
        """Prepares a clip's features for saving. Returns those that this encoder uses."""
        if features.is_floating_point():
            features = features.bfloat16()
        if self.is_writable:
            self._unsaved[path] = features
            is_old = time.monotonic() - self._saved_at > SECONDS_PER_SHARD
            if is_old or len(self._unsaved) == CLIPS_PER_SHARD:
                self.save()
        return self._select(features)

    def _select(self, features: torch.Tensor) -> torch.Tensor:
        return features if features.is_floating_point() else features[self._levels]

    def save(self) -> None:
        """Writes a shard of the clips that were encoded since the last one."""
        features, self._unsaved = self._unsaved, {}
        self._saved_at = time.monotonic()
        if not features:
            return
        identities = [self.identity(path) for path in features]
        name = hashlib.sha256("\n".join(identities).encode()).hexdigest()[:16]
        shard = self.folder / f"{name}.safetensors"
        tensors = {str(i): clip.contiguous() for i, clip in enumerate(features.values())}
        clips = {str(i): identity for i, identity in enumerate(identities)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            seconds, encoder = self.extractor.max_audio_seconds, self.encoder.config.model_type
            write_json(self.folder / ABOUT_FILE, {"encoder": encoder, "seconds": seconds})
            with atomic_file(shard) as temporary:
                save_file(tensors, temporary, {"clips": json.dumps(clips)})
        except (OSError, SafetensorError) as error:
            self.is_writable = False
            reason = getattr(error, "strerror", None) or error
            logger.warning(
                "--feature_cache %s: %s. Clips are encoded again in each step.",
                self.folder.parent,
                reason,
            )
            return
        self._index(shard)

    def describe(self, paths: list[str]) -> str:
        """Returns where the cache is, how many of the clips it holds, and its size at the end."""
        size = format_bytes(len(paths) * self.bytes_per_clip())
        count = sum(path in self for path in paths)
        return (
            f"feature cache {self.folder}: holds {count:,} of {len(paths):,} clips, and takes up "
            f"to {size}. A clip is encoded when it is first needed."
        )

    def __contains__(self, path: Clip) -> bool:
        if path in self._unsaved:
            return True
        try:
            identity = self.identity(path)
        except (OSError, TypeError):  # no file, or the content of one
            return False
        if identity not in self._places:
            self.refresh()
        return identity in self._places

    def __getitem__(self, path: str) -> torch.Tensor:
        if path in self._unsaved:
            return self._select(self._unsaved[path])
        shard, key = self._places[self.identity(path)]
        return self._select(_open_features(shard, os.getpid()).get_tensor(key))


@lru_cache(1024)
def _open_features(shard: str, process: int) -> safe_open:
    """Opens a shard once per process. A forked worker must not share its parent's handle."""
    return safe_open(shard, "pt")
