"""One run of one consumer: takes the job of the Go bench from the environment, prints its result as JSON."""

import asyncio
import json
import os
import time

from faststream.kafka import KafkaBroker
from faststream.middlewares import AckPolicy

NANO = 1e-9  # durations in a job are nanoseconds, as Go writes them


class Meter:
    """Counts records from the first one to the last one, or to the end of the time."""

    def __init__(self, job: dict) -> None:
        self.records = job["Records"]
        self.work, self.spin, self.limit = (job[k] * NANO for k in ("Work", "Spin", "Limit"))
        self.count = 0
        self.gate = asyncio.Event()
        self.first, self.last = asyncio.Event(), asyncio.Event()

    async def handle(self) -> None:
        """The handler's work, the same in every consumer."""
        await self.gate.wait()
        if not self.first.is_set():
            self.cpu, self.began = time.process_time(), time.perf_counter()
            self.first.set()
        if self.work:
            await asyncio.sleep(self.work)
        if self.spin:
            end = time.perf_counter() + self.spin
            while time.perf_counter() < end:
                pass
        self.count += 1
        if self.count == self.records:
            self.last.set()

    async def result(self) -> dict:
        await self.first.wait()
        try:
            await asyncio.wait_for(self.last.wait(), self.limit or None)
        except asyncio.TimeoutError:
            pass
        took = time.perf_counter() - self.began
        cpu = time.process_time() - self.cpu
        handled = min(self.count, self.records)
        return {"Rate": handled / took, "CPUMicros": cpu * 1e6 / handled, "PeakMiB": peak_mib()}


def peak_mib() -> float:
    """The process's largest resident size; 0 where there is no /proc."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))
    except OSError:
        return 0


async def raw(msg, _original=None) -> bytes:
    return msg.body


async def main() -> None:
    job = json.loads(os.environ["ACKPOLICY_BENCH_JOB"])
    meter = Meter(job)
    everywhere = job["Concurrency"] * job["Partitions"]
    policy, workers = {
        # Workers of ACK are consumers, of which each has partitions of its own: more than partitions have nothing to do.
        "faststream ack": (AckPolicy.ACK, min(everywhere, job["Partitions"])),
        "faststream ack_first": (AckPolicy.ACK_FIRST, everywhere),
    }[job["Consumer"]]
    broker = KafkaBroker(job["Brokers"], logger=None)

    subscriber = broker.subscriber(
        job["Topic"],
        group_id=job["Group"],
        auto_offset_reset="earliest",
        ack_policy=policy,
        max_workers=workers,
        decoder=raw,  # not the default, which first tries JSON
    )

    @subscriber
    async def handle(body: bytes) -> None:
        await meter.handle()

    await broker.start()
    # The rebalances of the consumers' joining are no part of a run.
    consumers = getattr(subscriber, "consumer_subgroup", None) or [subscriber.consumer]
    while not all(c.assignment() for c in consumers):
        await asyncio.sleep(0.01)
    meter.gate.set()
    print(json.dumps(await meter.result()), flush=True)
    os._exit(0)  # what comes after the measurement is no part of it


asyncio.run(main())
