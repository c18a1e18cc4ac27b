"""What a frozen encoder makes of each clip, computed once and not once for each question.

Mimi's clips are kept as 16-bit codes (levels, frames), which give the same features to the bit; HTSAT's as features
(frames, dim), on disk in bfloat16.
"""

import hashlib
import inspect
import json
import logging
import os
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from .audio_files import Clip, clip_identity
from .decoder import BadClip, ClipDecoder

logger = logging.getLogger(__name__)
VERSION = 1  # of these files; another one makes earlier caches unknown
CLIPS_PER_SHARD = 512


@torch.no_grad()
def encode_clips(
    encoder,
    extractor,
    paths: list[Clip],
    batch_size: int | None = None,
    desc: str = "",
    alter: Callable | None = None,
    on_bad: Callable[[str], None] | None = None,
) -> Iterator[tuple[Clip, torch.Tensor]]:
    """(clip, codes or float32 features on the CPU) of each clip in turn; the next clips are decoded meanwhile.

    Args:
        encoder: an `AudioEncoder`. extractor: its [`AudioLMFeatureExtractor`]. batch_size: clips at once; by default what
            keeps the device busy. desc: name of a progress bar, if any. alter: what is encoded in place of a clip and its
            samples, both (samples,) at the encoder's rate. on_bad: is told what is wrong with a clip, which is left out.

    Raises:
        BadClip: if a clip cannot be decoded, and no `on_bad` is given.
    """
    device = encoder.device
    batch_size = batch_size or (8 if device.type == "cpu" else 32)
    encode = getattr(encoder, "codes", encoder.encode)
    bar = tqdm(total=len(paths), desc=desc, unit="clip", disable=None if desc else True)
    batches = iter(
        [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    )
    decoders = (
        1 if device.type == "cpu" else min(8, os.cpu_count() or 1)
    )  # a GPU encodes faster than one decodes

    decoder = ClipDecoder(extractor)

    def decode(batch: list[Clip]):
        heard = []
        for clip in batch:
            try:
                samples = decoder(clip)
            except BadClip as error:
                if on_bad is None:
                    raise
                on_bad(str(error))
            else:
                heard.append((clip, samples if alter is None else alter(clip, samples)))
        return [clip for clip, _ in heard], extractor(
            [samples for _, samples in heard]
        ) if heard else None

    with closing(decoder), ThreadPoolExecutor(decoders) as pool, bar:
        ahead = deque(
            (len(batch), pool.submit(decode, batch)) for batch in islice(batches, decoders)
        )
        while ahead:
            size, decoded = ahead.popleft()
            batch, audio = decoded.result()
            ahead.extend((len(batch), pool.submit(decode, batch)) for batch in islice(batches, 1))
            bar.update(size - len(batch))
            if not batch:
                continue
            lengths = audio["input_values_mask"].sum(1).tolist()
            made = encode(audio["input_values"].to(device), lengths)
            if not made.is_floating_point():
                made = made.to(torch.int16)
            for path, clip, length in zip(batch, made.cpu(), lengths):
                frames = encoder.num_frames(length)
                yield (
                    path,
                    (clip[:frames] if clip.is_floating_point() else clip[:, :frames]).clone(),
                )
            bar.update(len(batch))


@torch.no_grad()
def feature_statistics(encoder, clips: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel, (dim,) in float64, over all frames of clips of [`encode_clips`]."""
    device = encoder.device
    total = square = 0.0
    frames = 0
    for clip in clips:
        features = clip.to(device)
        if not features.is_floating_point():
            features = encoder.decode_codes(features[None])[0]
        features = features.double()
        total, square = total + features.sum(0), square + features.square().sum(0)
        if len(encoder.dims) == 1:
            frames += len(features)
        else:  # of each kind of frames, whose channels are zeros in others
            first = int(features[:, : encoder.dims[0]].any(1).sum())
            frames = frames + torch.repeat_interleave(
                torch.tensor([first, len(features) - first]), torch.tensor(encoder.dims)
            ).to(device)
    mean = total / frames
    return mean, (square / frames - mean.square()).clamp(min=0).sqrt()


def pad_features(clips: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Clips of [`encode_clips`] as one batch, padded with zeros, and the frames of each."""
    codes = not clips[0].is_floating_point()
    frames = [clip.shape[-1] if codes else len(clip) for clip in clips]
    padded = torch.nn.utils.rnn.pad_sequence(
        [clip.T if codes else clip for clip in clips], batch_first=True
    )
    return (padded.transpose(1, 2) if codes else padded), frames


def _facts(config: dict) -> list[tuple]:
    """What a configuration's dict says, in order; not where weights come from."""
    made_by = ("transformers_version", "architectures", "dtype")
    named = {str(k): v for k, v in config.items()}
    kept = {
        k: _facts(v) if isinstance(v, dict) else v
        for k, v in named.items()
        if not k.startswith("_") and k not in made_by
    }
    return sorted(kept.items())


class FeatureCache:
    """Clips of [`encode_clips`] by path, kept in a directory from run to run, in memory-mapped shards.

    A clip is known by path, size and modification time. The folder's name is a hash of the encoder's weights, of the code that
    decodes and encodes, of transformers' version and of the seconds used, so that nothing stale is read. Shards appear whole or
    not at all, under a name of their own: processes do not disturb one another, and after an interruption `fill` goes on.
    """

    def __init__(self, directory: str | Path, encoder, extractor):
        self.encoder, self.extractor = encoder, extractor
        made_with = (
            VERSION,
            transformers.__version__,
            extractor.max_audio_seconds,
            _facts(encoder.config.to_dict()),
        )
        digest = hashlib.sha256(repr(made_with).encode())
        for source in (type(encoder), type(extractor)):
            digest.update(Path(inspect.getfile(source)).read_bytes())
        for name, tensor in sorted(encoder.state_dict().items()):
            digest.update(
                name.encode()
                + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        self.folder = Path(directory, digest.hexdigest()[:16])
        self._where: dict[str, tuple[str, str]] = {}  # identity of a clip: shard and key inside
        self._open: dict[str, tuple[int, safe_open]] = {}
        self._identities: dict[str, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Finds what other processes have encoded meanwhile."""
        for shard in sorted(self.folder.glob("*.safetensors")):
            self._learn(shard)

    def __getstate__(self):
        # to a data loader's worker goes where the clips are, neither the encoder nor open files
        return {**self.__dict__, "encoder": None, "extractor": None, "_open": {}}

    def _learn(self, shard: Path) -> None:
        try:
            with safe_open(shard, "pt") as file:
                for key, identity in json.loads(file.metadata()["clips"]).items():
                    self._where[identity] = (str(shard), key)
        except (SafetensorError, KeyError, TypeError, ValueError):
            shard.unlink(missing_ok=True)  # torn by something else than us: made anew
        except OSError as error:  # not its fault
            logger.warning("%s cannot be read (%s); its clips are encoded again", shard, error)

    def identity(self, path: str) -> str:
        """Path, size and modification time of a file."""
        if path not in self._identities:
            self._identities[path] = clip_identity(path)
        return self._identities[path]

    def bytes_per_clip(self) -> int:
        """Of the longest clips: 16-bit codes of all levels, or channels in bfloat16, of each frame."""
        extractor = self.extractor
        frames = self.encoder.num_frames(int(extractor.max_audio_seconds * extractor.sampling_rate))
        return (
            2
            * frames
            * (self.encoder.num_levels if hasattr(self.encoder, "codes") else self.encoder.dim)
        )

    def fill(
        self,
        paths: list[str],
        batch_size: int | None = None,
        process: int = 0,
        processes: int = 1,
        on_bad: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Encodes the clips that are not there yet; returns those of which `on_bad` was told.

        Args:
            batch_size, on_bad: as [`encode_clips`] takes them.
            process: of `processes` that are given the same clips, and each encode a part. When all are done, `refresh` finds
                the others' clips.

        Raises:
            ValueError: if the disk has no room for them.
        """
        mine = [path for path in sorted(set(paths))[process::processes] if path not in self]
        if not mine:
            return []
        self.folder.mkdir(parents=True, exist_ok=True)
        needed, free = (
            processes * len(mine) * self.bytes_per_clip(),
            shutil.disk_usage(self.folder).free,
        )
        room = f"{needed / 1e6:,.1f} MB for the features of {processes * len(mine):,} clips, of {free / 1e6:,.1f} MB free"
        if needed > free:
            raise ValueError(f"--feature_cache {self.folder.parent}: no room: up to {room}")
        logger.info("%s: up to %s", self.folder, room)
        made: dict[str, torch.Tensor] = {}
        desc = (
            ""
            if process
            else "encoding clips"
            if processes == 1
            else f"encoding clips, 1 of {processes} parts"
        )
        try:
            for path, clip in encode_clips(
                self.encoder, self.extractor, mine, batch_size, desc, on_bad=on_bad
            ):
                made[path] = clip.bfloat16() if clip.is_floating_point() else clip
                if len(made) == CLIPS_PER_SHARD:
                    full, made = made, {}
                    self._write(full)
        finally:  # also where somebody interrupts it
            if made:
                self._write(made)
        return [path for path in mine if path not in self]

    def fill_together(self, paths: list[str], on_bad: Callable[[str], None] | None = None) -> None:
        """`fill`, by all processes of a run, which share the work.

        Raises:
            ValueError: if the disk has no room for the features.
        """
        state = PartialState()
        bad = set(
            gather_object(self.fill(paths, None, state.process_index, state.num_processes, on_bad))
        )
        state.wait_for_everyone()
        self.refresh()
        self.fill(
            [path for path in paths if path not in bad], on_bad=on_bad
        )  # none, unless a file was lost meanwhile

    def _write(self, made: dict[str, torch.Tensor]) -> None:
        clips = {str(i): self.identity(path) for i, path in enumerate(made)}
        name = hashlib.sha256("\n".join(clips.values()).encode()).hexdigest()[:16]
        part, shard = (
            self.folder / f"{name}.{uuid.uuid4().hex}.part",
            self.folder / f"{name}.safetensors",
        )
        try:
            save_file(
                {str(i): clip.contiguous() for i, clip in enumerate(made.values())},
                part,
                {"clips": json.dumps(clips)},
            )
            part.replace(shard)
        finally:
            part.unlink(missing_ok=True)
        self._learn(shard)

    def __contains__(self, path: str) -> bool:
        try:
            return self.identity(path) in self._where
        except OSError:
            return False

    def __getitem__(self, path: str) -> torch.Tensor:
        shard, key = self._where[self.identity(path)]
        process, file = self._open.get(shard, (None, None))
        if process != os.getpid():  # a handle is not shared with a forked worker
            file = safe_open(shard, "pt")
            self._open[shard] = (os.getpid(), file)
        return file.get_tensor(key)
