"""Clients that call a served model in a loop, without any retry."""

from __future__ import annotations

import threading
import time

import numpy as np


class Load:
    """Hospitals that ask all the time; counts answers by version and keeps whatever went wrong."""

    def __init__(self, address, model, array, wanted, clients=2):
        self.address, self.model, self.array, self.wanted, self.clients = address, model, array, wanted, clients
        self.answers, self.errors, self.stop = [], [], threading.Event()

    def ask(self):
        import tritonclient.grpc as triton

        volume = triton.InferInput("volume", self.array.shape, "UINT16")
        volume.set_data_from_numpy(self.array)
        with triton.InferenceServerClient(self.address) as client:
            while not self.stop.is_set():
                try:
                    answer = client.infer(f"{self.model}_volume", [volume])
                    version = int(answer.as_numpy("generator_version")[0])
                    difference = np.abs(answer.as_numpy("translation") - self.wanted[version]).max()
                    self.answers.append((str(version), difference))
                    time.sleep(0.005)
                except Exception as error:
                    self.errors.append(str(error))

    def __enter__(self):
        self.threads = [threading.Thread(target=self.ask) for _ in range(self.clients)]
        for thread in self.threads:
            thread.start()
        self.wait_for_answers()
        return self

    def wait_for_answers(self, more=6):
        goal, end = len(self.answers) + more, time.monotonic() + 30
        while len(self.answers) < goal and time.monotonic() < end:
            time.sleep(0.01)

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    @property
    def versions(self):
        return {version for version, _ in self.answers}

    @property
    def lost_nothing(self):
        return not self.errors and len(self.answers) > 12 and max(d for _, d in self.answers) < 0.55
