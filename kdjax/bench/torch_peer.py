"""The peer written in PyTorch, as one would write it for speed without custom kernels.

The same network: `nn.LSTM` layers, the last hidden state expanded over the window, a
linear head. Its gates are in the order i, f, g, o as here; of its two bias vectors the
recurrent one starts at 0. It runs on a GPU where PyTorch sees one.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kdjax.bench import work
from kdjax.bench.work import (
    Data,
    Size,
    Unit,
    Work,
)
from kdjax.data.windowing import gather

if TYPE_CHECKING:  # its module would import JAX
    from kdjax.models.autoencoder import Params

Model = Any  # torch.nn.ModuleDict
Tensor = Any  # torch.Tensor


def build(item: Work, *, size: Size, cached: bool = False) -> Unit:
    """The measurement of one work.

    Args:
        item: what to time.
        size: how much of it.
        cached: whether an epoch reads the teacher's outputs from a tensor instead of
            running the teacher in each step.
    """
    import torch

    model = make_model(work.make_params(item.hidden))
    facts = {
        "library": f"torch {torch.__version__}",
        "device": _device_name(),
        "threads": torch.get_num_threads(),
    }
    if item.kind == "step":
        unit = _steps(model, work.make_data(work.BATCH), size.steps)
    elif item.kind == "epoch":
        unit = _epoch(model, work.make_data(size.windows), cached)
    elif item.kind == "series":
        unit = _series(model, work.make_data(size.series))
    elif item.kind == "stream":
        unit = _stream(model, size.calls)
    else:
        unit = _one_window(model, work.make_data(1), size.calls)
    return unit._replace(facts=facts | unit.facts)


def make_model(params: "Params") -> Model:
    """The torch model that computes what kdjax does with these parameters."""
    import torch

    layers = {
        name: _lstm(values) if "recurrent_kernel" in values else _linear(values)
        for name, values in params.items()
    }
    return torch.nn.ModuleDict(layers).to(_device())


def reconstruct(model: Model, windows: Tensor) -> Tensor:
    """X' of windows X, `[B, L, D] -> [B, L, D]`."""
    depth = sum(name.startswith("encoder") for name in model)
    states = windows
    for number in range(depth):
        states, (last, _) = model[f"encoder_{number}"](states)
    states = last[0].unsqueeze(1).expand(-1, windows.shape[1], -1)
    for number in range(depth):
        states, _ = model[f"decoder_layers_{number}"](states)
    return model["head"](states)


def make_scorer(
    model: Model, mean: np.ndarray, whiten: np.ndarray
) -> Callable[[Tensor], Tensor]:
    """Point scores ‖W(|x − x'| − μ)‖² of windows, a function `[B, L, D] -> [B, L]`."""
    centre, matrix = _tensor(mean), _tensor(whiten.T)

    def score(windows: Tensor) -> Tensor:
        errors = (windows - reconstruct(model, windows)).abs()
        return ((errors - centre) @ matrix).square().sum(-1)

    return score


def score_rows(
    score: Callable[[Tensor], Tensor], rows: np.ndarray, batch: int
) -> np.ndarray:
    """Point scores of all windows of rows, `[N, D] -> [M, L]`."""
    import torch

    with torch.inference_mode():
        # unfold gives a view [M, D, L].
        windows = _tensor(rows).unfold(0, work.WINDOW, work.STRIDE).transpose(1, 2)
        scores = [score(part.contiguous()) for part in windows.split(batch)]
        return _numpy(torch.cat(scores))


def _lstm(params: "Params") -> Any:
    import torch

    inputs, hidden = (len(params[f"{name}_kernel"]) for name in ("input", "recurrent"))
    layer = torch.nn.LSTM(inputs, hidden, batch_first=True)
    values = {
        "weight_ih_l0": params["input_kernel"].T,
        "weight_hh_l0": params["recurrent_kernel"].T,
        "bias_ih_l0": params["bias"],
        "bias_hh_l0": np.zeros_like(params["bias"]),
    }
    layer.load_state_dict(_state(values))
    return layer


def _linear(params: "Params") -> Any:
    import torch

    kernel = params["kernel"]
    layer = torch.nn.Linear(*kernel.shape)
    layer.load_state_dict(_state({"weight": kernel.T, "bias": params["bias"]}))
    return layer


def _state(values: dict[str, np.ndarray]) -> dict[str, Tensor]:
    import torch

    # A copy: torch refuses to share memory that numpy has marked read-only.
    return {name: torch.from_numpy(np.array(array)) for name, array in values.items()}


def _steps(model: Model, data: Data, steps: int) -> Unit:
    """Training steps of a teacher: MSE(X', X)."""
    import torch

    windows = _windows(data)
    optimizer = _optimizer(model)

    def run() -> float:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.mse_loss(reconstruct(model, windows), windows)
            loss.backward()
            optimizer.step()
            result = float(loss.item())
        _wait()
        return result

    return Unit(run, None, {})


def _epoch(model: Model, data: Data, cached: bool) -> Unit:
    """An epoch of a student: (1 − α)·MSE(X_S, X) + α·MSE(X_S, X_T)."""
    import torch

    teacher = make_model(work.make_params(work.TEACHER))
    windows = _windows(data)
    targets: Tensor = torch.empty_like(windows) if cached else None
    optimizer = _optimizer(model)
    mse = torch.nn.functional.mse_loss

    def fill() -> None:
        with torch.no_grad():
            for first in range(0, len(windows), work.BATCH):
                part = slice(first, first + work.BATCH)
                targets[part] = reconstruct(teacher, windows[part])
        _wait()

    def run() -> float:
        order = torch.randperm(len(windows), device=windows.device)
        total = torch.zeros((), device=windows.device)
        for index in order.split(work.BATCH):
            batch = windows[index]
            if targets is None:
                with torch.no_grad():
                    target = reconstruct(teacher, batch)
            else:
                target = targets[index]
            optimizer.zero_grad(set_to_none=True)
            outputs = reconstruct(model, batch)
            hard, soft = mse(outputs, batch), mse(outputs, target)
            loss = (1 - work.ALPHA) * hard + work.ALPHA * soft
            loss.backward()
            optimizer.step()
            total += loss.detach()
        _wait()
        return float(total.item())

    return Unit(run, fill if cached else None, {})


def _series(model: Model, data: Data) -> Unit:
    """Scores of a whole series, with the batch that is faster here."""
    score = make_scorer(model, *work.make_whitening())
    trial = work.make_data(max(work.SCORING_BATCHES)).rows
    best = work.fastest(
        [partial(score_rows, score, trial, batch) for batch in work.SCORING_BATCHES]
    )
    batch = work.SCORING_BATCHES[best]
    return Unit(lambda: score_rows(score, data.rows, batch), None, {"batch": batch})


def _one_window(model: Model, data: Data, calls: int) -> Unit:
    """Scores of single windows."""
    score, window = _window_scorer(model), data.rows[None]

    def run() -> np.ndarray:
        for _ in range(calls):
            scores = score(window)
        return scores

    return _best_threads(run)


def _stream(model: Model, calls: int) -> Unit:
    """Scores of rows that come one by one."""
    return _best_threads(work.follow(_window_scorer(model), work.make_stream(calls)))


def _window_scorer(model: Model) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    score = make_scorer(model, *work.make_whitening())

    def score_window(windows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return _numpy(score(_tensor(windows)))

    return score_window


def _best_threads(run: Callable[[], np.ndarray]) -> Unit:
    """The measurement with the number of threads that is faster here."""
    import torch

    def run_with(threads: int) -> np.ndarray:
        torch.set_num_threads(threads)
        return run()

    counts = (torch.get_num_threads(), 1)
    best = work.fastest([partial(run_with, count) for count in counts])
    torch.set_num_threads(counts[best])
    return Unit(run, None, {"threads": counts[best]})


def _windows(data: Data) -> Tensor:
    """All windows, `[M, L, D]`."""
    return _tensor(gather(data.rows, data.starts, work.WINDOW))


def _optimizer(model: Model) -> Any:
    import torch

    return torch.optim.Adam(model.parameters(), lr=work.LEARNING_RATE)


def _tensor(values: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values)).to(_device())


def _numpy(values: Tensor) -> np.ndarray:
    # Waits for the device.
    array: np.ndarray = values.cpu().numpy()
    return array


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _device_name() -> str:
    import torch

    if _device() == "cpu":
        return "cpu"
    return f"gpu ({torch.cuda.get_device_name()})"
