"""Programs that keep credentials, by the protocol of docker-credential-helpers.

The user's secret goes over pipes only, and never into a message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from ocis2i import proc
from ocis2i.auth import printable
from ocis2i.credentials import IDENTITY_USER, Credentials
from ocis2i.errors import RegistryError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import parse_duration
from ocis2i.registries import HELPER_NAME
from ocis2i.variables import HELPER_TIMEOUT

HELPER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Helper:
    """The helper `name`, which the file `named_by` wants for some registry."""

    name: str
    named_by: str
    environment: Mapping[str, str]

    @property
    def program(self) -> str:
        """What it is called on the search path."""
        return f"docker-credential-{self.name}"

    def get(self, server: str) -> Credentials | None:
        """The credentials for `server`, `None` when it has none. Raises `RegistryError`."""
        finished = self._run("get", server, f"{server}\n".encode())
        return None if finished is None else self._answer(finished.stdout)

    def store(self, server: str, credentials: Credentials) -> None:
        """Gives it the credentials to keep; raises `RegistryError`."""
        document = {
            "ServerURL": server,
            "Username": credentials.username,
            "Secret": credentials.password,
        }
        self._run("store", server, json.dumps(document).encode())

    def erase(self, server: str) -> bool:
        """Lets it forget; whether it knew anything. Raises `RegistryError`."""
        return self._run("erase", server, f"{server}\n".encode()) is not None

    def _run(
        self, verb: Literal["get", "store", "erase"], server: str, said: bytes
    ) -> proc.Finished | None:
        """How it ended, `None` when it says that it has no such credentials."""
        if not HELPER_NAME.match(self.name):
            raise RegistryError(
                f"{self.named_by} names the credential helper `{self.name}`, which is no name",
                hint="put the name right in that file",
            )
        found = proc.find_program(self.program, self.environment.get("PATH"))
        if found is None:
            raise RegistryError(
                f"{self.named_by} wants the credential helper `{self.program}` for `{server}`, "
                "but there is no such program",
                hint="install it, or remove it from the file",
            )
        seconds = parse_duration(HELPER_TIMEOUT.text(self.environment), HELPER_TIMEOUT.name)
        # A helper finds its cloud session in variables that nobody can list beforehand, and it is
        # the user's own program: it sees the user's own environment.
        finished = proc.run(
            [found, verb],
            environment=self.environment,
            timeout_seconds=seconds or HELPER_SECONDS,
            stdin=said,
        )
        if finished.exit_code == 0:
            return finished
        if "credentials not found" in finished.text.lower():
            return None
        raise self._failed(verb, server, finished, seconds or HELPER_SECONDS)

    def _failed(
        self, verb: str, server: str, finished: proc.Finished, seconds: float
    ) -> RegistryError:
        # By the protocol a failing helper says why on stdout.
        said = finished.text or finished.complaint
        if finished.exit_code == 124:
            reason = f"no answer in {seconds:.0f} seconds; {HELPER_TIMEOUT.name} gives it more"
        elif "secret" in said.lower() or verb == "store":
            # It may be the secret that it was given or found.
            reason = f"exit code {finished.exit_code}"
        else:
            reason = printable(said) or f"exit code {finished.exit_code}"
        return RegistryError(
            f"the credential helper `{self.program}` failed for `{server}`: {reason}",
            hint=f"try it: echo {server} | {self.program} get",
        )

    def _answer(self, stdout: bytes) -> Credentials | None:
        try:
            answer: Any = json.loads(stdout)
            username, secret = answer.get("Username", ""), answer.get("Secret", "")
        except (ValueError, AttributeError, RecursionError):
            # Not quoted, and no cause attached: what it printed may be the secret.
            raise RegistryError(
                f"the credential helper `{self.program}` did not answer with JSON",
                hint="try it by hand: echo HOST | HELPER get",
            ) from None
        if not isinstance(username, str) or not isinstance(secret, str):
            raise RegistryError(
                f"the credential helper `{self.program}` answered with something else",
                hint="try it by hand: echo HOST | HELPER get",
            )
        if not secret:
            return None
        source = f"the helper `{self.program}`, which {self.named_by} names"
        if username == IDENTITY_USER:
            return Credentials(identity_token=secret, source=source)
        return Credentials(username, secret, source=source)
