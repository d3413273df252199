import base64
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from diveparse.engine.export import push as push_module
from diveparse.engine.export.push import push, require_account

HUB_ID = "me/dives"


class Hub(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), StandIn)
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, str]] = []


class StandIn(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for; what is uploaded lies in `server.files`."""

    server: Hub

    def do_GET(self):
        self.answer({"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = f"http://{self.headers['Host']}/{HUB_ID}"
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": address, "id": HUB_ID, "name": HUB_ID})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            self.answer({"files": [{**each, "uploadMode": "regular", "shouldIgnore": False} for each in files]})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{address}/commit/1", "commitOid": "1", "success": True})
        else:
            self.answer({"warnings": [], "errors": []})  # of the card's header

    def answer(self, content):
        refused = self.headers.get("Authorization") != "Bearer hf_right"
        body = json.dumps({"error": "Invalid username or password."} if refused else content).encode()
        self.send_response(401 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def address_of(server):
    return f"http://127.0.0.1:{server.server_port}"


def test_every_file_of_the_folder_is_uploaded(hub, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)))
    require_account(HUB_ID, address_of(hub))
    assert push(tmp_path, HUB_ID, address_of(hub)).endswith(HUB_ID)
    assert hub.files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert (hub.created[0]["name"], hub.created[0]["organization"]) == ("dives", "me")


def test_a_wrong_login_is_one_line(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for attempt, start in (
        (lambda: require_account(HUB_ID, address_of(hub)), f"cannot upload to {HUB_ID}: "),
        (lambda: push(tmp_path, HUB_ID, address_of(hub)), f"{tmp_path} is whole, but was not uploaded to {HUB_ID}: "),
    ):
        with pytest.raises(ValueError, match=re.escape(start)) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_no_login_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(ValueError, match=f"^cannot upload to {HUB_ID}: .*[Tt]oken") as caught:
        require_account(HUB_ID, "http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("hub_id", ["dives", "me/my/dives", "me/d ives", "me/"])
def test_what_is_no_id_is_refused_before_anything_is_asked(hub_id):
    with pytest.raises(ValueError, match=f"^cannot upload to {hub_id}: "):
        require_account(hub_id, "http://127.0.0.1:9")


def test_a_hub_that_cannot_be_reached_is_one_line_within_ten_seconds(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"^cannot upload to {HUB_ID}: ") as caught:
        require_account(HUB_ID, "http://127.0.0.1:9")  # nobody listens there
    assert time.monotonic() - began < 10
    assert "\n" not in str(caught.value)


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    assert push_module.LIMIT_S < 10
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setattr(push_module, "LIMIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ValueError, match=rf"^cannot upload to {HUB_ID}: no answer within 0.2 s$"):
            require_account(HUB_ID, f"http://127.0.0.1:{port}")
