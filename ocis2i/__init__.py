"""ocis2i: Source-to-Image builds that write OCI images directly, with no daemon and no root."""

__version__ = "0.1.0"
