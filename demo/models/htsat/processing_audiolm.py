"""Remote code of a demo model. It is the installed package. A pushed model carries the source."""

from audiolm.processing_audiolm import AudioLMFeatureExtractor, AudioLMProcessor  # noqa: F401
