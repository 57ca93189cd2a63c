"""Two machines, simulated by two network namespaces that only a cable (a veth pair) connects.

Each has its own name, its own addresses and one core, and resolves its own name to 127.0.1.1, as Debian does.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from launching import (
    TIMEOUT,
    adapter,
    assert_same_training,
    command_line,
    launcher,
    lora_dist,
    metrics,
    start,
    train_arguments,
    workers,
)

pytestmark = [pytest.mark.launched, pytest.mark.slow, pytest.mark.timeout(900)]

DECODING = ("--decode.num-beams", 3, "--decode.max-new-tokens", 12, "--decode.batch-tokens", 250, "--decode.limit", 11)
END_SECONDS = 60  # in which both launchers have to end once a process of one of them was killed
Result = tuple[int, str]


@dataclass(frozen=True)
class Host:
    """A network namespace with one end of the cable."""

    name: str
    address: str
    core: int

    @property
    def cable(self) -> str:
        return f"v{self.name}"

    def run(self, *command: str) -> str:
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *command], check=True, capture_output=True, text=True
        ).stdout

    def sent(self) -> int:
        """Bytes that this host has sent through the cable."""
        return int(self.run("cat", f"/sys/class/net/{self.cable}/statistics/tx_bytes"))

    def begin(self, *arguments: object, launcher: tuple[str, ...], hidden: Path | None = None) -> subprocess.Popen[str]:
        """Start a command of the package; the folder `hidden` is empty on this host."""
        steps = [f"echo {self.name} > /proc/sys/kernel/hostname"]
        steps += [] if hidden is None else [f"mount -t tmpfs none {hidden}"]  # ip netns exec has its own mounts
        steps += [f'exec taskset --cpu-list {self.core} "$@"']
        here = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", " && ".join(steps), "sh"]
        return start([*here, *command_line(*arguments, launcher=launcher)])


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    if missing := [tool for tool in ("ip", "unshare", "taskset") if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)} (Debian: iproute2, util-linux)")
    tag, cores = uuid4().hex[:8], sorted(os.sched_getaffinity(0))
    first = Host(f"{tag}a", "10.77.0.1", cores[0])
    second = Host(f"{tag}b", "10.77.0.2", cores[-1])
    try:
        try:
            _connect(first, second)
        except (subprocess.CalledProcessError, PermissionError) as error:
            pytest.skip(f"needs the right to make network namespaces: {getattr(error, 'stderr', None) or error}")
        yield first, second
    finally:
        for host in (first, second):
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True, check=False)
            shutil.rmtree(_etc(host), ignore_errors=True)


def _etc(host: Host) -> Path:
    """Files that ip netns exec mounts over those of /etc."""
    return Path("/etc/netns") / host.name


def _connect(first: Host, second: Host) -> None:
    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    for host in (first, second):
        ip("netns", "add", host.name)
    ends = [("name", host.cable, "netns", host.name) for host in (first, second)]
    ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
    for host, other in ((first, second), (second, first)):
        _etc(host).mkdir(parents=True)
        names = {"127.0.0.1": "localhost", "127.0.1.1": host.name, other.address: other.name}
        (_etc(host) / "hosts").write_text("".join(f"{address} {name}\n" for address, name in names.items()))
        (_etc(host) / "resolv.conf").write_text("")
        ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.cable)
        for interface in ("lo", host.cable):
            ip("-n", host.name, "link", "set", interface, "up")
        ip("-n", host.name, "route", "add", "default", "via", other.address)


@contextmanager
def launched(
    hosts: tuple[Host, Host],
    *arguments: object,
    config: str = "multi_node.yaml",
    processes: int = 2,
    hidden: Path | None = None,
) -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    """The same command on both hosts, as in the README; only the first sees the folder `hidden`."""

    def on(rank: int) -> subprocess.Popen[str]:
        where = ("--num_machines", "2", "--machine_rank", str(rank), "--main_process_ip", hosts[0].name)
        flags = (*launcher(config, processes), *where, "--main_process_port", "29500")
        return hosts[rank].begin(*arguments, launcher=flags, hidden=hidden if rank == 1 else None)

    started = (on(0), on(1))
    try:
        yield started
    finally:
        for process in started:
            for worker in workers(process) if process.poll() is None else ():
                worker.kill()
            process.kill()
            process.wait()


def results(started: tuple[subprocess.Popen[str], ...], seconds: float) -> list[Result]:
    """Exit code and output of each process, which have to end within `seconds`."""
    deadline, found = time.monotonic() + seconds, []
    for process in started:
        output, errors = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        found.append((process.returncode, output + errors))
    return found


@pytest.fixture(scope="module")
def one_process(tiny_gpt2: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    lora_dist("run", *train_arguments(tiny_gpt2, corpus), *DECODING, "--out", out)
    return out


@pytest.mark.parametrize(
    ("config", "on_one_host", "processes"),
    [("multi_node.yaml", "ddp.yaml", 2), ("multi_node.yaml", "ddp.yaml", 4), ("zero2.yaml", "zero2.yaml", 2)],
)
def test_two_hosts_train_and_decode_what_one_host_does(
    config: str,
    on_one_host: str,
    processes: int,
    hosts: tuple[Host, Host],
    tiny_gpt2: Path,
    corpus: Path,
    one_process: Path,
    tmp_path: Path,
) -> None:
    out, single = tmp_path / "two", tmp_path / "one"
    command = ["run", *train_arguments(tiny_gpt2, corpus), *DECODING, "--out"]
    before = [host.sent() for host in hosts]
    with launched(hosts, *command, out, config=config, processes=processes) as started:
        for code, output in results(started, TIMEOUT):
            assert code == 0, output
    sent = [host.sent() - count for host, count in zip(hosts, before, strict=True)]
    # In each step each host sends at least its own gradient to the other.
    gradients = adapter(out).numel() * 4 * len(metrics(out, "lr"))
    assert min(sent) >= gradients
    lora_dist(*command, single, launcher=launcher(on_one_host, processes))
    for other in (single, one_process):
        assert_same_training(out, other)
        assert (out / "decode" / "outputs.txt").read_bytes() == (other / "decode" / "outputs.txt").read_bytes()
    by_two_hosts = (out / "decode" / "outputs.jsonl").read_bytes()
    shutil.rmtree(out / "decode")
    lora_dist("decode", out, "--device", "cpu")
    assert (out / "decode" / "outputs.jsonl").read_bytes() == by_two_hosts  # the scores too, as the adapter is the same


def wait_for(file: Path) -> None:
    """Wait until a file is not empty."""
    deadline = time.monotonic() + TIMEOUT
    while not file.is_file() or not file.stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("stage", ["training", "decoding"])
def test_a_rank_killed_on_the_second_host_ends_both_launchers(
    stage: str, hosts: tuple[Host, Host], tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    epochs = ("--train.epochs", 1000 if stage == "training" else 1)
    beams = ("--decode.num-beams", 10, "--decode.max-new-tokens", 48, "--decode.batch-tokens", 1)
    with launched(hosts, "run", *train_arguments(tiny_gpt2, corpus), *epochs, *beams, "--out", out) as started:
        wait_for(out / ("metrics.jsonl" if stage == "training" else "decode/ledger/rank-0001.jsonl"))
        (victim,) = workers(started[1])
        victim.kill()
        ended = results(started, END_SECONDS)
    for code, output in ended:
        assert code != 0, output
    assert not (out / "decode" / "outputs.jsonl").exists()


def test_a_cut_cable_ends_both_launchers(
    hosts: tuple[Host, Host], tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["train", *train_arguments(tiny_gpt2, corpus), "--train.epochs", 1000, "--hang-timeout", 20, "--out", out]
    with launched(hosts, *command) as started:
        wait_for(out / "metrics.jsonl")
        hosts[1].run("ip", "link", "set", hosts[1].cable, "down")
        ended = results(started, END_SECONDS)
    for rank, (code, output) in enumerate(ended):
        assert code != 0, output
        assert f"rank {rank} of 2 has made no progress for 20 s" in output


@pytest.mark.parametrize("what", ["train", "decode"])
def test_a_run_directory_that_the_second_host_does_not_share_is_refused(
    what: str, hosts: tuple[Host, Host], tiny_gpt2: Path, corpus: Path, one_process: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    if what == "decode":
        shutil.copytree(one_process, out)
    left = sorted(tmp_path.rglob("*"))
    command = ["train", *train_arguments(tiny_gpt2, corpus), "--out", out] if what == "train" else ["decode", out]
    with launched(hosts, *command, hidden=tmp_path) as started:
        ended = results(started, TIMEOUT)
    problem = f"lora-dist: --out {out} of {hosts[0].name} is not the same folder on {hosts[1].name}: "
    for code, output in ended:
        assert code != 0, output
        assert problem in output
    assert set(tmp_path.rglob("*")) - {out} <= set(left)  # at most an empty folder
