package bench;

import java.util.concurrent.locks.LockSupport;
import org.springframework.kafka.core.DefaultKafkaConsumerFactory;
import org.springframework.kafka.listener.ConcurrentMessageListenerContainer;
import org.springframework.kafka.listener.ContainerProperties;
import org.springframework.kafka.listener.ContainerProperties.AckMode;
import org.springframework.kafka.listener.MessageListener;

/**
 * Spring Kafka's listener container, with a consumer a partition: it handles one record at a time in each.
 * It begins when each consumer has its partition, so that the rebalances of their joining are no part of a run.
 */
final class Spring {
    static final Main.Peer RECORD = (job, group, handler) -> start(AckMode.RECORD, job, group, handler);
    static final Main.Peer BATCH = (job, group, handler) -> start(AckMode.BATCH, job, group, handler);

    private static AutoCloseable start(AckMode mode, Job job, String group, Runnable handler) {
        var properties = new ContainerProperties(job.topic());
        properties.setAckMode(mode);
        properties.setMessageListener((MessageListener<byte[], byte[]>) record -> handler.run());
        var container = new ConcurrentMessageListenerContainer<>(
                new DefaultKafkaConsumerFactory<byte[], byte[]>(Main.config(job, group)), properties);
        container.setConcurrency(job.partitions());
        container.pause(); // paused, they join the group and get no record
        container.start();
        while (container.getContainers().stream().anyMatch(c -> c.getAssignedPartitions().isEmpty())) {
            LockSupport.parkNanos(10_000_000);
        }
        container.resume();
        return container::stop;
    }

    private Spring() {}
}
