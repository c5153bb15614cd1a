"""The message-passing network for QM9, of torch-geometric's layers (Gilmer et al. 2017).

As in torch-geometric's example `qm9_nn_conv.py`, Nash-MTL's code and Gama & Grassi's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.data import Data
from torch_geometric.nn import NNConv, Set2Set
from torch_geometric.transforms import Distance
from torch_geometric.utils import dense_to_sparse, to_dense_adj, to_dense_batch

from mtrl.supervised.networks import MultiTaskNetwork

WIDTH = 64
ATOM, BOND = 11, 4
"""Features of an atom and of a bond, torch-geometric's."""
STEPS = 3


def complete(molecules: Data) -> Data:
    """A batch of molecules -> the same with an edge between any two atoms of a molecule: its bond's
    features, zeros where there is no bond, and its length in angstrom."""
    bonds = to_dense_adj(molecules.edge_index, molecules.batch, molecules.edge_attr)
    _, atoms = to_dense_batch(molecules.x, molecules.batch)
    pairs = atoms[:, :, None] & atoms[:, None, :]
    pairs &= ~torch.eye(atoms.shape[1], dtype=torch.bool, device=pairs.device)
    molecules = molecules.clone()
    molecules.edge_index, _ = dense_to_sparse(pairs.float(), atoms)
    molecules.edge_attr = bonds[pairs]
    return Distance(norm=False)(molecules)


class Message(NNConv):
    """NNConv that is given the edges' matrices, so that the steps of a forward share them: their
    network is most of the arithmetic."""

    def message(self, x_j: Tensor, edge_attr: Tensor) -> Tensor:
        """x_j [edge, in]; edge_attr [edge, in * out]"""
        matrices = edge_attr.view(-1, self.in_channels_l, self.out_channels)
        return (x_j[:, None] @ matrices)[:, 0]


class MessagePassing(nn.Module):
    """A batch of complete molecules -> z [molecule, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(ATOM, WIDTH)
        of_edge = nn.Sequential(nn.Linear(BOND + 1, 128), nn.ReLU(), nn.Linear(128, WIDTH**2))
        self.message = Message(WIDTH, WIDTH, of_edge, aggr="mean")
        self.memory = nn.GRU(WIDTH, WIDTH)
        self.readout = Set2Set(WIDTH, processing_steps=3)
        self.leave = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, molecules: Data) -> Tensor:
        x = functional.relu(self.enter(molecules.x))
        state = x[None]
        matrices = self.message.nn(molecules.edge_attr)
        for _ in range(STEPS):
            heard = functional.relu(self.message(x, molecules.edge_index, matrices))
            x, state = self.memory(heard[None], state)
            x = x[0]
        return functional.relu(self.leave(self.readout(x, molecules.batch)))


def molecule_network(tasks: int) -> MultiTaskNetwork:
    """-> one number [molecule, 1] per task; 616,960 shared parameters."""
    return MultiTaskNetwork(MessagePassing(), [nn.Linear(WIDTH, 1) for _ in range(tasks)])
