"""Small encoders of every type, with codebooks whose codes vary."""

import torch
from support.builders import SMALL_HTSAT, SMALL_MIMI

from audiolm.checkpoints.random_weights import randomise_codebooks
from audiolm.configuration_audiolm import default_encoder_config, parse_encoder_type
from audiolm.encoders_audiolm import AudioEncoder, QuantizedEncoder, build_encoder

SMALL_CONFIGS = {
    "clap_audio_model": SMALL_HTSAT,
    "mimi": SMALL_MIMI,
    "encodec": {
        "hidden_size": 16,
        "num_filters": 2,
        "codebook_size": 64,
        "codebook_dim": 16,
        "target_bandwidths": [3.6],
    },
    "dac": {
        "encoder_hidden_size": 2,
        "decoder_hidden_size": 32,
        "codebook_size": 64,
        "codebook_dim": 4,
    },
    "audiolm_pair": {"first": SMALL_HTSAT, "second": SMALL_MIMI},
}
PAIR = "htsat+mimi_full"
# Types beside the three of the experiment.
FURTHER_TYPES = [
    "mimi_acoustic",
    "mimi_continuous",
    "mimi_levels=3",
    "mimi_transformer_layer=1",
    "htsat_layer=2",
    "encodec",
    "dac",
    "htsat_posteriors",
    PAIR,
    "silence=9",
]
LAION_FRONT_END = {
    "sampling_rate": 48000,
    "fft_window_size": 1024,
    "hop_length": 480,
    "max_length_s": 1,
    "frequency_min": 50,
    "frequency_max": 14000,
}


def small_encoder(encoder_type: str) -> AudioEncoder:
    torch.manual_seed(0)
    fields = SMALL_CONFIGS.get(parse_encoder_type(encoder_type).model_type)
    encoder = build_encoder(default_encoder_config(encoder_type, fields)).eval()
    for part in encoder.modules():
        if isinstance(part, QuantizedEncoder):
            randomise_codebooks(part)
    return encoder


def noise_clips(encoder: AudioEncoder, *seconds: float) -> tuple[torch.Tensor, list[int]]:
    """Noise at an encoder's rate, padded to the longest clip, and the samples of each clip."""
    lengths = [round(duration * encoder.sample_rate) for duration in seconds]
    generator = torch.Generator().manual_seed(1)
    waveform = 0.3 * torch.randn(len(lengths), max(lengths), generator=generator)
    return waveform, lengths
