package bench;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.util.Base64;
import java.util.BitSet;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * A consumer that runs until standard input ends. On standard output it reports
 * "first MS": when the first record came, after the start of the consumer; "at N": record N came, where the job wants a trace;
 * "threads N" for each line of input; and "closed MS RECORDS": how long closing took, and a bitmap of the handled records.
 */
final class Service {
    static void run(Job job, Main.Peer peer) throws Exception {
        var first = new AtomicBoolean();
        var handled = new BitSet();
        long began = System.nanoTime();
        AutoCloseable running = peer.start(job, job.group(), value -> {
            if (!first.getPlain() && first.compareAndSet(false, true)) {
                say("first " + millisSince(began));
            }
            int number = ByteBuffer.wrap(value).getInt(8);
            if (job.trace()) {
                say("at " + number);
            }
            if (job.work() > 0) {
                try {
                    TimeUnit.NANOSECONDS.sleep(job.work());
                } catch (InterruptedException e) {
                    Thread.currentThread().interrupt();
                    return;
                }
            }
            synchronized (handled) {
                handled.set(number);
            }
        });
        var words = new BufferedReader(new InputStreamReader(System.in));
        while (words.readLine() != null) {
            say("threads " + ManagementFactory.getThreadMXBean().getThreadCount());
        }
        long closing = System.nanoTime();
        running.close();
        double took = millisSince(closing);
        synchronized (handled) {
            say("closed " + took + " " + Base64.getEncoder().encodeToString(handled.toByteArray()));
        }
    }

    private static double millisSince(long began) {
        return (System.nanoTime() - began) / 1e6;
    }

    private static void say(String line) {
        System.out.println(line);
    }

    private Service() {}
}
