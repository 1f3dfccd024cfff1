"""The remote backend against a real server on this machine."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alignment.cli import main
from verifiers.code import code, current_backend, use_backend
from verifiers.sandbox import Job, Limits, Sandbox, SandboxError
from verifiers.sandbox.remote import RemoteSandbox
from verifiers.sandbox.server import CEILING, create_app, parse_request

pytest.importorskip("starlette", reason="needs the sandbox-server extra")
pytest.importorskip("uvicorn", reason="needs the sandbox-server extra")
TOKEN = "a-long-random-token"
PRINT = Job("program", {"source": "print(input())", "stdin": "hello"})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    try:
        Sandbox(workers=1).close()
    except SandboxError as error:
        pytest.skip(str(error))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "ALIGN_SANDBOX_TOKEN": TOKEN, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "alignment.cli", "sandbox-server", "--port", str(port), "--workers", "2"]
    process = subprocess.Popen(command, env=environment, cwd=root)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert process.poll() is None, "the server ended"
            time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(30)


@pytest.fixture
def remote(address: str) -> RemoteSandbox:
    return RemoteSandbox([address], TOKEN)


def test_remote_outcome_is_the_local_one(remote):
    with Sandbox(workers=1) as local:
        for job in (
            PRINT,
            Job("program", {"source": "1 / 0", "stdin": ""}),
            Job("program", {"source": "(", "stdin": ""}),
        ):
            there, here = remote.run(job), local.run(job)
            assert (there.status, there.exit_code, there.stdout) == (here.status, here.exit_code, here.stdout)
        assert (remote.tier, remote.find("bash"), remote.workers) == (local.tier, local.find("bash"), 2)


def test_code_verifier_runs_on_the_pool(remote):
    use_backend(remote)
    try:
        row = {"tests": ["assert f(2) == 4"]}
        answers = ["def f(x): return x * 2", "def f(x): return x + 1", "def f(x):\n    while True: pass"]
        verdicts = [code(f"```python\n{answer}\n```", {**row, "time_limit_s": 1}) for answer in answers]
        assert [v.status for v in verdicts] == ["pass", "fail", "timeout"]
    finally:
        use_backend(None)


def test_environment_names_the_servers(address, monkeypatch):
    monkeypatch.setenv("ALIGN_SANDBOX_URLS", f" {address}, {address}/")
    monkeypatch.setenv("ALIGN_SANDBOX_TOKEN", TOKEN)
    use_backend(None)
    try:
        assert code("```python\nprint(1)\n```", {"stdio": [{"stdin": "", "stdout": "1"}]}).status == "pass"
        assert isinstance(current_backend(), RemoteSandbox)
    finally:
        use_backend(None)


def test_many_threads_share_one_client(remote):
    def square(n: int) -> str:
        job = Job("program", {"source": "print(int(input()) ** 2)", "stdin": str(n)})
        return remote.run(job).stdout.decode().strip()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(square, range(32))) == [str(n * n) for n in range(32)]


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x"])
def test_wrong_token_runs_nothing(address, token):
    with pytest.raises(SandboxError, match="401"):
        RemoteSandbox([address], token)
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.request("POST", "/run", json.dumps({"jobs": [PRINT.to_json()]}), {"Authorization": f"Bearer {token}"})
    assert connection.getresponse().status == 401
    connection.close()


def test_server_without_a_token_does_not_start(monkeypatch, capsys):
    monkeypatch.delenv("ALIGN_SANDBOX_TOKEN", raising=False)
    assert main(["sandbox-server", "--workers", "1"]) == 1
    assert "ALIGN_SANDBOX_TOKEN" in capsys.readouterr().err
    with pytest.raises(ValueError, match="token"):
        create_app(None, "")  # type: ignore[arg-type]


def test_dead_server_is_passed_over(address):
    remote = RemoteSandbox([address, address], TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        dead = probe.getsockname()[1]
    remote._servers[0].parts = remote._servers[0].parts._replace(netloc=f"127.0.0.1:{dead}")
    for _ in range(3):
        assert remote.run(PRINT).stdout == b"hello\n"


def test_no_server_is_a_sandbox_error():
    with pytest.raises(SandboxError, match="does not answer"):
        RemoteSandbox(["http://127.0.0.1:9"], TOKEN)
    with pytest.raises(ValueError, match="address looks like"):
        RemoteSandbox(["somewhere"], TOKEN)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not a list of jobs"),
        (b'{"jobs": []}', "expected one job"),
        (b'{"jobs": 5}', "not a list of jobs"),
        (b"[" * 100_000, "not a list of jobs"),
        (json.dumps({"jobs": [{**PRINT.to_json(), "kind": "root"}]}).encode(), "unknown kind"),
        (json.dumps({"jobs": [PRINT.to_json(), PRINT.to_json()]}).encode(), "'serve' and 'tests'"),
        (json.dumps({"jobs": [Job("program", {}, Limits(wall_s=1e9)).to_json()]}).encode(), "'wall_s'"),
        (json.dumps({"jobs": [Job("program", {}, Limits(memory_mb=-1)).to_json()]}).encode(), "'memory_mb'"),
    ],
)
def test_bad_request_is_refused_with_a_reason(body, message):
    with pytest.raises(ValueError, match=message):
        parse_request(body)


def test_ordinary_limits_are_below_the_ceiling():
    assert parse_request(json.dumps({"jobs": [PRINT.to_json()]}).encode())[0].limits == Limits()
    assert CEILING.wall_s >= Limits().wall_s
