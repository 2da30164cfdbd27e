"""What refers to an image in its registry: listed by the registry itself, or under a tag of ours.

Registries without the referrers API have an index under a tag made of the image's digest, which
clients keep (distribution-spec, "Unavailable Referrers API"). It is read, changed and written back:
of two who do that at the same moment, one may lose.
"""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import quote, urljoin

from ocis2i.errors import ImageError, RegistryError
from ocis2i.manifest import OCI_INDEX, Descriptor, Index, decode_manifest
from ocis2i.oci_artifacts import add_to_index, fallback_tag, referrer_type
from ocis2i.reference import Digest, Reference
from ocis2i.registry import Registry

PAGE_LIMIT = 1000

_NEXT = re.compile(r'<([^>]*)>[^,]*;\s*rel="?next"?', re.IGNORECASE)


def referrers_of(
    registry: Registry, reference: Reference, subject: Digest, kind: str | None = None
) -> tuple[Descriptor, ...]:
    """All artifacts of `kind` (default: any) in the repository that refer to `subject`.

    Raises `RegistryError`.
    """
    found = _listed(registry, reference, subject, kind)
    if found is None:
        index = _under_tag(registry, reference, subject, push=False)
        found = index.manifests if index else ()
    # A registry may leave filtering to us, and does not have to say so.
    return tuple(one for one in found if kind is None or referrer_type(one) == kind)


def list_under_tag(
    registry: Registry, reference: Reference, subject: Digest, referrer: Descriptor
) -> None:
    """Adds `referrer` to the index that stands for a list of the registry's own.

    Raises `RegistryError`.
    """
    known = _under_tag(registry, reference, subject, push=True)
    raw = add_to_index(known, referrer)
    if raw is not None:
        registry.put_manifest(_tagged(reference, subject), raw, OCI_INDEX)


def _listed(
    registry: Registry, reference: Reference, subject: Digest, kind: str | None
) -> tuple[Descriptor, ...] | None:
    """What the registry lists, all pages of it; `None` when it has no such list."""
    query = f"?artifactType={quote(kind, safe='')}" if kind else ""
    path = f"referrers/{subject}{query}"
    found: list[Descriptor] = []
    for page in range(PAGE_LIMIT):
        answer = registry.request(
            reference,
            "GET",
            path,
            headers={"Accept": OCI_INDEX},
            expected=(200,) if page else (200, 404),
            what=f"cannot list what refers to `{reference.name}@{subject}`",
        )
        if answer.status == 404:
            return None
        found += _decode_index(answer.body, f"the referrers of `{subject}`").manifests
        following = _NEXT.search(answer.headers.get("Link", ""))
        if following is None:
            return tuple(found)
        path = urljoin(answer.url, following[1])
    raise RegistryError(f"the list of what refers to `{subject}` has over {PAGE_LIMIT} pages")


def _under_tag(
    registry: Registry, reference: Reference, subject: Digest, *, push: bool
) -> Index | None:
    tagged = _tagged(reference, subject)
    answer = registry.request(
        tagged,
        "GET",
        f"manifests/{tagged.tag}",
        headers={"Accept": OCI_INDEX},
        push=push,
        expected=(200, 404),
        what=f"cannot get `{tagged}`",
    )
    return None if answer.status == 404 else _decode_index(answer.body, f"`{tagged}`")


def _tagged(reference: Reference, subject: Digest) -> Reference:
    return replace(reference, tag=fallback_tag(subject), digest=None)


def _decode_index(raw: bytes, what: str) -> Index:
    try:
        found = decode_manifest(raw)
    except ImageError as error:
        raise RegistryError(f"{what}: {error.message}") from error
    if not isinstance(found, Index):
        raise RegistryError(
            f"{what} is not an index of referrers",
            hint="somebody has used this tag for something else; remove it there",
        )
    return found
