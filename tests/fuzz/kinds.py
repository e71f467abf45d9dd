"""All kinds of input."""

from . import models

KINDS = {**models.KINDS}
