"""Catalogue entries for the 52,268 files of gs://vit_models/augreg/, which are derived from the file names."""

import re

from qkjax.errors import QkjaxError

FOLDER = "vit_models/augreg/"
HYBRIDS = ("R_Ti_16", "R26_S_32", "R50_L_32")
_VARIANT = r"(?P<variant>Ti_16|S_32|S_16|B_32|B_16|B_8|L_16|R_Ti_16|R26_S_32|R50_L_32)"
# The index calls the 30-epoch runs on ImageNet-21k "i21k_30". We do not know whether their file names do, too.
_UPSTREAM = (
    r"(?P<data>i1k|i21k)(_30)?-(?P<epochs>\d+)ep-lr_[\d.]+-aug_(none|light[12]|medium[12]|strong[12])"
    r"-wd_[\d.]+-do_[\d.]+-sd_[\d.]+"
)
_ADAPTED = r"--(?P<task>imagenet2012|cifar100|oxford_iiit_pet|kitti|resisc45)-steps_\d+k?-lr_[\d.]+-res_(?P<px>224|384)"
_NAME = re.compile(rf"{_VARIANT}-{_UPSTREAM}({_ADAPTED})?")
_DATA = {"i1k": "ImageNet-1k", "i21k": "ImageNet-21k"}


def stem(text: str) -> str | None:
    """The file name without folder and suffix, or None if `text` does not look like the name of an AugReg file."""
    text = text.removeprefix(FOLDER).removesuffix(".npz")
    return text if re.match(rf"{_VARIANT}-i(1|21)k", text) else None


def fields(text: str) -> dict:
    """The fields of the catalogue `Entry` of an AugReg file, which are inferred from the file name alone.

    Raises:
      QkjaxError: the name begins like the name of an AugReg file, but is not valid.
    """
    match = _NAME.fullmatch(stem(text) or "")
    if not match:
        raise QkjaxError(
            f"{text!r} is not the name of a file in gs://{FOLDER}; a valid name is "
            "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0[--imagenet2012-steps_20k-lr_0.03-res_384]"
        )
    variant, pixels = match["variant"], int(match["px"] or 224)
    adapted = f", fine-tuned to {match['task']} at {pixels} px" if match["task"] else ""
    hybrid = "it is a hybrid of a ResNet and a transformer, which qkjax does not support; use a plain ViT such as B_16"
    return {
        "name": match[0],
        "title": f"ViT-{variant.replace('_', '/')}, AugReg, {_DATA[match['data']]}, {match['epochs']} epochs{adapted}",
        "family": "AugReg",
        "objective": "classification",
        "resolution": pixels,
        "pool": "tok",
        "preprocess": "augreg-384" if pixels == 384 else "bigvision-small-crop",
        "licence": "not stated for the files; the repository is Apache-2.0",
        "facts": "the file's name; vision_transformer README, commit c6de1e5",
        "kind": "gs",
        "path": f"{FOLDER}{match[0]}.npz",
        "unsupported": hybrid if variant in HYBRIDS else "",
    }
