"""`ray ...` for a second node of one machine that listens on loopback alone.

RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 keeps every part of Ray on loopback, and makes `ray start` refuse a second node.
That refusal is lifted here; the rest of Ray sees the setting as it is.
"""

import types

from ray.scripts import scripts

constants = types.SimpleNamespace(**vars(scripts.ray_constants))
constants.ENABLE_RAY_CLUSTER = True
scripts.ray_constants = constants

if __name__ == "__main__":
    scripts.main()
