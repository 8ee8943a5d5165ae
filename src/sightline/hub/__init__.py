"""Weights in and out: references, configs, safetensors, key tables, manifests. No model is known here."""

from sightline.hub.config import Config, read_json, write_json
from sightline.hub.keys import Fused, KeyTable, Shaped, Split, Swapped, Turned
from sightline.hub.manifest import Manifest
from sightline.hub.model import Model
from sightline.hub.resolve import built_in_names, resolve
from sightline.hub.weights import digest, read_weights, weight_files, write_weights

__all__ = [
    "Config",
    "Fused",
    "KeyTable",
    "Manifest",
    "Model",
    "Shaped",
    "Split",
    "Swapped",
    "Turned",
    "built_in_names",
    "digest",
    "read_json",
    "read_weights",
    "resolve",
    "weight_files",
    "write_json",
    "write_weights",
]
