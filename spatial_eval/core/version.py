"""Define the version of this package."""

VERSION = "0.5.0"
