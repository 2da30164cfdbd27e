"""Files of CI systems whose runners are no pods of ours: GitLab CI and GitHub Actions. Pure.

Here a build is commands of a shell. What a user gave is quoted for it, and refused where the
system itself would replace it before any shell sees it.
"""

from __future__ import annotations

import shlex
from typing import Any

from ocis2i.errors import UsageError
from ocis2i.kube.names import check_text, refuse_marks
from ocis2i.kube.plan import Order, Pod, tag_options

Json = dict[str, Any]


def _line(*words: str) -> str:
    return shlex.join([check_text(word) for word in words])


def _names_of(order: Order, *words: str) -> list[str]:
    return [_line("ocis2i", "push", *order.push, *words, "--", name) for name in order.names]


def _refuse_secret(pod: Pod, place: str) -> None:
    if pod.build_secret:
        raise UsageError(
            "--build-secret names a Secret of Kubernetes, which is not asked here",
            hint=f"leave it out: -P NAME and --build-env NAME take their values from {place}",
        )


# --- GitLab -------------------------------------------------------------------------------------


def gitlab_ci(order: Order, pod: Pod) -> Json:
    """A `.gitlab-ci.yml` with one job: the runner needs to give containers no more than usual.

    The image is the one with the tool, and root in it has Docker's own capabilities: chroot.
    Credentials are of the job's registry; only `push` gets them.
    """
    # `$[[ inputs.x ]]` is replaced before anything else, scripts too.
    refuse_marks(order.words, ("$[[",), "GitLab")
    _refuse_secret(pod, "the variables of the project's CI/CD settings")
    if pod.level != "baseline":
        raise UsageError(
            f"gitlab-ci is there for --pod-security baseline, not for {pod.level}",
            hint="a GitLab job has one image and no init container, which a build in place takes; "
            "give --pod-security baseline, or render a `job`",
        )
    secret = " ".join(
        [
            'OCIS2I_REGISTRY="$CI_REGISTRY"',
            'OCIS2I_REGISTRY_USER="$CI_REGISTRY_USER"',
            'OCIS2I_REGISTRY_PASSWORD="$CI_REGISTRY_PASSWORD"',
        ]
    )
    build = _line(
        *("ocis2i", "build", *order.build, *tag_options(order)),
        *("--isolation", "chroot", "--json"),
        *("--", order.source, order.builder, order.names[0]),
    )
    pushes = [f"{secret} {line}" for line in _names_of(order, "--digest-file", "ocis2i.digest")]
    return {
        "stages": ["build"],
        pod.name: {
            "stage": "build",
            "image": {"name": pod.tool_image, "entrypoint": [""]},
            "variables": {
                "OCIS2I_ROOT": "$CI_BUILDS_DIR/ocis2i-store",
                "GIT_DEPTH": "1",
            },
            "timeout": f"{max(1, pod.deadline_seconds // 60)} minutes",
            "interruptible": True,
            "script": [
                f"{build} > ocis2i.json",
                *pushes,
                'echo "IMAGE_DIGEST=$(cat ocis2i.digest)" > ocis2i.env',
            ],
            "artifacts": {
                "when": "always",
                "expire_in": "1 week",
                "paths": ["ocis2i.json"],
                "reports": {"dotenv": "ocis2i.env"},
            },
        },
    }


# --- GitHub -------------------------------------------------------------------------------------

# Ubuntu's AppArmor takes the rights out of user namespaces (docs/isolation.md).
_PREPARE = """\
sudo sysctl -q -w kernel.apparmor_restrict_unprivileged_userns=0
pipx install ocis2i
"""


def github_actions(order: Order, pod: Pod) -> Json:
    """A workflow for GitHub's own Linux machines, where user namespaces are to be had."""
    refuse_marks(order.words, ("${{",), "GitHub")
    _refuse_secret(pod, "the repository's secrets")
    build = _line(
        *("ocis2i", "build", *order.build, *tag_options(order), "--json"),
        *("--", order.source, order.builder, order.names[0]),
    )
    push = "\n".join(
        [
            *_names_of(order, "--digest-file", "ocis2i.digest"),
            'echo "digest=$(cat ocis2i.digest)" >> "$GITHUB_OUTPUT"',
            "",
        ]
    )
    minutes = max(1, pod.deadline_seconds // 60)
    return {
        "name": pod.name,
        "on": {"push": {"branches": ["main"]}, "workflow_dispatch": {}},
        "permissions": {"contents": "read", "packages": "write"},
        "concurrency": {"group": f"{pod.name}-${{{{ github.ref }}}}", "cancel-in-progress": True},
        "jobs": {
            "build": {
                "runs-on": "ubuntu-24.04",
                "timeout-minutes": minutes,
                "outputs": {"digest": "${{ steps.push.outputs.digest }}"},
                "steps": [
                    # Without it, the token of the job would stay in .git for assemble to read.
                    {"uses": "actions/checkout@v4", "with": {"persist-credentials": False}},
                    {"name": "Install ocis2i", "run": _PREPARE},
                    {
                        "name": "Build",
                        **_secrets_of(order),
                        "run": f"{build} > ocis2i.json\ncat ocis2i.json\n",
                    },
                    {
                        "name": "Push",
                        "id": "push",
                        "env": {
                            "OCIS2I_REGISTRY": _registry_of(order),
                            "OCIS2I_REGISTRY_USER": "${{ github.actor }}",
                            "OCIS2I_REGISTRY_PASSWORD": "${{ secrets.GITHUB_TOKEN }}",
                        },
                        "run": push,
                    },
                ],
            }
        },
    }


def _secrets_of(order: Order) -> Json:
    """Variables out of the repository's secrets, which have no lower case."""
    found = {name: f"${{{{ secrets.{name.upper()} }}}}" for name in order.variables}
    return {"env": found} if found else {}


def _registry_of(order: Order) -> str:
    return order.names[0].partition("/")[0]
