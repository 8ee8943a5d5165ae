"""Bridges from vision tokens to language tokens: `build_bridge(BridgeConfig(kind="mlp2x_gelu"), 1024, 4096)`."""

from sightline.models.bridges.bridge import Bridge, BridgeConfig
from sightline.models.bridges.build import KINDS, build_bridge
from sightline.models.bridges.gated import GatedCrossBlock

__all__ = ["KINDS", "Bridge", "BridgeConfig", "GatedCrossBlock", "build_bridge"]
