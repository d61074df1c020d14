"""The walk-through of models/README.md: a small CNN, trained on handwritten digits in some ten seconds.

The recipes beside it name these functions.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.utils import prune

SEED = 0
EPOCHS, EPOCHS_AFTER_PRUNING = 15, 5
BATCH = 32
CALIBRATION_ROWS = 200
SPARSITY = 0.6


class Split(NamedTuple):
    """Images are FP32 [n, 8, 8] of pixels 0..16, as the data have them and as clients send them."""

    train: NDArray[np.float32]
    held_out: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    held_out_labels: NDArray[np.int64]


class Network(torch.nn.Module):
    """Pixels of 0..1 in, FP32 [n, 8, 8]; the probabilities of ten digits out, [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 32, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(32, 64, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(64, 64, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(64 * 4 * 4, 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 10),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.layers(image.unsqueeze(1)), dim=1)


@functools.cache
def split() -> Split:
    data = load_digits()
    images = data.images.astype(np.float32)
    return Split(*train_test_split(images, data.target, test_size=0.25, stratify=data.target, random_state=SEED))


def calibration() -> dict[str, NDArray[np.float32]]:
    return {"image": split().train[:CALIBRATION_ROWS]}


def held_out() -> dict[str, NDArray[np.generic]]:
    return {"image": split().held_out, "labels": split().held_out_labels}


def network() -> Network:
    torch.manual_seed(SEED)
    return train(Network(), EPOCHS)


def pruned_network() -> Network:
    """The same, without the smallest 60 % of its weights, and trained a little longer to do without them."""
    pruned = network()
    layers = [(layer, "weight") for layer in pruned.layers if hasattr(layer, "weight")]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=SPARSITY)
    train(pruned, EPOCHS_AFTER_PRUNING)
    for layer, name in layers:
        prune.remove(layer, name)
    return pruned


def train(network: Network, epochs: int) -> Network:
    torch.set_num_threads(1)  # a batch is too small to share out
    images, labels = torch.from_numpy(split().train / 16), torch.from_numpy(split().train_labels)
    optimiser = torch.optim.Adam(network.parameters())
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            loss = torch.nn.functional.cross_entropy(network.layers(images[rows].unsqueeze(1)), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network
