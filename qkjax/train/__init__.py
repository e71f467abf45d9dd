"""Training of ViTs whose query-key interaction is constrained: our extension, the paper trains nothing.

The package can be called, since `qkjax.train` names both the package and its main function:

    qkjax.train(qkjax.TrainConfig(constraint="tied", steps=300), "runs/tied")

is `qkjax.train.run.train`, whose documentation holds.
"""

import sys
from types import ModuleType


class _CallablePackage(ModuleType):
    def __call__(self, config, folder, *, label: str = "") -> dict:
        """`qkjax.train.run.train`."""
        from qkjax.train.run import train  # jax

        return train(config, folder, label=label)


sys.modules[__name__].__class__ = _CallablePackage
