"""An open engine for embedding, reranking, classification and entity models."""

__version__ = "0.1.0"
