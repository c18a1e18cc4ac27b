"""Remote code of a demo model. It is the installed package. A pushed model carries the source."""

from audiolm.configuration_audiolm import AudioLMConfig  # noqa: F401
