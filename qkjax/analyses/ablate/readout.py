"""Whether a model's representations still tell classes: through its own head, a linear probe, nearest neighbours."""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from jaxtyping import Bool, Float

from qkjax.errors import QkjaxError
from qkjax.images.labels import head_classes

FOLDS, NEIGHBOURS = 5, 5


def check_labels(labels: Sequence[int], classes: list[str]) -> None:
    """Refuses labels to which no probe can be fitted, before any work.

    Raises:
      QkjaxError: scikit-learn is not installed, or a class has one image or none.
    """
    counts = np.bincount(np.asarray(labels, int), minlength=len(classes))
    if counts.min() < 2:
        raise QkjaxError(
            f"class {classes[counts.argmin()]} has {counts.min()} images among those used, and a probe needs "
            "at least two: use more images, or no labels"
        )
    if find_spec("sklearn") is None:
        raise QkjaxError("probes come with scikit-learn, which is not here: pip install 'qkjax[photographs]'")


class Readout:
    """Says of each labelled image whether it is classified rightly.

    - `head`: the checkpoint's own, where it has one whose outputs are these classes;
    - `probe`: logistic regression on standardised representations of the *unedited* model, in five parts: fitted on
      four, asked about the fifth. It takes the place of a head: does what reads the model still understand it?
    - `neighbours`: the five nearest by cosine among the *edited* representations of the other four parts. What is
      still there, for whoever may learn it anew?
    """

    def __init__(
        self,
        labels: Sequence[int],
        classes: list[str],
        representation: Float[np.ndarray, "images features"],
        outputs: int | None,
    ):
        """Fits the probe.

        Args:
          labels: number of each image's class.
          classes: their names.
          representation: of the unedited model.
          outputs: of the model's head, if it has one.

        Raises:
          QkjaxError: as `check_labels`.
        """
        check_labels(labels, classes)
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._labels = np.asarray(labels)
        self._outputs = head_classes(classes, outputs) if outputs else None
        parts = StratifiedKFold(min(FOLDS, np.bincount(self._labels).min()), shuffle=True, random_state=0)
        self._parts = list(parts.split(representation, self._labels))
        self._probes = []
        for learned, _ in self._parts:
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # not quite converged is a probe, too
                self._probes.append(probe.fit(representation[learned], self._labels[learned]))

    def right(
        self, representation: Float[np.ndarray, "images features"], logits: Float[np.ndarray, "images classes"] | None
    ) -> dict[str, Bool[np.ndarray, "images"]]:
        """By readout, whether each image is classified rightly."""
        from sklearn.neighbors import KNeighborsClassifier

        found = {name: np.zeros(len(self._labels), bool) for name in ("probe", "neighbours")}
        for (learned, asked), probe in zip(self._parts, self._probes, strict=True):
            near = KNeighborsClassifier(min(NEIGHBOURS, len(learned)), metric="cosine")
            near.fit(representation[learned], self._labels[learned])
            for name, classifier in (("probe", probe), ("neighbours", near)):
                found[name][asked] = classifier.predict(representation[asked]) == self._labels[asked]
        if self._outputs is not None and logits is not None:
            found["head"] = logits.argmax(-1) == np.array(self._outputs)[self._labels]
        return found
