"""Training-free transforms of stored vectors: fitted on image and text features, in scikit-learn's manner.

centre = Center().fit(image, text)
centre.transform(image, "image"), centre.transform(text, "text")
centre.save("centre"); load("centre")
"""

from modalign.gap.transforms.applying import applied
from modalign.gap.transforms.base import ROLES, NotFittedError, Transform
from modalign.gap.transforms.centring import Center, DropDimensions, Shift
from modalign.gap.transforms.gaussian_ot import GaussianOT
from modalign.gap.transforms.kinds import KINDS, load, of_kind
from modalign.gap.transforms.nnn import NNN
from modalign.gap.transforms.paired import CCA, Procrustes, Ridge
from modalign.gap.transforms.rescaling import ReAlign, Standardize
from modalign.gap.transforms.stored import stored_vectors

__all__ = [
    "CCA",
    "KINDS",
    "NNN",
    "ROLES",
    "Center",
    "DropDimensions",
    "GaussianOT",
    "NotFittedError",
    "Procrustes",
    "ReAlign",
    "Ridge",
    "Shift",
    "Standardize",
    "Transform",
    "applied",
    "load",
    "of_kind",
    "stored_vectors",
]
