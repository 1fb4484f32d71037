"""A TCP proxy on loopback that does to connections what networks do: cut them, delay them, swallow what is sent, refuse new ones."""
import random
import socket
import threading
import time


class Proxy:
    """Forwards its own `port` to `target`. The attributes may be changed at any time; `struck` counts what they really did."""

    def __init__(self, target):
        self.target = target
        self.delay_s = 0.0          # longest wait before a chunk goes on
        self.blackhole = False      # chunks vanish, connections stay open: only a deadline ends the call
        self.refuse = False         # new connections are closed at once
        self.struck = {"cut": 0, "delayed": 0, "swallowed": 0, "refused": 0}
        self._connections = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self.refuse:
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
                server.settimeout(None)
            except OSError:
                self.struck["refused"] += self.refuse
                client.close()
                continue
            with self._lock:
                self._connections |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        swallowing = False  # once bytes are missing, the rest of the stream is worthless
        try:
            while chunk := source.recv(1 << 18):
                if self.blackhole:
                    swallowing = True
                    self.struck["swallowed"] += 1
                if swallowing:
                    continue
                if self.delay_s > 0:
                    self.struck["delayed"] += 1
                    time.sleep(random.random() * self.delay_s)
                sink.sendall(chunk)
        except OSError:
            pass
        self._close((source, sink))

    def _close(self, sockets):
        with self._lock:
            self._connections -= set(sockets)
        for one in sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    def cut(self):
        """Ends every connection now."""
        with self._lock:
            connections = list(self._connections)
        self.struck["cut"] += len(connections) // 2
        self._close(connections)

    def close(self):
        self._listener.close()
        self.cut()
