"""Optimizers: building those of a configuration, and paged 8-bit AdamW for adapters on one GPU."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import AdamW

from judgelit.errors import UserError, first_line


def call_setting(name: str, setting: Callable[[Any], Any], argument: Any, trivial: Callable[[], Any]) -> Any:
    """Call a class of the configuration, such as an optimizer, and return what it makes.

    Args:
        name: Key of the setting, for messages.
        setting: The class with the user's values.
        argument: What it is called with.
        trivial: Returns a small argument in which nothing can be wrong.

    Raises:
        UserError: The call fails with the trivial argument too, so the user's values are wrong. If it fails only with
            `argument`, that is a bug, and the exception is raised unchanged.
    """
    try:
        return setting(argument)
    except UserError:
        raise
    except Exception:
        try:
            setting(trivial())
        except Exception as error:
            raise UserError(f"{name}: {first_line(error)}") from error
        raise


class PagedAdamW8bit(AdamW):
    """AdamW with its state in 8 bits, moved to host memory when the GPU's is full (Dettmers et al. 2023).

    It is bitsandbytes' optimizer, which needs a CUDA GPU. Without one, it is PyTorch's AdamW.
    """

    def __new__(
        cls,
        params: Iterable[Any] = (),
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> Any:
        """Make bitsandbytes' optimizer if there is a GPU."""
        if not torch.cuda.is_available():
            return super().__new__(cls)
        from bitsandbytes.optim import PagedAdamW8bit as OnGPU

        return OnGPU(params, lr, betas, eps, weight_decay)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        """Make PyTorch's AdamW.

        Args:
            params: Weights, or groups of them.
            lr: Learning rate.
            betas: Decay per step of the running means of the gradient and of its square.
            eps: Added to the root of the squares' mean, against division by zero.
            weight_decay: Share of a weight that a step subtracts, times the learning rate.
        """
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        rank_zero_info("optimizer: PyTorch's AdamW in place of the paged 8-bit one, since there is no CUDA GPU")
