"""Prometheus metrics: TEI's names as TEI has them (router/src/prometheus.rs), ours as bei_*. docs/operations.md has the
table."""

from bei.metrics.counted import Cancellation, DeviceMetrics, Metrics, ModelMetrics
from bei.metrics.exposition import CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Cancellation", "DeviceMetrics", "Metrics", "ModelMetrics"]
