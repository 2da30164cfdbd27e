"""The flags of build, and those that rebuild has, too."""

from typing import Annotated

import typer

from ocis2i.commands.container_flags import ContainerFlags, LimitFlags
from ocis2i.commands.flags import (
    DigestFileFlags,
    DockerFlags,
    JsonFlags,
    PlatformFlags,
    PullFlags,
    TalkFlags,
    TransferFlags,
    option,
)
from ocis2i.commands.record_flags import RecordFlags
from ocis2i.commands.source_flags import SourceFlags
from ocis2i.lazy_dataclass import dataclass
from ocis2i.s2i import DEFAULT_IMAGE_SCRIPTS_URL

_POLICIES = "always, never or if-not-present."


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CommonBuildFlags(
    LimitFlags,
    ContainerFlags,
    PullFlags,
    TransferFlags,
    PlatformFlags,
    DigestFileFlags,
    RecordFlags,
    TalkFlags,
    JsonFlags,
    DockerFlags,
):
    """What `build` and `rebuild` have alike."""

    incremental: Annotated[
        bool, option("--incremental", help="Go on from what the last build of the tag saved.")
    ] = False
    cache_from: Annotated[
        str | None,
        option(
            "--cache-from",
            metavar="REFERENCE",
            help="Go on from what an earlier build saved there, in a registry.",
        ),
    ] = None
    cache_to: Annotated[
        str | None,
        option(
            "--cache-to",
            metavar="REFERENCE",
            help="Save there, in a registry, what save-artifacts of the result writes.",
        ),
    ] = None
    cache_ttl: Annotated[
        str,
        option(
            "--cache-ttl", metavar="TIME", help="How long it counts, as 90m or 48h. Default: 336h."
        ),
    ] = "336h"
    no_cache: Annotated[
        bool,
        option(
            "--no-cache",
            help="Build, although the store has the image of the same input. Default: "
            "$OCIS2I_NO_CACHE.",
        ),
    ] = False
    reuse_within: Annotated[
        str,
        option(
            "--reuse-within",
            metavar="TIME",
            help="How long the image of the same input counts, as 90m or 48h. Default: 24h.",
        ),
    ] = "24h"
    remove_previous: Annotated[
        bool, option("--rm", help="After an incremental build, delete the previous image.")
    ] = False
    previous_policy: Annotated[
        str,
        option(
            "--incremental-pull-policy",
            metavar="POLICY",
            help=f"When to ask for the previous image: {_POLICIES}",
        ),
    ] = "if-not-present"
    runtime_policy: Annotated[
        str,
        option(
            "--runtime-pull-policy",
            metavar="POLICY",
            help=f"When to ask for the runtime image: {_POLICIES}",
        ),
    ] = "if-not-present"
    callback_url: Annotated[
        str | None,
        option("--callback-url", metavar="URL", help="POST success and labels there at the end."),
    ] = None
    save_temp_dir: Annotated[
        bool, option("--save-temp-dir", help="Keep a copy of what went into the container.")
    ] = False
    shell_on_failure: Annotated[
        bool,
        option(
            "--shell-on-failure",
            help="When assemble or assemble-runtime fails, open a shell in its container.",
        ),
    ] = False
    keep_failed: Annotated[
        bool,
        option(
            "--keep-failed",
            help="When assemble or assemble-runtime fails, keep its container's files: `ocis2i "
            "shell` opens them, `prune` removes them.",
        ),
    ] = False
    size_budget: Annotated[
        str | None,
        option(
            "--size-budget",
            metavar="SIZE",
            help="Fail when the files of the new layer are more than this, as 50MiB.",
        ),
    ] = None
    destination: Annotated[
        str | None,
        option("--destination", "-d", metavar="DIR", help="Where source and scripts go."),
    ] = None
    environment_file: Annotated[
        str | None,
        option(
            "--environment-file", "-E", metavar="FILE", help="Variables, a line each; --env wins."
        ),
    ] = None
    build_env: Annotated[
        list[str] | None,
        option(
            "--build-env",
            metavar="NAME[=VALUE]",
            help="A variable for the build's scripts that the image never gets; without a "
            "value, the caller's; repeatable.",
        ),
    ] = None
    parameter: Annotated[
        list[str] | None,
        option(
            "--parameter",
            "-P",
            metavar="NAME[=VALUE]",
            help="A parameter that the builder declares (`ocis2i explain`); =@FILE: from a file, "
            "=@- standard input, without a value the caller's variable; repeatable.",
        ),
    ] = None
    parameters_file: Annotated[
        str | None,
        option(
            "--parameters-file",
            metavar="FILE",
            help="Parameters in JSON, TOML or lines of NAME=VALUE, by the file's name; -P wins.",
        ),
    ] = None
    inject: Annotated[
        list[str] | None,
        option(
            "--inject",
            "-i",
            metavar="SRC[:DST]",
            help="Files that assemble sees and the image never gets; repeatable.",
        ),
    ] = None
    injection_names: Annotated[
        bool,
        option(
            "--injection-names/--no-injection-names",
            help="Whether injected files stay in the image as empty files.",
        ),
    ] = True
    allow_leaks: Annotated[
        bool,
        option("--allow-leaks", help="Build even if an injected value is in the layer or the log."),
    ] = False
    host_mirrors: Annotated[
        bool,
        option(
            "--host-mirrors",
            help="Give the build, not the image, this host's package mirrors, proxies and CAs.",
        ),
    ] = False
    cap_drop: Annotated[
        list[str] | None,
        option("--cap-drop", metavar="NAME", help="A capability to drop, or ALL; repeatable."),
    ] = None
    network: Annotated[
        str | None,
        option(
            "--network",
            metavar="MODE",
            help="host, none, proxy, slirp4netns or pasta. Default: host.",
        ),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        option(
            "--allow-host",
            metavar="HOST[:PORT]",
            help="With --network proxy: a host, *.DOMAIN or network to be reached; repeatable. "
            "Default: all that is public.",
        ),
    ] = None
    add_host: Annotated[
        list[str] | None,
        option("--add-host", metavar="HOST:IP", help="A line for /etc/hosts; repeatable."),
    ] = None
    output_limit: Annotated[
        str | None,
        option("--output-limit", metavar="SIZE", help="The most that a script may print, as 10m."),
    ] = None
    tags: Annotated[
        list[str] | None,
        option("--tag", "-t", metavar="NAME", help="A name of the result; repeatable."),
    ] = None
    push: Annotated[bool, option("--push", help="Push the result by all its names.")] = False
    iidfile: Annotated[
        str | None,
        option(
            "--iidfile",
            metavar="FILE",
            help="Write the image's ID, the digest of its config, there.",
        ),
    ] = None
    output: Annotated[
        list[str] | None,
        option(
            "--output",
            "-o",
            metavar="TRANSPORT:PATH",
            help="Write the result to oci:, oci-archive: or docker-archive: too; repeatable.",
        ),
    ] = None
    args: Annotated[
        list[str] | None,
        option(
            "--args",
            metavar="ARG",
            help="An argument that the image gives to its run script, as it is; repeatable.",
        ),
    ] = None
    start: Annotated[
        str | None,
        option(
            "--start",
            metavar="WHERE",
            help="cmd: the run script is the image's Cmd. entrypoint: it is the Entrypoint, and "
            "words after the image's name are its arguments. Default: cmd.",
        ),
    ] = None
    keep_entrypoint: Annotated[
        bool, option("--keep-entrypoint", help="Keep the base image's Entrypoint, as s2i does.")
    ] = False
    via_entrypoint: Annotated[
        bool, option("--via-entrypoint", help="Run assemble through the builder's Entrypoint.")
    ] = False
    prune_upload: Annotated[
        bool, option("--prune-upload", help="Leave uploaded source and artifacts out of the image.")
    ] = False
    keep_blobs: Annotated[
        bool,
        option(
            "--keep-blobs",
            help="Keep the builder's layers as blobs too, as pull does. Default: "
            "$OCIS2I_KEEP_BLOBS.",
        ),
    ] = False
    ignore_onbuild: Annotated[
        bool,
        option("--ignore-onbuild", help="Use a builder's scripts although it has ONBUILD."),
    ] = False
    timestamp: Annotated[
        str | None,
        option(
            "--timestamp",
            metavar="SECONDS",
            help="Latest time in the image, for repeatable digests; beats SOURCE_DATE_EPOCH.",
        ),
    ] = None
    compression: Annotated[
        str, option("--compression", metavar="NAME", help="gzip, zstd or none.")
    ] = "gzip"
    compression_level: Annotated[
        int | None,
        option("--compression-level", help="0 to 9 for gzip, 1 to 19 for zstd."),
    ] = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BuildOptions(CommonBuildFlags, SourceFlags):
    """The options of `build`: all but its arguments."""

    depth: Annotated[
        int | None,
        option("--depth", metavar="N", min=1, help="Clone no more than the last N commits."),
    ] = None
    scripts_url: Annotated[
        str | None,
        option(
            "--scripts-url",
            "-s",
            metavar="URL",
            help="Where the scripts are: image:///DIR, file:///DIR or https://HOST/DIR.",
        ),
    ] = None
    scripts: Annotated[
        str | None, option("--scripts", metavar="URL", help="Deprecated: --scripts-url.")
    ] = None
    image_scripts_url: Annotated[
        str,
        option(
            "--image-scripts-url",
            metavar="URL",
            help="Where an image without a label has its scripts; for --as-dockerfile.",
        ),
    ] = DEFAULT_IMAGE_SCRIPTS_URL
    location: Annotated[
        str | None, option("--location", "-l", metavar="DIR", help="Deprecated: --destination.")
    ] = None
    assemble_user: Annotated[
        str | None, option("--assemble-user", metavar="USER", help="Who runs assemble.")
    ] = None
    assemble_runtime_user: Annotated[
        str | None,
        option("--assemble-runtime-user", metavar="USER", help="Who runs assemble-runtime."),
    ] = None
    allowed_uids: Annotated[
        str | None,
        option("--allowed-uids", "-u", metavar="RANGES", help="User IDs allowed, as 1-,5-10."),
    ] = None
    runtime_image: Annotated[
        str | None,
        option("--runtime-image", metavar="IMAGE", help="Put artifacts on this image instead."),
    ] = None
    runtime_artifact: Annotated[
        list[str] | None,
        option(
            "--runtime-artifact",
            "-a",
            metavar="SRC[:DST]",
            help="What goes from the builder to the runtime image; repeatable.",
        ),
    ] = None
    assemble_runtime: Annotated[
        bool,
        option(
            "--assemble-runtime/--no-assemble-runtime",
            help="Whether the runtime image's assemble-runtime runs, if it has one.",
        ),
    ] = True
    description: Annotated[
        str | None, option("--description", help="Label io.k8s.description.")
    ] = None
    application_name: Annotated[
        str | None, option("--application-name", "-n", help="Label io.k8s.display-name.")
    ] = None
    as_dockerfile: Annotated[
        str | None,
        option(
            "--as-dockerfile",
            metavar="PATH",
            help="Experimental: write a Dockerfile and its context instead of building.",
        ),
    ] = None
    run: Annotated[bool, option("--run", help="Run the result after the build.")] = False
    use_config: Annotated[
        bool, option("--use-config", help="Take arguments from .s2ifile, and save them there.")
    ] = False


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BuildFlags(BuildOptions):
    """`build`."""

    source: Annotated[
        str | None,
        typer.Argument(
            help="A directory, git URL, archive, program, .jar or .war; - for stdin; #REF."
        ),
    ] = None
    builder: Annotated[
        str | None,
        typer.Argument(help="The S2I builder image: a name, or oci:, oci-archive:, ..."),
    ] = None
    tag: Annotated[str | None, typer.Argument(help="The name of the result.")] = None
