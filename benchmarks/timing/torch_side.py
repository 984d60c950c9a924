"""The side of PyTorch, as one would write it for speed without custom kernels.

The same network: `nn.LSTM` layers, the last hidden state expanded over the window, a
linear head. The gates have the order i, f, g, o as in kdjax; of torch's two bias vectors
the recurrent one starts at 0. Runs on a GPU where PyTorch has one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from timing import work
from timing.work import Size, Unit, Work

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def build(item: Work, size: Size, side: str = "torch") -> Unit:
    """The measurement of one work.

    On the side `torch_cached` an epoch reads the teacher's outputs from a tensor instead
    of running the teacher in each step.
    """
    model = make_model(work.make_params(item.hidden))
    on_gpu = DEVICE == "cuda"
    facts = {
        "library": f"torch {torch.__version__}",
        "device": f"gpu ({torch.cuda.get_device_name()})" if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
    }
    unit = {
        "step": _steps,
        "epoch": partial(_epoch, cached=side == "torch_cached"),
        "series": _series,
        "window": partial(_window_by_window, kind="window"),
        "stream": partial(_window_by_window, kind="stream"),
    }[item.kind](model, size)
    return unit._replace(facts=facts | unit.facts)


def make_model(params: Any) -> nn.ModuleDict:
    """The torch model that computes the same function with these parameters."""
    layers: dict[str, nn.Module] = {}
    for name, values in params.items():
        if "recurrent_kernel" in values:
            inputs, hidden = (
                len(values["input_kernel"]),
                len(values["recurrent_kernel"]),
            )
            layers[name] = nn.LSTM(inputs, hidden, batch_first=True)
            state = {
                "weight_ih_l0": values["input_kernel"].T,
                "weight_hh_l0": values["recurrent_kernel"].T,
                "bias_ih_l0": values["bias"],
                "bias_hh_l0": np.zeros_like(values["bias"]),
            }
        else:
            layers[name] = nn.Linear(*values["kernel"].shape)
            state = {"weight": values["kernel"].T, "bias": values["bias"]}
        # Copies: torch refuses to share memory that numpy has marked read-only.
        copies = {
            key: torch.from_numpy(np.array(array)) for key, array in state.items()
        }
        layers[name].load_state_dict(copies)
    return nn.ModuleDict(layers).to(DEVICE)


def reconstruct(model: nn.ModuleDict, windows: Tensor) -> Tensor:
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
    model: nn.ModuleDict, mean: np.ndarray, whiten: np.ndarray
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
    with torch.inference_mode():
        # unfold gives a view [M, D, L].
        windows = _tensor(rows).unfold(0, work.WINDOW, work.STRIDE).transpose(1, 2)
        scores = [score(part.contiguous()) for part in windows.split(batch)]
        return torch.cat(scores).cpu().numpy()


def _steps(model: nn.ModuleDict, size: Size) -> Unit:
    """Training steps of a teacher: MSE(X', X)."""
    windows = _windows(work.BATCH)
    optimizer = _optimizer(model)

    def run() -> float:
        for _ in range(size.steps):
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.mse_loss(reconstruct(model, windows), windows)
            loss.backward()
            optimizer.step()
            result = float(loss.item())
        _wait()
        return result

    return Unit(run, {})


def _epoch(model: nn.ModuleDict, size: Size, *, cached: bool) -> Unit:
    """An epoch of a student: (1 − α)·MSE(X_S, X) + α·MSE(X_S, X_T)."""
    teacher = make_model(work.make_params(work.TEACHER))
    windows = _windows(size.windows)
    targets = torch.empty_like(windows) if cached else None
    optimizer = _optimizer(model)
    mse = nn.functional.mse_loss

    def make_targets() -> None:
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

    return Unit(run, {}, make_targets if cached else None)


def _series(model: nn.ModuleDict, size: Size) -> Unit:
    """Scores of a whole series."""
    score = partial(score_rows, make_scorer(model, *work.make_whitening()))
    return work.series_unit(score, size.series)


def _window_by_window(model: nn.ModuleDict, size: Size, kind: str) -> Unit:
    """Scores of single windows, or of rows that arrive one by one."""
    score = make_scorer(model, *work.make_whitening())

    def score_window(windows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return score(_tensor(windows)).cpu().numpy()

    return _best_threads(work.single_windows(score_window, size.calls, kind))


def _best_threads(run: Callable[[], np.ndarray]) -> Unit:
    """The measurement with the faster number of threads: all, or one."""

    def run_with(threads: int) -> np.ndarray:
        torch.set_num_threads(threads)
        return run()

    counts = (torch.get_num_threads(), 1)
    best = work.fastest([partial(run_with, count) for count in counts])
    torch.set_num_threads(counts[best])
    return Unit(run, {"threads": counts[best]})


def _windows(count: int) -> Tensor:
    """`[M, L, D]`."""
    rows = work.make_rows(count)
    return _tensor(work.cut_windows(rows, work.window_starts(rows)))


def _optimizer(model: nn.ModuleDict) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=work.LEARNING_RATE)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(DEVICE)


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
