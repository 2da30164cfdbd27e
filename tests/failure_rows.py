"""Every kind of failure: how it is brought about, and what the user is told of it.

The tests take their expectations from here, and `tests/failure_table.py` the page for people: so
there is no reason word without a row, and no row without a test. Imports nothing but the standard
library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Row:
    """One failure: `reason` and exit `code`, and what message and hint have to say.

    `words` is the command line that fails; in it `{source}` and `{builder}` are those of the test,
    made of `files` and `scripts`, with more of the image's `config`; `{tag}` names the result and
    `{place}` is an empty directory. With `cluster` it is `kube run`, with a stand-in of a cluster
    where that goes wrong (tests/unit/test_kube_failures.py). Without `words` it is brought about by
    a function, or only looked at in the module that it is `raised_in`. `warning`: the build goes
    on, with this said.
    """

    id: str
    what: str
    reason: str
    code: int
    thing: str
    way_out: str
    words: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    scripts: Mapping[str, str | None] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    raised_in: str = ""
    cluster: bool = False
    warning: bool = False


_BUILD = ("build", "{source}", "{builder}", "{tag}")
_SH = "#!/bin/sh\n"
_LEAK = f"{_SH}cat /etc/token > /opt/app-root/copied\n"
Kind = Literal["script", "limit", "source", "image", "output", "policy", "usage", "end", "other"]

ROWS: dict[Kind, tuple[Row, ...]] = {
    "script": (
        Row(
            "assemble",
            "assemble ends with an exit code",
            "AssembleFailed",
            7,
            "`/usr/libexec/s2i/assemble` failed with exit code 127: the command `go` is missing",
            "take a builder that has `go`",
            _BUILD,
            scripts={"assemble": f"{_SH}go build\n"},
        ),
        Row(
            "interpreter",
            "the interpreter of assemble is missing",
            "AssembleFailed",
            7,
            "`/tmp/scripts/assemble` needs `/usr/bin/ruby9`",
            "change its first line",
            _BUILD,
            files={".s2i/bin/assemble": "#!/usr/bin/ruby9\n"},
        ),
        Row(
            "assemble-runtime",
            "assemble-runtime ends with an exit code",
            "AssembleRuntimeFailed",
            7,
            "assemble-runtime` failed with exit code 42",
            "it ran as 1001:0",
            (*_BUILD, "--runtime-image", "{builder}", "-a", "/tmp/src/index.html:."),
            files={".s2i/bin/assemble-runtime": f"{_SH}exit 42\n"},
        ),
        Row(
            "save-artifacts",
            "save-artifacts ends with an exit code: the build goes on without artifacts",
            "SaveArtifactsFailed",
            0,
            "save-artifacts` failed with exit code 3",
            "Clean build will be performed",
            (*_BUILD, "--incremental"),
            scripts={"save-artifacts": f"{_SH}exit 3\n"},
            warning=True,
        ),
        Row(
            "run",
            "the image that was built fails with `--run`",
            "RunFailed",
            7,
            "the image ran and ended with exit code 5",
            "ocis2i run",
            (*_BUILD, "--run"),
            scripts={"run": f"{_SH}exit 5\n"},
        ),
        Row(
            "metadata",
            "assemble writes labels wrongly",
            "GenericS2IBuildFailed",
            4,
            "image_metadata.json",
            "",
            _BUILD,
            scripts={
                "assemble": f"{_SH}mkdir -p /tmp/.s2i\necho oops > /tmp/.s2i/image_metadata.json\n"
            },
        ),
    ),
    "limit": (
        Row(
            "memory",
            "more memory than `--memory` allows",
            "MemoryLimitReached",
            9,
            "more than 64 MiB of memory",
            "raise --memory",
        ),
        Row(
            "tasks",
            "more processes than `--pids-limit` allows",
            "ProcessLimitReached",
            9,
            "more than 20 processes",
            "raise --pids-limit",
        ),
        Row(
            "time",
            "more time than `--timeout` allows",
            "TimeLimitReached",
            9,
            "`assemble` runs for more than 1 second",
            "raise --timeout",
        ),
        Row(
            "output",
            "more output than `--output-limit` allows",
            "OutputLimitReached",
            9,
            "`assemble` prints more than 1 KiB",
            "raise --output-limit",
        ),
    ),
    "source": (
        Row(
            "no-source",
            "the source is not there",
            "FetchSourceFailed",
            3,
            "{place}/missing",
            "",
            ("build", "{place}/missing", "{builder}", "{tag}"),
        ),
        Row(
            "empty-repository",
            "the git repository has no commit",
            "EmptyGitRepository",
            3,
            "{place}",
            "",
            ("build", "file://{place}", "{builder}", "{tag}"),
        ),
        Row(
            "scripts-url",
            "there are no scripts where `--scripts-url` says",
            "FetchScriptsFailed",
            4,
            "{place}/missing",
            "",
            (*_BUILD, "--scripts-url", "file://{place}/missing"),
        ),
    ),
    "image": (
        Row(
            "no-builder",
            "the builder is not there",
            "PullBuilderImageFailed",
            4,
            "{place}",
            "",
            ("build", "{source}", "oci:{place}:b:1", "{tag}"),
        ),
        Row(
            "no-runtime",
            "the runtime image is not there",
            "PullRuntimeImageFailed",
            4,
            "{place}",
            "",
            (*_BUILD, "--runtime-image", "oci:{place}:b:1", "-a", "/tmp/x:."),
        ),
        Row(
            "no-scripts",
            "the builder has no assemble",
            "InstallScriptsFailed",
            4,
            "has no script `/usr/libexec/s2i/assemble`",
            ".s2i/bin/assemble",
            _BUILD,
            scripts={"assemble": None},
        ),
        Row(
            "no-artifact",
            "an artifact is not in the builder's container",
            "FetchRuntimeArtifactsFailed",
            4,
            "/tmp/nothing",
            "",
            (*_BUILD, "--runtime-image", "{builder}", "-a", "/tmp/nothing:."),
        ),
        Row(
            "registry",
            "the registry is not there",
            "RegistryFailed",
            5,
            "127.0.0.1:1",
            "",
            ("pull", "127.0.0.1:1/team/app:1"),
        ),
    ),
    "output": (
        Row(
            "no-output",
            "the result cannot be written where it shall go",
            "ContainerCommitFailed",
            8,
            "{source}/index.html",
            "",
            (*_BUILD, "-o", "oci:{source}/index.html"),
        ),
        Row(
            "no-dockerfile",
            "a Dockerfile cannot be written",
            "DockerFileCreationFailed",
            8,
            "/proc/Dockerfile",
            "",
            (*_BUILD, "--as-dockerfile", "/proc/Dockerfile"),
        ),
        Row(
            "full",
            "the disk is full",
            "FileSystemOperationFailed",
            8,
            "the layer cannot be written",
            "free some space",
        ),
    ),
    "policy": (
        Row(
            "uids",
            "a user that `--allowed-uids` does not allow",
            "AssembleUserForbidden",
            9,
            "0",
            "--allowed-uids",
            (*_BUILD, "--allowed-uids", "1-"),
            config={"User": "0"},
        ),
        Row(
            "onbuild",
            "a builder with ONBUILD",
            "OnBuildForbidden",
            9,
            "has ONBUILD instructions",
            "--ignore-onbuild",
            _BUILD,
            config={"OnBuild": ["RUN x"]},
        ),
        Row(
            "leak",
            "assemble writes an injected value into the image",
            "SecretLeaked",
            9,
            "/etc/token",
            "--allow-leaks",
            (*_BUILD, "-i", "{source}/token:/etc/token"),
            files={"token": "very-much-hidden-value\n"},
            scripts={"assemble": _LEAK},
        ),
        Row(
            "rule",
            "something over a fixed limit, as a variable that no process can be given",
            "PolicyViolated",
            9,
            "variable `LONG` has 140005 characters",
            "--volume",
            (*_BUILD, "-E", "{source}/variables"),
            files={"variables": f"LONG={'x' * 140_000}\n"},
        ),
    ),
    "usage": (
        Row(
            "value",
            "a flag with a value that means nothing",
            "InvalidUsage",
            2,
            "`--timeout` is `soon`",
            "write a time as 90s",
            (*_BUILD, "--timeout", "soon"),
        ),
        Row(
            "mapping",
            "a runtime image without artifacts for it",
            "InvalidArtifactsMapping",
            2,
            "no runtime artifacts to copy were specified",
            "--runtime-artifact",
            (*_BUILD, "--runtime-image", "{builder}"),
        ),
        Row(
            "isolation",
            "an isolation that this host does not allow",
            "IsolationUnavailable",
            6,
            "isolation `chroot` cannot be used: it takes root",
            "",
            (*_BUILD, "--isolation", "chroot"),
        ),
        Row(
            "terminal",
            "`--shell-on-failure` where nobody sits",
            "InvalidUsage",
            2,
            "--shell-on-failure needs a terminal",
            "as in CI",
            (*_BUILD, "--shell-on-failure"),
        ),
    ),
    "end": (Row("signal", "a signal ends it", "Interrupted", 143, "stopped by termination", ""),),
    "other": (
        Row(
            "parameters",
            "parameters for a builder that declares none",
            "ParametersInvalid",
            2,
            "declares no parameters",
            "-e NAME=VALUE",
            (*_BUILD, "-P", "a=b"),
        ),
        Row(
            "build-budget",
            "the layer of a build is more than its size budget",
            "SizeBudgetExceeded",
            9,
            "its size budget is 1.0 KiB; most is in `/opt/app-root/",
            "raise --size-budget",
            (*_BUILD, "--size-budget", "1KiB"),
            scripts={"assemble": f"{_SH}mkdir big\nhead -c 5000 /dev/zero > big/zeros\n"},
        ),
        Row(
            "budget",
            "an image adds more than its size budget",
            "SizeBudgetExceeded",
            9,
            "its size budget is",
            "raise --size-budget",
            raised_in="ocis2i/commands/comparing.py",
        ),
        Row(
            "cluster",
            "a cluster does not do what a build needs of it",
            "ClusterFailed",
            6,
            "does not know who asks",
            "log in to the cluster again",
            cluster=True,
        ),
        Row(
            "no-cluster",
            "a cluster cannot be reached",
            "ClusterUnreachable",
            6,
            "cannot be reached",
            "kubeconfig",
            cluster=True,
        ),
        Row(
            "lost-cluster",
            "the connection to a cluster is lost during a build",
            "ClusterLost",
            6,
            "is lost",
            "the job goes on there",
            cluster=True,
        ),
        Row(
            "deleted",
            "somebody deletes the job of a build",
            "Deleted",
            6,
            "was deleted by somebody else",
            "run it again",
            cluster=True,
        ),
        Row(
            "no-result",
            "the log of a build's pod has no result",
            "ResultLost",
            6,
            "has no result",
            "--tool-image",
            cluster=True,
        ),
    ),
}

TITLES: dict[Kind, str] = {
    "script": "Scripts",
    "limit": "Limits",
    "source": "Source and scripts",
    "image": "Images and registries",
    "output": "Results",
    "policy": "Rules",
    "usage": "Command line and host",
    "end": "Signals",
    "other": "The rest",
}
EVERY = tuple(row for rows in ROWS.values() for row in rows)
