"""Procedural street scenes with exact masks and continuous weather."""

from semla_ros.lab.world.caption import SYNONYMS, caption
from semla_ros.lab.world.cities import CITIES, SOURCE_CITIES, CityStyle
from semla_ros.lab.world.classes import CLASS_NAMES, PALETTE
from semla_ros.lab.world.conditions import Conditions
from semla_ros.lab.world.domains import BENCHMARK, SOURCE, UNSEEN, Domain, DomainScene, domain_named, split_seed
from semla_ros.lab.world.drive import DEMO_DRIVE, Drive, demo_drive, drive_through
from semla_ros.lab.world.render import Scene, render

__all__ = [
    "BENCHMARK",
    "CITIES",
    "CLASS_NAMES",
    "DEMO_DRIVE",
    "PALETTE",
    "SOURCE",
    "SOURCE_CITIES",
    "SYNONYMS",
    "UNSEEN",
    "CityStyle",
    "Conditions",
    "Domain",
    "DomainScene",
    "Drive",
    "Scene",
    "caption",
    "demo_drive",
    "domain_named",
    "drive_through",
    "render",
    "split_seed",
]
