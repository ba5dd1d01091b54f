"""A network in Keras and its optimizer, as a state that blocks of steps start from and leave."""

from __future__ import annotations

from typing import Any

import numpy as np

from happyneurons.training.blocks import State


class BlockTrainer:
    """What trainers of all networks share. `start`: the state before the first step."""

    def __init__(self, module: Any, architecture: Any, network: Any, optimizer: Any) -> None:
        """module: has `get_weights(network, architecture)` and `set_weights(network, architecture, weights)`."""
        self._module, self._optimizer = module, optimizer
        self.architecture, self.network = architecture, network
        optimizer.build(network.trainable_variables)
        self.start = self.state()

    def state(self) -> State:
        """Everything a checkpoint needs, as arrays: the network's variables by name, then `optimizer/…`."""
        optimizer = {f"optimizer/{i:03d}": np.asarray(v.numpy()) for i, v in enumerate(self._optimizer.variables)}
        return {**self._module.get_weights(self.network, self.architecture), **optimizer}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self._module.set_weights(self.network, self.architecture, state)
        for i, variable in enumerate(self._optimizer.variables):
            variable.assign(state[f"optimizer/{i:03d}"])
