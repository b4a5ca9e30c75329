"""A benchmark of deep-learning frameworks, tracked in MLflow."""

__version__ = "0.1.0"
