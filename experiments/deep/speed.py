"""How fast, and how exactly, a device works: choices that leave the method as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from experiments.deep.models.network import Network
from experiments.harness.choosing import Option
from experiments.harness.reproduction import Plan

PRECISION: Final = "precision"
OPTIONS: Final = (
    Option(PRECISION, ("fp32", "tf32", "bf16"), "tf32: products alone; bf16: autocast"),
    Option("layout", ("auto", "channels_first", "channels_last"), "auto: channels_last on CUDA"),
    Option("compile", ("off", "on", "graphs"), "torch.compile; graphs: replayed as CUDA graphs"),
    Option("deterministic", ("off", "on"), "the same bits each time on the same device"),
)
# cuBLAS repeats its sums in one order with this workspace alone; read when it starts.
_CUBLAS: Final = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@dataclass(frozen=True, slots=True)
class Speed:
    """The choices, decided.

    Attributes:
        device: where networks are trained.
        precision: "fp32", "tf32" or "bf16".
        channels_last: layout of images and weights.
        compile: "off", "on" or "graphs".
        deterministic: see ``OPTIONS``.
    """

    device: torch.device
    precision: str = "fp32"
    channels_last: bool = False
    compile: str = "off"
    deterministic: bool = False

    @classmethod
    def of(cls, plan: Plan) -> Speed:
        """As a plan has it, on a GPU if there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        layout = plan.option("layout")
        return cls(
            device,
            precision=plan.option(PRECISION),
            channels_last=layout == "channels_last" or (layout == "auto" and device.type == "cuda"),
            compile=plan.option("compile"),
            deterministic=plan.option("deterministic") == "on",
        )

    @property
    def text(self) -> str:
        """For the record of a run."""
        name = "CPU" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)
        words = [name, self.precision]
        words += ["channels_last"] * self.channels_last
        words += [f"compile={self.compile}"] * (self.compile != "off")
        words += ["deterministic"] * self.deterministic
        return ", ".join(words)

    def placed(self, network: Network) -> None:
        """Put a network where it is trained, in place."""
        network.to(self.device)
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile != "off":
            mode = "reduce-overhead" if self.compile == "graphs" else None
            network.compile_body(dynamic=False, mode=mode)

    def laid_out(self, inputs: Tensor) -> Tensor:
        """A batch in the layout of the weights."""
        if not self.channels_last:
            return inputs
        return inputs.contiguous(memory_format=torch.channels_last)

    def begin_step(self) -> None:
        """Before a forward pass: what CUDA graphs gave before may be overwritten."""
        if self.compile == "graphs":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def autocast(self) -> torch.autocast:
        """Around forward pass and loss."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """torch's global switches inside; as they were after it."""
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        kept = (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark)
        exact = torch.are_deterministic_algorithms_enabled()
        if self.deterministic:
            os.environ.setdefault(*_CUBLAS)
        cudnn.allow_tf32 = matmul.allow_tf32 = self.precision != "fp32"
        cudnn.benchmark = not self.deterministic
        torch.use_deterministic_algorithms(self.deterministic)
        try:
            yield
        finally:
            cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = kept
            torch.use_deterministic_algorithms(exact)
