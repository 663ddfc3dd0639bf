"""A real SLURM for tests: a login host and nodes as namespaces of this machine, gone with the process that made it.

Each host has its own processes, name, address, /dev/shm and, nodes, /tmp; what they share is a file system, as on a
cluster. All of SLURM's files stand in a file system in memory that nobody outside sees, so that nothing is left behind.
"""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.conftest import ROOT, Result
from tinyllama import signals

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare")
PARTITIONS = ("main", "low", "high")
ACCOUNTS = ("science", "teaching")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")

_NAMESPACES = ["--net", "--mount", "--pid", "--uts"]
_HOME = Path("/run/slurm")  # seen in the namespaces only
_CONF = f"""\
ClusterName=tests
SlurmctldHost=login(10.0.0.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its old credential has expired; two minutes unless told.
AuthInfo=socket={_HOME}/munge/socket,cred_expire=5
StateSaveLocation={_HOME}/state
SlurmdSpoolDir={_HOME}/spool.%n
SlurmctldPidFile={_HOME}/slurmctld.pid
SlurmdPidFile={_HOME}/slurmd.%n.pid
SlurmctldLogFile={_HOME}/slurmctld.log
SlurmdLogFile={_HOME}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
JobSubmitPlugins=lua
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# More cores than the machine has: the nodes' word is not asked.
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
KillWait=10
MinJobAge=3600
MailProg=/bin/true
ReturnToService=2
"""
_JOB_SUBMIT = """\
local accounts = {%s}
function slurm_job_submit(job, partitions, user)
   if job.account == nil or accounts[job.account] then return slurm.SUCCESS end
   slurm.log_user("account '" .. job.account .. "' does not exist here")
   return slurm.ESLURM_INVALID_ACCOUNT
end
function slurm_job_modify(job, record, partitions, user) return slurm.SUCCESS end
return slurm
"""


class Missing(Exception):
    """This machine cannot hold such a cluster, and why."""


class Slurm:
    """The cluster, from `start` to `stop`; `shared` is a folder that all hosts see under the same path."""

    def __init__(self, shared: Path, nodes: int = 4, cpus: int = 8, gpus: int = 4):
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        # Debian keeps the daemons where only root looks.
        self._path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        self._shared, self._cpus, self._gpus = shared, cpus, gpus
        self._hosts: dict[str, tuple[subprocess.Popen[str], int]] = {}

    def start(self) -> None:
        """Raises Missing where this machine cannot hold it."""
        if absent := [name for name in PROGRAMS if not shutil.which(name, path=self._path)]:
            raise Missing(f"{', '.join(absent)} not installed (.ci/run does it)")
        if os.geteuid() != 0:
            raise Missing("namespaces of their own for the nodes need root")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """The kernel ends all that ran in the namespaces."""
        for process, first in reversed(self._hosts.values()):
            if process.poll() is None:
                os.kill(first, signal.SIGKILL)
            process.wait()
        self._hosts = {}

    # What tests ask of it

    def run(
        self,
        *command: str | Path,
        host: str = "login",
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
        timeout: float = 300,
    ) -> Result:
        """A command on a host, as a person types it there; "python" is the one of the tests."""
        done = subprocess.run(
            self.inside(*command, host=host, cwd=cwd), env={**self.env, **(env or {})}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    def shell(self, name: str, *arguments: str, timeout: float = 300) -> Result:
        """shell("train", "stage=basic") on the login host."""
        return self.run("python", "-m", f"tinyllama.{name}", *arguments, timeout=timeout)

    def inside(self, *command: str | Path, host: str = "login", cwd: Path = ROOT) -> list[str]:
        """The words that run a command on a host, for subprocess; with `env`.

        The process that they give waits for the command's own; start_new_session=True and os.killpg reach both.
        """
        program, *rest = map(str, command)
        program = sys.executable if program == "python" else program
        enter = ["nsenter", f"--target={self._hosts[host][1]}", *_NAMESPACES, "--"]
        return [*enter, "env", f"--chdir={cwd}", program, *rest]

    @property
    def env(self) -> dict[str, str]:
        """What a login shell sets here."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        return {**inherited, "PATH": self._path, "PYTHONPATH": str(ROOT), "SLURM_CONF": str(_HOME / "slurm.conf")}

    def commands(self, folder: Path) -> Path:
        """A folder for PATH, so that code in the test's own process finds sbatch and the like of this cluster."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("sbatch", "squeue", "scancel", "scontrol", "sinfo"):
            enter = " ".join(self.inside(name, cwd=Path("/"))).replace("--chdir=/", '"--chdir=$PWD"')
            script = f'#!/bin/sh\nexport SLURM_CONF={_HOME}/slurm.conf PATH="{self._path}"\nexec {enter} "$@"\n'
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        return folder

    def submit(self, *arguments: str | Path, cwd: Path = ROOT) -> str:
        """sbatch ARGUMENTS -> the job's id."""
        done = self.run("sbatch", "--parsable", *arguments, cwd=cwd)
        assert done.code == 0, done.err
        return done.out.strip().split(";")[0]

    def state(self, job: str) -> dict[str, str]:
        """All that `scontrol show job` tells of it, {} when SLURM does not know it: JobState, Reason, Restarts ...

        Of an array: its first element.
        """
        text = self.run("scontrol", "--oneliner", "show", "job", job).out.partition("\n")[0]
        return dict(re.findall(r"(\S+?)=(.*?)(?=\s+[A-Z][\w/:]*=|\s*$)", text))

    def wait(self, job: str, states: Sequence[str] = ENDED, timeout: float = 180) -> dict[str, str]:
        """Until it is in one of the states; what it is then, by `state`."""
        deadline = time.monotonic() + timeout
        while (found := self.state(job)).get("JobState") not in states:
            assert time.monotonic() < deadline, f"job {job} is not {' or '.join(states)} but {found}\n{self.logs()}"
            time.sleep(0.1)
        return found

    def jobs(self) -> dict[str, str]:
        """States of all that are queued or running, by id."""
        lines = self.run("squeue", "--noheader", "--format=%i %T").out.splitlines()
        return dict(line.split() for line in lines)

    def cancel(self, *arguments: str) -> None:
        """scancel ARGUMENTS."""
        done = self.run("scancel", *arguments)
        assert done.code == 0, done.err

    def clear(self) -> None:
        """Cancel all that is left, and wait until the nodes are free."""
        deadline = time.monotonic() + 60
        while left := self.jobs():
            self.cancel(*left)
            assert time.monotonic() < deadline, left
            time.sleep(0.02)

    def logs(self, lines: int = 15) -> str:
        """The last lines of SLURM's own logs."""
        return self.run("sh", "-c", f"tail -n {lines} {_HOME}/*.log").out

    # How it is made

    def _start(self) -> None:
        self._host("login", _NAMESPACES, [])
        hosts = ["127.0.0.1 localhost", "10.0.0.254 login", *(f"{_address(name)} {name}" for name in self.nodes)]
        self._must(
            "mount -t tmpfs -o mode=755 tmpfs /run && mkdir -p /run/slurm/munge /run/slurm/state /run/nodes && "
            f"printf '{'|'.join(hosts)}' | tr '|' '\\n' > /run/hosts && mount --bind /run/hosts /etc/hosts"
        )
        self._must(
            "ip link set lo up && ip link add bridge type bridge && ip link set bridge up && "
            "ip address add 10.0.0.254/24 dev bridge"
        )
        self._configure()
        munge = _HOME / "munge"
        self._daemon(
            "login", "munged", "--foreground", "--force", f"--socket={munge}/socket", f"--key-file={munge}/key",
            f"--log-file={_HOME}/munge.log", f"--pid-file={munge}/pid", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self._daemon("login", "slurmctld", "-D")
        for name in self.nodes:
            self._add_node(name)
        self._await_nodes()

    def _host(self, name: str, namespaces: list[str], outer: list[str]) -> None:
        """Namespaces whose first process waits for all others; when it or this test process ends, all of them do."""
        this = os.getpid()
        words = [*outer, "unshare", *namespaces, "--fork", "--kill-child", "--mount-proc", "bash", "-c"]
        script = f"hostname {name} && mount -t tmpfs tmpfs /dev/shm && echo up && while :; do sleep 3600 & wait; done"
        process = subprocess.Popen(
            [*words, script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=self.env, start_new_session=True, preexec_fn=lambda: signals.die_with(this),
        )  # fmt: skip
        assert process.stdout is not None
        if (word := process.stdout.readline()) != "up\n":
            process.wait()
            raise Missing(f"namespaces are refused: {word.strip()}")
        first = process.pid
        while Path(f"/proc/{first}/comm").read_text() != "bash\n":
            (first,) = map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())
        self._hosts[name] = (process, first)

    def _must(self, script: str, host: str = "login") -> None:
        done = self.run("sh", "-c", script, host=host, cwd=Path("/"))
        if done.code != 0:
            raise Missing(f"namespaces are refused: {done.err.strip()}")

    def _configure(self) -> None:
        """Written from outside, through the first process's view of the file system."""
        home = Path(f"/proc/{self._hosts['login'][1]}/root{_HOME}")
        nodes = [
            f"NodeName={name} NodeAddr={_address(name)} CPUs={self._cpus} RealMemory=16000 Gres=gpu:{self._gpus}"
            for name in self.nodes
        ]
        common = "Nodes=ALL State=UP MaxTime=2-0 DefaultTime=60"
        partitions = [
            f"PartitionName=main {common} Default=YES PriorityTier=1 PreemptMode=OFF",
            f"PartitionName=low {common} PriorityTier=1 PreemptMode=REQUEUE GraceTime=0",
            f"PartitionName=high {common} PriorityTier=10 PreemptMode=OFF",
        ]
        (home / "slurm.conf").write_text("\n".join([_CONF, *nodes, *partitions, ""]))
        (home / "job_submit.lua").write_text(_JOB_SUBMIT % ", ".join(f"{name} = true" for name in ACCOUNTS))
        (home / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={_HOME}/gpu[0-{self._gpus - 1}]\n")
        for number in range(self._gpus):  # the null device by another name: enough to be counted and handed out
            os.mknod(home / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (home / "munge" / "key").write_bytes(os.urandom(128))
        (home / "munge" / "key").chmod(0o400)

    def _add_node(self, name: str) -> None:
        login = self._hosts["login"][1]
        self._host(name, _NAMESPACES, ["nsenter", f"--target={login}", *_NAMESPACES, "--"])
        first = self._hosts[name][1]
        subprocess.run(
            ["nsenter", f"--target={login}", "--net", "--", "ip", "link", "add", name, "type", "veth", "peer", "name",
             "eth0", "netns", str(first)], check=True, env=self.env,
        )  # fmt: skip
        self._must(f"ip link set {name} master bridge up")
        self._must(f"ip link set lo up && ip address add {_address(name)}/24 dev eth0 && ip link set eth0 up", name)
        own, shared = f"/run/nodes/{name}", self._shared
        self._must(  # a /tmp of its own, but for what is shared
            f"mkdir {own} && mount -t tmpfs tmpfs {own} && "
            f"for folder in '{shared}' '{ROOT}' '{sys.prefix}'; do case $folder/ in /tmp/*) "
            f'inner={own}/"${{folder#/tmp/}}"; mkdir -p "$inner" && mount --bind "$folder" "$inner";; esac; done && '
            f"mount --rbind {own} /tmp",
            name,
        )
        self._daemon(name, "slurmd", "-D", "-N", name)

    def _daemon(self, host: str, *command: str) -> None:
        subprocess.Popen(
            self.inside(*command, host=host, cwd=Path("/")), env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def _await_nodes(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            done = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T")
            if done.out.split() == ["idle"] * len(self.nodes):
                return
            assert time.monotonic() < deadline, f"SLURM did not start: {done.out}{done.err}\n{self.logs()}"
            time.sleep(0.05)


def processes(*words: str | Path) -> list[int]:
    """Python's processes on whatever host, by this machine's numbers, in whose command all these words stand."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            command = path.read_bytes().decode().split("\0")
            if "python" in command[0] and {str(word) for word in words} <= set(command):
                found.append(int(path.parent.name))
    return found


def _address(node: str) -> str:
    return f"10.0.0.{node.removeprefix('n')}"
