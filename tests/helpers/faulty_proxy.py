"""A proxy in front of a server, which refuses, hangs, slows down or loses answers."""

import contextlib
import socket
import threading
import time


class Proxy:
    """127.0.0.1:port -> the server, in one of these modes: pass, refuse, hang, slow, lose answers.

    slow: data are held until the mode is set again, to slow or another one.
    """

    def __init__(self, server: int) -> None:
        self.server, self.mode, self.met, self.turn = server, "pass", 0, 0
        """met: number of disturbed requests and answers; turn: how often the mode was set"""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set(self, mode: str) -> None:
        self.mode = mode
        self.turn += 1

    def _accept(self) -> None:
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self.mode == "refuse":
                self.met += 1
            else:
                with socket.create_connection(("127.0.0.1", self.server)) as server:
                    back = threading.Thread(target=self._pump, args=(server, client, True), daemon=True)
                    back.start()
                    self._pump(client, server, False)
                    back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        """Connections stay open between requests, so the mode is checked for each piece of data."""
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._hold()
                if self.mode == "refuse" or (self.mode == "lose answers" and is_answer):
                    self.met += 1
                    break
                sink.sendall(data)
            source.shutdown(socket.SHUT_RDWR)
            sink.shutdown(socket.SHUT_RDWR)

    def _hold(self) -> None:
        turn = self.turn
        if self.mode in ("hang", "slow"):
            self.met += 1
        while self.mode == "hang" or (self.mode == "slow" and self.turn == turn):
            time.sleep(0.01)
