"""Steps of `gpu setup` and `gpu check`, each with a finding."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import msgspec
from msgspec import structs

from batchscribe import __version__
from batchscribe.adapters.host_access.client import HostClient
from batchscribe.adapters.host_access.host_keys import Pin, pin_key
from batchscribe.adapters.host_access.installation import find_wheel, install_worker
from batchscribe.adapters.host_access.ssh import Ssh, connection_trouble
from batchscribe.adapters.host_access.units import install_units
from batchscribe.core import keys
from batchscribe.core.decide.fixed import ParkedParts
from batchscribe.core.run.cloud_account import keep_at_shutdown
from batchscribe.core.run.host import (
    CREDENTIALS,
    CheckRequest,
    EnvironmentRequest,
    Finding,
    HostPlace,
    InstanceRecord,
    PreparedEngine,
    failed,
    passed,
    warned,
)
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.env_file import parse_bindings
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    LaunchError,
    MisconfiguredError,
    UnreadableError,
)
from batchscribe.protocols import Clock, Store
from batchscribe.reading import read_optional

CHECK_SECONDS = 400.0
FETCH_SECONDS = 2000.0
ASK_SECONDS = 60.0
REACH_SECONDS = 30.0
UNITS = "units installed: it processes its claim at boot, and powers itself off"
NO_UNITS = "none, since {why}: its agent is started over ssh, and the host cannot power itself off"
TAGS = "shown by its metadata service: the host compares the hash of its manifest"
NO_TAGS = "not shown by its metadata service: the host gets its manifest over ssh"
SHOW_TAGS = "batchscribe gpu setup, with the right ec2:ModifyInstanceMetadataOptions"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupOptions:
    """The user's options of one `gpu setup`."""

    extra: str | None = None
    """The extra to install; None: the engine's."""
    wheel: Path | None = None
    env_file: Path | None = None
    repin: bool = False
    fingerprint: str | None = None
    """The host key's fingerprint, from another channel."""
    image: bool = False
    """Prepares the disk for an image: machines that are created from it start their work at boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSetup:
    """Prepares and checks a GPU host."""

    client: HostClient
    ssh: Ssh
    clock: Clock
    request: CheckRequest
    """Requirements of the workers; each check sets `now`, `boots` and `home`."""
    output: Store
    published: Callable[[str], frozenset[str]]
    """Fingerprints of the instance's host keys from another channel than ssh, if there are any."""
    shutdown: Callable[[str], str] = lambda _instance: ""
    """Effect of a power-off by the instance itself: `stop`, `terminate`, or empty if unknown."""
    shows_tags: Callable[[str], bool] = lambda _instance: False
    """True if the instance's metadata service shows its tags."""
    show_tags: Callable[[str], object] = lambda _instance: None
    """Makes it show them."""
    parked_parts: Callable[[str], ParkedParts | None] = lambda _instance: None
    """Parts of the instance that are billed while it is stopped; None if the cloud has none."""
    extra: str = "gpu"
    packages: tuple[str, ...] = ()
    """The engine's extra and further requirements."""
    besides: tuple[tuple[EngineSpec, str], ...] = ()
    """Engines for sessions of an identified language, each with the extra of its own environment."""

    def reach(self, instance: Instance) -> None:
        """Connects to the host. Raises LaunchError if no machine answers."""
        trouble = connection_trouble(self.ssh.run(instance, ["true"], timeout=REACH_SECONDS), instance)
        if isinstance(trouble, LaunchError):
            raise trouble

    def check(
        self, instance: Instance, *, boots: bool | None = None, image: bool = False
    ) -> Iterator[Finding]:
        """Checks connection and worker, and the host if it can be reached.

        `boots`: True if the host starts its agent at boot; None: as in its record. `image`: what matters is
        its disk, not how the instance itself shows its tags or ends.
        """
        recorded = self._read_record(instance)
        promised = boots is None and recorded is not None and recorded.shows_tags
        if boots is None:
            boots = recorded is not None and recorded.boots
        if not (yield from self._check_connection(instance)):
            return
        try:
            release = self.client.ask(instance, "version", timeout=ASK_SECONDS).release
        except BatchscribeError as error:
            yield failed("worker", str(error), "batchscribe gpu setup")
            return
        same = release == __version__
        detail = f"version {release}" + ("" if same else f", this is {__version__}")
        yield Finding(what="worker", ok=same, detail=detail, fix="batchscribe gpu setup")
        if not image:
            yield from self._check_instance(instance, boots=boots, promised=promised)
        if same:
            yield from self._request_check(instance, boots=boots)

    def _check_instance(self, instance: Instance, *, boots: bool, promised: bool) -> Iterator[Finding]:
        shutdown = self._check_shutdown(instance)
        if boots or not shutdown.ok:
            yield shutdown
        if boots:
            shown, detail = self._check_tags(instance)
            yield Finding(what="instance tags", ok=shown or not promised, detail=detail, fix=SHOW_TAGS)

    def set_up(self, instance: Instance, options: SetupOptions) -> Iterator[Finding]:
        """Yields each step of the set-up when it is done.

        The record is written if all checks pass. That of an image is written by `record_image`, once there is
        one. Raises LaunchError, MisconfiguredError if a step fails; the previous set-up still works.
        """
        environment = read_environment(options.env_file) if options.env_file else None
        fingerprint = yield from self._install_worker(instance, options)
        if environment is not None:
            self._send_request(instance, "environment", EnvironmentRequest(text=environment), ASK_SECONDS)
            copied = "; every machine of the image has a copy" if options.image else ""
            yield passed("environment file", f"written, readable by its user only{copied}")
        boots = yield from self._install_units(instance, image=options.image)
        if boots and not options.image:
            self._enable_tags(instance)
        # The host reads the files of the last one ahead at each boot.
        for engine in (*(spec for spec, _ in self.besides), self.request.engine):
            self._send_request(instance, "prefetch", engine, FETCH_SECONDS)
            yield passed("model", f"{engine.engine}: {engine.model or 'its own'}")
        findings = []
        for finding in chain(
            self.check(instance, boots=boots, image=options.image), self._check_besides(instance)
        ):
            findings.append(finding)
            yield finding
        missing = {finding.what for finding in findings if not finding.ok}
        if missing <= {CREDENTIALS} and not options.image:
            yield self._write_record(instance, fingerprint, boots=boots, credentials=not missing)

    def _install_worker(self, instance: Instance, options: SetupOptions) -> Generator[Finding, None, str]:
        """Pins the host key, and installs the worker. Returns the key's fingerprint."""
        trusted, doubt = self._find_trusted_keys(instance, options)
        pinned = pin_key(self.ssh, instance, trusted=trusted, repin=options.repin)
        yield _describe_pin(pinned, doubt)
        with tempfile.TemporaryDirectory() as folder:
            wheel = find_wheel(options.wheel, Path(folder))
            yield passed("wheel", wheel.name if wheel else "from the host's index")
            extras = tuple(dict.fromkeys(extra for _, extra in self.besides))
            for extra in extras:
                install_worker(self.ssh, instance, wheel=wheel, extra=extra, beside=True)
                yield passed("installed beside", extra)
            python = install_worker(
                self.ssh,
                instance,
                wheel=wheel,
                extra=options.extra or self.extra,
                packages=self.packages,
                kept=extras,
            )
        yield passed("installed", f"batchscribe {__version__} on {python}")
        return pinned.fingerprint

    def _check_besides(self, instance: Instance) -> Iterator[Finding]:
        """Loads each further engine."""
        for engine, _ in self.besides:
            there = replace(self, request=structs.replace(self.request, engine=engine))
            found = there._request_check(instance, boots=False)  # noqa: SLF001  another of this class
            yield from (finding for finding in found if finding.what.startswith(("engine", "self-test")))

    def _check_connection(self, instance: Instance) -> Generator[Finding, None, bool]:
        """Checks the connection. True if a machine answers."""
        options = self.ssh.options
        address = self.ssh.address(instance)
        remedy = "assign such an address, or set GPU_SSH_HOST"
        detail = address or f"no {options.host} address"
        yield Finding(what="address", ok=bool(address), detail=detail, fix=remedy)
        if not address:
            return False
        try:
            failure = connection_trouble(self.ssh.run(instance, ["true"], timeout=REACH_SECONDS), instance)
        except BatchscribeError as error:
            failure = error
        detail = str(failure) if failure else f"{options.user}@{address}:{options.port}"
        fix = failure.fix if isinstance(failure, LaunchError) else ""
        yield Finding(what="ssh", ok=not failure, detail=detail, fix=fix)
        return not isinstance(failure, LaunchError)

    def _request_check(self, instance: Instance, *, boots: bool) -> Iterator[Finding]:
        sent = structs.replace(self.request, now=self.clock.now(), boots=boots, home=self.request.output)
        try:
            yield from self._send_request(instance, "check", sent, CHECK_SECONDS)
        except BatchscribeError as error:
            yield failed("self-test", str(error), "batchscribe gpu setup")

    def _send_request(
        self, instance: Instance, word: str, request: msgspec.Struct, seconds: float
    ) -> tuple[Finding, ...]:
        return self.client.ask(instance, word, msgspec.json.encode(request), timeout=seconds).findings

    def _find_trusted_keys(self, instance: Instance, options: SetupOptions) -> tuple[frozenset[str], str]:
        """Fingerprints from another channel, and why there are none."""
        if options.fingerprint:
            return frozenset({options.fingerprint}), ""
        try:
            return self.published(instance.id), "none in its console output"
        except (ComputeUnavailableError, MisconfiguredError) as error:
            return frozenset(), str(error)

    def _install_units(self, instance: Instance, *, image: bool = False) -> Generator[Finding, None, bool]:
        """Installs the units of the host's boot and power-off.

        Returns True if the host now processes its claim at boot and powers itself off. Raises
        MisconfiguredError if an image cannot have them: nothing else starts work on its machines.
        """
        request = self.request
        place = HostPlace(
            instance=instance.id,
            home=request.output,
            source=request.source,
            control=request.control,
            region=request.region,
            endpoint=request.endpoint,
            created=image,
        )
        self._send_request(instance, "place", place, ASK_SECONDS)
        if not image and not self._check_shutdown(instance).ok:
            return False
        why_not = install_units(self.ssh, instance)
        if image and why_not:
            raise MisconfiguredError(
                f"no image was made: machines of this one could not start their work at boot, since {why_not}"
            )
        yield passed("launch at boot", NO_UNITS.format(why=why_not) if why_not else UNITS)
        return not why_not

    def _check_shutdown(self, instance: Instance) -> Finding:
        """Checks that an instance that powers itself off is not terminated."""
        remedy = keep_at_shutdown(instance.id, self.request.region)
        try:
            behaviour = self.shutdown(instance.id)
        except (ComputeUnavailableError, MisconfiguredError) as error:
            return passed("when it powers off", f"not checked: {error}")
        detail = f"the instance will {behaviour}" if behaviour else "not reported by the cloud"
        return Finding(what="when it powers off", ok=behaviour != "terminate", detail=detail, fix=remedy)

    def _check_tags(self, instance: Instance) -> tuple[bool, str]:
        """True if the instance can read its tags, and the description."""
        try:
            shown = self.shows_tags(instance.id)
        except (ComputeUnavailableError, MisconfiguredError) as error:
            return False, f"not checked: {error}"
        return shown, TAGS if shown else NO_TAGS

    def _enable_tags(self, instance: Instance) -> None:
        """Makes the metadata service show tags, if allowed; `_check_tags` reports it."""
        with suppress(ComputeUnavailableError, MisconfiguredError):
            if not self.shows_tags(instance.id):
                self.show_tags(instance.id)

    def _write_record(
        self, instance: Instance, fingerprint: str, *, boots: bool, credentials: bool = True
    ) -> Finding:
        """Writes the record, also without credentials: then no start is paid."""
        recorded = self._read_record(instance)
        parked = None
        with suppress(ComputeUnavailableError, MisconfiguredError):
            parked = self.parked_parts(instance.id)
        record = structs.replace(
            self._make_record(instance.id),
            fingerprint=fingerprint,
            boots=boots,
            shows_tags=boots and self._check_tags(instance)[0],
            credentials=credentials,
            claim=recorded.claim if recorded else None,
            parked=parked or (recorded.parked if recorded else None),
        )
        key = keys.instance(instance.id)
        self.output.replace(key, msgspec.json.encode(record))
        if not credentials:
            return warned("recorded", f"{key}: nothing is started until the host has credentials")
        return passed("recorded", f"{key}{_describe_parked(record.parked)}")

    def record_image(self, image: str) -> Finding:
        """Writes the record of an image, which runs copy for each machine."""
        record = structs.replace(self._make_record(image), boots=True, shows_tags=True)
        self.output.replace(keys.instance(image), msgspec.json.encode(record))
        return passed("recorded", keys.instance(image))

    def _make_record(self, instance: str) -> InstanceRecord:
        engine = self.request.engine
        return InstanceRecord(
            instance=instance,
            release=__version__,
            at=self.clock.now(),
            engine=engine.engine,
            model=engine.model,
            engines=tuple(PreparedEngine(engine=spec.engine, model=spec.model) for spec, _ in self.besides),
            speakers=bool(engine.speakers),
        )

    def _read_record(self, instance: Instance) -> InstanceRecord | None:
        """The host's record; None if it is missing or damaged.

        It has the facts that a check or set-up cannot find out.
        """
        try:
            return read_optional(self.output, keys.instance(instance.id), InstanceRecord)
        except UnreadableError:
            return None  # a set-up rewrites it


def read_environment(path: Path) -> str:
    """Reads an environment file. Raises MisconfiguredError for a malformed line."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise MisconfiguredError(f"the environment file {path} cannot be read: {error}") from error
    parse_bindings(path, io.StringIO(text))
    return text


def _describe_parked(parked: ParkedParts | None) -> str:
    if parked is None:
        return ""
    address = " and a fixed address" if parked.fixed_address else ""
    return f"; billed while stopped: {parked.disk_gigabytes} GB of disk{address}"


def _describe_pin(pinned: Pin, doubt: str) -> Finding:
    if not pinned.new:
        detail = f"{pinned.fingerprint}, as pinned before"
    elif pinned.compared:
        detail = f"{pinned.fingerprint}, pinned: it matches the published one"
    else:
        detail = (
            f"{pinned.fingerprint}, pinned unverified ({doubt}): compare it on the host with "
            "`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`"
        )
    return passed("host key", detail)
