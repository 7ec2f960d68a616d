"""What the Hub gets: a stand-in on loopback takes it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from rllib_weighted import load_policy
from rllib_weighted.cli import InputError, hub
from rllib_weighted.cli.hub import model_card, push_checkpoint
from tests.checkpoints import recorded_config, write_checkpoint
from tests.cli.test_main import failed, rllib

ROW = {
    "training_iteration": 12,
    "num_env_steps_sampled_lifetime": 4800.0,
    "merge": {"episode_return_mean": 17.25},
    "config": {
        "env": "Corridor-v0",
        "merge_strategy": "reward_weighted",
        "min_weight": None,
        "seed": 3,
        "lr": 0.001,
        "log_level": "WARN",
    },
}


class FakeHub(ThreadingHTTPServer):
    """Answers as the Hub does, to those with the token, and keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: FakeHub

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        if self.headers.get("Authorization") != "Bearer of-the-test":
            self._answer(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer(200, {"url": f"{self.server.url}/somebody/corridor"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif self.path.endswith("/commit/main"):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.files[entry["value"]["path"]] = content
            url = f"{self.server.url}/somebody/corridor/commit/1"
            self._answer(200, {"success": True, "commitUrl": url, "commitOid": "1"})
        else:
            self._answer(200, {})

    def do_GET(self) -> None:
        self._answer(401, {"error": "Invalid credentials"})

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline() or b"0", 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        return found

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        """Stays quiet."""


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    constants = pytest.importorskip("huggingface_hub.constants")
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)  # Read from HF_ENDPOINT, once.
    monkeypatch.setenv("HF_TOKEN", "of-the-test")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "trial" / "checkpoint_000000"
    write_checkpoint(folder, recorded_config())
    return folder


def test_a_checkpoint_arrives_whole(fake_hub: FakeHub, checkpoint: Path, tmp_path: Path) -> None:
    url = push_checkpoint(checkpoint, "somebody/corridor", private=True)
    assert url == f"{fake_hub.url}/somebody/corridor"
    (created,) = fake_hub.created
    assert (created["name"], created["visibility"]) == ("corridor", "private")
    for name, content in fake_hub.files.items():
        file = tmp_path / "downloaded" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    obs = [0.5, 5.0, -3.0]
    downloaded = load_policy(tmp_path / "downloaded" / "checkpoint")
    assert downloaded(obs).tolist() == load_policy(checkpoint)(obs).tolist()
    assert (tmp_path / "downloaded" / "README.md").read_text().startswith("---\n")


def test_the_card_says_what_the_records_say() -> None:
    card = model_card("somebody/corridor", ROW)
    _, head, body = card.split("---\n", 2)
    metadata = yaml.safe_load(head)
    (model,) = metadata["model-index"]
    assert model["name"] == "corridor"
    assert model["results"][0]["metrics"][0]["value"] == 17.25
    assert "Corridor-v0" in metadata["tags"]
    assert "# WeightedPPO on Corridor-v0" in body
    assert "gradients merged by `reward_weighted`" in body
    for row in ("| Environment steps | 4,800 |", "| Rounds | 12 |", "| Seed | 3 |"):
        assert row in body
    assert "Minimum weight" not in body  # The default says nothing.
    assert 'snapshot_download("somebody/corridor") + "/checkpoint"' in body
    assert '"lr": 0.001' in body
    assert "log_level" not in body


def test_a_card_without_records() -> None:
    card = model_card("somebody/corridor", {})
    assert "model-index" not in card
    assert "# PPO on an environment" in card
    assert "None" not in card


def test_a_token_is_needed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    message = failed(rllib("push-to-hub", checkpoint, "somebody/corridor"))
    assert "found none: set HF_TOKEN, or run `hf auth login`" in message


def test_a_hub_that_refuses(
    fake_hub: FakeHub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(InputError, match=r"has not taken somebody/corridor: .*401") as caught:
        push_checkpoint(checkpoint, "somebody/corridor")
    assert "another" not in str(caught.value)
    assert fake_hub.files == {}


def test_bad_input(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "must be named OWNER/NAME; found 'corridor'" in failed(
        rllib("push-to-hub", checkpoint, "corridor")
    )
    (tmp_path / "empty").mkdir()
    assert "is no checkpoint" in failed(rllib("push-to-hub", tmp_path / "empty", "a/b"))
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    assert 'pip install "rllib-weighted[hub]"' in failed(rllib("push-to-hub", checkpoint, "a/b"))
