package bench;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AdminClientConfig;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.consumer.KafkaShareConsumer;
import org.apache.kafka.common.config.ConfigResource;

/**
 * Kafka's share groups (KIP-932), with as many consumers as partitions. Each runs the handlers of a poll on a pool of
 * threads, as many as the case says, and waits for all of them: the next poll acknowledges them.
 * The run begins when each consumer has partitions.
 */
final class Share {
    static final Main.Peer PEER = Share::start;

    private static AutoCloseable start(Job job, String group, Main.Handler handler) throws Exception {
        var stop = new AtomicBoolean();
        var joined = new CountDownLatch(1);
        var consumers = new ArrayList<Thread>();
        try (var admin = Admin.create(Map.of(AdminClientConfig.BOOTSTRAP_SERVERS_CONFIG, String.join(",", job.brokers())))) {
            var earliest = new AlterConfigOp(new ConfigEntry("share.auto.offset.reset", "earliest"), AlterConfigOp.OpType.SET);
            admin.incrementalAlterConfigs(Map.of(new ConfigResource(ConfigResource.Type.GROUP, group), List.of(earliest))).all().get();
            for (int i = 0; i < job.partitions(); i++) {
                var consumer = new Thread(() -> consume(job, group, handler, joined, stop));
                consumer.start();
                consumers.add(consumer);
            }
            while (!allAssigned(admin, job, group)) {
                Thread.sleep(50);
            }
        }
        joined.countDown();
        return () -> {
            stop.set(true);
            for (var consumer : consumers) {
                consumer.join();
            }
        };
    }

    private static boolean allAssigned(Admin admin, Job job, String group) throws Exception {
        try {
            var members = admin.describeShareGroups(List.of(group)).describedGroups().get(group).get().members();
            return members.size() == job.partitions()
                    && members.stream().noneMatch(member -> member.assignment().topicPartitions().isEmpty());
        } catch (ExecutionException notYet) {
            return false;
        }
    }

    private static void consume(Job job, String group, Main.Handler handler, CountDownLatch joined, AtomicBoolean stop) {
        var threads = Executors.newFixedThreadPool(job.concurrency());
        try (var consumer = new KafkaShareConsumer<byte[], byte[]>(Main.shared(job, group))) {
            consumer.subscribe(List.of(job.topic()));
            while (!stop.get()) {
                var records = consumer.poll(Duration.ofMillis(100));
                if (!records.isEmpty()) {
                    joined.await();
                }
                if (job.concurrency() == 1) {
                    records.forEach(record -> handler.handle(record.value()));
                    continue;
                }
                var left = new CountDownLatch(records.count());
                for (var record : records) {
                    threads.execute(() -> {
                        try {
                            handler.handle(record.value());
                        } finally {
                            left.countDown();
                        }
                    });
                }
                left.await();
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        } finally {
            threads.shutdown();
        }
    }

    private Share() {}
}
