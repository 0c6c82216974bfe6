package bench;

import com.sun.management.OperatingSystemMXBean;
import java.lang.management.ManagementFactory;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;

/** Counts records from the first one to the last one, or to the end of the time. */
final class Meter {
    private static final OperatingSystemMXBean OS =
            (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();

    private final Job job;
    private final long limit;
    private final AtomicLong count = new AtomicLong();
    private final AtomicBoolean begun = new AtomicBoolean();
    private final CountDownLatch first = new CountDownLatch(1);
    private final CountDownLatch last = new CountDownLatch(1);
    private long began, took, cpu, handled;

    Meter(Job job, long limit) {
        this.job = job;
        this.limit = limit;
    }

    /** The handler's work, the same in every consumer. */
    void handle() {
        if (!begun.getPlain() && begun.compareAndSet(false, true)) {
            cpu = OS.getProcessCpuTime();
            began = System.nanoTime();
            first.countDown();
        }
        if (job.work() > 0) {
            try {
                TimeUnit.NANOSECONDS.sleep(job.work());
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
                return;
            }
        }
        if (job.spin() > 0) {
            long start = System.nanoTime();
            while (System.nanoTime() - start < job.spin()) {
                Thread.onSpinWait();
            }
        }
        if (count.incrementAndGet() == job.records()) {
            last.countDown();
        }
    }

    void await() throws InterruptedException {
        first.await();
        if (limit > 0) {
            last.await(limit, TimeUnit.NANOSECONDS);
        } else {
            last.await();
        }
        took = System.nanoTime() - began;
        cpu = OS.getProcessCpuTime() - cpu;
        handled = Math.min(count.get(), job.records());
    }

    double rate() {
        return handled * 1e9 / took;
    }

    double cpuMicros() {
        return cpu / 1e3 / handled;
    }
}
