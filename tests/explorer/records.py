"""Records of attention as models of full size give them, without running any, and what a page holds of one."""

import base64
import re

import numpy as np

from kaconv import create_model
from kaconv.attention.hooks import kaconv_layers
from kaconv.attention.record import AttentionRecord
from kaviz.explorer.views import unpack


def record_of(model: str, samples: int, seed: int = 0) -> AttentionRecord:
    """Random attention in the shapes of a model's layers: no pack of a real one is larger."""
    random = np.random.default_rng(seed)
    attention = {}
    for name, layer in kaconv_layers(create_model(model)).items():
        kh, kw = layer.kernel_size
        raw = random.gamma(8, size=(samples, kh, kw, layer.out_channels)).astype(np.float32)
        attention[name] = raw / raw.sum(axis=(1, 2), keepdims=True)
    labels, predictions = random.integers(0, 10, (2, samples))
    return AttentionRecord(attention, labels, predictions)


def photographs(samples: int, side: int = 224, seed: int = 0) -> np.ndarray:
    """Smooth shapes with some noise, uint8 (N, side, side, 3): in JPEG about as large as photographs."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = [
        np.sin(2 * np.pi * (a * x[..., None] + b * y[..., None]) + c)
        for a, b, c in random.uniform(-6, 6, (samples, 3, 3))
    ]
    noise = random.normal(0, 0.06, (samples, side, side, 1))
    return np.clip(127 + 90 * np.stack(waves) + 255 * noise, 0, 255).astype(np.uint8)


def packs_in(page: str) -> list[dict]:
    """The headers of the packs of numbers in an explorer's page."""
    found = re.findall(r'<script type="application/octet-stream">([^<]*)</script>', page)
    return [unpack(base64.b64decode(content))[0] for content in found]
