"""The tasks and what configures each."""

from seqattn.experiment.config import ClassificationConfig, Config
from seqattn.experiment.ehr_config import EhrConfig
from seqattn.experiment.speech_config import SpeechConfig

TASKS: dict[str, type[Config]] = {"classification": ClassificationConfig, "speech": SpeechConfig, "ehr": EhrConfig}
