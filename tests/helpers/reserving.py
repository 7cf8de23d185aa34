"""A run as far as its places: `python -m tests.helpers.reserving NAME OVERRIDE...` says what it
waits for and what it got, and keeps it until its standard input ends."""

from __future__ import annotations

import json
import sys
import time

from dopsd.config import load_config
from dopsd.driver.context_cache import surely_needed
from dopsd.driver.setup.run_setup import placed_roles
from dopsd.ray_cluster.connect import connect
from dopsd.ray_cluster.reservation import Reservation


def say(line: str) -> None:
    print(f"{time.time():.1f} {line}", flush=True)


def main(name: str, *overrides: str) -> None:
    config = load_config(None, ["data.source=x", f"run.folder=/nowhere/{name}", *overrides])
    connect()
    turn = config.timeouts.queue
    with Reservation(f"the run {name}", say, turn, "timeouts.queue") as place:
        try:
            roles = placed_roles(config, place, surely_needed(config))
        except Exception as error:
            say(f"refused: {error}")
            return
        say(f"placed {json.dumps({role.name: role.gpus for role in roles.all()})}")
        sys.stdin.read()
    say("gone")


if __name__ == "__main__":
    main(*sys.argv[1:])
