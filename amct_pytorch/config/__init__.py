"""What the user wants, per layer: the JSON configuration and the simplified one."""

from .ptq import QuantConfig as QuantConfig
from .retrain import RetrainConfig as RetrainConfig
