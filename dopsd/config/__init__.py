"""One typed run config: :class:`RunConfig`, its sections, and how it is read and written."""

from dopsd.config.base import Device
from dopsd.config.data import DataSection
from dopsd.config.load import dump_config, load_config, parse_config, stored_config
from dopsd.config.method import MethodSection
from dopsd.config.model import LoraSection
from dopsd.config.reference import reference
from dopsd.config.roles import LearnerSection, RoleSection, TimeoutSection, check_role
from dopsd.config.run import RunConfig

__all__ = [
    "DataSection",
    "Device",
    "LearnerSection",
    "LoraSection",
    "MethodSection",
    "RoleSection",
    "RunConfig",
    "TimeoutSection",
    "check_role",
    "dump_config",
    "load_config",
    "parse_config",
    "reference",
    "stored_config",
]
