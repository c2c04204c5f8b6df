"""The command `ray ...` for a second node on the same machine that listens on loopback only.

RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 keeps every part of Ray on loopback, and makes `ray start` refuse a second node.
This module removes the refusal; the rest of Ray sees the setting unchanged.
"""

import types

from ray.scripts import scripts

constants = types.SimpleNamespace(**vars(scripts.ray_constants))
constants.ENABLE_RAY_CLUSTER = True
scripts.ray_constants = constants

if __name__ == "__main__":
    scripts.main()
