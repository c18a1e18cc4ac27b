"""Remote code of a demo model. It is the installed package. A pushed model carries the source."""

from audiolm.modeling_audiolm import AudioLMForConditionalGeneration  # noqa: F401
