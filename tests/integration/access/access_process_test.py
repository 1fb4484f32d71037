"""Ownership with real processes: two memory servers over mutual TLS, `membank bank owner|block|unblock|purge` with certificates made by openssl. Changes
survive kill -9, strangers are refused."""
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from testing import local_cluster  # noqa: E402

SPEC = {"anchor_fingerprint": "aa", "bank_id": "owned", "dtype": "F32", "fan_out": 4, "hidden": 16, "layers": 2, "seed": 11, "tree_fingerprint": "bb",
        "type": "ffn", "widths": [8, 4]}


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Access(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory(prefix="membank-access-")
        self.root = pathlib.Path(self.scratch.name)
        self.running = {}
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=authority",
                "-keyout", self.root / "ca.key", "-out", self.root / "ca.crt")
        for name, names in (("server", "DNS:localhost"), ("admin", "URI:spiffe://t/admin"), ("alice", "URI:spiffe://t/alice"), ("eve", "DNS:eve.test")):
            (self.root / f"{name}.ext").write_text(f"subjectAltName={names}\n")
            openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}", "-keyout", self.root / f"{name}.key",
                    "-out", self.root / f"{name}.csr")
            openssl("x509", "-req", "-in", self.root / f"{name}.csr", "-CA", self.root / "ca.crt", "-CAkey", self.root / "ca.key", "-CAcreateserial", "-days",
                    "2", "-extfile", self.root / f"{name}.ext", "-out", self.root / f"{name}.crt")
        (self.root / "spec.json").write_text(json.dumps(SPEC))
        self.ports = dict(zip(("m0", "m1"), local_cluster.free_ports(2)))
        servers = [word for name, port in self.ports.items() for word in ("--server", f"{name}=localhost:{port}")]
        local_cluster.membank("bank", "slots", "init", *servers, "--output", self.root / "slots.json")
        for name in self.ports:
            self.start(name)

    def tearDown(self):
        for process in self.running.values():
            process.kill()
            process.wait()
        self.scratch.cleanup()

    def start(self, name):
        ready = self.root / f"{name}.ready"
        ready.unlink(missing_ok=True)
        with open(self.root / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                [local_cluster.BINARIES / "membank-memory-server", "--server-id", name, "--listen", f"localhost:{self.ports[name]}", "--admin-listen", "",
                 "--data-dir", self.root / name, "--bank-spec", self.root / "spec.json", "--slot-map", self.root / "slots.json", "--ready-file", ready,
                 "--tls-certificate", self.root / "server.crt", "--tls-key", self.root / "server.key", "--tls-authority", self.root / "ca.crt",
                 "--administrators", "spiffe://t/admin"], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not ready.exists():
            self.assertTrue(self.running[name].poll() is None and time.monotonic() < deadline, (self.root / f"{name}.log").read_text()[-2000:])
            time.sleep(0.02)

    def bank(self, who, *arguments, expect=0):
        result = local_cluster.membank("bank", *arguments, "--slot-map", self.root / "slots.json", "--tls-certificate", self.root / f"{who}.crt", "--tls-key",
                                       self.root / f"{who}.key", "--tls-authority", self.root / "ca.crt", expect=expect)
        return result.stdout if expect == 0 else result.stderr

    def table(self):
        return json.loads(self.bank("eve", "owner", "list", "--json"))

    def test_owner_block_purge(self):
        self.assertEqual(self.table(), {"epoch": 0, "rules": []})
        self.bank("admin", "owner", "set", "1", "--owner", "spiffe://t/alice", "--reader", "eve.test")
        self.assertIn("is neither its owner", self.bank("eve", "block", "1.2", expect=1))
        self.assertIn("none of --administrators", self.bank("alice", "owner", "set", "2", "--owner", "spiffe://t/alice", expect=1))
        self.assertIn("no prefix of the tree", self.bank("alice", "block", "1.7", expect=1))
        self.bank("alice", "block", "1.2")
        for process in self.running.values():
            process.send_signal(signal.SIGKILL)
            process.wait()
        for name in self.ports:
            self.start(name)
        table = self.table()
        self.assertEqual([(rule["level"], rule["cluster"], rule["owner"], rule["readers"], rule["blocked"]) for rule in table["rules"]],
                         [(1, 1, "spiffe://t/alice", ["eve.test"], False), (2, 6, "", [], True)])
        self.assertIn("purged 1:", self.bank("alice", "purge", "1"))
        self.assertIn("is neither its owner", self.bank("eve", "purge", "1", expect=1))
        self.bank("alice", "unblock", "1")
        epochs = [json.loads((self.root / name / "access.json").read_text())["epoch"] for name in self.ports]
        self.assertEqual(epochs, [self.table()["epoch"]] * 2)


if __name__ == "__main__":
    unittest.main()
