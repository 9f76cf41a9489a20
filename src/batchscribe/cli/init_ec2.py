"""The questions of `batchscribe init` about EC2: region, instance, key and guard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from batchscribe.cli.terminal.interview import Interview, print_line
from batchscribe.wiring import init as wiring
from batchscribe.wiring.init import Account, StackPlan
from batchscribe.wiring.prices import find_default_region

NEXT = [
    "batchscribe scan                 # what is there, by session",
    "batchscribe gpu setup --start    # starts the instance, installs the worker, stops it",
    "batchscribe doctor               # every precondition with its fix; starts nothing",
    "batchscribe tick --dry-run       # what a tick would do, and its price",
    "batchscribe tick                 # the real thing; then: sudo batchscribe install systemd",
]
UNGUARDED = [
    "create the guard's stack (command above, or `batchscribe iam-policy --template`), and put its output",
    "  RoleArn into BATCH_GUARD_ROLE_ARN: without it no GPU is started (BATCH_CLOUD_GUARD=off goes without)",
]


@dataclass
class Ec2Setup:
    """Asks about EC2; without an account, nothing is found or checked there."""

    interview: Interview
    account: Account | None

    def run(self) -> list[str]:
        """Asks all questions; returns the commands to run next."""
        self._ask_for_region()
        if scheduler := self._ask_for_instance():
            region = self.interview.values["AWS_REGION"]
            return [
                f"aws ssm start-session --region {region} --target {scheduler}   # its schedule runs already",
                "there: sudo -iu ubuntu; cd batchscribe; batchscribe gpu setup --start",
                "here:  batchscribe scan, status, report",
            ]
        self._ask_for_key()
        return [*self._set_up_guard(), *NEXT]

    def _ask_for_region(self) -> None:
        """Asks for the region of the instance; switches the account to it."""
        default = find_default_region() or self._find_bucket_region()
        question = "AWS region of the GPU instance"
        region = self.interview.ask("AWS_REGION", question, default, check=wiring.describe_region_problem)
        if self.account and region:
            self.account = wiring.open_account(region)

    def _find_bucket_region(self) -> str:
        account, source = self.account, self.interview.peek("BATCH_SOURCE")
        bucket = source.removeprefix("s3://").partition("/")[0]
        if account is None or not bucket:
            return ""
        return self.interview.read("region of the bucket", lambda: account.reads.bucket_region(bucket)) or ""

    def _ask_for_instance(self) -> str:
        """Asks for the GPU instance; returns a created scheduler host's ID."""
        account, interview = self.account, self.interview
        found = (account and interview.read("instances", account.reads.gpu_instances)) or ()
        numbers = {str(number): each.id for number, each in enumerate(found, 1)}
        for number, each in zip(numbers, found, strict=True):
            price = wiring.describe_price(each, interview.peek("AWS_REGION"))
            print_line(
                "  ".join(filter(None, (f"  {number}", each.id, each.type, each.state, each.name, price)))
            )
        if account and not found and not interview.peek("GPU_INSTANCE_ID"):
            print_line("There is no instance with a GPU in this region.")
            if scheduler := self._offer_whole_stack(account):
                return scheduler
        interview.ask(
            "GPU_INSTANCE_ID",
            "GPU instance (a number of the list, or an ID)" if found else "ID of the GPU instance",
            found[0].id if len(found) == 1 else "",
            check=self._check_instance,
            numbers=len(numbers),
            shape=lambda text: numbers.get(text.strip(), text.strip()),
        )
        return ""

    def _check_instance(self, instance: str) -> str:
        if self.account:
            self.account.reads.instance(instance)
        return ""

    def _offer_whole_stack(self, account: Account) -> str:
        """Offers a stack of everything; returns its scheduler host's ID."""
        source, control = self.interview.peek("BATCH_SOURCE"), self.interview.peek("BATCH_CONTROL")
        if not control:
            print_line("A template can create one, if the audio is below a prefix: s3://bucket/prefix")
            return ""
        print_line(account.describe_quota(wiring.GPU_TYPE))
        content = (
            f"a {wiring.GPU_TYPE} (billed while it runs), a t4g.nano that schedules it and two disks (billed "
            "always), their roles and the guard"
        )
        question = "What does pip install on the scheduler host? (a name, or a name @ the URL of a wheel)"
        package = self.interview.ask_once(question, wiring.PACKAGE)
        outputs = self._offer_stack(account, account.plan_whole(source, control, package), content)
        if outputs:
            self.interview.values |= {
                "GPU_INSTANCE_ID": outputs["InstanceId"],
                "BATCH_GUARD_ROLE_ARN": outputs["RoleArn"],
            }
        return outputs.get("SchedulerId", "")

    def _offer_stack(self, account: Account, plan: StackPlan, content: str) -> dict[str, str]:
        """Offers to create a stack; returns its outputs, empty if declined."""
        print_line(f"This creates {content}:\n  {plan.command}")
        if not self.interview.confirm(f"Create the stack {plan.name} now?"):
            return {}
        return dict(account.create(plan, lambda status: print_line(f"  {plan.name}: {status}")))

    def _ask_for_key(self) -> None:
        keys = wiring.list_key_files()
        if keys:
            print_line(f"Keys: {', '.join(map(str, keys))}")
        pair = self._find_key_pair()
        fitting = [key for key in keys if key.stem == pair] or (list(keys) if len(keys) == 1 else [])
        self.interview.ask(
            "GPU_SSH_KEY_PATH",
            "Private key for ssh to the instance (empty: ssh's own agent)",
            str(fitting[0]) if fitting else "",
            check=self._check_key,
            shape=self.interview.make_absolute,
            optional=True,
        )

    def _find_key_pair(self) -> str:
        account, instance = self.account, self.interview.peek("GPU_INSTANCE_ID")
        if account is None or not instance:
            return ""
        found = self.interview.read("key pair", lambda: account.reads.instance(instance))
        return found.key_name if found else ""

    def _check_key(self, key: str) -> str:
        found = wiring.check_key_file(Path(key))
        problem = f"{found.detail}: {found.fix}"
        if found.fix.startswith("chmod") and self.interview.confirm(f"{problem}. Do that now?"):
            Path(key).chmod(0o600)
            return ""
        return "" if found.ok else problem

    def _set_up_guard(self) -> list[str]:
        """Finds or creates the guard's role; returns the steps left."""
        instance = self.interview.peek("GPU_INSTANCE_ID")
        settled = self.interview.peek("BATCH_GUARD_ROLE_ARN") or self.interview.peek("BATCH_CLOUD_GUARD")
        if settled or not instance:
            return []
        role = self._find_or_create_role(self.account, instance) if self.account else ""
        if not role:
            if self.interview.yes:
                self.interview.unset.append("BATCH_GUARD_ROLE_ARN")
            return UNGUARDED
        print_line(f"Guard: EventBridge stops the instance with {role}")
        self.interview.values["BATCH_GUARD_ROLE_ARN"] = role
        return []

    def _find_or_create_role(self, account: Account, instance: str) -> str:
        role = self.interview.read("stacks", lambda: account.find_guard_role(instance))
        content = "a schedule group, and a role that can stop this instance and nothing else"
        return role or self._offer_stack(account, account.plan_guard(instance), content).get("RoleArn", "")
