"""Measures accuracy with three classifiers (readouts): the model's own, a linear probe, and nearest neighbours."""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from qkjax.errors import QkjaxError
from qkjax.images.default_set import subjects
from qkjax.images.labels import by_folder, head_classes
from qkjax.images.sets import ImageSet

FOLDS, NEIGHBOURS = 5, 5


class Labels(NamedTuple):
    """The class of each image, and the names of the classes; both are empty if there are no labels."""

    classes_of_images: list[int]
    names: list[str]


def labels_of(images: ImageSet) -> Labels:
    """The class of each image, which is the name of the outermost folder in the image's path.

    For the default photographs, the class of a crop is the name of the photograph that contains the crop.

    Raises:
      QkjaxError: there are fewer than two folders.
    """
    return Labels(*(subjects(images) if images.name == "photographs" else by_folder(Path(images.name), images)))


def check_labels(labels: Sequence[int], classes: list[str]) -> None:
    """Checks, before any long computation, that a probe can be fitted to the labels.

    Raises:
      QkjaxError: scikit-learn is not installed, a class does not exist, or a class has fewer than two images.
    """
    if odd := [label for label in labels if not 0 <= label < len(classes)]:
        raise QkjaxError(f"labels contains the class {odd[0]}: expected numbers from 0 to {len(classes) - 1}")
    counts = np.bincount(np.asarray(labels, int), minlength=len(classes))
    if counts.min() < 2:
        raise QkjaxError(
            f"class {classes[counts.argmin()]} has {counts.min()} of the images, but a probe needs at least two: add "
            "images, or do not pass labels=..."
        )
    if find_spec("sklearn") is None:
        raise QkjaxError("probes need scikit-learn, which is not installed: pip install 'qkjax[photographs]'")


class Readout:
    """Three classifiers (readouts) of labelled images.

    - `head`: the checkpoint's own classifier, if it has one and if the outputs of this classifier are these classes.
    - `probe`: logistic regression on standardised representations of the *unedited* model, with 5-fold
      cross-validation. Like the classifier, the probe is not retrained after the edit, so its accuracy shows whether a
      fixed linear readout still works.
    - `neighbours`: a vote of the five nearest neighbours (by cosine) in the training folds, computed from the *edited*
      representations. The accuracy of this readout shows how much class information a readout that is fitted after the
      edit can recover.
    """

    def __init__(
        self,
        labels: Sequence[int],
        classes: list[str],
        representation: Float[np.ndarray, "images features"],
        outputs: int | None,
    ):
        """Fits the probe to the representations of the unedited model.

        Args:
          labels: class index of each image.
          classes: names of the classes.
          representation: representations of the unedited model.
          outputs: number of outputs of the model's classifier; None if there is no classifier.

        Raises:
          QkjaxError: scikit-learn is not installed, or a class has fewer than two images.
        """
        check_labels(labels, classes)
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._labels = np.asarray(labels)
        self._outputs = head_classes(classes, outputs) if outputs else None
        folds = StratifiedKFold(min(FOLDS, np.bincount(self._labels).min()), shuffle=True, random_state=0)
        self._folds = list(folds.split(representation, self._labels))
        self._probes = []
        for train, _ in self._folds:
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a probe is good enough even if it has not fully converged
                self._probes.append(probe.fit(representation[train], self._labels[train]))

    def correct(
        self, representation: Float[np.ndarray, "images features"], logits: Float[np.ndarray, "images classes"] | None
    ) -> dict[str, Bool[np.ndarray, "images"]]:
        """For each readout, returns an array of booleans: whether the readout classifies each image correctly."""
        from sklearn.neighbors import KNeighborsClassifier

        result = {name: np.zeros(len(self._labels), bool) for name in ("probe", "neighbours")}
        for (train, test), probe in zip(self._folds, self._probes, strict=True):
            neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(train)), metric="cosine")
            neighbours.fit(representation[train], self._labels[train])
            for name, classifier in (("probe", probe), ("neighbours", neighbours)):
                result[name][test] = classifier.predict(representation[test]) == self._labels[test]
        if self._outputs is not None and logits is not None:
            result["head"] = logits.argmax(-1) == np.array(self._outputs)[self._labels]
        return result
