"""Encodes each clip once with a frozen encoder, and not once per question.

Mimi's features are saved as 16-bit codes, shape `(codebooks, frames)`, which decode to bitwise
identical features. HTSAT's are saved as bfloat16 features, shape `(frames, dim)`.
"""

import hashlib
import inspect
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import BatchFeature

from ..encoders_audiolm import AudioEncoder
from ..processing_audiolm import AudioLMFeatureExtractor
from ..runtime import UserError, atomic_file, format_bytes
from .audio_files import Clip, clip_identity
from .decoder import BadClip, ClipDecoder

logger = logging.getLogger(__name__)
VERSION = 1  # Version of the cache files. Another one invalidates earlier caches.
CLIPS_PER_SHARD = 512
CPU_BATCH_SIZE = 8
GPU_BATCH_SIZE = 32
# Fields of a configuration that say who wrote it, not what the encoder computes.
PROVENANCE_FIELDS = ("transformers_version", "architectures", "dtype")


@torch.no_grad()
def encode_clips(
    encoder: AudioEncoder,
    extractor: AudioLMFeatureExtractor,
    clips: list[Clip],
    desc: str = "",
    alter: Callable[[Clip, torch.Tensor], torch.Tensor] | None = None,
    on_bad: Callable[[str], None] | None = None,
) -> Iterator[tuple[Clip, torch.Tensor]]:
    """Yields each clip with its codes or float32 features, on the CPU and without padding.

    The progress bar has the name `desc`. `alter` replaces the samples of a clip, both of shape
    `(samples,)`, before encoding. `on_bad` gets what is wrong with a clip that cannot be decoded,
    and the clip is left out. Without it, the [`BadClip`] is raised.
    """
    decoder = ClipDecoder(extractor)

    def decode(batch: list[Clip]) -> tuple[list[Clip], BatchFeature | None]:
        decoded, samples = [], []
        for clip in batch:
            try:
                audio = decoder(clip)
            except BadClip as error:
                if on_bad is None:
                    raise
                on_bad(str(error))
                continue
            decoded.append(clip)
            samples.append(audio if alter is None else alter(clip, audio))
        return decoded, extractor(samples) if samples else None

    is_cpu = encoder.device.type == "cpu"
    batch_size = CPU_BATCH_SIZE if is_cpu else GPU_BATCH_SIZE
    batches = [clips[start : start + batch_size] for start in range(0, len(clips), batch_size)]
    # A GPU encodes faster than one thread decodes.
    threads = 1 if is_cpu else min(8, os.cpu_count() or 1)
    with tqdm(total=len(clips), desc=desc, unit="clip", disable=None if desc else True) as bar:
        for batch, (decoded, inputs) in zip(batches, _map_ahead(decode, batches, threads)):
            if inputs is not None:
                yield from zip(decoded, _encode_batch(encoder, inputs))
            bar.update(len(batch))


def _map_ahead(function: Callable, items: list, threads: int) -> Iterator:
    """Yields the results in order. One call per thread is under way while a result is used."""
    upcoming = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        futures = deque(pool.submit(function, item) for item in islice(upcoming, threads))
        while futures:
            result = futures.popleft().result()
            futures.extend(pool.submit(function, item) for item in islice(upcoming, 1))
            yield result


def _encode_batch(encoder: AudioEncoder, inputs: BatchFeature) -> Iterator[torch.Tensor]:
    lengths = inputs["input_values_mask"].sum(1).tolist()
    encode = getattr(encoder, "codes", encoder.encode)
    encoded = encode(inputs["input_values"].to(encoder.device), lengths).cpu()
    is_codes = not encoded.is_floating_point()
    if is_codes:
        encoded = encoded.to(torch.int16)
    for features, length in zip(encoded, lengths):
        num_frames = encoder.num_frames(length)
        # A clone, because a view would keep the whole batch in memory.
        yield (features[:, :num_frames] if is_codes else features[:num_frames]).clone()


@torch.no_grad()
def feature_statistics(
    encoder: AudioEncoder, clips: Iterable[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and deviation per channel of [`encode_clips`], each `(dim,)` in float64."""
    total: Any = 0.0
    square: Any = 0.0
    num_frames: int | torch.Tensor = 0
    for clip in clips:
        features = clip.to(encoder.device)
        if not features.is_floating_point():
            features = encoder.decode_codes(features[None])[0]  # ty: ignore[not-callable]
        features = features.double()
        total = total + features.sum(0)
        square = square + features.square().sum(0)
        num_frames = num_frames + _frames_per_channel(encoder, features)
    mean = total / num_frames
    return mean, (square / num_frames - mean.square()).clamp(min=0).sqrt()


def _frames_per_channel(encoder: AudioEncoder, features: torch.Tensor) -> int | torch.Tensor:
    """Counts frames. A frame of one encoder of a pair has zeros in the other's channels."""
    if len(encoder.dims) == 1:
        return len(features)
    first = int(features[:, : encoder.dims[0]].any(1).sum())
    counts = torch.tensor([first, len(features) - first])
    return torch.repeat_interleave(counts, torch.tensor(encoder.dims)).to(features.device)


def pad_features(clips: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Returns clips of [`encode_clips`] as one zero-padded batch, and the frames of each clip."""
    is_codes = not clips[0].is_floating_point()
    # The frames come first, as in features.
    by_frame = [clip.T if is_codes else clip for clip in clips]
    padded = torch.nn.utils.rnn.pad_sequence(by_frame, batch_first=True)
    return (padded.transpose(1, 2) if is_codes else padded), [len(clip) for clip in by_frame]


def _config_facts(config: dict) -> list[tuple]:
    """Returns the sorted items of a configuration, without where its weights come from."""
    facts = {}
    for name, value in config.items():
        name = str(name)
        if not name.startswith("_") and name not in PROVENANCE_FIELDS:
            facts[name] = _config_facts(value) if isinstance(value, dict) else value
    return sorted(facts.items())


class FeatureCache:
    """Features of [`encode_clips`] by path, in a directory of memory-mapped shards.

    A clip is identified by path, size and modification time. The folder's name is a hash of the
    encoder's weights, the code that decodes and encodes, the version of transformers and
    `max_audio_seconds`, so stale features are never read. Shards are complete or absent, so
    several processes can fill a cache, and an interrupted `fill` resumes.
    """

    def __init__(
        self, directory: str | Path, encoder: AudioEncoder, extractor: AudioLMFeatureExtractor
    ):
        self.encoder = encoder
        self.extractor = extractor
        self.folder = Path(directory, self._fingerprint())
        self._places: dict[str, tuple[str, str]] = {}  # identity of a clip: shard, key in it
        self._identities: dict[str, str] = {}
        self.refresh()

    def _fingerprint(self) -> str:
        seconds = self.extractor.max_audio_seconds
        config = _config_facts(self.encoder.config.to_dict())
        facts = (VERSION, transformers.__version__, seconds, config)
        digest = hashlib.sha256(repr(facts).encode())
        for component in (self.encoder, self.extractor):
            digest.update(Path(inspect.getfile(type(component))).read_bytes())
        for name, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def refresh(self) -> None:
        """Finds what other processes have encoded since."""
        for shard in sorted(self.folder.glob("*.safetensors")):
            self._index(shard)

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

    def identity(self, path: str) -> str:
        """Returns path, size and modification time of a file. A missing file raises `OSError`."""
        if path not in self._identities:
            self._identities[path] = clip_identity(path)
        return self._identities[path]

    def bytes_per_clip(self) -> int:
        """Returns the size of a clip of full length: 16 bits per code or channel of each frame."""
        extractor = self.extractor
        samples = int(extractor.max_audio_seconds * extractor.sampling_rate)
        has_codes = hasattr(self.encoder, "codes")
        values_per_frame: Any = self.encoder.num_levels if has_codes else self.encoder.dim
        return 2 * values_per_frame * self.encoder.num_frames(samples)

    def fill(
        self,
        paths: list[str],
        process: int = 0,
        processes: int = 1,
        on_bad: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Encodes the clips that are missing, and returns those that cannot be decoded.

        Each of several processes encodes a part of the paths. Call `refresh` when all are done.

        Raises:
            UserError: If the disk has no room, the cache cannot be written, or a clip is bad and
                there is no `on_bad`, which is as in [`encode_clips`].
        """
        missing = [path for path in sorted(set(paths))[process::processes] if path not in self]
        if not missing:
            return []
        self._check_room(processes * len(missing))
        desc = "encoding clips" if process == 0 else ""
        encoded = encode_clips(self.encoder, self.extractor, missing, desc, on_bad=on_bad)
        pending: dict[Clip, torch.Tensor] = {}
        try:
            for path, features in encoded:
                is_codes = not features.is_floating_point()
                pending[path] = features if is_codes else features.bfloat16()
                if len(pending) == CLIPS_PER_SHARD:
                    complete, pending = pending, {}
                    self._write(complete)
        finally:
            # An interruption keeps what is encoded.
            if pending:
                self._write(pending)
        return [path for path in missing if path not in self]

    def fill_together(self, paths: list[str], on_bad: Callable[[str], None] | None = None) -> None:
        """Calls `fill` and `refresh` in all processes of a run, which share the work."""
        state = PartialState()
        bad_here = self.fill(paths, state.process_index, state.num_processes, on_bad)
        bad = set(gather_object(bad_here))
        state.wait_for_everyone()
        self.refresh()
        # Encodes only clips whose file another process lost meanwhile.
        self.fill([path for path in paths if path not in bad], on_bad=on_bad)

    def _check_room(self, num_clips: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--feature_cache {self.folder.parent}: {error.strerror}") from error
        needed = num_clips * self.bytes_per_clip()
        free = shutil.disk_usage(self.folder).free
        room = (
            f"up to {format_bytes(needed)} for the features of {num_clips:,} clips, "
            f"{format_bytes(free)} are free"
        )
        if needed > free:
            raise UserError(f"--feature_cache {self.folder.parent}: no room: {room}")
        logger.info("%s: %s", self.folder, room)

    def _write(self, features: dict[str, torch.Tensor]) -> None:
        identities = [self.identity(path) for path in features]
        name = hashlib.sha256("\n".join(identities).encode()).hexdigest()[:16]
        shard = self.folder / f"{name}.safetensors"
        tensors = {str(i): clip.contiguous() for i, clip in enumerate(features.values())}
        clips = {str(i): identity for i, identity in enumerate(identities)}
        try:
            with atomic_file(shard) as temporary:
                save_file(tensors, temporary, {"clips": json.dumps(clips)})
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"--feature_cache {self.folder.parent}: features cannot be written: {error}"
            ) from error
        self._index(shard)

    def __contains__(self, path: str) -> bool:
        try:
            return self.identity(path) in self._places
        except OSError:
            return False

    def __getitem__(self, path: str) -> torch.Tensor:
        shard, key = self._places[self.identity(path)]
        return _open_features(shard, os.getpid()).get_tensor(key)


@lru_cache(1024)
def _open_features(shard: str, process: int) -> safe_open:
    """Opens a shard once per process. A forked worker must not share its parent's handle."""
    return safe_open(shard, "pt")
