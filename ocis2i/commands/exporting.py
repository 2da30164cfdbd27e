"""A Dockerfile instead of an image: for `build --as-dockerfile` and `generate`."""

from __future__ import annotations

import sys
from dataclasses import replace

from ocis2i.commands.build_flags import BuildFlags
from ocis2i.commands.context import Context
from ocis2i.commands.state import print_json
from ocis2i.commands.web import web
from ocis2i.documents import VERSION
from ocis2i.export import ExportSpec, export
from ocis2i.spec import BuildSpec


def export_build(spec: BuildSpec, flags: BuildFlags, here: Context) -> None:
    """`build --as-dockerfile`; warns of flags that only a result gives a meaning."""
    for name, given in (
        ("--host-mirrors", flags.host_mirrors),
        ("--network proxy", spec.network == "proxy" and "network" in flags.given),
        ("--allow-host", "allow_host" in flags.given),
        ("--prune-upload", flags.prune_upload),
        ("--push", flags.push),
        ("--digest-file", flags.digest_file is not None),
        ("--iidfile", flags.iidfile is not None),
        ("more than one --tag", bool(spec.more_names)),
        ("--output", bool(flags.output)),
        ("--callback-url", bool(flags.callback_url)),
        ("--rm", flags.remove_previous),
        ("--save-temp-dir", flags.save_temp_dir),
        ("--shell-on-failure", flags.shell_on_failure),
        ("--keep-failed", flags.keep_failed),
        ("--size-budget", flags.size_budget is not None),
        ("--timestamp", flags.timestamp is not None),
        ("--compression", "compression" in flags.given),
        ("--allow-leaks", flags.allow_leaks),
        ("--isolation", "isolation" in flags.given),
        ("--memory", "memory" in flags.given),
        ("--cpus", "cpus" in flags.given),
        ("--pids-limit", "pids_limit" in flags.given),
        ("--timeout", "timeout" in flags.given),
        ("--output-limit", "output_limit" in flags.given),
        ("--security-opt", bool(flags.security_opt)),
        ("--rootfs", "rootfs" in flags.given),
    ):
        if given:
            here.recorder.warn(f"{name} has no meaning with --as-dockerfile")
    if spec.network == "proxy":
        spec = replace(spec, network="host")
    wanted = ExportSpec(spec, flags.image_scripts_url)
    path = flags.as_dockerfile or ""
    write_dockerfile(wanted, path, here, as_json=flags.as_json, quiet=flags.quiet)


def write_dockerfile(
    wanted: ExportSpec, path: str, here: Context, *, as_json: bool = False, quiet: bool = False
) -> None:
    """Writes a Dockerfile and its context, and says where it is."""
    with web(here) as servers, here.store.in_use():
        written = export(wanted, path, replace(here.tools, download=servers.download))
    if not quiet:
        sys.stderr.write(f"Application dockerfile generated in {written}\n")
    if as_json:
        print_json({"version": VERSION, "state": "succeeded", "dockerfile": str(written)})
    else:
        print(written)
