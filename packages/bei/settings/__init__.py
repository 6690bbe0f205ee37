"""The settings: config.yaml's `trt_llm` block, then BEI_* variables, then flags; checked once, then frozen."""

from bei.settings.config import read_config
from bei.settings.groups import (
    AttentionSetting,
    DefaultRoute,
    Group,
    LifeSettings,
    LimitSettings,
    ModelSettings,
    ObservationSettings,
    PoolingName,
    PoolingSetting,
    RerankTemplate,
    ServerSettings,
    SourceSettings,
)
from bei.settings.settings import Settings

__all__ = [
    "AttentionSetting",
    "DefaultRoute",
    "Group",
    "LifeSettings",
    "LimitSettings",
    "ModelSettings",
    "ObservationSettings",
    "PoolingName",
    "PoolingSetting",
    "RerankTemplate",
    "ServerSettings",
    "Settings",
    "SourceSettings",
    "read_config",
]
