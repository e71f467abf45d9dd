"""Trains ViTs with a constrained query-key interaction. (The paper trains no models.)

The package can be called like a function, because `qkjax.train` is the name of both the package and its main function:

    qkjax.train(qkjax.TrainConfig(constraint="tied", steps=300), "runs/tied")

This line calls `qkjax.train.run.train`; see the docstring of that function.
"""

import sys
from types import ModuleType


class _CallablePackage(ModuleType):
    def __call__(self, config, folder, *, label: str = "", fresh: bool = False) -> dict:
        """Trains a ViT; see `qkjax.train.run.train`.

        Example:
          >>> import qkjax
          >>> config = qkjax.TrainConfig(width=16, depth=1, heads=2, mlp_dim=16, steps=4, warmup=1, every=4, batch=16)
          >>> qkjax.train(config, "run")["step"]
          4
        """
        from qkjax.train.run import train  # this imports jax

        return train(config, folder, label=label, fresh=fresh)


sys.modules[__name__].__class__ = _CallablePackage
