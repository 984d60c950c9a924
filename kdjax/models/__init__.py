"""Architectures and baselines: windows to reconstructions and residuals."""

from kdjax.io.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "kdjax.models.model": "Model residuals",
        "kdjax.models.lstm": "LSTMCell lstm_cell",
        "kdjax.models.autoencoder": "lstm_autoencoder",
        "kdjax.models.baselines": "baseline",
    },
)
