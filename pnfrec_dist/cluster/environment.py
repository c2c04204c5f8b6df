"""What Ray reads from the environment when it is imported. Nothing here imports it: commands call this first."""

import os

SINGLE_NODE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Despite its name, off it makes Ray a single node on any system, which listens on loopback alone."""


def stay_on_this_machine(ray_address: str) -> None:
    """Makes a Ray that this process starts listen on loopback alone. ray_address: of a cluster to join; empty: none."""
    if not ray_address:
        os.environ.setdefault(SINGLE_NODE, "0")
