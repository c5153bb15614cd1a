"""Every option, once: a run's in run.py, its agent's in agent.py."""

from mtrl.config.agent import (
    AgentConfig,
    CriticConfig,
    Loss,
    LossSmtoConfig,
    NetworkConfig,
    SmtoConfig,
    TemperatureSmtoConfig,
)
from mtrl.config.run import (
    PROTOCOLS,
    Camera,
    CheckpointConfig,
    Config,
    DeviceConfig,
    DiagnosticsConfig,
    EnvConfig,
    EvaluationConfig,
    LearnerConfig,
    LoggingConfig,
    ReplayConfig,
    TrainConfig,
    load_yaml,
)

__all__ = [
    "PROTOCOLS",
    "AgentConfig",
    "Camera",
    "CheckpointConfig",
    "Config",
    "CriticConfig",
    "DeviceConfig",
    "DiagnosticsConfig",
    "EnvConfig",
    "EvaluationConfig",
    "LearnerConfig",
    "LoggingConfig",
    "Loss",
    "LossSmtoConfig",
    "NetworkConfig",
    "ReplayConfig",
    "SmtoConfig",
    "TemperatureSmtoConfig",
    "TrainConfig",
    "load_yaml",
]
