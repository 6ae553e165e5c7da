"""Imported before torch: registers the device."""

from tests.dry_device import shim

shim.install()
