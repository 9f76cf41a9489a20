"""Checks before a GPU is started."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import msgspec

from batchscribe import __version__
from batchscribe.adapters.host_access.host_keys import find_pin
from batchscribe.adapters.machine.files import check_key_file, check_state_folder
from batchscribe.core import keys
from batchscribe.core.decide.offers import EC2, FLEET, LOCAL
from batchscribe.core.decide.published_models import AUTO
from batchscribe.core.figures import format_count
from batchscribe.core.near_names import suggest
from batchscribe.core.run.host import (
    CREDENTIALS,
    CREDENTIALS_FIX,
    ClaimLaunch,
    Finding,
    InstanceRecord,
    failed,
    passed,
    warned,
)
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError, UnreadableError
from batchscribe.protocols import Store
from batchscribe.reading import read_record
from batchscribe.settings import Settings
from batchscribe.wiring.created.machine_checks import IMAGE, MachineChecks
from batchscribe.wiring.engine_choice import engine_spec
from batchscribe.wiring.engines import (
    engine_names,
    find_problems,
    list_limits,
)
from batchscribe.wiring.seams import list_required, open_templates

SETTINGS, GUARD, HOST, MACHINES, ENGINE = "settings", "guard", "host", "machines", "engine"
"""Groups of checks."""
Check = Callable[[], Iterator[Finding]]
Group = tuple[str, Check]
BOOT = "boot"
FETCH = ": fetch it with "
"""Separates a missing model from its fix, in the engines' messages."""
SET_UP = "run `batchscribe gpu setup`"
HOST_KEY = "host key"


def describe_limits(spec: EngineSpec) -> str:
    """Reasons why no machine can run `spec`; empty without one."""
    return "; ".join(list_limits(spec))


def find_engine_problem(spec: EngineSpec) -> str:
    """Reason, with fix, why no run can use `spec`; empty without one."""
    found = check_engine(spec)
    return "" if found.ok else _describe(found)


@dataclass(frozen=True, kw_only=True)
class StartChecks:
    """All that a start needs, for `doctor` and for `preflight`.

    Left out is what every tick observes, and what needs requests that no tick sends.
    """

    settings: Settings
    read_record: Callable[[], InstanceRecord | Finding]
    """Reads the record of the instance, or of the image from which machines are created."""
    machines: MachineChecks | None = None
    """None if no run creates machines on EC2."""
    further: tuple[StartChecks, ...] = ()
    """Those of each further region."""

    def list_groups(self) -> Iterator[Group]:
        """Yields (name, checks), in their order."""
        settings = self.settings
        yield SETTINGS, self._check_settings
        if settings.provider in {EC2, FLEET}:
            yield GUARD, lambda: iter([check_guard_role(settings)])
        if settings.provider == EC2 and settings.instance_id:
            yield HOST, self._check_host
        if self.machines and settings.launch_template:
            yield MACHINES, partial(self.check_machines, self)
            for there in self.further:
                yield f"{MACHINES}, {there.settings.region}", partial(there.check_machines, self)
        yield ENGINE, self._check_engine

    @cached_property
    def record(self) -> InstanceRecord | Finding | None:
        """None without such a host. Raises what `read_record` raises."""
        hosted = self.settings.provider in {EC2, FLEET} and self.settings.host_record
        return self.read_record() if hosted else None

    @cached_property
    def engine(self) -> tuple[EngineSpec | None, Finding]:
        """(engine of the next run, its check); None for settings with errors."""
        try:
            spec = engine_spec(
                self.settings, self.record if isinstance(self.record, InstanceRecord) else None
            )
        except MisconfiguredError as error:
            return None, failed(ENGINE, str(error))
        return spec, check_engine(spec)

    def _check_settings(self) -> Iterator[Finding]:
        for name in list_required(self.settings):
            try:
                self.settings.require(name)
            except MisconfiguredError as error:
                yield failed(name, str(error))
        yield check_state_folder(self.settings.state_dir)
        yield check_rendering(self.settings)

    def _check_host(self) -> Iterator[Finding]:
        settings = self.settings
        needed = needs_ssh(settings, self.record)
        for found in (check_key_file(settings.ssh_key_path), check_host_key(settings)):
            yield found if found.ok or needed else warned(found.what, found.detail, found.fix)
        yield from self._check_record(self)

    def check_machines(self, home: StartChecks) -> Iterator[Finding]:
        """Checks one region's template, and its image for `home`'s engine."""
        if self.machines:
            yield from self.machines.check_template()
        yield from self._check_record(home)

    def _check_record(self, home: StartChecks) -> Iterator[Finding]:
        if not isinstance(self.record, InstanceRecord):
            yield from filter(None, [self.record])
            return
        yield from check_record(self.settings, self.record)
        spec, able = home.engine
        if spec and able.ok:  # a set-up for an engine that cannot run is no fix
            yield check_model(self.record, spec, _choose_fix(self.settings))

    def _check_engine(self) -> Iterator[Finding]:
        spec, found = self.engine
        yield found
        if spec and found.ok and self.settings.provider == LOCAL:
            yield check_local_engine(spec)


def preflight(settings: Settings, output: Store) -> None:
    """Raises MisconfiguredError, with a remedy, if a start would be useless."""
    needs = _open_start_checks(settings, output)
    further = [_open_start_checks(there, output) for there in settings.by_region()[1:]]
    needs = replace(needs, further=tuple(further))
    _refuse_failures(found for _name, checks in needs.list_groups() for found in checks())
    if settings.provider == FLEET:
        # A run copies this record for each of its machines, in whatever region it is created.
        output.replace(keys.instance(settings.host_record), msgspec.json.encode(needs.record))


def _open_start_checks(settings: Settings, output: Store) -> StartChecks:
    if settings.provider != FLEET:
        read = partial(read_instance_record, output, settings.instance_id)
        return StartChecks(settings=settings, read_record=read)
    machines = MachineChecks(settings, open_templates(settings))
    return StartChecks(
        settings=settings, read_record=partial(machines.read_record, output), machines=machines
    )


def refuse_manual_start(settings: Settings) -> None:
    """Raises MisconfiguredError if the GPU host could not be used."""
    if settings.provider != LOCAL:
        checks = (check_engine(engine_spec(settings)), check_key_file(settings.ssh_key_path))
        _refuse_failures((*checks, check_state_folder(settings.state_dir)))


def check_engine(spec: EngineSpec) -> Finding:
    """Checks that the engine exists and that a machine can run `spec`."""
    names = (AUTO, *engine_names())
    if spec.engine not in names:
        detail = f"no speech engine {spec.engine!r} is installed here"
        fix = f"{suggest(spec.engine, names)}BATCH_ENGINE may be {', '.join(names)}"
        return failed("engine", detail, fix)
    if why := describe_limits(spec):
        return failed("engine", why)
    return passed("engine", f"{spec.engine}, {spec.model or 'its own model'}")


def check_local_engine(spec: EngineSpec) -> Finding:
    """Checks that this machine has the engine's packages and its model."""
    try:
        problems = find_problems(spec)
    except MisconfiguredError as error:
        return failed("model", str(error))
    if problems:
        detail, missing, fix = "; ".join(problems).partition(FETCH)
        return failed("model", f"{spec.engine} cannot run here: {detail}", missing.removeprefix(": ") + fix)
    return passed("model", f"{spec.model or 'its own model'} is on this machine")


def check_rendering(settings: Settings) -> Finding:
    """Checks that session files can be rendered."""
    try:
        rendering = settings.open_rendering()
    except MisconfiguredError as error:
        return failed("session files", str(error))
    count = len(rendering.replacements)
    replaced = format_count(count, "replacement") if count else "no replacements"
    return passed("session files", f"{replaced}, {settings.caption_preset} subtitles")


def check_guard_role(settings: Settings) -> Finding:
    """Checks that a stop order can be armed, unless it is disabled."""
    if settings.cloud_guard == "off":
        detail = "off: nothing outside this machine would stop the GPU"
        return warned("guard", detail, "BATCH_CLOUD_GUARD=eventbridge, see docs/aws.md")
    roles = {there.region: there.guard_role_arn for there in settings.by_region()}
    if all(roles.values()):
        return passed("guard", ", ".join(roles.values()))
    missing = "BATCH_GUARD_ROLE_ARN is not set"
    if settings.guard_role_arn:
        missing = f"GPU_FURTHER_REGIONS has no role in {next(name for name in roles if not roles[name])}"
    return failed(
        "guard",
        f"nothing outside this machine could stop the GPU: {missing}",
        "create the stack that `batchscribe iam-policy --template` prints and set its role there, or disable "
        "the guard with BATCH_CLOUD_GUARD=off",
    )


def check_host_key(settings: Settings) -> Finding:
    """Checks that the host's key is pinned: ssh accepts no other."""
    try:
        fingerprint = find_pin(settings.state_dir / "known_hosts", settings.instance_id)
    except MisconfiguredError as error:
        return failed(HOST_KEY, str(error))
    if fingerprint:
        return passed(HOST_KEY, f"{fingerprint} is pinned")
    return failed(HOST_KEY, f"no host key is pinned for {settings.instance_id}", SET_UP)


def read_instance_record(output: Store, instance: str) -> InstanceRecord | Finding:
    """Reads the record of `gpu setup`. Raises what the store raises."""
    try:
        return read_record(output, keys.instance(instance), InstanceRecord)
    except ObjectNotFoundError:
        return failed("set-up", f"{instance} is not set up", SET_UP)
    except UnreadableError as error:
        return failed("set-up", f"the record of {instance} is {error}", f"{SET_UP}, which rewrites it")


def check_record(settings: Settings, record: InstanceRecord) -> Iterator[Finding]:
    """Checks the host as its last set-up recorded it, except its model."""
    detail, fix = f"{record.instance} has batchscribe {record.release}", _choose_fix(settings)
    if record.release != __version__:
        yield failed("set-up", f"{detail}, this is {__version__}", fix)
    else:
        yield passed("set-up", f"{detail}, since {record.at:%Y-%m-%d %H:%M} UTC")
    boots = record.launch(ClaimLaunch.BOOT) is ClaimLaunch.BOOT
    if settings.creates_machines and not boots:
        yield failed("launch", f"a machine of {record.instance} would not begin its work at boot", fix)
    elif settings.launch == BOOT and not boots:
        missing = (
            "does not show its tags in its metadata" if record.boots else "has no units that start at boot"
        )
        detail = f"BATCH_LAUNCH is boot, and {record.instance} {missing}"
        yield failed("launch", detail, f"{SET_UP}, or use BATCH_LAUNCH=auto")
    else:
        yield passed("launch", "over ssh" if needs_ssh(settings, record) else "at boot, without ssh")
    if record.credentials:
        yield passed(CREDENTIALS, "found on the host by its last set-up")
    else:
        yield failed(CREDENTIALS, f"no AWS credentials on {record.instance}", CREDENTIALS_FIX)
    if settings.labels_speakers and not record.speakers:
        detail = f"BATCH_SPEAKERS is {settings.speakers}, and {record.instance} has no model of voices"
        yield failed("speakers", detail, fix)


def _choose_fix(settings: Settings) -> str:
    return IMAGE if settings.creates_machines else SET_UP


def check_model(record: InstanceRecord, spec: EngineSpec, fix: str = SET_UP) -> Finding:
    """Checks that the set-up prepared the engine's model: runs fetch none."""
    prepared, wanted = f"{record.engine} {record.model}".strip(), f"{spec.engine} {spec.model}".strip()
    if not prepared:
        return warned("model", "not recorded by an older set-up", fix)
    if prepared != wanted:
        return failed("model", f"{record.instance} was prepared for {prepared}, not for {wanted}", fix)
    return passed("model", f"{prepared}, fetched by its last set-up")


def needs_ssh(settings: Settings, record: InstanceRecord | Finding | None) -> bool:
    """True if a run, or a missing set-up, needs ssh."""
    boots = isinstance(record, InstanceRecord) and record.launch(ClaimLaunch.BOOT) is ClaimLaunch.BOOT
    return settings.launch == "ssh" or not boots


def _refuse_failures(findings: Iterable[Finding]) -> None:
    """Raises MisconfiguredError with all failures, each with its fix."""
    failures = [finding for finding in findings if not finding.ok]
    if failures:
        raise MisconfiguredError(f"{'; '.join(map(_describe, failures))} (nothing was started)")


def _describe(failure: Finding) -> str:
    return ": ".join(filter(None, (failure.detail, failure.fix)))
