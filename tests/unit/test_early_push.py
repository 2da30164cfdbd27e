"""What goes ahead of a push: nothing depends on its success, and nothing of it stays open."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ocis2i.blobs import VerifiedReader
from ocis2i.early_push import LEAST_BYTES, EarlyPush
from ocis2i.errors import ImageError, RegistryError
from ocis2i.events import Notice, Transfer
from ocis2i.growing import Growing
from ocis2i.keychain import Keychain
from ocis2i.manifest import OCI_LAYER, Descriptor
from ocis2i.reference import Digest, Reference
from ocis2i.registry import Registry
from ocis2i.registry.uploads import answer_seconds
from ocis2i.retries import CancelledError, DeadlineError
from ocis2i.whereabouts import Whereabouts
from tests.fakes.registry import FakeRegistry

BASE = b"a layer of the base"


class Base:
    """The blobs of a base, or what goes wrong when they are read."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(BASE)
        self._path = path
        self.error: Exception | None = None

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        if self.error:
            raise self.error
        return VerifiedReader(self._path.open("rb"), descriptor, "the test")


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return Base(tmp_path / "base")


def descriptor(data: bytes) -> Descriptor:
    return Descriptor(OCI_LAYER, Digest.of(data), len(data))


def sent(early: EarlyPush, base: Base, seen: Path) -> None:
    early.send_base([descriptor(BASE)], base, (), Whereabouts(seen))
    early.finish()
    early.close()


def test_the_base_is_there_before_the_image(fake: FakeRegistry, base: Base, tmp_path: Path) -> None:
    registry = Registry(Keychain({}), environment={})
    name = fake.reference("team/app:1")
    sent(EarlyPush(registry, name), base, tmp_path / "seen")
    assert fake.blobs["team/app"][str(Digest.of(BASE))] == BASE
    fake.log.clear()
    read = partial(base.open_blob, descriptor(BASE))
    assert registry.push_blob(name, descriptor(BASE), read) == "sent"
    assert fake.log == []
    assert registry.forget_early(name)
    assert registry.push_blob(name, descriptor(BASE), read) == "exists"
    assert not registry.forget_early(name)


def test_what_fails_early_is_left_to_the_push(
    fake: FakeRegistry, base: Base, tmp_path: Path
) -> None:
    registry = Registry(Keychain({}), environment={})
    name = fake.reference("team/app:1")
    base.error = ImageError("its registry is away")
    sent(EarlyPush(registry, name), base, tmp_path / "seen")
    assert fake.blobs.get("team/app", {}) == {}
    base.error = None
    read = partial(base.open_blob, descriptor(BASE))
    assert registry.push_blob(name, descriptor(BASE), read) == "sent"


def test_an_upload_that_is_given_up_is_taken_back(fake: FakeRegistry, tmp_path: Path) -> None:
    early = EarlyPush(Registry(Keychain({}), environment={}), fake.reference("team/app:1"))
    with (tmp_path / "blob").open("w+b") as file:
        early.follow(file).write(bytes(LEAST_BYTES))
        early.close()
    assert fake.uploads == set()
    assert fake.requests("PUT") == []
    assert not [one for one in threading.enumerate() if one.name == "early-push"]


def whole(path: Path, data: bytes) -> Growing:
    """A large blob that has been written already."""
    with path.open("w+b") as file:
        growing = Growing(file, lambda _: None, LEAST_BYTES)
        growing.write(data)
    growing.complete(descriptor(data))
    return growing


def test_who_waits_for_a_large_layer_hears_how_far_it_is(
    fake: FakeRegistry, tmp_path: Path
) -> None:
    told: list[object] = []
    registry = Registry(Keychain({}), environment={}, report=told.append)
    data = bytes(LEAST_BYTES)
    growing = whole(tmp_path / "blob", data)
    registry.push_growing(fake.reference("team/quiet:1"), growing)
    assert told == []
    registry.finish_early([])
    registry.push_growing(fake.reference("team/app:1"), growing)
    growing.close()
    moved = [one.done for one in told if isinstance(one, Transfer) and one.total == len(data)]
    assert moved[-1] == len(data) and moved == sorted(set(moved)) and len(moved) > 2
    assert fake.blobs["team/app"][str(Digest.of(data))] == data


def test_a_registry_that_limits_an_early_upload_is_not_sent_the_whole_at_once(
    fake: FakeRegistry, tmp_path: Path
) -> None:
    registry = Registry(Keychain({}), environment={})
    name = fake.reference("team/app:1")
    data = bytes(LEAST_BYTES)
    growing = whole(tmp_path / "blob", data)
    fake.fail("PATCH", "uploads", status=413)
    with pytest.raises(RegistryError):
        registry.push_growing(name, growing)
    growing.close()
    fake.log.clear()
    assert registry.push_blob(name, descriptor(data), partial(io.BytesIO, data)) == "sent"
    assert len(fake.requests("PATCH")) == 2
    assert len(fake.requests("PUT")) == 1


def test_waiting_for_it_ends_when_registries_may_take_no_more_time() -> None:
    clock = itertools.count(0.0, 3.0)
    registry = Registry(Keychain({}), environment={}, total_seconds=10.0, clock=lambda: next(clock))
    over = threading.Event()
    thread = threading.Thread(target=over.wait, daemon=True)
    thread.start()
    with pytest.raises(DeadlineError, match="10 seconds"):
        registry.finish_early([thread])
    over.set()
    thread.join()


def test_an_answer_is_waited_for_half_of_the_time_that_is_left(tmp_path: Path) -> None:
    registry = Registry(Keychain({}), environment={}, total_seconds=4.0)
    name = Reference.parse("registry.example/team/app:1")
    growing = whole(tmp_path / "blob", bytes(LEAST_BYTES))
    growing.is_awaited = True
    over = threading.Event()
    thread = threading.Thread(target=over.wait, daemon=True)
    thread.start()
    assert not registry.finish_growing(name, growing, thread)
    # A late answer makes the sender take it back: it would ask what the blob is.
    with pytest.raises(CancelledError):
        growing.descriptor()
    over.set()
    thread.join()
    assert registry.finish_growing(name, growing, thread)
    growing.close()


def test_what_is_still_sent_or_committed_is_waited_for(tmp_path: Path) -> None:
    registry = Registry(Keychain({}), environment={}, total_seconds=3.0)
    name = Reference.parse("registry.example/team/app:1")
    growing = whole(tmp_path / "blob", bytes(LEAST_BYTES))
    thread = threading.Thread(target=threading.Event().wait, args=(2.0,))
    thread.start()
    assert registry.finish_growing(name, growing, thread)
    assert growing.descriptor().size == LEAST_BYTES
    growing.close()


def test_an_answer_is_worth_as_much_as_sending_it_anew() -> None:
    assert answer_seconds(LEAST_BYTES) == 60.0
    assert answer_seconds(3 << 30) == 307.2


def test_what_failed_early_counts_as_its_first_try(fake: FakeRegistry, tmp_path: Path) -> None:
    """A registry that stops to read costs a long wait each time, here 15 seconds."""
    clock = itertools.count(0.0, 15.0)
    registry = Registry(
        Keychain({}), environment={}, sleep=lambda _: None, clock=lambda: next(clock)
    )
    name = fake.reference("team/app:1")
    data, other, base = bytes(LEAST_BYTES), b"another", b"of the base"
    for method in ("PATCH", "PUT"):
        fake.fail(method, "uploads", status=503, times=-1)

    def begun() -> int:
        found = len(fake.requests("POST"))
        fake.log.clear()
        return found

    def push(blob: bytes) -> int:
        with pytest.raises(RegistryError):
            registry.push_blob(name, descriptor(blob), partial(io.BytesIO, blob))
        return begun()

    growing = whole(tmp_path / "blob", data)
    with pytest.raises(RegistryError):
        registry.push_growing(name, growing)
    growing.close()
    with pytest.raises(RegistryError):
        cancel = threading.Event()
        registry.push_early(name, descriptor(base), partial(io.BytesIO, base), cancel=cancel)
    assert begun() == 2
    assert (push(data), push(base), push(other)) == (1, 1, 2)
    # Later it is tried as often as anything else.
    assert push(data) == 2


def test_a_fault_of_ours_beside_the_build_is_told_in_a_line(
    fake: FakeRegistry, base: Base, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told: list[object] = []
    registry = Registry(Keychain({}), environment={})
    base.error = ZeroDivisionError("half of it")
    sent(
        EarlyPush(registry, fake.reference("team/app:1"), report=told.append), base, tmp_path / "b"
    )
    assert told == [
        Notice(
            "warning",
            "a bug in ocis2i: the upload beside the build ended: ZeroDivisionError: half of it",
        )
    ]
    assert capfd.readouterr().err == ""
