"""Small networks of PyTorch, for `make test-models`."""

import torch
from recipes import CLASSES, FEATURES


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, CLASSES)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.layers(x), dim=1)


class Broken(Network):
    """What is exported is not what runs: exporters take the branch that is theirs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * 2 if torch.compiler.is_exporting() else x)


class TwoOutputs(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, a * b


class Branching(Network):
    """Its way depends on its input, which no export can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class OtherWhenTraced(Network):
    """What a trace has seen is not what runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * 2 if torch.jit.is_tracing() else x)


class Endless(torch.nn.Module):
    """For zeros it is a doubling; for what has a positive sum it never ends."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while bool(x.sum() > 0):
            x = x.abs()
        return x * 2
