"""How far apart two colors look, to the color-blind as well, and their contrast.

A color in linear light times a matrix is what is seen with a kind of cone missing (Machado, Oliveira and Fernandes
2009, severity 1); the distance is that of CIE Lab (1976), in which 2.3 is just noticeable.
"""

import numpy as np

SIGHTS = {
    "all": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = _TO_XYZ.sum(axis=1)


def difference(one, other, sight):
    """Return the distance between two colors, each red, green, blue of 0 to 255, as one of `SIGHTS` sees them."""
    first, second = (_lab(color, np.array(SIGHTS[sight])) for color in (one, other))
    return float(np.linalg.norm(first - second))


def contrast(one, other):
    """Return the contrast of two colors, 1 to 21, as WCAG 2 defines it."""
    lights = sorted(float(_linear(color) @ _TO_XYZ[1]) for color in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _linear(color):
    share = np.array(color) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def _lab(color, sight):
    x, y, z = np.cbrt(np.maximum(_TO_XYZ @ np.clip(sight @ _linear(color), 0, 1) / _WHITE, 1e-6))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
